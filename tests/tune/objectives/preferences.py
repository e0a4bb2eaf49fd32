"""Small preferences, and what trains on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from corral.model.llama import Llama
from corral.tune.batch import Batch
from corral.tune.config import ParametersConfig
from corral.tune.examples import Example, Item, Pair, Rated, Tokens, joined
from corral.tune.feed import Feed, FeedOptions, Position, Step
from corral.tune.loop import Loop, Measures
from corral.tune.network import Network
from corral.tune.objectives.objective import Loss, Objective
from corral.tune.objectives.reward import add_score
from corral.tune.parameters.adapters import Adapters
from corral.tune.reference import ReferencedPair
from tests.random_models import SMALL, random_model

GOOD, BAD = (2, 22), (60, 80)  # ranges of tokens that completions are made of, where one is better


def random_tokens(random: np.random.Generator, length: int, among: tuple[int, int] = (2, 120)) -> Tokens:
    return random.integers(*among, length).astype(np.int32)


def pairs(count: int, seed: int = 0, chosen_length: int | None = None, telling: bool = False) -> list[Item]:
    """Of uneven lengths. `telling` ones have better completions of other tokens than worse ones."""
    random = np.random.default_rng(seed)
    good, bad = (GOOD, BAD) if telling else ((2, 120), (2, 120))
    items: list[Item] = []
    for _ in range(count):
        prompt = random_tokens(random, int(random.integers(1, 6)))
        chosen = random_tokens(random, chosen_length or int(random.integers(1, 8)), good)
        rejected = random_tokens(random, int(random.integers(1, 8)), bad)
        items.append(Pair(joined(prompt, chosen), joined(prompt, rejected)))
    return items


def rated(count: int, seed: int = 0, telling: bool = False) -> list[Item]:
    """Of uneven lengths, more of them desirable than not."""
    random = np.random.default_rng(seed)
    items: list[Item] = []
    for i in range(count):
        desirable = i % 3 != 1
        among = (GOOD if desirable else BAD) if telling else (2, 120)
        prompt = random_tokens(random, int(random.integers(1, 6)))
        items.append(Rated(prompt, random_tokens(random, int(random.integers(1, 8)), among), desirable))
    return items


def trainable(seed: int = 0) -> Network:
    return Network(random_model(SMALL, seed).requires_grad_(True), loss_chunk=7)


def adapted(seed: int = 0, moved: int | None = None) -> tuple[Network, Adapters]:
    """A network with new adapters, or such as training might have moved, by a seed."""
    model = random_model(SMALL, seed)
    adapters = Adapters.new(model, ParametersConfig(rank=4), torch.Generator().manual_seed(seed))
    if moved is not None:
        generator = torch.Generator().manual_seed(moved)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return Network(model, adapters), adapters


def logprobs_of(network: Network, documents: Sequence[Example]) -> Tensor:
    batch = Batch.of(documents)
    with torch.no_grad():
        return batch.by_document(network.token_logprobs(batch))


def referenced(items: Sequence[Item], reference: Network) -> list[Item]:
    """Pairs with their log-probabilities by another network."""
    found: list[Item] = []
    for item in items:
        assert isinstance(item, Pair)
        chosen, rejected = logprobs_of(reference, [item.chosen, item.rejected]).tolist()
        found.append(ReferencedPair(item.chosen, item.rejected, chosen, rejected))
    return found


def loss_of(objective: Objective, network: Network, items: Sequence[Item]) -> Loss:
    """The loss of one microbatch; its mean has gone backward."""
    batch = objective.collate(items)
    loss = objective(network, batch)
    torch.autograd.backward(loss.sum / objective.weight(batch))
    return loss


def gradients(model: Llama) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class Descent:
    """AdamW as the loop wants it."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._adamw = torch.optim.AdamW(parameters)

    def step(self, lr: float) -> float:
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        return 0.0

    def zero_grad(self) -> None:
        self._adamw.zero_grad()


def trained(
    objective: Objective,
    network: Network,
    parameters: Sequence[Tensor],
    items: Sequence[Item],
    held_out: Sequence[Item],
    lr: float,
) -> tuple[Measures, Measures]:
    """Trains for three epochs; gives the measures on held-out rows before and after."""
    loop = Loop(network, objective, parameters, Descent(parameters))
    feed = Feed(
        items,
        [len(item) for item in items],
        FeedOptions(batch_size=4, accumulation=2, max_length=64),
        smallest_batch=objective.smallest_batch,
    )
    held = Step((tuple(held_out),), (True,), Position(), 1.0)
    before = loop.evaluate([held])
    for step in feed.steps():
        loop.step(step, lr)
        if step.after.epoch == 2 and step.after.step == feed.steps_of(2):
            break
    return before, loop.evaluate([held])


class Kept:
    """An optimizer that keeps the gradients of each step and changes nothing."""

    def __init__(self, model: Llama) -> None:
        self._model = model
        self.steps: list[dict[str, Tensor]] = []

    def step(self, lr: float) -> float:
        self.steps.append({name: grad.clone() for name, grad in gradients(self._model).items()})
        return 0.0

    def zero_grad(self) -> None:
        self._model.zero_grad(set_to_none=True)


def gradients_of_steps(
    objective: Objective, items: Sequence[Item], batch_size: int, accumulation: int, score: bool = False
) -> dict[str, Tensor]:
    """The gradients of one step over all items, by a loop that cuts it so."""
    network = trainable()
    if score:
        add_score(network.model)
    kept = Kept(network.model)
    loop = Loop(network, objective, list(network.model.parameters()), kept)
    options = FeedOptions(batch_size, accumulation, max_length=64, shuffle=False)
    loop.step(next(Feed(items, [len(item) for item in items], options).steps()), 0.0)
    (step,) = kept.steps
    return step


def require_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)
