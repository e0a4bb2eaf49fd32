"""SFT teaches what it is shown, to adapters and to whole models. Pretraining is SFT on whole texts."""

from __future__ import annotations

import numpy as np

from corral.tune.examples import Example, Item
from corral.tune.objectives.sft import SFT
from tests.tune.objectives.preferences import adapted, trainable, trained


def counting(count: int, seed: int) -> list[Item]:
    """Texts in which each token follows from the one before; all but the first are trained."""
    random = np.random.default_rng(seed)
    items: list[Item] = []
    for _ in range(count):
        start, length = random.integers(0, 120), int(random.integers(4, 12))
        tokens = ((start + np.arange(length)) % 120).astype(np.int32)
        items.append(Example(tokens, np.arange(length) > 0))
    return items


def test_held_out_texts_get_likelier() -> None:
    network, adapters = adapted()
    whole = trainable()
    for model, parameters in ((network, adapters.parameters()), (whole, whole.model.parameters())):
        before, after = trained(SFT(), model, list(parameters), counting(96, 1), counting(32, 2), lr=0.01)
        assert after.loss < before.loss - 1
        assert after.metrics["accuracy"] > before.metrics["accuracy"]
