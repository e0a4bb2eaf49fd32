"""How well a model predicts a text that every Python has: the documentation in `pydoc_data`."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from corral.evals.losses import token_losses
from corral.evals.scorer import ModelSetup, TextModel
from corral.evals.windows import windows_of
from corral.model.presets import DEFAULT_MODEL

WINDOW = 1024  # tokens that are scored together, each but the first
TEXT = "\n\n".join(topics[name] for name in sorted(topics))


def negative_log_likelihoods(tokens: int, **options: Any) -> Tensor:
    """Of each predicted token [< tokens], with the default model; `options` are those of `ModelSetup`."""
    model = TextModel(ModelSetup(DEFAULT_MODEL, **options))
    windows = windows_of([TEXT], model.tokenizer, WINDOW, WINDOW, tokens)
    return torch.cat([torch.from_numpy(losses) for _, losses in token_losses(model.load(WINDOW), windows)])
