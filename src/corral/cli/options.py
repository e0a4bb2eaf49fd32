"""Options that several verbs share, one by one and in groups."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from corral.errors import RequestError
from corral.model.presets import DEFAULT_MODEL

if TYPE_CHECKING:
    from corral.engine.sampling.params import SamplingParams
    from corral.llm import LLM

DEFAULT = DEFAULT_MODEL
ADAPTER = "adapter"
"""The name under which the engine has what `--adapter` loads."""

_SAMPLING, _ENGINE = "Sampling", "Engine"
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _sampling(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False, rich_help_panel=_SAMPLING)


def _engine(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False, rich_help_panel=_ENGINE)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Short name, Hub name (org/name[@revision]), folder, or .gguf file."
    ),
]
PromptFormat = Annotated[
    str | None,
    typer.Option(help="Overrides the checkpoint's prompt format, such as llama-3.1.", show_default=False),
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.", show_default=False)]
MaxNumSeqs = Annotated[int | None, _engine("Outputs that run at once; 64 by default.")]
KVMemory = Annotated[
    str | None,
    _engine("Memory for the KV cache, like 4GiB; a share of what is free by default.", "--kv-cache-memory"),
]


@dataclass(frozen=True)
class Choosing:
    """How tokens are chosen; what is None is left to the model."""

    temperature: Annotated[float | None, _sampling("0 is greedy; the model's default otherwise.")] = None
    top_p: Annotated[float | None, _sampling("Nucleus sampling.")] = None
    top_k: Annotated[int | None, _sampling("Keep the k best tokens; 0 keeps all.")] = None
    min_p: Annotated[float | None, _sampling("Least share of the best token's probability.")] = None
    repetition_penalty: Annotated[float | None, _sampling("Above 1 discourages repetition.")] = None
    seed: Annotated[int | None, _sampling("The same seed gives the same text.")] = None

    def given(self) -> dict[str, Any]:
        """The fields of `SamplingParams` that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Running:
    """Where and how a model runs."""

    context: Annotated[int | None, _engine("Longest context in tokens; the model's by default.")] = None
    dtype: Annotated[str, _engine("float32, bfloat16, float16, or auto.")] = "auto"
    device: Annotated[str, _engine("cpu, cuda, or auto.")] = "auto"
    kv_cache_dtype: Annotated[
        str, _engine("float32, bfloat16, float16, int8, or auto: as the weights.", "--kv-cache-dtype")
    ] = "auto"
    speculate: Annotated[
        str,
        _engine("Guess tokens ahead: prompt-lookup, a smaller model, or off. The text stays the same."),
    ] = "off"

    threads: Annotated[int | None, _engine("Threads on a CPU; one for each core by default.")] = None
    kernels: Annotated[str, _engine("On a CPU: native (Corral's own), torch, or auto.")] = "auto"
    exact_activations: Annotated[
        bool,
        typer.Option(
            "--exact-activations",
            help="Do not round activations to 8 bits before quantized weights: slower.",
            rich_help_panel=_ENGINE,
        ),
    ] = False

    quantize: Annotated[
        str | None, _engine("Quantize full-precision weights while they are read: int8, int4, nf4 or fp8.")
    ] = None

    def engine_options(self) -> dict[str, Any]:
        """As options of the engine."""
        return {
            "threads": self.threads,
            "kernels": self.kernels,
            "exact_activations": self.exact_activations,
            "quantize": self.quantize,
            "max_model_len": self.context,
            "kv_cache_dtype": self.kv_cache_dtype,
            "speculative_config": _speculative(self.speculate),
        }


Adapter = Annotated[Path | None, _engine("A PEFT LoRA folder to apply to the model.")]


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Lets a verb take options as groups: each field of a dataclass that it takes becomes an option."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        kind = hints[name]
        if is_dataclass(kind) and isinstance(kind, type):
            inner = get_type_hints(kind, include_extras=True)
            groups[name] = kind, list(inner)
            parameters += [
                inspect.Parameter(f.name, parameter.kind, default=f.default, annotation=inner[f.name])
                for f in fields(kind)
            ]
        else:
            parameters.append(parameter.replace(annotation=kind))

    @wraps(verb)
    def run(**given: Any) -> None:
        for name, (kind, members) in groups.items():
            given[name] = kind(**{member: given.pop(member) for member in members})
        verb(**given)

    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def load(
    model: str,
    running: Running,
    *,
    adapter: Path | None = None,
    prompt_format: str | None = None,
    for_chat: bool = False,
    **engine: Any,
) -> LLM:
    """Loads a model as these options say; `engine` are further options of the engine."""
    return load_model(
        model,
        dtype=running.dtype,
        device=running.device,
        prompt_format=prompt_format,
        for_chat=for_chat,
        adapters=None if adapter is None else {ADAPTER: adapter},
        **running.engine_options(),
        **{name: value for name, value in engine.items() if value is not None},
    )


def load_model(model: str, **given: Any) -> LLM:
    """Loads a model, showing downloads on standard error; `given` is what `corral.llm.LLM` takes."""
    from corral.cli.progress import TerminalReport

    with _no_garbage(), TerminalReport() as report:
        from corral.llm import LLM

        return LLM(model, report=report, **given)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Nothing that a start makes is garbage; to look for some among all of it takes a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def sampling(defaults: SamplingParams, **changes: object) -> SamplingParams:
    """The model's defaults with the options that were given."""
    from dataclasses import replace

    return replace(defaults, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]


def parse_size(flag: str, text: str | None) -> int | None:
    """Bytes from `4GiB`, `512MB` or `1000000`; units are powers of two, with and without the i.

    Raises:
        RequestError: the text is none of these.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"{flag} is {text!r}; write it like 4GiB or 512MiB")
    number, unit = match.groups(default="")
    return int(float(number) * _UNITS[unit.upper()])


def _speculative(text: str) -> dict[str, str] | None:
    """The engine's `speculative_config`."""
    if text == "off":
        return None
    return {"method": "prompt_lookup"} if text in ("prompt-lookup", "prompt_lookup") else {"model": text}
