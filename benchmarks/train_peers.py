"""Training beside TRL: the same model, rows and settings, each in a process of its own, in turn.

    pip install trl peft datasets
    python benchmarks/train_peers.py [--model MODEL] [--method lora full] [--rounds 2] [--steps 6]

Rows have exactly `--length` tokens, all of them trained, and a step is one microbatch, so that neither side
computes padding. Both train in bfloat16 with AdamW whose moments are bfloat16 too, as TRL's are with such
weights (`--states float32` has Corral keep float32 moments and weights); LoRA has rank 16 on all linear
layers. Corral keeps all activations, as it does by default; TRL computes them again, which is its default
(`--trl-keeps` turns that off).

Prints tokens per second, medians over the steps after the first two, the peak of resident memory, and the
ratios Corral / TRL. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from corral.model.presets import DEFAULT_MODEL


def main() -> None:
    options = parse()
    if options.side is not None:
        SIDES[options.side](options)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        subprocess.run(
            [sys.executable, "-m", "corral", "export", options.model, str(folder)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for method in options.method:
            figures: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
            for _ in range(options.rounds):
                for side, found in figures.items():
                    found.append(measure(side, method, folder, options))
            show(method, figures)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--method", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--checkpointing", default="none", help="Corral's: none, selective or full")
    parser.add_argument(
        "--states", default="bfloat16", help="Corral's moments; TRL's are of the model's type"
    )
    parser.add_argument("--trl-keeps", action="store_true", help="TRL keeps all activations too")
    parser.add_argument("--side", choices=["corral", "trl"], help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(side: str, method: str, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Tokens per second and peak memory in GB of one side, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--method", method, "--model", str(folder)]
    for name in ("steps", "length", "batch", "checkpointing", "states"):
        command += [f"--{name}", str(getattr(options, name))]
    if options.trl_keeps:
        command.append("--trl-keeps")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    speed, memory = json.loads(done.stdout.splitlines()[-1])
    return speed, memory


def show(method: str, figures: dict[str, list[tuple[float, float]]]) -> None:
    medians = {
        side: [statistics.median(column) for column in zip(*found, strict=True)]
        for side, found in figures.items()
    }
    for side, (speed, memory) in medians.items():
        print(f"{method:5} {side:7} {speed:7.1f} tokens/s {memory:6.2f} GB")
    (speed, memory), (peer_speed, peer_memory) = medians["corral"], medians["trl"]
    print(f"{method:5} ratio   {speed / peer_speed:7.2f} speed    {memory / peer_memory:6.2f} memory\n")


def rows(options: argparse.Namespace) -> list[list[int]]:
    """Tokens of no meaning, the same for both sides."""
    import numpy as np

    random = np.random.default_rng(0)
    shape = (options.batch * options.steps, options.length)
    return [[int(token) for token in row] for row in random.integers(100, 40_000, shape)]


def corral_side(options: argparse.Namespace) -> None:
    from contextlib import ExitStack

    import numpy as np
    import torch

    from corral.checkpoints.source import open_model
    from corral.tune.config_file import read_config
    from corral.tune.examples import Example
    from corral.tune.feed import Feed, FeedOptions
    from corral.tune.loop import Loop
    from corral.tune.objectives.sft import SFT
    from corral.tune.optimizer import Optimizer
    from corral.tune.subject import load_subject

    (method,) = options.method
    settings = [
        f"parameters.method={method}",
        f"compute.checkpointing={options.checkpointing}",
        f"optimizer.states={options.states}",
    ]
    config = read_config(None, ["data.train=none", *settings])
    items = [Example(np.array(row, dtype=np.int32), np.arange(len(row)) > 0) for row in rows(options)]
    feed = Feed(items, [options.length] * len(items), FeedOptions(options.batch, 1, options.length))
    with ExitStack() as stack:
        checkpoint = open_model(options.model)
        device = torch.device("cpu")
        subject = load_subject(config, checkpoint, device, torch.bfloat16, options.length, None, stack)
        optimizer = Optimizer(subject.parameters, config.optimizer)
        loop = Loop(subject.network, SFT(), list(subject.parameters.values()), optimizer)
        ends = [time.perf_counter()]
        for step, _ in zip(feed.steps(), range(options.steps), strict=False):
            loop.step(step, 1e-5)
            ends.append(time.perf_counter())
    report(ends, options)


def trl_side(options: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    (method,) = options.method
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            max_length=options.length,
            gradient_checkpointing=not options.trl_keeps,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16),
            args=config,
            train_dataset=Dataset.from_list([{"input_ids": row} for row in rows(options)]),
            callbacks=[Clock()],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
            if method == "lora"
            else None,
        )
        trainer.train()
    report(ends, options)


def report(ends: list[float], options: argparse.Namespace) -> None:
    """The last line is what the other process reads."""
    seconds = [after - before for before, after in pairwise(ends)][2:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps([options.batch * options.length / statistics.median(seconds), peak]))


SIDES = {"corral": corral_side, "trl": trl_side}

if __name__ == "__main__":
    main()
