"""How a step is cut changes nothing: accumulation, packing, chunks, left-over windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from corral.model.llama import Llama
from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item
from corral.tune.feed import Feed, FeedOptions
from corral.tune.loop import Loop, Measures
from corral.tune.network import Network
from corral.tune.objectives.sft import SFT
from tests.random_models import SMALL, random_model


class Gradients:
    """An optimizer that keeps the gradients of each step and changes nothing."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.steps: list[dict[str, Tensor]] = []

    def step(self, lr: float) -> float:
        parameters = self.model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
        return 0.0

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)


def documents(count: int, seed: int = 0) -> list[Item]:
    """Of uneven lengths, with uneven shares of trained tokens."""
    random = np.random.default_rng(seed)
    items: list[Item] = []
    for length in random.integers(2, 30, count):
        tokens = random.integers(0, SMALL.vocab_size, length).astype(np.int32)
        trained = random.random(length) < random.random()
        trained[0], trained[-1] = False, True
        items.append(Example(tokens, trained))
    return items


def run(
    items: Sequence[Item], batch_size: int, accumulation: int, *, packing: bool = False, loss_chunk: int = 256
) -> tuple[list[Measures], list[dict[str, Tensor]]]:
    """An epoch of steps, with the weights as they are."""
    model = random_model(SMALL).requires_grad_(True)
    kept = Gradients(model)
    loop = Loop(Network(model, loss_chunk=loss_chunk), SFT(), list(model.parameters()), kept)
    options = FeedOptions(batch_size, accumulation, max_length=64, packing=packing, shuffle=False)
    feed = Feed(items, [len(item) for item in items], options)
    steps = feed.steps()
    return [loop.step(next(steps), 0.0)[0] for _ in range(feed.steps_per_epoch)], kept.steps


def assert_same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for name, gradient in mine.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_step_is_the_mean_over_all_its_trained_tokens() -> None:
    items = documents(6)
    (measures,), (gradients,) = run(items, batch_size=6, accumulation=1)
    model = random_model(SMALL).requires_grad_(True)
    total, count = torch.zeros(()), 0
    for item in items:
        assert isinstance(item, Example)
        tokens = torch.from_numpy(item.tokens).long()
        network = Network(model)
        batch = SFT().collate([item])
        logits = model.logits(network.hidden(batch))[:-1]
        losses = F.cross_entropy(logits, tokens[1:], reduction="none")
        total = total + losses[torch.from_numpy(item.trained[1:])].sum()
        count += item.num_trained
    (total / count).backward()  # type: ignore[no-untyped-call]
    assert measures.loss == pytest.approx(float(total.detach()) / count, rel=1e-5)
    assert measures.weight == count
    assert measures.tokens == sum(len(item) for item in items)
    assert_same([gradients], [{n: p.grad for n, p in model.named_parameters() if p.grad is not None}])


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 8), (2, 4), (3, 3)])
def test_accumulation_changes_nothing(batch_size: int, accumulation: int) -> None:
    items = documents(8)
    whole, expected = run(items, 8, 1)
    cut, gradients = run(items, batch_size, accumulation)
    assert cut[0].loss == pytest.approx(whole[0].loss, rel=1e-5)
    assert cut[0].metrics == pytest.approx(whole[0].metrics)
    assert_same(gradients, expected)


def test_a_left_over_window_counts_by_its_tokens() -> None:
    items = documents(11)
    _, gradients = run(items, 2, 2)
    _, last = run(items[8:], 3, 1)
    assert len(gradients) == 3
    assert_same(gradients[-1:], last)


def test_packing_changes_nothing() -> None:
    items = documents(9)
    (plain,), expected = run(items, 9, 1)
    (packed,), gradients = run(items, 9, 1, packing=True)
    assert packed.loss == pytest.approx(plain.loss, rel=1e-5)
    assert packed.tokens == plain.tokens
    assert_same(gradients, expected)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_of_the_loss_change_nothing(chunk: int) -> None:
    items = documents(5)
    _, expected = run(items, 5, 1)
    _, gradients = run(items, 5, 1, loss_chunk=chunk)
    assert_same(gradients, expected)


def test_a_step_without_a_trained_token_is_refused() -> None:
    untrained: list[Item] = [Example(np.arange(5, dtype=np.int32), np.zeros(5, dtype=np.bool_))]
    with pytest.raises(TuneError, match="no token of a step is trained"):
        run(untrained, 1, 1)


def test_an_evaluation_gives_the_loss_and_no_gradient() -> None:
    items = documents(7)
    model = random_model(SMALL).requires_grad_(True)
    kept = Gradients(model)
    loop = Loop(Network(model), SFT(), list(model.parameters()), kept)
    feed = Feed(items, [len(item) for item in items], FeedOptions(2, 1, max_length=64, shuffle=False))
    measures = loop.evaluate(islice(feed.steps(), feed.steps_per_epoch))
    (step,), _ = run(items, 7, 1)
    assert measures.loss == pytest.approx(step.loss, rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())
