"""The chunked loss of the head is the plain one: values, gradients, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from corral.tune.head import cross_entropy, token_logprobs, token_logprobs_through

VOCAB, SIZE = 300, 24
Logprobs = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def summed(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """0.37 of the loss: what divides it is not 1 in training either."""
    return 0.37 * cross_entropy(hidden, weight, targets, chunk).sum


def by_token(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    return -0.37 * token_logprobs(hidden, weight, targets, chunk).sum()


def weighted(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Each token counts differently, and not linearly."""
    return (token_logprobs(hidden, weight, targets, chunk) * 0.2).exp().sum()


def through(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    logprobs, _ = token_logprobs_through(lambda rows: rows @ weight.t(), hidden, targets, chunk)
    return -0.37 * logprobs.sum()


def inputs(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, SIZE, generator=generator).to(dtype)
    weight = (torch.randn(VOCAB, SIZE, generator=generator) / 2).to(dtype)
    return hidden, weight, torch.randint(0, VOCAB, (n,), generator=generator)


def exact(
    form: Logprobs, hidden: Tensor, weight: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same loss in float64 by plain autograd, and its gradients."""
    h, w = (t.detach().double().requires_grad_(t.requires_grad) for t in (hidden, weight))
    logprobs = torch.log_softmax(h @ w.t(), -1).gather(1, targets[:, None]).squeeze(1)
    loss = (logprobs * 0.2).exp().sum() if form is weighted else -0.37 * logprobs.sum()
    torch.autograd.backward(loss)
    return loss.detach(), h.grad, w.grad


def require_close(ours: Tensor | None, exact: Tensor | None, tolerance: float) -> None:
    """By the norm of the difference: single entries near zero may be off by more of themselves."""
    if exact is None:
        assert ours is None
        return
    assert ours is not None
    assert float((ours.double() - exact).norm()) <= tolerance * float(exact.norm())


@pytest.mark.parametrize("form", [summed, by_token, weighted, through])
@pytest.mark.parametrize(
    "trained", [(True, True), (True, False), (False, True)], ids=["both", "hidden", "head"]
)
@pytest.mark.parametrize(("n", "chunk"), [(37, 1), (37, 7), (37, 37), (37, 100), (64, 16), (1, 5), (0, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_values_and_gradients_are_those_of_plain_autograd(
    form: Logprobs, trained: tuple[bool, bool], n: int, chunk: int, dtype: torch.dtype, tolerance: float
) -> None:
    hidden, weight, targets = inputs(n, dtype)
    hidden.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    loss = form(hidden, weight, targets, chunk)
    if n or form is not through:
        torch.autograd.backward(loss)
        expected, for_hidden, for_weight = exact(form, hidden, weight, targets)
        require_close(hidden.grad, for_hidden, tolerance)
        require_close(weight.grad, for_weight, tolerance)
        assert float(loss.detach()) == pytest.approx(float(expected), rel=tolerance)
    assert loss.dtype == torch.float32


def test_the_likeliest_tokens_are_counted() -> None:
    hidden, weight, targets = inputs(50)
    logits = hidden @ weight.t()
    targets[::3] = logits.argmax(-1)[::3]
    wanted = int((logits.argmax(-1) == targets).sum())
    assert wanted >= 17
    assert int(cross_entropy(hidden, weight, targets, 7).correct) == wanted
    assert int(cross_entropy(hidden.requires_grad_(), weight, targets, 7).correct) == wanted
    assert int(token_logprobs_through(lambda rows: rows @ weight.t(), hidden, targets, 7)[1]) == wanted


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_large_logits_stay_finite(size: float) -> None:
    hidden, weight = torch.tensor([[1.0], [-1.0]], requires_grad=True), torch.tensor([[0.0], [size]])
    loss = cross_entropy(hidden, weight, torch.tensor([1, 0]), 4).sum
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_the_heads_gradient_in_bfloat16_is_added_up_exactly() -> None:
    """As good in 200 chunks as in one; sums of bfloat16 would be many times as wrong."""
    hidden, weight, targets = inputs(800, torch.bfloat16)
    weight.requires_grad_()
    _, _, wanted = exact(summed, hidden, weight, targets)
    assert wanted is not None
    errors: list[float] = []
    for chunk in (800, 4):
        weight.grad = None
        torch.autograd.backward(summed(hidden, weight, targets, chunk))
        assert weight.grad is not None
        assert weight.grad.dtype == torch.bfloat16
        errors.append(float((weight.grad.double() - wanted).norm() / wanted.norm()))
    assert errors[1] < 1.2 * errors[0]


def test_heads_of_more_rows_than_a_block_have_all_of_their_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=generator).bfloat16()
    weight = torch.randn(20_000, 8, generator=generator).bfloat16().requires_grad_()
    targets = torch.tensor([0, 8191, 8192, 16383, 16384, 19_999])
    torch.autograd.backward(summed(hidden, weight, targets, 4))
    _, _, wanted = exact(summed, hidden, weight, targets)
    require_close(weight.grad, wanted, 8e-3)


def test_gradients_add_up_over_several_losses() -> None:
    hidden, weight, targets = inputs(20)
    weight.requires_grad_()
    for part in (slice(0, 13), slice(13, 20)):
        torch.autograd.backward(summed(hidden[part], weight, targets[part], 5))
    _, _, wanted = exact(summed, hidden, weight, targets)
    require_close(weight.grad, wanted, 1e-6)


def test_a_loss_goes_backward_once() -> None:
    hidden, weight, targets = inputs(5)
    loss = cross_entropy(hidden.requires_grad_(), weight, targets, 2).sum
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(RuntimeError, match="gone backward already"):
        torch.autograd.backward(loss)


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs(9)
    weight.requires_grad_()
    expected = cross_entropy(hidden, weight, targets, 4).sum
    monkeypatch.setattr("corral.tune.head._Gradients", None)
    with torch.no_grad():
        assert torch.equal(cross_entropy(hidden, weight, targets, 4).sum, expected)
    assert torch.equal(cross_entropy(hidden, weight.detach(), targets, 4).sum, expected)


def test_the_gradient_of_the_head_becomes_the_parameters_without_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, targets = inputs(9)
    made: list[int] = []
    zeros_like = torch.zeros_like

    def noted(tensor: Tensor, **options: torch.dtype) -> Tensor:
        zeros = zeros_like(tensor, dtype=options.get("dtype"))
        made.append(zeros.data_ptr())
        return zeros

    monkeypatch.setattr("corral.tune.head.torch.zeros_like", noted)
    torch.autograd.backward(cross_entropy(hidden, weight.requires_grad_(), targets, 4).sum)
    assert weight.grad is not None
    assert weight.grad.data_ptr() in made
