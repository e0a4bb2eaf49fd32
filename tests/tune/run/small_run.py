"""A plain training loop of a small model, whose losses depend on every generator of random numbers.

As a program it is given a folder and a number of steps, and goes on from the last checkpoint there.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corral.model.llama import Llama
from corral.tune.config import OptimizerConfig, ScheduleConfig
from corral.tune.examples import Example, Item
from corral.tune.feed import Feed, FeedOptions, Position
from corral.tune.loop import Loop
from corral.tune.network import Network
from corral.tune.objectives.sft import SFT
from corral.tune.optimizer import Optimizer
from corral.tune.saving import Checkpoints, Standing
from corral.tune.schedule import Schedule
from tests.random_models import SMALL, random_model

IDENTITY: dict[str, Any] = {"parameters": {"rank": 16, "targets": "all-linear"}, "rows of the data": "1f"}
STEPS = 40


def documents(count: int = 24) -> list[Item]:
    generator = np.random.default_rng(5)
    items: list[Item] = []
    for length in generator.integers(4, 30, count):
        tokens = generator.integers(0, SMALL.vocab_size, length).astype(np.int32)
        items.append(Example(tokens, np.arange(length) > 1))
    return items


class SmallRun:
    """A model in training, its optimizer and its checkpoints."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, **checkpoints: Any) -> None:
        self.model: Llama = random_model(SMALL).to(dtype).requires_grad_(True)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = Optimizer(self.parameters, OptimizerConfig(weight_decay=0.1))
        identity = {**IDENTITY, **checkpoints.pop("identity", {})}
        self.checkpoints = Checkpoints(folder / "checkpoints", identity, **checkpoints)
        items = documents()
        options = FeedOptions(2, 2, max_length=64, packing=True, seed=3)
        self.feed = Feed(items, [len(item) for item in items], options)
        self.loop = Loop(Network(self.model), SFT(), list(self.parameters.values()), self.optimizer)
        self.schedule = Schedule.of(ScheduleConfig(), STEPS)
        self.standing = Standing(0, Position())
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(11)

    def resume(self) -> SmallRun:
        step = self.checkpoints.latest()
        if step is not None:
            self.standing = self.checkpoints.restore(step, self.parameters, self.optimizer)
        return self

    def train(self, until: int, *, every: int = 0) -> list[float]:
        """The losses of the steps up to one, with a checkpoint every so many."""
        losses: list[float] = []
        steps = self.feed.steps(self.standing.position)
        while self.standing.step < until:
            step = next(steps)
            lr = 1e-2 * self.schedule(self.standing.step)
            lr *= 1 + random.random() + np.random.standard_normal() / 9 + float(torch.rand(()))
            measures, _ = self.loop.step(step, lr)
            losses.append(measures.loss)
            tokens = self.standing.counters.get("tokens", 0) + measures.tokens
            self.standing = Standing(self.standing.step + 1, step.after, {"tokens": tokens})
            self.log(measures.loss)
            if every and self.standing.step % every == 0:
                self.save()
        return losses

    def save(self, loss: float | None = None) -> Path:
        return self.checkpoints.save(self.standing, self.parameters, self.optimizer, loss)

    def log(self, loss: float) -> None:
        """Overridden by the program."""


class Logged(SmallRun):
    """Writes a line for each step."""

    file: Path

    def log(self, loss: float) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps([self.standing.step, loss.hex()]) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run = Logged(folder)
    run.file = folder / "losses.jsonl"
    run.resume().train(int(sys.argv[2]), every=1)
