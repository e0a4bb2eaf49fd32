"""The adapted product: its gradients, what it keeps for the backward pass, and its precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from corral.checkpoints.adapter_reader import LowRank
from corral.model.llama import Linear
from corral.quant import Codebook
from corral.quant.linear import QuantizedLinear
from corral.tune.config import ParametersConfig
from corral.tune.parameters.adapters import Adapters
from corral.tune.parameters.layer import LayerAdapter
from corral.tune.parameters.product import adapted, low_rank, row_norms, scaled
from tests.random_models import SMALL, random_model
from tests.tune.parameters.training import batch_of, gradients, our_loss

ROWS, IN, OUT, RANK = 64, 32, 48, 4


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def dense(dtype: torch.dtype = torch.float64, *, bias: bool = True) -> Linear:
    linear = Linear(IN, OUT, bias=bias).to(dtype).requires_grad_(False)
    linear.weight.copy_(numbers(OUT, IN, seed=5) / IN**0.5)
    return linear


def quantized(dtype: torch.dtype = torch.float64) -> QuantizedLinear:
    return QuantizedLinear(Codebook.quantize(dense().weight.float(), 16), numbers(OUT, seed=6, dtype=dtype))


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    a, b = numbers(RANK, IN, seed=1, dtype=dtype) / IN**0.5, numbers(OUT, RANK, seed=2, dtype=dtype)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("make", [dense, quantized])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_are_those_of_the_formula(make: Callable[[], Any], dropout: float, biased: bool) -> None:
    linear, x = make(), numbers(5, IN, seed=3).requires_grad_()

    def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(0)
        return adapted(linear, x, a, b, 0.7, dropout, biased=biased)

    def alone(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(0)
        return low_rank(x, a, b, 0.7, dropout)

    inputs = (x, *pair())
    assert torch.autograd.gradcheck(product, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(alone, inputs, fast_mode=True)
    base = linear(x) if biased else linear(x) - linear.bias
    torch.testing.assert_close(product(*inputs), base + alone(*inputs))


def test_gradients_of_scaled_columns_are_those_of_the_formula() -> None:
    inputs = numbers(5, OUT).requires_grad_(), numbers(OUT, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(scaled, inputs)


def test_a_layer_that_is_trained_itself_gets_its_gradients_too() -> None:
    linear, (a, b), x = dense().requires_grad_(True), pair(), numbers(5, IN).requires_grad_()
    inputs = (x, a, b, linear.weight, linear.bias)
    ours = torch.autograd.grad(adapted(linear, x, a, b, 0.7).square().sum(), inputs)
    plain = F.linear(x, linear.weight, linear.bias) + F.linear(F.linear(x, a), b) * 0.7
    theirs = torch.autograd.grad(plain.square().sum(), inputs)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)


def kept_bytes(compute: Callable[[], Tensor], but: list[Tensor]) -> int:
    """What a computation keeps for its backward pass, besides some tensors."""
    known, kept = {tensor.data_ptr() for tensor in but}, dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = compute()
        del output
    return sum(kept.values())


@pytest.mark.parametrize("make", [dense, quantized])
def test_only_the_input_and_its_narrow_product_are_kept(make: Callable[..., Any]) -> None:
    linear, (a, b) = make(torch.bfloat16), pair(torch.float32)
    x = numbers(ROWS, IN, dtype=torch.bfloat16).requires_grad_()
    own = [a, b, *linear.parameters()]
    narrow, whole = 2 * ROWS * RANK, 2 * ROWS * IN
    assert kept_bytes(lambda: adapted(linear, x, a, b, 1.0), own) == whole + narrow
    with_mask = whole + narrow + ROWS * IN  # a byte each
    assert kept_bytes(lambda: adapted(linear, x, a, b, 1.0, 0.1), own) == with_mask


def test_doras_magnitudes_cost_one_output_more() -> None:
    linear, (a, b) = dense(torch.bfloat16, bias=False), pair(torch.float32)
    x = numbers(ROWS, IN, dtype=torch.bfloat16).requires_grad_()
    layer = LayerAdapter(LowRank(a, b, 1.0, torch.ones(OUT)), None)
    known = [*layer.parameters(), linear.weight]
    most = 2 * ROWS * (IN + RANK + OUT) + 3 * 4 * OUT  # and vectors
    assert kept_bytes(lambda: layer(linear, x), known) <= most


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_selective_checkpointing_keeps_no_weights_and_each_output_once(method: str) -> None:
    linear, x = dense(torch.float32), numbers(ROWS, IN, dtype=torch.float32).requires_grad_()
    a, b = pair(torch.float32)
    magnitude = numbers(OUT, dtype=torch.float32).abs() if method == "dora" else None
    layer = LayerAdapter(LowRank(a, b, 0.7, magnitude), None)
    shapes: list[tuple[int, ...]] = []

    def policy(context: Any, op: Any, *arguments: Any, **_: Any) -> CheckpointPolicy:
        if op not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            return CheckpointPolicy.PREFER_RECOMPUTE
        if not context.is_recompute:
            rows = arguments[-2].shape[0]
            shapes.append((rows, arguments[-1].shape[1]))
        return CheckpointPolicy.MUST_SAVE

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]

    inputs = [x, *layer.parameters()]
    plain = torch.autograd.grad(layer(linear, x).square().sum(), inputs)
    again = checkpoint(lambda: layer(linear, x), use_reentrant=False, context_fn=contexts)
    for ours, expected in zip(torch.autograd.grad(again.square().sum(), inputs), plain, strict=True):
        assert torch.equal(ours, expected)
    assert sorted(shapes) == [(ROWS, RANK), (ROWS, OUT)]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_compiling_changes_nothing_but_the_rounding(method: str) -> None:
    linear, x = dense(torch.float32), numbers(ROWS, IN, dtype=torch.float32).requires_grad_()
    magnitude = numbers(OUT, dtype=torch.float32).abs() if method == "dora" else None
    layer = LayerAdapter(LowRank(*pair(torch.float32), 0.7, magnitude), None)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(compiled(linear, x), layer(linear, x))
    ours = torch.autograd.grad(compiled(linear, x).square().sum(), inputs)
    theirs = torch.autograd.grad(layer(linear, x).square().sum(), inputs)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_all_layers_of_a_compiled_network_share_a_graph(method: Any) -> None:
    model = random_model(replace(SMALL, num_hidden_layers=5))
    adapters = Adapters.new(model, ParametersConfig(method=method), torch.Generator().manual_seed(0))
    loss = our_loss(model, adapters, batch_of(model))
    expected = gradients(loss, adapters.named_parameters())
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for layer in model.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    ours = gradients(our_loss(model, adapters, batch_of(model)), adapters.named_parameters())
    assert counter.frame_count <= 2  # what enters the first layer needs no gradient
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_row_norms_are_those_of_the_merged_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.quant.groups._AT_ONCE", 5 * IN)  # in several stretches
    weight, (a, b) = dense().weight, pair()
    expected = (weight + 0.7 * b @ a).norm(dim=1)
    torch.testing.assert_close(row_norms(weight, a, b, 0.7), expected.detach())
    half = row_norms(weight.bfloat16(), a, b, 0.7)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected.float().detach(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_bfloat16_gradients_are_as_near_to_float32_as_those_of_float32_adapters_in_peft(method: str) -> None:
    """PEFT computes in float32 there, with autocast off; its result and gradients are rounded to bfloat16."""
    linear, x = dense(torch.float32, bias=False), numbers(ROWS, IN, dtype=torch.float32)
    a, b = pair(torch.float32)
    magnitude = (1 + 0.1 * numbers(OUT, dtype=torch.float32)) if method == "dora" else None
    layer = LayerAdapter(LowRank(a, b, 0.7, magnitude), None)
    small = Linear(IN, OUT, bias=False).bfloat16().requires_grad_(False)
    small.weight.copy_(linear.weight)

    def peft(x: Tensor) -> Tensor:
        result, wide = F.linear(x, small.weight), x.float()
        lora = F.linear(F.linear(wide, layer.lora_A), layer.lora_B) * 0.7  # type: ignore[arg-type]
        if layer.lora_magnitude_vector is None:
            return (result + lora).to(x.dtype)
        norm = row_norms(small.weight, a, b, 0.7).bfloat16()
        factor = layer.lora_magnitude_vector / norm
        return (result + (factor - 1) * result + factor * lora).to(x.dtype)

    def errors(compute: Callable[[Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        given = x.to(dtype).requires_grad_()
        output = compute(given)
        inputs = [given, *layer.parameters()]
        return [output, *torch.autograd.grad((output.float() * target).sum(), inputs)]

    target = numbers(ROWS, OUT, seed=8, dtype=torch.float32)
    exact = errors(lambda x: layer(linear, x), torch.float32)
    ours, theirs = (errors(f, torch.bfloat16) for f in (lambda x: layer(small, x), peft))
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert (mine.float() - right).norm() < 1.5 * (other.float() - right).norm() + 3e-3 * right.norm()


def test_dropout_is_of_the_adapter_alone_and_only_in_training() -> None:
    model = random_model(SMALL)
    adapters = Adapters.new(model, ParametersConfig(dropout=0.5), torch.Generator().manual_seed(0))
    batch = batch_of(model)
    with torch.no_grad():
        before = our_loss(model, None, batch)
        assert torch.equal(our_loss(model, adapters, batch), before)  # B is zero still
        for name, parameter in adapters.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.05)
        torch.manual_seed(0)
        first = our_loss(model, adapters, batch)
        assert first != our_loss(model, adapters, batch)
        torch.manual_seed(0)
        assert first == our_loss(model, adapters, batch)
        adapters.eval()
        assert our_loss(model, adapters, batch) == our_loss(model, adapters, batch)


def test_dropout_scales_up_what_it_leaves() -> None:
    (a, b), row = pair(), numbers(1, IN)
    torch.manual_seed(0)
    output = low_rank(row.expand(20_000, IN), a, b, 0.7, 0.4)
    exact = low_rank(row, a, b, 0.7)[0]
    assert (output.mean(0) - exact).norm() < 0.03 * exact.norm()
    assert (output[0] - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dora_with_dropout_keeps_the_layers_own_output_whole(dropout: float) -> None:
    """As in PEFT: W x + (m / norm - 1) W d + m / norm * s B A d, where d is x with some of it dropped."""
    linear, (a, b), x = dense(), pair(), numbers(ROWS, IN)
    magnitude = numbers(OUT, seed=4).abs()
    layer = LayerAdapter(LowRank(a, b, 0.7, magnitude), None, dropout)
    torch.manual_seed(3)
    output = layer(linear, x)
    torch.manual_seed(3)
    dropped = F.dropout(x, dropout)
    factor = magnitude / row_norms(linear.weight, a, b, 0.7)
    change = (factor - 1) * (dropped @ linear.weight.T) + factor * 0.7 * (dropped @ a.T @ b.T)
    torch.testing.assert_close(output, linear(x) + change)


def test_gradients_go_through_a_whole_model_with_dropout_and_checkpointing_alike() -> None:
    from corral.tune.activations import checkpoint_activations

    losses = []
    for kind in ("none", "full", "selective"):
        model = copy.deepcopy(random_model(SMALL))
        checkpoint_activations(model, kind)
        config = ParametersConfig(dropout=0.3, rank=4)
        adapters = Adapters.new(model, config, torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        loss = our_loss(model, adapters, batch_of(model))
        losses.append(gradients(loss, adapters.named_parameters()))
    for other in losses[1:]:
        for name, gradient in losses[0].items():
            assert torch.equal(other[name], gradient), name


def test_a_layer_without_an_adapter_is_applied_plainly() -> None:
    model = random_model(SMALL)
    adapters = Adapters.new(model, ParametersConfig(targets="q_proj"), torch.Generator())
    assert isinstance(model.lm_head, nn.Linear)
    x = numbers(3, SMALL.hidden_size, dtype=torch.float32)
    assert torch.equal(adapters(model.lm_head, x), model.lm_head(x))
