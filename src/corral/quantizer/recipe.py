"""How a model is quantized: by which method, to which numbers, into which format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from corral.model.config import LlamaConfig
from corral.quant.encodings.modules import is_left_out
from corral.quant.float8 import Activations
from corral.quantizer.errors import QuantizeError

METHODS = ("rtn", "awq", "gptq", "fp8")
FORMATS = ("compressed-tensors", "awq", "gptq", "bitsandbytes", "fbgemm_fp8", "gguf")
PRESETS = ("dynamic", "static", "block", "meta")
"""Of fp8: a scale to each row and, at run time, to each token; one scale each for weights and activations,
found beforehand; scales to blocks of 128 x 128; and as Meta published Llama 3.1 405B: as dynamic, but only
the feed-forward layers, and of those neither the first nor the last."""

_BY_METHOD = {"rtn": "compressed-tensors", "awq": "awq", "gptq": "gptq", "fp8": "compressed-tensors"}
_BITS = {
    "compressed-tensors": (2, 3, 4, 5, 6, 7, 8),
    "awq": (4,),
    "gptq": (2, 3, 4, 8),
    "bitsandbytes": (4,),
    "gguf": (4,),
}
_BLOCK = 128
_ACTIVATION_BOUND = 1200.0  # Meta's


@dataclass(frozen=True)
class Recipe:
    """What is asked for, with nothing left open. `Recipe.of` fills in what was not said.

    Attributes:
        method: "rtn": each weight to the nearest number; "awq" and "gptq": so that the outputs on calibration
            text suffer least; "fp8": to the nearest 8-bit float.
        format: one of `FORMATS`.
        bits: of a code.
        group_size: columns that share a scale; None for all of a row.
        symmetric: without zero points.
        activations: as in `corral.quant.Float8`; "token" with 8-bit integers, too.
        preset: of fp8, or None.
        search: the range of each group is searched, not taken from its largest magnitude.
        ignore: patterns of modules that keep their floats: the end of a name, or a regular expression.
    """

    method: str
    format: str
    bits: int
    group_size: int | None
    symmetric: bool
    activations: Activations = "none"
    preset: str | None = None
    search: bool = False
    ignore: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        method: str,
        *,
        bits: int | None = None,
        group_size: int | None = None,
        symmetric: bool | None = None,
        format: str | None = None,
        int8_activations: bool = False,
        preset: str | None = None,
        search: bool = False,
        ignore: Sequence[str] = (),
    ) -> Recipe:
        """The recipe of what was said; a group size of -1 is all of a row.

        Raises:
            QuantizeError: a name that is none, or settings that do not go together; the message names them.
        """
        _one_of("method", method, METHODS)
        chosen = format or _BY_METHOD[method]
        _one_of("format", chosen, FORMATS)
        for pattern in ignore:
            _check_pattern(pattern)
        if method == "fp8":
            said = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "search": search or None}
            return _fp8(preset, chosen, said, int8_activations, tuple(ignore))
        if preset is not None:
            raise QuantizeError(f"preset is {preset!r}, which is one of method fp8, not of {method}")
        if chosen == "fbgemm_fp8":
            raise QuantizeError("format is 'fbgemm_fp8', which holds 8-bit floats: ask for method fp8")
        bits = 4 if bits is None else bits
        _one_of("bits", bits, _BITS[chosen], f" in the format {chosen}")
        if int8_activations:
            if bits != 8 or chosen != "compressed-tensors" or symmetric is False:
                raise QuantizeError(
                    "int8 activations go with symmetric 8-bit weights in the format compressed-tensors"
                )
            group_size = -1 if group_size is None else group_size
        size = _group_size(group_size, chosen, int8_activations)
        return cls(
            method,
            chosen,
            bits,
            size,
            _symmetric(method, chosen, symmetric),
            "token" if int8_activations else "none",
            None,
            _check_search(method, chosen, search),
            tuple(ignore),
        )

    @property
    def needs_text(self) -> bool:
        """Whether it takes calibration text."""
        return self.method in ("awq", "gptq") or self.activations == "static"

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns of a block with a scale of its own, where fp8 has such."""
        return (_BLOCK, _BLOCK) if self.preset == "block" else None

    @property
    def activation_bound(self) -> float | None:
        """The largest magnitude of an activation for which a scale is made at run time."""
        return _ACTIVATION_BOUND if self.format == "fbgemm_fp8" else None

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain data."""
        return {**asdict(self), "ignore": list(self.ignore)}

    def takes(self, module: str, config: LlamaConfig) -> bool:
        """Whether the matrix of a module of the layers, such as model.layers.0.mlp.up_proj, is quantized."""
        if is_left_out(module, self.ignore):
            return False
        if self.preset != "meta":
            return True
        first, last = "model.layers.0.", f"model.layers.{config.num_hidden_layers - 1}."
        return ".mlp." in module and not module.startswith((first, last))

    def check(self, shapes: dict[str, tuple[int, int]]) -> None:
        """Refuses matrices [rows, columns] by module that the format cannot hold.

        Raises:
            QuantizeError: a group size does not divide the columns, or rows fill no whole words.
        """
        if not shapes:
            raise QuantizeError("ignore leaves nothing to quantize")
        for module, (rows, columns) in shapes.items():
            size = columns if self.group_size is None else self.group_size
            if columns % size:
                fitting = [n for n in (16, 32, 64, 128, 256) if columns % n == 0]
                raise QuantizeError(
                    f"group_size is {size}, which does not divide the {columns} columns of {module}; "
                    f"{' and '.join(map(str, fitting)) or 'none'} would"
                )
            _check_words(self.format, module, rows, columns)


def _fp8(
    preset: str | None, chosen: str, said: dict[str, Any], int8_activations: bool, ignore: tuple[str, ...]
) -> Recipe:
    preset = preset or "dynamic"
    _one_of("preset", preset, PRESETS)
    for name, value in said.items():
        if value is not None and (name, value) != ("bits", 8):
            raise QuantizeError(f"{name} is {value}, which method fp8 does not have; leave it out")
    if int8_activations:
        raise QuantizeError("int8 activations go with 8-bit integers, not with method fp8")
    if chosen not in ("compressed-tensors", "fbgemm_fp8"):
        raise QuantizeError(f"format is {chosen!r}, which holds no 8-bit floats; leave it out")
    if chosen == "fbgemm_fp8" and preset in ("static", "block"):
        raise QuantizeError(f"format fbgemm_fp8 has a scale to each row and token, not preset {preset!r}")
    kinds: dict[str, Activations] = {"static": "static", "block": "group"}
    return Recipe(
        "fp8", chosen, 8, None, True, kinds.get(preset, "token"), preset, search=False, ignore=ignore
    )


def _group_size(group_size: int | None, chosen: str, int8_activations: bool) -> int | None:
    default = {"bitsandbytes": 64, "gguf": 32}.get(chosen, 128)
    size = default if group_size is None else group_size
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
        raise QuantizeError(f"group_size is {size!r}; it must be a number of columns, or -1 for all of a row")
    if int8_activations and size != -1:
        raise QuantizeError(f"group_size is {size}, but with int8 activations a row has one scale: -1")
    if chosen == "gguf" and size != 32:
        raise QuantizeError(f"group_size is {size}; format gguf has groups of 32")
    if chosen == "bitsandbytes" and size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        raise QuantizeError(f"group_size is {size}; bitsandbytes has blocks of 32, 64, ... 4096")
    return None if size == -1 else size


def _symmetric(method: str, chosen: str, symmetric: bool | None) -> bool:
    """Asymmetric is the default where the format is made for it."""
    if chosen in ("gptq", "bitsandbytes") and symmetric is False:
        raise QuantizeError(f"symmetric is false, but format {chosen} is written without zero points")
    default = chosen != "awq" and not (method == "awq" and chosen != "gptq")
    return default if symmetric is None else symmetric


def _check_search(method: str, chosen: str, search: bool) -> bool:
    if chosen == "bitsandbytes" and (method != "rtn" or search):
        raise QuantizeError(
            "format bitsandbytes is made by method rtn without a search: its levels take a group's largest "
            "magnitude"
        )
    if method == "awq" and search:
        raise QuantizeError("search goes with rtn and gptq; awq searches where to cut off anyway")
    return search


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise QuantizeError(f"ignore is {pattern!r}, which is no regular expression: {error}") from None


def _check_words(chosen: str, module: str, rows: int, columns: int) -> None:
    multiples = {"awq": (8, 1), "gptq": (32, 32)}
    of_rows, of_columns = multiples.get(chosen, (1, 1))
    if rows % of_rows or columns % of_columns:
        raise QuantizeError(
            f"format {chosen} packs {max(of_rows, of_columns)} codes together, which {module} with {rows} "
            f"rows and {columns} columns does not fill; format compressed-tensors holds it"
        )


def _one_of(field: str, value: object, among: Sequence[object], where: str = "") -> None:
    if value not in among:
        known = ", ".join(str(each) for each in among)
        raise QuantizeError(f"{field} is {value!r}; it must be one of {known}{where}")
