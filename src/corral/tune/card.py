"""The model card of a run: what was trained on what, how, what came of it, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from corral.tune.config import ParametersConfig, RunConfig, Source

_OBJECTIVES = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization (DPO)",
    "kto": "Kahneman-Tversky optimization (KTO)",
    "orpo": "odds-ratio preference optimization (ORPO)",
    "reward": "a reward model",
    "pretrain": "continued pretraining",
}


@dataclass(frozen=True)
class Sample:
    """A prompt, and what the model answered before and after training."""

    prompt: str
    before: str | None
    after: str


@dataclass(frozen=True)
class RunSummary:
    """A run that is done, or was stopped.

    Attributes:
        name: of the run.
        model: what was trained: its name on the Hub, or that of its folder or file.
        config: the settings.
        version: of Corral.
        weights: where the weights lie, within the run folder.
        rows, held_out_rows: of the data.
        parameters: numbers that were trained, and all of them.
        steps, total_steps: steps that were done, and those of the whole run.
        epochs: over the data.
        tokens: that went through the network.
        seconds: of training.
        lr: the highest learning rate.
        device: in words.
        before, after: evaluations, measures by name, at the beginning and at the end; "loss" among them.
        best: the step with the lowest evaluation loss, and that loss.
        training_loss: that of the last step that was logged.
        samples: answers.
        curve: whether there is a loss.png.
    """

    name: str
    model: str
    config: RunConfig
    version: str
    weights: str
    rows: int
    held_out_rows: int
    parameters: tuple[int, int]
    steps: int
    total_steps: int
    epochs: float
    tokens: int
    seconds: float
    lr: float
    device: str
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    training_loss: float | None = None
    samples: Sequence[Sample] = ()
    curve: bool = False


def model_card(run: RunSummary) -> str:
    """README.md of a run folder, with the metadata that the Hub reads."""
    blocks = [
        f"---\n{yaml.safe_dump(_metadata(run), sort_keys=False, allow_unicode=True)}---",
        f"# {run.name}",
        _introduction(run),
        "## Results",
        *_results(run),
        *_samples(run.samples),
        "## Training",
        "\n".join(_table(("setting", "value"), _settings(run))),
        "## Use",
        *_use(run),
        "The licence is that of the original model, and of the data where that has one.",
    ]
    return "\n\n".join(blocks) + "\n"


def data_names(config: RunConfig) -> list[str]:
    """The names of what was trained on; of local files without their folders, which are nobody's business."""
    train = config.data.train
    paths = [place.path if isinstance(place, Source) else place for place in _as_list(train)]
    return [path if _on_hub(path) else Path(path).name for path in paths]


def _metadata(run: RunSummary) -> dict[str, Any]:
    is_adapter = run.config.parameters.method != "full"
    found: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    if run.model.count("/") == 1:
        found["base_model"] = run.model.split("@")[0]
    if datasets := [name.split("@")[0] for name in data_names(run.config) if "/" in name]:
        found["datasets"] = datasets
    found["tags"] = ["corral", run.config.objective, run.config.parameters.method]
    return found


def _introduction(run: RunSummary) -> str:
    data = ", ".join(f"`{name}`" for name in data_names(run.config))
    objective, method = _OBJECTIVES[run.config.objective], _method(run.config.parameters)
    done = f"`{run.model}`, trained by Corral {run.version}: {objective} of {method} on {data}."
    if run.steps >= run.total_steps:
        return done
    return f"{done} It was stopped after {run.steps} of {run.total_steps} steps."


def _results(run: RunSummary) -> Iterator[str]:
    rows = [
        (name, _number(run.before.get(name)), _number(run.after.get(name)))
        for name in dict.fromkeys([*run.before, *run.after])
    ]
    if rows:
        yield f"On {run.held_out_rows:,} rows that were not trained on:"
        yield "\n".join(_table(("measure", "before", "after"), rows))
    if run.best is not None and run.best[0] != run.steps:
        yield f"The lowest loss there was {_number(run.best[1])}, after {run.best[0]:,} steps."
    if run.training_loss is not None:
        yield f"The training loss of the last steps is {_number(run.training_loss)}."
    if run.curve:
        yield "![The losses over the steps](loss.png)"


def _samples(samples: Sequence[Sample]) -> Iterator[str]:
    if samples:
        yield "## Samples"
    for sample in samples:
        yield f"Prompt:\n\n{_fenced(sample.prompt)}"
        if sample.before is not None:
            yield f"Before:\n\n{_fenced(sample.before)}"
        yield f"After:\n\n{_fenced(sample.after)}"


def _settings(run: RunSummary) -> Iterator[tuple[str, str]]:
    config = run.config
    trained, of_all = run.parameters
    yield (
        "trained",
        f"{_method(config.parameters)}: {trained:,} of {of_all:,} numbers ({trained / of_all:.2%})",
    )
    if config.parameters.method != "full":
        yield (
            "rank, alpha, dropout",
            ", ".join(
                f"{value:g}"
                for value in (config.parameters.rank, config.parameters.alpha, config.parameters.dropout)
            ),
        )
    yield "rows", f"{run.rows:,}, and {run.held_out_rows:,} held out"
    yield "steps", f"{run.steps:,} ({run.epochs:.2f} epochs, {run.tokens:,} tokens)"
    yield "rows of a step", f"{config.batch.size} x {config.batch.accumulation} of each device"
    yield "optimizer", f"{config.optimizer.name}, weight decay {config.optimizer.weight_decay:g}"
    yield "learning rate", f"{run.lr:g}, {config.schedule.kind}"
    yield "seed", str(config.seed)
    yield "took", f"{timedelta(seconds=round(run.seconds))} on {run.device}"


def _use(run: RunSummary) -> Iterator[str]:
    weights = f"./{run.name}/{run.weights}" if run.weights not in ("", ".") else f"./{run.name}"
    if run.config.objective == "reward":
        yield "A reward model scores answers; it does not write any."
    elif run.config.parameters.method == "full":
        yield f"```sh\ncorral chat {weights}\ncorral serve {weights}\n```"
    else:
        base = run.config.parameters.base
        over, onto = (f" --quantize {base}", " --base dequantized") if base else ("", "")
        serve = f"corral serve {run.model}{over} --adapter tuned={weights}"
        merge = f"corral merge {run.model} {weights}{onto} --out ./{run.name}-merged"
        yield f"```sh\n{serve}\n{merge}\n```"
        yield "The server answers with the adapter where a request names the model `tuned`."
    yield "All settings are in `config.yaml`, all measures in `metrics.jsonl`."


def _method(parameters: ParametersConfig) -> str:
    if parameters.method == "full":
        return "the whole model"
    name = {"lora": "LoRA", "dora": "DoRA"}[parameters.method]
    return f"{name} adapters" if parameters.base is None else f"{name} adapters on a {parameters.base} base"


def _table(
    header: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]
) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def _fenced(text: str) -> str:
    """Text as it is, whatever it says."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _as_list(train: str | Source | list[str | Source]) -> list[str | Source]:
    return list(train) if isinstance(train, list) else [train]


def _on_hub(path: str) -> bool:
    """Whether a path is the name of a data set on the Hub."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", path)) and not Path(path).exists()
