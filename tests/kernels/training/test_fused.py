"""An ordinary network that trains on the kernels has torch's gradients, and is itself again afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from corral.kernels.training.attention import NativePackedCausal
from corral.kernels.training.fused import fused
from corral.kernels.training.kernels import TrainingKernels, load
from corral.model.attention import Attend, PackedCausal
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from tests.kernels.training.instruction_sets import kernels_of, on_all
from tests.random_models import SMALL, random_model

pytestmark = on_all

BOUNDS = (0, 1, 30, 97)
BIASED = replace(SMALL, attention_bias=True, mlp_bias=True)
TIED = replace(SMALL, tie_word_embeddings=True)


def train(model: Llama, attend: Attend) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradient of every parameter."""
    torch.manual_seed(1)
    tokens = torch.randint(0, model.config.vocab_size, (BOUNDS[-1],))
    model.zero_grad()
    logits = model.logits(model(tokens, positions(), attend))
    loss = F.cross_entropy(logits[:-1].float(), tokens[1:])
    torch.autograd.backward(loss)
    return loss.detach(), [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]


def positions() -> Tensor:
    return torch.cat([torch.arange(end - start) for start, end in pairwise(BOUNDS)])


def relative_errors(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    pairs = [(g.double(), w.double()) for g, w in zip(got, wanted, strict=True)]
    return [float((g - w).norm() / w.norm()) for g, w in pairs]


@pytest.mark.parametrize("config", [SMALL, BIASED, TIED], ids=["small", "biased", "tied"])
def test_losses_and_gradients_are_torchs(isa: str, config: LlamaConfig) -> None:
    model = random_model(config).requires_grad_()
    loss, wanted = train(model, PackedCausal(BOUNDS))
    kernels = kernels_of(isa)
    with fused(model, kernels):
        fused_loss, got = train(model, NativePackedCausal(BOUNDS, kernels))
    assert torch.allclose(loss, fused_loss, rtol=1e-6)
    assert max(relative_errors(got, wanted)) < 1e-4


def test_in_bfloat16_gradients_are_no_further_from_exact_than_torchs(isa: str) -> None:
    model = random_model(SMALL).bfloat16().requires_grad_()
    exact = random_model(SMALL).requires_grad_()
    exact.load_state_dict(model.state_dict())
    _, wanted = train(exact, PackedCausal(BOUNDS))
    _, by_torch = train(model, PackedCausal(BOUNDS))
    kernels = kernels_of(isa)
    with fused(model, kernels):
        _, got = train(model, NativePackedCausal(BOUNDS, kernels))
    own, other = relative_errors(got, wanted), relative_errors(by_torch, wanted)
    assert sum(own) <= 1.1 * sum(other)


def test_frozen_weights_get_no_gradients_and_pass_them_on(isa: str) -> None:
    model, kernels = random_model(SMALL).requires_grad_(False), kernels_of(isa)
    trained = model.get_parameter("model.layers.0.self_attn.q_proj.weight").requires_grad_()
    _, wanted = train(model, PackedCausal(BOUNDS))
    kept = wanted[[p is trained for p in model.parameters()].index(True)].clone()
    with fused(model, kernels):
        train(model, NativePackedCausal(BOUNDS, kernels))
    assert [p is trained for p in model.parameters()] == [p.grad is not None for p in model.parameters()]
    assert trained.grad is not None
    assert relative_errors([trained.grad], [kept])[0] < 1e-4


def test_checkpointed_layers_have_the_same_bits(isa: str) -> None:
    model, kernels = random_model(SMALL).requires_grad_(), kernels_of(isa)
    attend = NativePackedCausal(BOUNDS, kernels)
    with fused(model, kernels):
        loss, wanted = train(model, attend)
        wanted = [grad.clone() for grad in wanted]
        for layer in model.model.layers:
            assert isinstance(layer, nn.Module)
            forward = layer.forward
            layer.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
        again, got = train(model, attend)
    assert torch.equal(loss, again)
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


def test_afterwards_the_model_is_as_it_was_even_after_an_error(isa: str) -> None:
    model, kernels = random_model(SMALL), kernels_of(isa)
    before = [set(vars(module)) for module in model.modules()]
    loss, _ = train(model.requires_grad_(), PackedCausal(BOUNDS))

    def fail() -> None:
        with fused(model, kernels):
            assert [set(vars(module)) for module in model.modules()] != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [set(vars(module)) for module in model.modules()] == before
    assert torch.equal(train(model, PackedCausal(BOUNDS))[0], loss)


@pytest.mark.parametrize("native", [True, False])
def test_what_the_kernels_do_not_take_is_torchs_bit_for_bit(isa: str, native: bool) -> None:
    model = random_model(SMALL).double().requires_grad_()
    loss, wanted = train(model, PackedCausal(BOUNDS))
    wanted = [grad.clone() for grad in wanted]
    kernels = kernels_of(isa) if native else None
    within: AbstractContextManager[None] = fused(model, kernels)
    with within:
        attend = PackedCausal(BOUNDS) if kernels is None else NativePackedCausal(BOUNDS, kernels)
        again, got = train(model, attend)
    assert torch.equal(loss, again)
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


def test_without_gradients_values_are_the_same_bits(isa: str) -> None:
    model, kernels = random_model(SMALL), kernels_of(isa)
    tokens = torch.arange(BOUNDS[-1]) % SMALL.vocab_size
    with fused(model, kernels):
        results = []
        for grad, trained in ((True, True), (True, False), (False, True)):
            model.requires_grad_(trained)
            with nullcontext() if grad else torch.no_grad():
                results.append(model(tokens, positions(), NativePackedCausal(BOUNDS, kernels)))
    assert [hidden.requires_grad for hidden in results] == [True, False, False]
    assert all(torch.equal(hidden, results[0]) for hidden in results)


def test_threads_change_no_bit_of_a_step(isa: str) -> None:
    model = random_model(SMALL).bfloat16().requires_grad_()
    outcomes = []
    for threads in (1, 2, 4):
        kernels = kernels_of(isa, threads)
        with fused(model, kernels):
            loss, grads = train(model, NativePackedCausal(BOUNDS, kernels))
        outcomes.append([loss, *(grad.clone() for grad in grads)])
    for outcome in outcomes[1:]:
        assert all(torch.equal(one, other) for one, other in zip(outcome, outcomes[0], strict=True))


def test_no_kernels_where_the_environment_says_so(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from corral.kernels import library

    library.load.cache_clear()
    try:
        monkeypatch.setenv("CORRAL_ISA", "none")
        assert load() is None
        library.load.cache_clear()
        monkeypatch.setenv("CORRAL_ISA", isa)
        kernels = load(threads=3)
        assert isinstance(kernels, TrainingKernels)
        assert (kernels.library.isa, kernels.threads) == (isa, 3)
        kernels.close()
    finally:
        library.load.cache_clear()
