"""GPTQ's layout against a slow writer of its description: neither AutoGPTQ nor GPTQModel installs here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corral.errors import ConfigError
from corral.quant import Affine
from corral.quant.encodings import gptq
from corral.quant.encodings.gptq import GptqSettings, Zeros
from corral.quant.encodings.named import EncodingError
from corral.quant.encodings.settings import Fields
from tests.quant.layouts import adversarial_scales, as_int32, gptq_rows, random_codes

ROWS, COLUMNS, GROUP = 32, 96, 32
BITS = st.sampled_from([2, 3, 4, 8])


def parts(seed: int, bits: int, activation_order: bool = False) -> dict[str, Tensor]:
    """Codes [columns, rows], zero points and scales [groups, rows], and the group of each column."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(COLUMNS) // GROUP
    if activation_order:
        groups = groups[torch.randperm(COLUMNS, generator=generator)]
    return {
        "codes": random_codes(generator, bits, COLUMNS, ROWS),
        "zeros": random_codes(generator, bits, COLUMNS // GROUP, ROWS),
        "scales": adversarial_scales(generator, COLUMNS // GROUP, ROWS),
        "g_idx": groups.int(),
    }


def reference(made: dict[str, Tensor]) -> Tensor:
    """scales[g_idx] * (code - zeros[g_idx]) in float32, transposed: what AutoGPTQ multiplies by."""
    groups = made["g_idx"].long()
    codes, zeros = made["codes"].float(), made["zeros"].float()[groups]
    return (made["scales"].float()[groups] * (codes - zeros)).t()


def file_of(made: dict[str, Tensor], bits: int, stored_zeros: Tensor) -> dict[str, Tensor]:
    return {
        "qweight": gptq_rows(made["codes"].t(), bits).t().contiguous(),
        "qzeros": gptq_rows(stored_zeros, bits),
        "scales": made["scales"],
        "g_idx": made["g_idx"],
    }


def less_one_in_words(zeros: Tensor, bits: int) -> Tensor:
    """Each word less 1 in every field, with borrows between them: GPTQModel's writer of version 1."""
    one_each = sum(1 << shift for shift in range(0, 32, bits))
    words = [(w - one_each) % (1 << 32) for w in gptq_rows(zeros, bits).flatten().tolist()]
    return as_int32(words).view(len(zeros), -1)


@given(st.integers(0, 2**31), BITS, st.booleans())
def test_version_2_is_read_as_it_is_described(seed: int, bits: int, activation_order: bool) -> None:
    made = parts(seed, bits, activation_order)
    settings = GptqSettings(bits, GROUP, activation_order, "as they are")
    weight = gptq.decode(file_of(made, bits, made["zeros"]), settings)
    assert torch.equal(weight.dequantize(), reference(made))
    assert (weight.order is not None) == activation_order


@given(st.integers(0, 2**31), BITS)
def test_version_1_is_read_field_by_field_with_zero_points_of_0(seed: int, bits: int) -> None:
    made = parts(seed, bits)
    stored = (made["zeros"].int() - 1) % (1 << bits)
    weight = gptq.decode(file_of(made, bits, stored.to(torch.uint8)), GptqSettings(bits, GROUP))
    assert torch.equal(weight.dequantize(), reference(made))


@given(st.integers(0, 2**31), st.sampled_from([2, 4, 8]))
def test_version_1_of_gptqmodel_is_read_word_by_word_with_zero_points_of_0(seed: int, bits: int) -> None:
    made = parts(seed, bits)
    tensors = file_of(made, bits, made["zeros"])
    tensors["qzeros"] = less_one_in_words(made["zeros"], bits)
    weight = gptq.decode(tensors, GptqSettings(bits, GROUP, zeros="less one in words"))
    assert torch.equal(weight.dequantize(), reference(made))
    other = gptq.decode(tensors, GptqSettings(bits, GROUP, zeros="less one"))
    assert not torch.equal(other.dequantize(), reference(made))  # a zero point of 0 makes them differ


def test_conventions_agree_where_no_zero_point_is_0() -> None:
    made = parts(0, 4)
    made["zeros"].clamp_(min=1)
    tensors = file_of(made, 4, made["zeros"] - 1)
    assert torch.equal(less_one_in_words(made["zeros"], 4), tensors["qzeros"])
    conventions: tuple[Zeros, ...] = ("less one", "less one in words")
    for zeros in conventions:
        weight = gptq.decode(tensors, GptqSettings(4, GROUP, zeros=zeros))
        assert torch.equal(weight.dequantize(), reference(made))


def test_a_file_without_groups_of_columns_has_them_in_order() -> None:
    made = parts(1, 4)
    tensors = file_of(made, 4, made["zeros"])
    del tensors["g_idx"]
    weight = gptq.decode(tensors, GptqSettings(4, GROUP, zeros="as they are"))
    assert torch.equal(weight.dequantize(), reference(made))


@given(st.integers(0, 2**31), BITS, st.sampled_from([1, 2]), st.booleans())
def test_what_is_written_is_read_back(seed: int, bits: int, version: int, activation_order: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = Affine(
        bits,
        GROUP,
        random_codes(generator, bits, ROWS, COLUMNS),
        adversarial_scales(generator, ROWS, COLUMNS // GROUP),
        1 << (bits - 1),
        order=torch.randperm(COLUMNS, generator=generator) if activation_order else None,
    )
    tensors = gptq.encode(weight, 1 if version == 1 else 2)
    zeros: Zeros = "less one" if version == 1 else "as they are"
    read = gptq.decode(tensors, GptqSettings(bits, GROUP, activation_order, zeros))
    assert torch.equal(read.dequantize(), weight.dequantize())
    assert read.zero == weight.zero
    again = gptq.encode(read, 1 if version == 1 else 2)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    if not activation_order:
        assert torch.equal(read.codes, weight.codes)
        assert torch.equal(read.scale, weight.scale)
        assert read.order is None


def test_symmetric_zero_points_of_version_1_are_sevens() -> None:
    weight = Affine.quantize(torch.randn(32, 64), 4, 64)
    assert gptq.encode(weight)["qzeros"].flatten().tolist() == [0x77777777] * 4
    assert gptq.encode(weight, 2)["qzeros"].flatten().tolist() == as_int32([0x88888888] * 4).tolist()


def test_only_symmetric_weights_are_written() -> None:
    codes, ones = torch.zeros(32, 32, dtype=torch.uint8), torch.ones(32, 1)
    for weight in (
        Affine(4, 32, codes, ones, 7),
        Affine(4, 32, codes, ones, 8, ones),
        Affine(5, 32, codes, ones, 16),
        Affine(4, 32, codes, ones * (1 + 2**-12), 8),
        Affine(4, 32, codes[:8], ones[:8], 8),
    ):
        with pytest.raises(ValueError, match=r"GPTQ|float16"):
            gptq.encode(weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qweight": None}, "qweight is missing"),
        ({"qzeros": None}, "qzeros is missing"),
        ({"scales": None}, "scales is missing"),
        ({"g_idx": None}, "g_idx is missing"),
        ({"qweight": torch.zeros(12, 32)}, "qweight is float32 and must be int32"),
        ({"qweight": torch.zeros(12, 30, dtype=torch.int32)}, "whole words of 4 bits"),
        ({"qweight": torch.zeros(13, 32, dtype=torch.int32)}, "104 columns, which a group size of 32"),
        (
            {"qzeros": torch.zeros(3, 5, dtype=torch.int32)},
            r"qzeros has shape \[3, 5\] and must have \[3, 4\]",
        ),
        ({"scales": torch.ones(2, 32)}, r"scales has shape \[2, 32\]"),
        ({"scales": torch.full((3, 32), torch.nan)}, "scales holds values that are not finite"),
        ({"g_idx": torch.arange(96, dtype=torch.int32)}, "g_idx names groups outside 0 to 2"),
        ({"g_idx": torch.zeros(96, dtype=torch.int32)}, "puts 96 columns into group 0; each must have 32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    made = parts(0, 4)
    tensors = {**file_of(made, 4, made["zeros"]), **change}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(EncodingError, match=message):
        gptq.decode(present, GptqSettings(4, GROUP, desc_act=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "q.bits is missing"),
        ({"bits": 5, "group_size": 128}, "q.bits is 5; Corral reads 2, 3, 4, 8"),
        ({"bits": 4}, "q.group_size is missing"),
        ({"bits": 4, "group_size": 0}, "q.group_size is 0"),
        ({"bits": 4, "group_size": 128, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"bits": 4, "group_size": 128, "format": "gptq_p"}, "gptq_p"),
        ({"bits": 4, "group_size": 128, "is_marlin_format": True}, "is_marlin_format"),
        ({"bits": 4, "group_size": 128, "pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        ({"bits": 4, "group_size": 128, "desc_act": "yes"}, "desc_act is 'yes'"),
        ({"bits": 4, "group_size": 128, "dynamic": {"+:.*q_proj": {"bits": 8}}}, "dynamic"),
        ({"bits": 4, "group_size": 128, "rotation": "hadamard"}, "q.rotation is 'hadamard'"),
    ],
)
def test_settings_that_are_not_read_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GptqSettings.read(Fields(fields, "q"))


def test_who_wrote_the_file_tells_how_zero_points_are_stored() -> None:
    def zeros(**fields: object) -> str:
        return GptqSettings.read(Fields({"bits": 4, "group_size": -1, **fields}, "q")).zeros

    assert zeros() == "less one"
    assert zeros(checkpoint_format="gptq_v2") == "as they are"
    assert zeros(meta={"quantizer": ["gptqmodel:1.4.0"]}) == "less one in words"
    assert zeros(meta={"quantizer": "optimum:1.2"}) == "less one"
    assert zeros(checkpoint_format="gptq_v2", meta={"quantizer": "gptqmodel:2"}) == "as they are"
    assert GptqSettings.read(Fields({"bits": 4, "group_size": -1}, "q")).group_size is None
    written = GptqSettings(8, 64, True).to_hf()
    assert GptqSettings.read(Fields(written, "q")) == GptqSettings(8, 64, True)
