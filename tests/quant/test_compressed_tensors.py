"""compressed-tensors' layouts against the library itself, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corral.errors import ConfigError
from corral.quant import Affine, Float8
from corral.quant.encodings import compressed_tensors
from corral.quant.encodings.compressed_settings import CompressedTensorsSettings, Scheme
from corral.quant.encodings.named import EncodingError
from corral.quant.encodings.settings import Fields
from tests.quant.layouts import adversarial_weight, random_codes

FLOATS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def library_args(scheme: Scheme) -> QuantizationScheme:
    """A scheme of ours as the library takes it, by way of what is written to config.json."""
    fields: dict[str, Any] = scheme.to_hf()
    inputs = fields["input_activations"]
    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**fields["weights"]),
        input_activations=QuantizationArgs(**inputs) if inputs else None,
    )


def compressor(scheme: Scheme) -> Any:
    return BaseCompressor.get_value_from_registry(scheme.format)


def round_trip(scheme: Scheme, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What the library stores of a weight with its scales, and what it makes of that."""
    stored = compressor(scheme).compress(tensors, library_args(scheme))
    return stored, compressor(scheme).decompress(stored, library_args(scheme))["weight"]


def scales_and_zeros(
    seed: int, shape: tuple[int, ...], bits: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = (torch.rand(shape, generator=generator) + 0.01).to(dtype)
    scale.view(-1)[::5] *= -1
    middle = 1 << (bits - 1)
    zeros = random_codes(generator, bits, *shape).int() - middle
    return scale, zeros.to(torch.int8)


@given(
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(["group", "channel", "tensor"]),
    FLOATS,
    st.sampled_from([(5, 96), (33, 160)]),
)
@settings(max_examples=60)
def test_packed_integers_are_read_as_the_library_reads_them(
    seed: int, bits: int, symmetric: bool, strategy: Any, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    size = 32 if strategy == "group" else None
    scheme = Scheme(bits, "int", strategy, symmetric, size)
    groups = {"group": (shape[0], shape[1] // 32), "channel": (shape[0], 1), "tensor": (1,)}[strategy]
    scale, zeros = scales_and_zeros(seed, groups, bits, dtype)
    tensors = {"weight": adversarial_weight(seed, *shape).to(dtype), "weight_scale": scale}
    if not symmetric:
        tensors["weight_zero_point"] = zeros
    stored, expected = round_trip(scheme, tensors)
    read = compressed_tensors.decode(stored, scheme)
    assert isinstance(read, Affine)
    assert read.scale.dtype == dtype
    assert torch.equal(read.dequantize(dtype), expected)
    if strategy != "tensor":
        written = compressed_tensors.encode_packed(read)
        assert all(torch.equal(written[name], stored[name]) for name in written)


@given(st.integers(0, 2**31), st.booleans(), st.sampled_from(["channel", "tensor"]), FLOATS)
@settings(max_examples=30)
def test_8_bit_integers_are_read_as_the_library_reads_them(
    seed: int, symmetric: bool, strategy: Any, dtype: torch.dtype
) -> None:
    scheme = Scheme(8, "int", strategy, symmetric, activations="token")
    scale, zeros = scales_and_zeros(seed, (7, 1) if strategy == "channel" else (1,), 8, dtype)
    tensors = {"weight": adversarial_weight(seed, 7, 50).to(dtype), "weight_scale": scale}
    if not symmetric:
        tensors["weight_zero_point"] = zeros
    stored, expected = round_trip(scheme, tensors)
    read = compressed_tensors.decode(stored, scheme)
    assert isinstance(read, Affine)
    assert torch.equal(read.dequantize(dtype), expected)
    if strategy == "channel":
        written = compressed_tensors.encode_int8(read)
        assert all(torch.equal(written[name], stored[name]) for name in written)


@given(st.integers(0, 2**31), st.sampled_from(["tensor", "channel", "block"]), FLOATS)
@settings(max_examples=30)
def test_8_bit_floats_are_read_as_the_library_reads_them(
    seed: int, strategy: Any, dtype: torch.dtype
) -> None:
    block = (16, 32) if strategy == "block" else None
    scheme = Scheme(8, "float", strategy, block=block, activations="group" if block else "token")
    shape = {"tensor": (1,), "channel": (40, 1), "block": (3, 3)}[strategy]
    scale, _ = scales_and_zeros(seed, shape, 8, dtype)
    stored, expected = round_trip(
        scheme, {"weight": adversarial_weight(seed, 40, 96).to(dtype), "weight_scale": scale}
    )
    read = compressed_tensors.decode(stored, scheme)
    assert isinstance(read, Float8)
    assert read.activations == scheme.activations
    assert torch.equal(read.dequantize(dtype), expected)
    written = compressed_tensors.encode_float8(read)
    assert all(torch.equal(written[n].float(), stored[n].float()) for n in written)


@given(st.integers(0, 2**31), st.sampled_from([(1, 96), (40, 96), (128, 128)]))
@settings(max_examples=20)
def test_codes_of_8_bit_floats_are_those_of_the_library(seed: int, block: tuple[int, int]) -> None:
    weight = adversarial_weight(seed, 40, 96)
    strategy: Any = {1: "channel", 40: "tensor"}.get(block[0], "block")
    scheme = Scheme(8, "float", strategy, block=block if strategy == "block" else None, activations="group")
    written = compressed_tensors.encode_float8(Float8.quantize(weight, block))
    stored, _ = round_trip(scheme, {"weight": weight, "weight_scale": written["weight_scale"]})
    assert torch.equal(written["weight"].view(torch.uint8), stored["weight"].view(torch.uint8))


@given(st.integers(0, 2**31), st.sampled_from([4, 8]))
def test_what_is_written_with_activation_order_is_read_back(seed: int, bits: int) -> None:
    """Group by group, as the library did until it gave this up: by its description, not against it."""
    generator = torch.Generator().manual_seed(seed)
    scale, _ = scales_and_zeros(seed, (6, 3), bits, torch.bfloat16)
    zeros = random_codes(generator, bits, 6, 3)
    order = torch.randperm(96, generator=generator)
    weight = Affine(bits, 32, random_codes(generator, bits, 6, 96), scale, zeros, order=order)
    tensors = compressed_tensors.encode_packed(weight)
    scheme = Scheme(bits, "int", "group", False, 32, in_activation_order=True)
    read = compressed_tensors.decode(tensors, scheme)
    assert torch.equal(read.dequantize(), weight.dequantize())
    for stored, column in enumerate(order.tolist()):
        assert int(tensors["weight_g_idx"][column]) == stored // 32
    unset = {**tensors, "weight_g_idx": torch.full((96,), -1)}
    assert isinstance(plain := compressed_tensors.decode(unset, scheme), Affine)
    assert plain.order is None


def test_weights_that_the_layouts_do_not_hold_are_refused() -> None:
    codes, ones = torch.zeros(2, 32, dtype=torch.uint8), torch.ones(2, 1)
    with pytest.raises(ValueError, match="no offsets"):
        compressed_tensors.encode_packed(Affine(4, 32, codes, ones, 8, ones))
    with pytest.raises(ValueError, match="zero points from 0 to 15"):
        compressed_tensors.encode_packed(Affine(4, 32, codes, ones, 16))
    with pytest.raises(ValueError, match="one scale to a row"):
        compressed_tensors.encode_int8(Affine(8, 16, codes, torch.ones(2, 2), 128))


W4 = Scheme(4, "int", "group", False, 32, in_activation_order=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_packed": None}, "weight is missing"),
        ({"weight_shape": None}, "weight_shape is missing"),
        ({"weight_scale": None}, "weight_scale is missing"),
        ({"weight_zero_point": None}, "weight_zero_point is missing"),
        ({"weight_g_idx": None}, "weight_g_idx is missing, though actorder is 'group'"),
        ({"weight_packed": torch.zeros(8, 12)}, "weight_packed is float32 and must be int32"),
        ({"weight_shape": torch.tensor([8, -1])}, r"weight_shape holds \[8, -1\]"),
        (
            {"weight_shape": torch.tensor([9, 96])},
            r"weight_packed has shape \[8, 12\] and must have \[9, 12\]",
        ),
        ({"weight_shape": torch.tensor([8, 90])}, "90 columns, which a group size of 32"),
        ({"weight_scale": torch.ones(8, 2)}, r"weight_scale has shape \[8, 2\] and must have \[8, 3\]"),
        ({"weight_scale": torch.full((8, 3), torch.nan)}, "weight_scale holds values that are not finite"),
        ({"weight_zero_point": torch.zeros(8, 3)}, "weight_zero_point is float32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    zeros = torch.arange(24, dtype=torch.uint8).view(8, 3) % 16
    weight = Affine(
        4, 32, torch.zeros(8, 96, dtype=torch.uint8), torch.ones(8, 3), zeros, order=torch.arange(95, -1, -1)
    )
    tensors = {**compressed_tensors.encode_packed(weight), **change}
    with pytest.raises(EncodingError, match=message):
        compressed_tensors.decode({n: t for n, t in tensors.items() if t is not None}, W4)


def test_floats_that_are_not_finite_are_refused() -> None:
    tensors = compressed_tensors.encode_float8(Float8.quantize(torch.ones(2, 4)))
    tensors["weight"].view(torch.uint8)[1, 1] = 0xFF
    with pytest.raises(EncodingError, match="weight holds values that are not finite"):
        compressed_tensors.decode(tensors, Scheme(8, "float", "tensor"))
    with pytest.raises(EncodingError, match="input_scale is missing"):
        compressed_tensors.decode(
            compressed_tensors.encode_float8(Float8.quantize(torch.ones(2, 4))),
            Scheme(8, "float", "tensor", activations="static"),
        )


SCHEMES = (
    Scheme(4, "int", "group", True, 128),
    Scheme(8, "int", "channel", False, activations="token"),
    Scheme(8, "float", "block", block=(128, 128), activations="group"),
    Scheme(8, "float", "tensor", activations="static"),
    Scheme(4, "int", "group", True, 32, in_activation_order=True),
)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_settings_that_are_written_are_read_back_here_and_by_the_library(scheme: Scheme) -> None:
    written = CompressedTensorsSettings(((("Linear",), scheme),), ("lm_head",)).to_hf()
    read = CompressedTensorsSettings.read(Fields(written, "q"))
    assert read == CompressedTensorsSettings(((("Linear",), scheme),), ("lm_head",))
    if scheme.in_activation_order:
        return  # newer versions of the library no longer read it
    theirs = QuantizationConfig.model_validate(written)
    dumped = theirs.model_dump()
    assert dumped["format"] == scheme.format
    assert CompressedTensorsSettings.read(Fields(dumped, "q")).groups == read.groups


def test_modules_take_the_scheme_of_their_most_exact_target() -> None:
    by_class, by_pattern, by_name = SCHEMES[:3]
    named = "model.layers.1.mlp.up_proj"
    groups = ((("Linear",), by_class), (("re:.*mlp.*",), by_pattern), ((named,), by_name))
    settings_ = CompressedTensorsSettings(groups, ("lm_head", "re:.*layers.7.*"))
    assert settings_.scheme("model.layers.1.self_attn.q_proj") is by_class
    assert settings_.scheme("model.layers.0.mlp.up_proj") is by_pattern
    assert settings_.scheme(named) is by_name
    assert settings_.scheme("model.embed_tokens") is None
    assert settings_.is_left_out("lm_head")
    assert settings_.is_left_out("model.layers.7.mlp.up_proj")
    assert not settings_.is_left_out("model.layers.1.mlp.up_proj")


def weights(**fields: object) -> dict[str, object]:
    return {
        "config_groups": {
            "g": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, **fields}}
        }
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "q.config_groups is missing"),
        ({"config_groups": {"W8A8": ["Linear"]}}, "config_groups must be an object that holds objects"),
        ({**weights(), "format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'"),
        ({**weights(), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({**weights(), "transform_config": {"u": 1}}, "transform_config is"),
        (weights(type="float"), "q.config_groups.g.weights.num_bits is 4; Corral reads 8"),
        (weights(num_bits=9), "num_bits is 9"),
        (weights(strategy="tensor_group"), "strategy is 'tensor_group'"),
        (weights(strategy="channel"), "group_size and strategy 'channel' do not go together"),
        (
            weights(group_size=None, strategy="block"),
            "strategy is 'block', which Corral does not read for ints",
        ),
        (weights(dynamic=True), "dynamic is True"),
        (weights(actorder="sideways"), "actorder is 'sideways'"),
        (weights(hadamard=64), "hadamard is 64"),
    ],
)
def test_settings_that_are_not_read_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompressedTensorsSettings.read(Fields(fields, "q"))
