"""8-bit floats of fbgemm_fp8 and fp8: by their descriptions, for the libraries run on GPUs only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corral.errors import ConfigError
from corral.quant import Float8
from corral.quant.encodings import fbgemm_fp8
from corral.quant.encodings.fbgemm_fp8 import Fp8Settings
from corral.quant.encodings.named import EncodingError
from corral.quant.encodings.settings import Fields
from tests.quant.layouts import adversarial_weight

E8M0 = torch.float8_e8m0fnu


def read(fields: dict[str, object], method: str = "fp8") -> Fp8Settings:
    reader = Fp8Settings.read if method == "fp8" else Fp8Settings.read_fbgemm
    return reader(Fields({"quant_method": method, **fields}, "q"))


@given(st.integers(0, 2**31))
def test_fbgemm_has_a_scale_to_each_row(seed: int) -> None:
    made = Float8.quantize(adversarial_weight(seed, 6, 40), (1, 40))
    settings = read({"activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}, "fbgemm_fp8")
    weight = fbgemm_fp8.decode({"weight": made.codes, "weight_scale": made.scale}, settings)
    assert torch.equal(weight.dequantize(), made.codes.float() * made.scale)
    assert (weight.activations, weight.activation_bound) == ("token", 1200.0)
    assert settings.not_converted == ("lm_head",)


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16, E8M0]))
def test_fp8_has_a_scale_to_each_block_that_is_multiplied(seed: int, dtype: torch.dtype) -> None:
    made = Float8.quantize(adversarial_weight(seed, 200, 130), (128, 128))
    scale = made.scale.to(dtype)
    settings = read({"weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"})
    weight = fbgemm_fp8.decode({"weight": made.codes, "weight_scale_inv": scale}, settings)
    values = weight.dequantize()
    for row, column in ((0, 0), (127, 127), (128, 127), (127, 128), (199, 129)):
        expected = made.codes[row, column].float() * scale[row // 128, column // 128].float()
        assert values[row, column] == expected
    assert weight.activations == "group"


def test_older_fp8_has_one_scale_and_static_activations() -> None:
    made = Float8.quantize(torch.randn(4, 8))
    settings = read({"activation_scheme": "static", "ignored_layers": ["lm_head"]})
    scale = torch.tensor(float(made.scale))
    weight = fbgemm_fp8.decode(
        {"weight": made.codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}, settings
    )
    assert torch.equal(weight.dequantize(), made.dequantize())
    assert (weight.activations, weight.activation_scale) == ("static", 0.5)


CODES = torch.ones(4, 8).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "weight is missing"),
        ({"weight": torch.ones(4, 8)}, "weight is float32 and must be float8_e4m3fn"),
        (
            {"weight": torch.full((4, 8), torch.nan).to(torch.float8_e4m3fn)},
            "weight holds values that are not",
        ),
        ({"weight": CODES}, "weight_scale is missing"),
        ({"weight": CODES, "weight_scale": torch.ones(3, 1)}, r"has shape \[3, 1\] and must have \[4, 1\]"),
        ({"weight": CODES, "weight_scale": torch.full((4, 1), torch.inf)}, "weight_scale holds values"),
        ({"weight": CODES, "weight_scale": torch.ones(4, 1, dtype=torch.int32)}, "weight_scale is int32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        fbgemm_fp8.decode(tensors, Fp8Settings())
    if "weight_scale" in tensors and len(tensors["weight_scale"]) == 4:
        with pytest.raises(EncodingError, match="weight_scale"):
            fbgemm_fp8.decode(tensors, Fp8Settings(activations="static"))


def test_static_activations_need_their_scale() -> None:
    with pytest.raises(EncodingError, match="activation_scale is missing"):
        fbgemm_fp8.decode(
            {"weight": CODES, "weight_scale": torch.tensor(1.0)}, Fp8Settings(activations="static")
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_block_size": [128]}, "weight_block_size is"),
        ({"fmt": "e5m2"}, "fmt is 'e5m2'"),
        ({"activation_scheme": "none at all"}, "activation_scheme is 'none at all'"),
        ({"expert_dtype": "fp4"}, "expert_dtype is 'fp4'"),
        ({"rounding": "stochastic"}, "rounding is 'stochastic'"),
    ],
)
def test_settings_that_are_not_read_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(fields)
