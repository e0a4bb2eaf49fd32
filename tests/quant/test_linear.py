"""Linear layers over quantized weights: small in memory, and whole through files, copies and devices."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from corral.quant import Affine, Codebook, Float8
from corral.quant.compact import Compact, Family, Form, pack_codes, unpack_codes
from corral.quant.groups import row_slices
from corral.quant.linear import QuantizedLinear, named_weights, replace_linear, take_quantized
from tests.quant.families import KINDS, SMALL_CODES, example, families
from tests.quant.layouts import random_codes
from tests.random_models import SMALL, random_model

FAMILIES = (Affine, Codebook, Float8)


def same(one: Family, other: Family) -> bool:
    """All fields alike, bit for bit."""
    left, right = vars(one), vars(other)
    return type(one) is type(other) and all(
        _bits_equal(left[name], right[name]) if isinstance(left[name], Tensor) else left[name] == right[name]
        for name in left
    )


def _bits_equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@given(st.integers(0, 2**31), st.sampled_from([2, 4]), st.integers(0, 5), st.integers(1, 70))
def test_the_first_column_lies_in_the_lowest_bits(seed: int, bits: int, rows: int, columns: int) -> None:
    codes = random_codes(torch.Generator().manual_seed(seed), bits, rows + 1, columns)[:rows]
    packed = pack_codes(codes, bits)
    each = 8 // bits
    for row, of_row in zip(packed.tolist(), codes.tolist(), strict=True):
        padded = of_row + [0] * (-columns % each)
        whole = sum(code << (bits * i) for i, code in enumerate(padded))
        assert int.from_bytes(bytes(row), "little") == whole
    assert torch.equal(unpack_codes(packed, bits, columns), codes)


@given(families())
@settings(deadline=None)
def test_packed_and_unpacked_again_is_the_same(weight: Family) -> None:
    compact = Compact.of(weight)
    compact.check()
    assert same(compact.unpack(), weight)
    assert torch.equal(compact.dequantize(), weight.dequantize())
    assert Form.from_tensor(compact.form.to_tensor()) == compact.form
    assert same(QuantizedLinear(weight).weight, weight)


@pytest.mark.parametrize("kind", SMALL_CODES)
def test_a_matrix_that_is_unpacked_piece_by_piece_is_whole(kind: str) -> None:
    weight = example(kind, 600, 1024)
    assert len(list(row_slices(*weight.shape))) > 2
    assert torch.equal(Compact.of(weight).dequantize(), weight.dequantize())
    assert same(Compact.of(weight).unpack(), weight)


@pytest.mark.parametrize(
    ("kind", "bits"), [("2 bits", 2), ("3 bits", 4), ("4 bits", 4), ("8 bits", 8), ("nf4", 4), ("fp8", 8)]
)
def test_codes_take_no_more_memory_than_their_bits(kind: str, bits: int) -> None:
    layer = QuantizedLinear(example(kind))
    tensors = layer.compact.tensors
    assert tensors["codes"].nbytes * 8 == 48 * 128 * bits
    held = sum(buffer.nbytes for name, buffer in layer.named_buffers() if name != "form")
    assert held == layer.compact.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert held * 8 / (48 * 128) < bits + 1.01 + (kind == "nf4") * 0.1


def test_a_code_that_is_too_large_is_not_cut_off() -> None:
    with pytest.raises(ValueError, match="codes reach 16, which 4 bits do not hold"):
        QuantizedLinear(Affine(4, 8, torch.full((2, 8), 16, dtype=torch.uint8), torch.ones(2, 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_linear_layer_of_those_weights(kind: str, dtype: torch.dtype) -> None:
    weight, bias = example(kind), torch.randn(48)
    layer = QuantizedLinear(weight, bias)
    assert (layer.in_features, layer.out_features) == (128, 48)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    x = torch.randn(2, 3, 128).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    expected = F.linear(x.double(), weight.dequantize(dtype).double(), bias.to(dtype).double())
    bound = 1e-4 if dtype == torch.float32 else 0.25
    assert torch.allclose(y.double(), expected, rtol=bound / 20, atol=bound)
    y.sum().backward()
    assert x.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_types_change_around_it(kind: str) -> None:
    weight = example(kind)
    layer = QuantizedLinear(weight, torch.ones(48))
    assert layer.bias is not None
    for change in ("half", "bfloat16", "double", "float"):
        getattr(layer, change)()
        assert same(layer.weight, weight)
    assert layer.to(torch.bfloat16).state_dict()["bias"].dtype == torch.bfloat16
    assert same(layer.to("cpu", torch.float16).weight, weight)
    away = layer.to("meta")
    assert all(tensor.is_meta for tensor in away.state_dict().values())
    assert {n: t.dtype for n, t in away.compact.tensors.items()} == {
        n: t.dtype for n, t in Compact.of(weight).tensors.items()
    }
    assert away.to_empty(device="cpu").compact.tensors["codes"].device.type == "cpu"


def test_a_type_for_all_tensors_is_refused() -> None:
    layer = QuantizedLinear(example("4 bits"))
    with pytest.raises(TypeError, match=r"cannot be made torch\.float64; dequantize them"):
        layer.type(torch.float64)
    assert same(layer.weight, example("4 bits"))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_whole_and_apart(kind: str) -> None:
    weight = example(kind)
    layer = QuantizedLinear(weight, torch.ones(48))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same(other.weight, weight)
        state = other.state_dict()
        state["codes"].zero_()
        assert torch.equal(state["bias"], torch.ones(48))
    assert same(layer.weight, weight)


def quantized_model(seed: int = 0) -> Llama:
    """A model each of whose matrices is of another kind."""
    model = random_model(SMALL, seed)
    kinds = iter(KINDS * 2)
    for name, module in list(model.named_modules()):
        if "layers" in name and isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            replace_linear(model, name, example(next(kinds), rows, columns, seed))
    return model


def run(model: Llama) -> Tensor:
    tokens = torch.arange(20)
    hidden: Tensor = model(tokens, tokens, PackedCausal([0, 20]))
    return model.logits(hidden)


@pytest.mark.parametrize("as_file", ["pt", "safetensors"])
def test_a_state_dict_holds_all_of_a_model(tmp_path: Path, as_file: str) -> None:
    model = quantized_model()
    file = tmp_path / as_file
    if as_file == "pt":
        torch.save(model.state_dict(), file)
        state = torch.load(file, weights_only=True)
    else:
        save_file(model.state_dict(), file)
        state = load_file(file)
    read = Llama.on_meta(SMALL)
    take_quantized(read, state)
    read.load_state_dict(state, assign=True)
    for (name, one), (other_name, other) in zip(named_weights(model), named_weights(read), strict=True):
        assert name == other_name
        if isinstance(one, Tensor):
            assert isinstance(other, Tensor)
            assert torch.equal(one, other)
        else:
            assert isinstance(other, FAMILIES)
            assert same(one, other)
    assert torch.equal(run(read), run(model))

    into = quantized_model(seed=1)
    assert not torch.equal(run(into), run(model))
    into.load_state_dict(state)
    assert torch.equal(run(into), run(model))


def test_tensors_that_lie_the_other_way_round_can_be_saved(tmp_path: Path) -> None:
    made = example("8 bits")
    assert isinstance(made, Affine)
    weight = Affine(8, 32, made.codes.t().contiguous().t(), made.scale.t().contiguous().t(), made.zero)
    layer = QuantizedLinear(weight)
    save_file(layer.state_dict(), tmp_path / "layer")
    layer.load_state_dict(load_file(tmp_path / "layer"))
    assert same(layer.weight, made)


def test_weights_of_another_form_are_refused_and_change_nothing() -> None:
    holder = nn.ModuleDict({"up": QuantizedLinear(example("4 bits"))})
    before = copy.deepcopy(holder.state_dict())
    others = {
        "form": QuantizedLinear(example("4 bits with zeros")),
        "form has": QuantizedLinear(example("8 bits")),
    }
    for other in others.values():
        with pytest.raises(RuntimeError, match=r"up: the weights are Form.*take_quantized replaces it"):
            holder.load_state_dict({f"up.{n}": t for n, t in other.state_dict().items()})
    wide = {**before, "up.scale": before["up.scale"].float()}
    with pytest.raises(RuntimeError, match=r"up: scale is torch\.float32, but the layer's is torch\.float16"):
        holder.load_state_dict(wide)
    with pytest.raises(RuntimeError, match=r"up: form is not that of quantized weights"):
        holder.load_state_dict({**before, "up.form": before["up.form"][:-5]})
    with pytest.raises(RuntimeError, match=r'Missing key.*"up\.scale"'):
        holder.load_state_dict({n: t for n, t in before.items() if n != "up.scale"})
    assert all(torch.equal(before[name], tensor) for name, tensor in holder.state_dict().items())


def damaged_states() -> dict[str, tuple[dict[str, Tensor], str]]:
    good = QuantizedLinear(example("4 bits with offsets")).state_dict()
    unknown = {**json.loads(bytes(good["form"].tolist())), "family": "ternary"}
    lost = {n: t for n, t in good.items() if n != "codes"}
    return {
        "no json": ({**good, "form": torch.zeros(3, dtype=torch.uint8)}, "form is not that"),
        "a list": ({**good, "form": torch.tensor(list(b"[1]"), dtype=torch.uint8)}, "form is not that"),
        "a family": (
            {**good, "form": torch.tensor(list(json.dumps(unknown).encode()), dtype=torch.uint8)},
            "form is not that",
        ),
        "no codes": (lost, r"codes must be uint8 \[rows, 64\], not None"),
        "narrow codes": ({**good, "codes": good["codes"][:, 1:]}, r"codes must be uint8 \[rows, 64\]"),
        "no scale": ({n: t for n, t in good.items() if n != "scale"}, "no such affine weight: .*scale"),
        "few scales": ({**good, "scale": good["scale"][1:]}, r"scale must have shape \[48, 4\]"),
        "levels": ({**good, "levels": torch.zeros(16)}, "no such affine weight: .*levels"),
    }


@pytest.mark.parametrize("name", damaged_states())
def test_a_damaged_state_dict_is_refused_in_words(name: str) -> None:
    state, problem = damaged_states()[name]
    model = nn.ModuleDict({"up": nn.Linear(128, 48, bias=False)})
    with pytest.raises(ValueError, match=f"up: {problem}"):
        take_quantized(model, {f"up.{part}": tensor for part, tensor in state.items()})
    assert isinstance(model["up"], nn.Linear)


def test_a_layer_that_the_model_lacks_is_refused_in_words() -> None:
    model = nn.ModuleDict({"up": nn.Linear(128, 32), "norm": nn.LayerNorm(4)})
    with pytest.raises(ValueError, match="down is no linear layer of this model"):
        replace_linear(model, "down", example("4 bits"))
    with pytest.raises(ValueError, match="norm is no linear layer"):
        replace_linear(model, "norm", example("4 bits"))
    with pytest.raises(ValueError, match=r"up has shape \[48, 128\], but the model's layer has \[32, 128\]"):
        replace_linear(model, "up", example("4 bits"))


@pytest.mark.parametrize("kind", SMALL_CODES)
def test_an_adapter_trains_over_it_as_over_dense_weights(kind: str) -> None:
    """One step of QLoRA (Dettmers et al., 2023, arXiv:2305.14314), without the optimizer."""
    weight = example(kind)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 128, generator=generator)
    gradients = []
    below, above = QuantizedLinear(weight), QuantizedLinear(example("nf4", 128, 48, seed=5))
    for layers in ((below, above), (_dense(below), _dense(above))):
        a = torch.randn(4, 128, generator=torch.Generator().manual_seed(4)).requires_grad_()
        b = torch.randn(48, 4, generator=torch.Generator().manual_seed(5)).requires_grad_()
        hidden = layers[0](x) + F.linear(F.linear(x, a), b)
        layers[1](F.silu(hidden)).pow(2).mean().backward()
        gradients.append((a.grad, b.grad))
    for got, expected in zip(*gradients, strict=True):
        assert got is not None
        assert expected is not None
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert not any(parameter.requires_grad for parameter in below.parameters())


def _dense(layer: QuantizedLinear) -> nn.Linear:
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False)
    dense.weight = nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    return dense
