"""Merges adapters into the weights of their model.

Of an adapter that was trained over quantized weights there are two merged models: onto the weights in full
precision, and onto just those that the quantized ones stand for. Only the second is the model that was
trained (https://github.com/huggingface/peft/issues/2321), so that nobody but its owner decides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import corral
from corral.checkpoints.adapter_reader import AdapterWeights, LowRank, read_adapter_weights
from corral.checkpoints.adapter_writer import FULL, STORED, read_base_weights
from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.hf_writer import SideFiles, write_tensors
from corral.checkpoints.load import checked, quantizing
from corral.checkpoints.names import find_local
from corral.checkpoints.new_folder import new_folder, require_new
from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.devices import parse_dtype
from corral.model.llama import Llama
from corral.quant import Weight
from corral.quant.on_load import SCHEMES
from corral.quantizer.recipe import Recipe
from corral.quantizer.result import QuantizeResult
from corral.quantizer.run import DEFAULTS, NO_SOURCES, QuantizeOptions, quantize
from corral.quantizer.texts import TextSources
from corral.quantizer.writing import check_out
from corral.tune.errors import TuneError
from corral.tune.parameters.folder import is_quantized
from corral.tune.parameters.product import row_norms
from corral.tune.parameters.targets import HEAD

ORIGINAL, DEQUANTIZED = "original", "dequantized"
_HEAD_WEIGHT, _EMBEDDING = f"{HEAD}.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Merging:
    """How adapters are merged.

    Attributes:
        base: "original" merges onto the weights in full precision, "dequantized" onto what the quantized
            weights stand for that were trained over; the name of a scheme ("nf4", "int4", "int8") likewise,
            for adapters from elsewhere that do not tell. None where nothing was quantized.
        weights: how much of each adapter is added; all of it by default.
        dtype: of what is written: "float32", "bfloat16", "float16", or "auto" for the checkpoint's.
        prompt_format: as in `corral export`.
    """

    base: str | None = None
    weights: tuple[float, ...] = ()
    dtype: str = "auto"
    prompt_format: str | None = None


@dataclass(frozen=True)
class Requantizing:
    """How the merged model is quantized: as `corral.quantizer.run.quantize` takes it."""

    recipe: Recipe
    sources: TextSources = NO_SOURCES
    options: QuantizeOptions = DEFAULTS
    progress: Callable[[str, int, int], None] = lambda *_: None


def merge(
    model: str,
    adapters: Sequence[Path],
    out: Path,
    how: Merging = Merging(),
    requantizing: Requantizing | None = None,
    report: Report = silent,
) -> QuantizeResult | None:
    """Writes a model with adapters merged into its weights: a Hugging Face folder, whole or not at all.

    With `requantizing` the merged model is quantized then, into `out`; gives what that cost.

    Raises:
        TuneError: the base is not said where there are two, or the adapters do not go together.
        CorralError: the model or an adapter cannot be read, or `out` cannot be written.
    """
    _check_out(out, requantizing)
    wanted = None if how.dtype == "auto" else parse_dtype(how.dtype)
    checkpoint = open_model(model, report)
    source = _Source(checkpoint, adapters, how)
    dtype = wanted or getattr(torch, checkpoint.config.dtype)
    if requantizing is None:
        _write(source, out, dtype, how.prompt_format, _card(model, source, out.name), report)
        return None
    name = f"{Path(model).name.partition(':')[0]}-{Path(adapters[0]).resolve().name}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".merged", dir=out.parent) as place:
        folder = Path(place) / name
        _write(source, folder, dtype, how.prompt_format, None, report)
        options = replace(requantizing.options, dtype=str(dtype).removeprefix("torch."), restart=True)
        return quantize(
            str(folder),
            out,
            requantizing.recipe,
            requantizing.sources,
            options,
            report,
            requantizing.progress,
        )


class _Source:
    """The merged weights of a model, as they are asked for."""

    def __init__(self, checkpoint: Checkpoint, folders: Sequence[Path], how: Merging) -> None:
        self.checkpoint, self.folders = checkpoint, tuple(folders)
        self.scheme = _scheme(checkpoint, folders, how.base)
        self._network = Llama.on_meta(checkpoint.config)
        self.adapters = [read_adapter_weights(folder, self._network, self._stored) for folder in folders]
        self._shares = _shares(folders, self.adapters, how.weights)

    @property
    def base(self) -> str:
        """What is merged onto, in words."""
        if self.scheme is not None:
            return f"its weights as {self.scheme} rounds them"
        return "its dequantized weights" if is_quantized(self.checkpoint) else "its weights"

    @property
    def unties(self) -> bool:
        """Whether the head, which is the embedding, is adapted and so becomes another matrix."""
        adapted = any(HEAD in adapter.layers for adapter in self.adapters)
        return adapted and self.checkpoint.config.tie_word_embeddings

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, in float32."""
        weights: Iterator[tuple[str, Weight]] = self.checkpoint.weights()
        if self.scheme is not None:
            weights = quantizing(self.checkpoint, weights, self.scheme)
        for name, weight in checked(self.checkpoint, self._network, weights):
            dense = weight.float() if isinstance(weight, Tensor) else weight.dequantize()
            if name == _EMBEDDING and self.unties:
                yield _HEAD_WEIGHT, self._merged(_HEAD_WEIGHT, dense)
            yield name, self._merged(name, dense)

    def _merged(self, name: str, base: Tensor) -> Tensor:
        module, _, leaf = name.rpartition(".")
        result = base
        for adapter, share in zip(self.adapters, self._shares, strict=True):
            if leaf == "bias" and module in adapter.biases:
                result = result + share * (adapter.biases[module].float() - base)
            elif leaf == "weight" and module in adapter.layers:
                result = merged(result, adapter.layers[module], share)
        return result

    def _stored(self, name: str) -> Tensor:
        """A tensor of the checkpoint, by the name that the network has for it."""
        if name == _HEAD_WEIGHT and self.checkpoint.config.tie_word_embeddings:
            name = _EMBEDDING
        return dict(self.checkpoint.tensors(prefix=name))[name]


def merged(weight: Tensor, added: LowRank, share: float = 1.0) -> Tensor:
    """A weight float32 [out, in] with an adapter in it: W + share * scale * b a.

    For DoRA its rows are brought to the lengths that were trained.
    """
    a, b = added.a.float(), added.b.float()
    result = torch.addmm(weight, b, a, alpha=share * added.scale)
    if added.magnitude is None:
        return result
    lengths = row_norms(weight, a, b, added.scale)
    return result.mul_((added.magnitude.float() / lengths)[:, None])


def _write(
    source: _Source,
    out: Path,
    dtype: torch.dtype,
    prompt_format: str | None,
    card: str | None,
    report: Report,
) -> None:
    require_new(out)
    beside = SideFiles.of(source.checkpoint, dtype, prompt_format)
    config = beside.config
    if source.unties:
        config = replace(config, tie_word_embeddings=False)
    total = config.num_parameters * dtype.itemsize

    def rounded() -> Iterator[tuple[str, Tensor]]:
        done = 0
        for name, tensor in source.tensors():
            result = tensor.to(dtype)
            if not torch.isfinite(result).all():
                raise TuneError(
                    f"{name} has merged numbers that {config.dtype} does not hold; give another dtype"
                )
            yield name, result.contiguous()
            done += result.nbytes
            report.progress("weights", done, total)

    with new_folder(out, total) as folder, torch.no_grad():
        write_tensors(folder, rounded())
        replace(beside, config=config, card=card).write(folder)


def _scheme(checkpoint: Checkpoint, folders: Sequence[Path], base: str | None) -> str | None:
    """The scheme in which the checkpoint's weights are to be rounded before the adapters are added."""
    notes = {folder: read_base_weights(folder) for folder in folders}
    if base is None:
        _require_plain_base(checkpoint, notes)
        return None
    if base == ORIGINAL:
        if is_quantized(checkpoint):
            raise TuneError(
                f"base is 'original', but {checkpoint.path} is quantized ({_kinds(checkpoint)}); "
                "name the model in full precision, or take base 'dequantized'"
            )
        return None
    if base == DEQUANTIZED:
        return _noted_scheme(checkpoint, notes)
    if base not in SCHEMES:
        raise TuneError(f"base is {base!r}; it must be original, dequantized, or one of {', '.join(SCHEMES)}")
    _require_dense(checkpoint, base)
    for folder, note in notes.items():
        if note not in (None, base):
            raise TuneError(f"base is {base!r}, but {folder} was trained over weights in {note}")
    return base


def _require_plain_base(checkpoint: Checkpoint, notes: Mapping[Path, str | None]) -> None:
    for folder, note in notes.items():
        if note not in (None, FULL):
            what = "quantized weights" if note == STORED else f"{note} weights"
            raise TuneError(
                f"{folder} was trained over {what}, so say which base to merge onto: 'dequantized' gives the "
                "model that was trained, 'original' the change on weights in full precision that it never saw"
            )
    if is_quantized(checkpoint):
        raise TuneError(
            f"{checkpoint.path} is quantized ({_kinds(checkpoint)}), so say which base to merge onto: "
            "'dequantized' takes its weights as they are, 'original' goes with the model in full precision, "
            "by its name"
        )


def _noted_scheme(checkpoint: Checkpoint, notes: Mapping[Path, str | None]) -> str | None:
    """The scheme that all adapters were trained over, or None where the checkpoint itself is quantized."""
    known = {note for note in notes.values() if note is not None}
    if len(known) > 1:
        raise TuneError(
            f"base is 'dequantized', but the adapters were trained over different weights: {', '.join(known)}"
        )
    note = known.pop() if known else None
    if note in SCHEMES:
        _require_dense(checkpoint, str(note))
        return note
    if is_quantized(checkpoint):
        return None
    if note == STORED:
        raise TuneError(
            f"base is 'dequantized', but {checkpoint.path} is not quantized; name the quantized model that "
            "the adapter was trained over"
        )
    raise TuneError(
        f"base is 'dequantized', but neither {checkpoint.path} nor what the adapter was trained over is "
        f"quantized; leave it out, or give {', '.join(SCHEMES)} if that was rounded to where it was trained"
    )


def _require_dense(checkpoint: Checkpoint, scheme: str) -> None:
    if is_quantized(checkpoint):
        raise TuneError(
            f"{checkpoint.path} is quantized ({_kinds(checkpoint)}), but base is {scheme} of a model in full "
            "precision; name that"
        )


def _kinds(checkpoint: Checkpoint) -> str:
    return ", ".join(sorted(checkpoint.storage))


def _shares(
    folders: Sequence[Path], adapters: Sequence[AdapterWeights], weights: Sequence[float]
) -> tuple[float, ...]:
    if not folders:
        raise TuneError("no adapter is given; name a PEFT folder")
    shares = tuple(weights) or (1.0,) * len(folders)
    if len(shares) != len(folders):
        raise TuneError(f"weights has {len(shares)} numbers for {len(folders)} adapters; give one to each")
    for folder, adapter, share in zip(folders, adapters, shares, strict=True):
        if not abs(share) < float("inf"):
            raise TuneError(f"the weight of {folder} is {share}; it must be a number")
        if adapter.config.use_dora and (len(folders) > 1 or share != 1):
            raise TuneError(
                f"{folder} is a DoRA adapter, which is no sum that others can be added to; "
                "merge it alone and with weight 1"
            )
    return shares


def _check_out(out: Path, requantizing: Requantizing | None) -> None:
    if requantizing is not None:
        check_out(out, requantizing.recipe)
        return
    if out.suffix == ".gguf":
        raise TuneError(f"{out} ends in .gguf, but a folder is written; `corral export` makes a file of it")
    require_new(out)


def _card(model: str, source: _Source, name: str) -> str:
    """README.md of the merged model, with the metadata that the Hub reads."""
    local = find_local(model)
    base = model if local is None else local.resolve().name  # whose folder is nobody else's business
    on_hub = [f"base_model: {base.split('@')[0]}"] if local is None and base.count("/") == 1 else []
    kinds = {"DoRA" if adapter.config.use_dora else "LoRA" for adapter in source.adapters}
    merged_ones = ", ".join(f"`{folder.resolve().name}`" for folder in source.folders)
    return "\n".join(
        [
            *("---", "library_name: transformers", *on_hub, "---", ""),
            *(f"# {name}", ""),
            f"`{base}` with {' and '.join(sorted(kinds))} {merged_ones} merged into {source.base}, "
            f"by Corral {corral.__version__}.",
            "",
        ]
    )
