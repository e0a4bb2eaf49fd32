"""Runs of three steps, by one process or by several: the same, if all is well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.scale.filling import fill
from corral.scale.processes import Processes
from corral.scale.sharding import shard
from corral.scale.tensor_parallel import split
from corral.scale.tensors import whole_of
from corral.tune.activations import checkpoint_activations
from corral.tune.batch import Batch
from corral.tune.config import OptimizerConfig, ParametersConfig
from corral.tune.examples import Example, Item
from corral.tune.feed import Feed, FeedOptions, Step
from corral.tune.loop import Loop
from corral.tune.network import Network
from corral.tune.objectives.objective import Objective
from corral.tune.objectives.sft import SFT
from corral.tune.optimizer import Optimizer
from corral.tune.parameters.adapters import Adapters
from corral.tune.parameters.full import full
from tests.random_models import random_model

UNEVEN = LlamaConfig(
    vocab_size=127,
    hidden_size=30,
    intermediate_size=42,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=64,
    dtype="float32",
)
"""Rows that neither 2 nor 4 processes can share evenly."""
TIED = replace(UNEVEN, vocab_size=128, hidden_size=32, tie_word_embeddings=True, attention_bias=True)
OPTIMIZER = OptimizerConfig(weight_decay=0.1, max_grad_norm=0.05, eps=1e-4)
LR = 1e-2


@dataclass(frozen=True)
class Case:
    """How a run is spread, and what it trains."""

    model: LlamaConfig
    method: str = "full"
    sharded: bool = False
    tensor: int = 1
    checkpointing: str = "none"
    offload: bool = False
    dtype: torch.dtype = torch.float32
    targets: str = "all-linear"


@dataclass(frozen=True)
class Outcome:
    """What came of it: of each step loss and norm; whole gradients of the first, and weights of the last."""

    losses: list[float]
    norms: list[float]
    tokens: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


class Seen:
    """An optimizer that keeps the whole gradients of its first step."""

    def __init__(self, inner: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        self.inner, self._parameters = inner, parameters
        self.gradients: dict[str, Tensor] = {}

    def step(self, lr: float) -> float:
        if not self.gradients:
            grads = {name: p.grad for name, p in self._parameters.items()}
            self.gradients = {name: whole_of(g).clone() for name, g in grads.items() if g is not None}
        return self.inner.step(lr)

    def zero_grad(self) -> None:
        self.inner.zero_grad()


class Run:
    """A run that is ready to step."""

    def __init__(self, case: Case, processes: Processes | None = None, seed: int = 0) -> None:
        self.model = build(case, processes, seed)
        project: dict[str, Any] = {}
        self.parameters: dict[str, Tensor]
        if case.method == "full":
            self.parameters = dict(full(self.model))
        else:
            config = ParametersConfig(rank=4, targets=case.targets)
            adapters = Adapters.new(self.model, config, torch.Generator().manual_seed(seed + 1))
            for name, parameter in adapters.named_parameters():
                if name.endswith("lora_B"):
                    with torch.no_grad():
                        parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(seed + 2))
            project = {"project": adapters, "adapts_head": adapters.adapts_head}
            self.parameters = dict(adapters.named_parameters())
        checkpoint_activations(self.model, case.checkpointing)
        self.model.train()
        self.optimizer = Optimizer(self.parameters, OPTIMIZER)
        self.seen = Seen(self.optimizer, self.parameters)
        self.network = Network(self.model, loss_chunk=16, **project)
        self.processes = processes

    def batch(self) -> Batch:
        """Some rows."""
        return SFT().collate(documents(2))

    def steps(self, count: int, start: int = 0, objective: Objective | None = None) -> Outcome:
        """So many steps, after some that are passed over."""
        loop = Loop(
            self.network, objective or SFT(), list(self.parameters.values()), self.seen, self.processes
        )
        done = [loop.step(step, LR) for step in islice(feed(self.processes), start, start + count)]
        return Outcome(
            [measures.loss for measures, _ in done],
            [norm for _, norm in done],
            [measures.tokens for measures, _ in done],
            self.seen.gradients,
            {name: whole_of(parameter).clone() for name, parameter in self.parameters.items()},
        )


def build(case: Case, processes: Processes | None, seed: int) -> Llama:
    """The model, whole or spread."""
    whole = random_model(case.model, seed if case.method == "full" else 0).to(case.dtype)
    if processes is None or not (case.sharded or case.tensor > 1):
        return whole
    model = Llama.on_meta(case.model)
    frequencies = model.inverse_frequencies
    model.to(case.dtype)
    model.inverse_frequencies = frequencies
    split(model, processes.tensor)
    if case.sharded:
        shard(model, processes.data, offload=case.offload)
    fill(model, whole.named_parameters(), processes.device, offload=case.offload)
    return model.requires_grad_(False)


def feed(processes: Processes | None) -> Iterator[Step]:
    """Steps of four microbatches, however many share them; the third of an epoch has three only."""
    rank, size = (processes.rank, processes.size) if processes else (0, 1)
    items = documents(22)
    options = FeedOptions(batch_size=2, accumulation=4 // size, max_length=64, shuffle=False)
    return Feed(items, [len(item) for item in items], options, rank=rank, ranks=size).steps()


def documents(count: int) -> list[Item]:
    """Of uneven lengths, with uneven shares of trained tokens."""
    random = np.random.default_rng(0)
    items: list[Item] = []
    for length in random.integers(3, 20, count):
        trained = random.random(length) < random.random()
        trained[0], trained[-1] = False, True
        items.append(Example(random.integers(0, 120, length).astype(np.int32), trained))
    return items
