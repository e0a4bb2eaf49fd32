"""bitsandbytes' layouts against the library itself, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corral.errors import ConfigError
from corral.quant import FP4, NF4, Affine, Codebook
from corral.quant.encodings import bitsandbytes
from corral.quant.encodings.bitsandbytes import BitsAndBytesSettings
from corral.quant.encodings.named import EncodingError
from corral.quant.encodings.settings import Fields
from tests.quant.layouts import adversarial_weight

KINDS = st.sampled_from(["nf4", "fp4"])
LEVELS = {"nf4": NF4, "fp4": FP4}
STATE = "weight.quant_state.bitsandbytes__nf4"


def quantized(weight: Tensor, kind: str, **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors that bitsandbytes saves, and what it makes of them."""
    packed, state = bnb.quantize_4bit(weight, quant_type=kind, **options)
    saved = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    return {"weight": packed, **saved}, bnb.dequantize_4bit(packed, state)


@given(
    st.integers(0, 2**31),
    KINDS,
    st.booleans(),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([torch.uint8, torch.bfloat16]),
)
@settings(max_examples=40)
def test_what_the_library_writes_is_read_as_it_reads_it(
    seed: int, kind: str, double: bool, size: int, dtype: torch.dtype, storage: torch.dtype
) -> None:
    weight = adversarial_weight(seed, 5, 256).to(dtype)
    tensors, expected = quantized(
        weight, kind, blocksize=size, compress_statistics=double, quant_storage=storage
    )
    read = bitsandbytes.decode(tensors)
    assert isinstance(read, Codebook)
    assert read.group_size == size
    assert torch.equal(read.dequantize(dtype), expected)


@given(st.integers(0, 2**31), KINDS, st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=30)
def test_what_is_written_has_the_bytes_that_the_library_writes(
    seed: int, kind: str, dtype: torch.dtype
) -> None:
    weight = adversarial_weight(seed, 3, 128).to(dtype)
    theirs, _ = quantized(weight, kind)
    ours = bitsandbytes.encode(Codebook.quantize(weight, 64, LEVELS[kind]), dtype)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8))


@given(st.integers(0, 2**31), KINDS)
def test_what_is_written_is_read_back(seed: int, kind: str) -> None:
    weight = Codebook.quantize(adversarial_weight(seed, 4, 96), 32, LEVELS[kind])
    read = bitsandbytes.decode(bitsandbytes.encode(weight, torch.float16))
    assert isinstance(read, Codebook)
    assert torch.equal(read.codes, weight.codes)
    assert torch.equal(read.scale, weight.scale)
    assert torch.equal(read.levels, weight.levels)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("columns", [96, 40, 6])
def test_blocks_that_end_in_the_middle_of_a_row(columns: int, double: bool) -> None:
    """By the definition: the library's kernel for CPUs takes scales of other blocks here."""
    weight = adversarial_weight(0, 7, columns)
    tensors, _ = quantized(weight, "nf4", compress_statistics=double)
    state = bnb.QuantState.from_dict({k: v for k, v in tensors.items() if k != "weight"}, torch.device("cpu"))
    absmax = state.absmax.double()
    if double:
        absmax = (bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset).double()
    raw = tensors["weight"].flatten().tolist()
    codes = [code for byte in raw for code in (byte >> 4, byte & 15)]
    flat = [NF4[codes[i]] * float(absmax[i // 64]) for i in range(weight.numel())]
    read = bitsandbytes.decode(tensors)
    assert torch.equal(read.dequantize(), torch.tensor(flat).view(7, columns))


@given(st.integers(0, 2**31))
@settings(max_examples=30)
def test_8_bit_rows_are_read_as_the_library_reads_them(seed: int) -> None:
    weight = adversarial_weight(seed, 6, 40).half()
    codes, scale, _ = bnb.int8_vectorwise_quant(weight)
    read = bitsandbytes.decode({"weight": codes, "SCB": scale, "weight_format": torch.tensor(0)})
    expected = bnb.int8_vectorwise_dequant(codes, scale)
    assert isinstance(read, Affine)
    assert torch.allclose(read.dequantize(), expected, rtol=2**-22, atol=0)


def test_weights_that_the_library_does_not_hold_are_refused() -> None:
    codes, ones = torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 1)
    nf4 = torch.tensor(NF4)
    for weight in (
        Codebook(torch.arange(16.0), 64, codes, ones),
        Codebook(nf4, 16, codes, torch.ones(2, 4)),
        Codebook(nf4, 64, codes, ones.half()),
    ):
        with pytest.raises(ValueError, match="bitsandbytes holds"):
            bitsandbytes.encode(weight, torch.float32)


def as_state(**fields: object) -> Tensor:
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "weight is missing"),
        ({"weight.absmax": None}, "weight.absmax is missing"),
        ({"weight.quant_map": None}, "weight.quant_map is missing"),
        ({STATE: None}, "quant_state.bitsandbytes__nf4 is missing"),
        ({STATE: torch.zeros(9, dtype=torch.uint8)}, "is no JSON with shape"),
        ({STATE: as_state(shape=[4, 0], blocksize=64)}, "no positive numbers"),
        ({STATE: as_state(shape=[4, 63], blocksize=64)}, "weight has 128 bytes"),
        ({"weight.absmax": torch.ones(3)}, r"weight.absmax has shape \[3\] and must have \[4\]"),
        ({"weight.absmax": torch.full((4,), torch.nan)}, "weight.absmax holds values that are not finite"),
        (
            {STATE: as_state(shape=[4, 64], blocksize=64, nested_offset=0, nested_blocksize=256)},
            "must be uint8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {**quantized(adversarial_weight(0, 4, 64), "nf4")[0], **change}
    with pytest.raises(EncodingError, match=message):
        bitsandbytes.decode({n: t for n, t in tensors.items() if t is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SCB": torch.ones(3)}, r"SCB has shape \[3\]"),
        ({"SCB": None}, "SCB is missing"),
        ({"weight_format": torch.tensor(2)}, "weight_format says"),
        ({"weight": torch.zeros(2, 4, dtype=torch.uint8)}, "weight is uint8 and must be int8"),
    ],
)
def test_8_bit_tensors_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {"weight": torch.zeros(2, 4, dtype=torch.int8), "SCB": torch.ones(2), **change}
    with pytest.raises(EncodingError, match=message):
        bitsandbytes.decode({n: t for n, t in tensors.items() if t is not None})


def test_settings_are_read_and_others_named() -> None:
    settings_ = BitsAndBytesSettings(("lm_head",))
    assert BitsAndBytesSettings.read(Fields(settings_.to_hf(), "q")) == settings_
    for fields, message in (
        ({"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type is 'af4'"),
        ({"bnb_4bit_hadamard": True}, "bnb_4bit_hadamard is True"),
    ):
        with pytest.raises(ConfigError, match=message):
            BitsAndBytesSettings.read(Fields(fields, "q"))
