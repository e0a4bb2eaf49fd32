"""Quantized matrices as they lie in memory where torch computes: small codes share bytes.

    code bits            codes are kept in
    1 and 2              2 bits, four to a byte
    3 and 4              4 bits, two to a byte
    5 to 8, and floats   a byte

The column that comes first lies in the lowest bits; the last byte of a row is filled up with zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.codebook import Codebook
from corral.quant.float8 import Float8
from corral.quant.groups import row_slices
from corral.quant.matmul import matmul

Family = Affine | Codebook | Float8

_FAMILIES: dict[str, type[Family]] = {"affine": Affine, "codebook": Codebook, "float8": Float8}
_BITS = (2, 4, 8)


@dataclass(frozen=True)
class Form:
    """What is known of a matrix besides its tensors.

    Attributes:
        family: "affine", "codebook" or "float8".
        columns: of the matrix.
        code_bits: how many bits a code takes in memory: 2, 4 or 8.
        settings: the family's fields that are no tensors, by name.
    """

    family: str
    columns: int
    code_bits: int
    settings: Mapping[str, Any]

    def to_tensor(self) -> Tensor:
        """As a tensor, for files that hold nothing else: JSON in UTF-8, uint8 [bytes]."""
        text = json.dumps({**vars(self), "settings": dict(self.settings)}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Form:
        """Reads what `to_tensor` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            form = cls(**json.loads(bytes(tensor.cpu().tolist())))
            settings = {name: _tuple(value) for name, value in form.settings.items()}
            names = {field.name for field in fields(_FAMILIES[form.family])}
        except (ValueError, TypeError, KeyError, AttributeError):
            names, settings = set(), {}
        if not names or not names.issuperset(settings) or form.code_bits not in _BITS:
            raise ValueError("form is not that of quantized weights; it may be damaged")
        return replace(form, settings=settings)


@dataclass(frozen=True, eq=False)
class Compact:
    """A matrix of one of the families, its small codes packed.

    Attributes:
        form: all that is no tensor.
        tensors: the family's tensors by the names of its fields; `codes` are uint8 [rows, bytes of a row],
            whatever the family.
    """

    form: Form
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, weight: Family, *, packed: bool = True) -> Compact:
        """A family's matrix, each tensor in one piece; copies are made of small codes alone, if they can be.

        Without `packed`, a code takes a byte, and nothing is copied.

        Raises:
            ValueError: a code is larger than the family's bits can hold.
        """
        values = {field.name: getattr(weight, field.name) for field in fields(weight)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        settings = {name: value for name, value in values.items() if name not in tensors}
        family = next(name for name, kind in _FAMILIES.items() if isinstance(weight, kind))
        bits = _code_bits(weight) if packed else 8
        codes = tensors["codes"].view(torch.uint8)
        tensors["codes"] = codes if bits == 8 else pack_codes(codes, bits)
        if packed:
            tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return cls(Form(family, weight.shape[1], bits, settings), tensors)

    @property
    def shape(self) -> torch.Size:
        """[rows, columns]"""
        return torch.Size((self.tensors["codes"].shape[0], self.form.columns))

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and whatever else there is."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def unpack(self) -> Family:
        """The family's matrix, with a byte to each code."""
        family = self._family(slice(None))
        order = self.tensors.get("order")
        return replace(family, order=order) if isinstance(family, Affine) else family

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [rows, columns], number for number what the family gives."""
        order = self.tensors.get("order")
        if order is None:
            return self._in_order_of_codes(dtype)
        stored = self._in_order_of_codes(dtype)
        return torch.empty_like(stored).index_copy_(1, order, stored)

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., columns] times the matrix: [..., rows], as `corral.quant.matmul` does it."""
        order = self.tensors.get("order")
        if order is None:
            return matmul(x, self)
        # Columns of x are put in order, not those of the weights; no family with `order` is made, for it
        # would look at the numbers of `order`, and wait for the device.
        others = {name: tensor for name, tensor in self.tensors.items() if name != "order"}
        return matmul(x.index_select(-1, order), Compact(self.form, others))

    def to(self, device: torch.device | str) -> Compact:
        """The same weights on another device."""
        return Compact(self.form, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    def check(self) -> None:
        """Refuses tensors that do not fit together with a ValueError that names one."""
        codes, columns = self.tensors.get("codes"), self.form.columns
        width = -(-columns * self.form.code_bits // 8)
        if codes is None or codes.dtype != torch.uint8 or codes.dim() != 2 or codes.shape[1] != width:
            found = None if codes is None else f"{codes.dtype} {list(codes.shape)}"
            raise ValueError(f"codes must be uint8 [rows, {width}], not {found}")
        try:
            # Codes without memory: families look at their shape and type alone.
            blank = torch.zeros((), dtype=torch.uint8, device=codes.device).expand(len(codes), columns)
            self._make({**self.tensors, "codes": blank})
        except TypeError as error:
            raise ValueError(f"no such {self.form.family} weight: {error}") from None

    def _in_order_of_codes(self, dtype: torch.dtype) -> Tensor:
        if self.form.code_bits == 8:
            return self._family(slice(None)).dequantize(dtype)
        rows, columns = self.shape
        device = self.tensors["codes"].device
        result = torch.empty(rows, columns, dtype=dtype, device=device)
        for part in row_slices(rows, columns, device):
            result[part] = self._family(part).dequantize(dtype)
        return result

    def _family(self, rows: slice) -> Family:
        """Some rows, or all, with columns in the order of the codes."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name != "order"}
        if self.form.code_bits < 8:
            tensors = {n: t if n == "levels" else t[rows] for n, t in tensors.items()}
            tensors["codes"] = unpack_codes(tensors["codes"], self.form.code_bits, self.form.columns)
        return self._make(tensors)

    def _make(self, tensors: Mapping[str, Tensor]) -> Family:
        values = {**self.form.settings, **tensors}
        if self.form.family == "float8":
            values["codes"] = values["codes"].view(torch.float8_e4m3fn)
        return _FAMILIES[self.form.family](**values)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [rows, columns] with 2 or 4 bits each: uint8 [rows, bytes].

    Raises:
        ValueError: a code has more bits.
    """
    rows, columns = codes.shape
    each = 8 // bits
    packed = torch.zeros(rows, -(-columns // each), dtype=torch.uint8, device=codes.device)
    for part in row_slices(rows, columns, codes.device):
        some = codes[part]
        if some.numel() and int(some.max()) >> bits:
            raise ValueError(f"codes reach {int(some.max())}, which {bits} bits do not hold")
        for place in range(each):
            column = some[:, place::each]
            packed[part, : column.shape[1]] |= column << (place * bits)
    return packed


def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """What `pack_codes` packed: uint8 [rows, columns]."""
    # Each byte in the lowest part of a word, from which its codes are spread.
    words = packed.contiguous().to(torch.int16 if bits == 4 else torch.int32)
    if bits == 4:
        words.bitwise_or_(words << 4).bitwise_and_(0x0F0F)
    else:
        words.bitwise_or_(words << 6)
        words.bitwise_or_(words << 12).bitwise_and_(0x03030303)
    return words.view(torch.uint8)[:, :columns].contiguous()


def _code_bits(weight: Family) -> int:
    bits = weight.bits if isinstance(weight, Affine) else 4 if isinstance(weight, Codebook) else 8
    return next(size for size in _BITS if bits <= size)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
