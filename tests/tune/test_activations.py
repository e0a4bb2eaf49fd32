"""Checkpointing changes what is kept, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corral.model.llama import Llama
from corral.tune.activations import checkpoint_activations
from corral.tune.network import Network
from corral.tune.objectives.sft import SFT
from tests.random_models import SMALL, random_model
from tests.tune.test_loop import documents


def gradients(model: Llama) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and the bytes that were kept for the backward pass."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes if not tensor.is_leaf or not tensor.requires_grad else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = SFT()(Network(model), SFT().collate(documents(6)))
    loss.sum.backward()  # type: ignore[no-untyped-call]
    return loss.sum.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_gradients_are_the_same(kind: str) -> None:
    plain, model = (random_model(SMALL).requires_grad_(True) for _ in range(2))
    checkpoint_activations(model, kind)
    (loss, expected, kept), (again, found, less) = gradients(plain), gradients(model)
    assert torch.equal(loss, again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert less < 0.6 * kept


def test_none_leaves_the_layers_alone() -> None:
    model = random_model(SMALL)
    checkpoint_activations(model, "none")
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_without_gradients_nothing_is_set_up() -> None:
    model = random_model(SMALL).requires_grad_(True)
    checkpoint_activations(model, "full")
    batch = SFT().collate(documents(3))
    with torch.no_grad():
        hidden = Network(model).hidden(batch)
    assert not hidden.requires_grad
    assert torch.equal(hidden, Network(random_model(SMALL)).hidden(batch))
