"""AutoAWQ's gemm layout, against a slow reader of its description and a converter of compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corral.errors import ConfigError
from corral.quant import Affine
from corral.quant.encodings import awq, compressed_tensors
from corral.quant.encodings.awq import AwqSettings
from corral.quant.encodings.compressed_settings import Scheme
from corral.quant.encodings.named import EncodingError
from corral.quant.encodings.settings import Fields
from tests.quant.layouts import adversarial_scales, random_codes

ROWS, COLUMNS, GROUP = 24, 64, 32


def random_affine(seed: int) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    return Affine(
        4,
        GROUP,
        random_codes(generator, 4, ROWS, COLUMNS),
        adversarial_scales(generator, ROWS, COLUMNS // GROUP),
        random_codes(generator, 4, ROWS, COLUMNS // GROUP),
    )


def nibble(words: Tensor, line: int, row: int) -> int:
    """The number of an output feature: which nibble of its word it is, as AutoAWQ's packer lists them."""
    place = (0, 2, 4, 6, 1, 3, 5, 7).index(row % 8)
    return int(words[line, row // 8]) >> (4 * place) & 15


@given(st.integers(0, 2**31))
def test_every_weight_is_where_the_layout_says(seed: int) -> None:
    weight = random_affine(seed)
    tensors = awq.encode(weight)
    assert {name: list(t.shape) for name, t in tensors.items()} == {
        "qweight": [COLUMNS, ROWS // 8],
        "qzeros": [COLUMNS // GROUP, ROWS // 8],
        "scales": [COLUMNS // GROUP, ROWS],
    }
    read = awq.decode(tensors, AwqSettings(GROUP)).dequantize()
    for row, column in ((0, 0), (1, 33), (8, 5), (13, 63), (23, 31)):
        group = column // GROUP
        code, zero = nibble(tensors["qweight"], column, row), nibble(tensors["qzeros"], group, row)
        assert read[row, column] == (code - zero) * tensors["scales"][group, row].float()
    assert torch.equal(read, weight.dequantize())


@given(st.integers(0, 2**31))
def test_what_is_written_is_read_back(seed: int) -> None:
    weight = random_affine(seed)
    read = awq.decode(awq.encode(weight), AwqSettings(GROUP))
    assert torch.equal(read.codes, weight.codes)
    assert torch.equal(read.scale, weight.scale)
    assert isinstance(weight.zero, Tensor)
    assert isinstance(read.zero, Tensor)
    assert torch.equal(read.zero, weight.zero)


@given(st.integers(0, 2**31))
def test_the_converter_of_compressed_tensors_reads_the_same(seed: int) -> None:
    weight = random_affine(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    words = (ROWS // 8, COLUMNS, COLUMNS // GROUP)
    tensors = {
        "qweight": torch.randint(-(2**31), 2**31, (words[1], words[0]), generator=generator).int(),
        "qzeros": torch.randint(-(2**31), 2**31, (words[2], words[0]), generator=generator).int(),
        "scales": weight.scale.t().contiguous(),
    }
    converter = AutoAWQConverter.from_autoawq_config({"bits": 4, "group_size": GROUP, "zero_point": True})
    theirs = converter.process({f"model.layers.0.mlp.up_proj.{n}": t.clone() for n, t in tensors.items()})
    converted = {name.rpartition(".")[2]: tensor for name, tensor in theirs.items()}
    scheme = Scheme(4, "int", "group", symmetric=False, group_size=GROUP)
    expected = compressed_tensors.decode(converted, scheme)
    assert torch.equal(awq.decode(tensors, AwqSettings(GROUP)).dequantize(), expected.dequantize())


def test_one_zero_point_for_all_is_kept_as_one_number() -> None:
    weight = Affine.quantize(torch.randn(8, 32), 4, 16)
    assert awq.decode(awq.encode(weight), AwqSettings(16)).zero == 8


def test_weights_that_the_layout_does_not_hold_are_refused() -> None:
    codes, ones = torch.zeros(8, 32, dtype=torch.uint8), torch.ones(8, 1)
    for weight in (
        Affine(3, 32, codes, ones),
        Affine(4, 32, codes, ones, 16),
        Affine(4, 32, codes, ones, 0, ones),
        Affine(4, 32, codes[:7], ones[:7]),
        Affine(4, 32, codes, ones / 3),
    ):
        with pytest.raises(ValueError, match=r"AWQ|float16"):
            awq.encode(weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qweight": None}, "qweight is missing"),
        ({"qzeros": None}, "qzeros is missing"),
        ({"scales": None}, "scales is missing"),
        ({"qweight": torch.zeros(64, 3, dtype=torch.int16)}, "qweight is int16 and must be int32"),
        ({"qweight": torch.zeros(65, 3, dtype=torch.int32)}, "65 columns, which a group size of 32"),
        (
            {"qzeros": torch.zeros(4, 3, dtype=torch.int32)},
            r"qzeros has shape \[4, 3\] and must have \[2, 3\]",
        ),
        ({"scales": torch.full((2, 24), torch.inf)}, "scales holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {**awq.encode(random_affine(0)), **change}
    with pytest.raises(EncodingError, match=message):
        awq.decode({n: t for n, t in tensors.items() if t is not None}, AwqSettings(GROUP))


def test_settings_new_and_old_are_read_and_others_named() -> None:
    old = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    assert AwqSettings.read(Fields(old, "q")) == AwqSettings(128)
    settings = AwqSettings(None, ("model.layers.0",))
    assert AwqSettings.read(Fields(settings.to_hf(), "q")) == settings
    for fields, message in (
        ({**old, "version": "gemv"}, "version is 'gemv', a layout for one CUDA kernel"),
        ({**old, "backend": "llm-awq"}, "a layout for one CUDA kernel"),
        ({**old, "w_bit": 3}, "bits is 3; Corral reads 4"),
        ({**old, "smooth": 0.5}, "smooth is 0.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            AwqSettings.read(Fields(fields, "q"))
