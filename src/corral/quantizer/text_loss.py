"""How well a model predicts a text before and after, computed layer by layer with everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from corral.model.llama import Layer, RMSNorm
from corral.quantizer.layers import LayerReader, Windows

_ROWS, _VOCABULARY = 1024, 16384  # of the scores that exist at once


@dataclass(frozen=True)
class Perplexities:
    """Of a model before and after, in float32 with activations as they are: weights alone are compared.

    Attributes:
        before, after: e to the power of the mean negative log-likelihood of a token.
        tokens: that were predicted.
    """

    before: float
    after: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


class TextLoss:
    """Windows of a text on their way through the network as it was, and as it becomes.

    Args:
        tokens: the windows, all of one length.
        reader: of the network.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], reader: LayerReader) -> None:
        self._tokens, self._reader = torch.tensor(tokens), reader
        self._before = Windows.embed(tokens, reader)
        self._after = self._before.some(len(tokens))

    def before(self, layer: Layer) -> None:
        """Goes through a layer as it was."""
        self._before.run(layer)

    def after(self, layer: Layer) -> None:
        """Goes through a layer as it is written."""
        self._after.run(layer)

    def perplexities(self) -> Perplexities:
        """Once all layers are behind."""
        norm = RMSNorm(self._reader.config.hidden_size, self._reader.config.rms_norm_eps)
        norm.weight.data = self._reader.tensors("model.norm.")["model.norm.weight"].float()
        tied = self._reader.config.tie_word_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        head = self._reader.tensors(name)[name]
        targets = self._tokens[:, 1:].flatten()
        means = [
            float(_losses(norm(windows.states[:, :-1].flatten(0, 1)), targets, head, windows.device).mean())
            for windows in (self._before, self._after)
        ]
        before, after = (float(torch.tensor(mean, dtype=torch.float64).exp()) for mean in means)
        return Perplexities(before, after, len(targets))


def _losses(hidden: Tensor, targets: Tensor, head: Tensor, device: torch.device) -> Tensor:
    """The negative log-likelihood of each target [rows] after hidden states [rows, hidden_size]: float64.

    The head [vocab_size, hidden_size] is read a piece at a time: as float32 it may not fit.
    """
    losses = torch.zeros(len(hidden), dtype=torch.float64)
    for start in range(0, len(hidden), _ROWS):
        rows = slice(start, start + _ROWS)
        x, wanted = hidden[rows].to(device), targets[rows].to(device)
        total = torch.full((len(x),), -torch.inf, device=device)
        score = torch.zeros(len(x), device=device)
        for first in range(0, len(head), _VOCABULARY):
            scores = F.linear(x, head[first : first + _VOCABULARY].to(device, torch.float32))
            total = torch.logaddexp(total, scores.logsumexp(1))
            here = (wanted >= first) & (wanted < first + _VOCABULARY)
            score[here] = scores[here, wanted[here] - first]
        losses[rows] = (total - score).double().cpu()
    return losses
