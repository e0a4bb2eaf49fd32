"""How the next token is chosen: the definition that every faster sampler is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corral.errors import RequestError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and when to stop. Names and meanings are those of vLLM's offline interface.

    Attributes:
        temperature: 0 takes the best token (greedy); otherwise logits are divided by it.
        top_k: keep the k best tokens; 0 keeps all.
        top_p: keep the fewest best tokens whose probabilities reach this sum.
        min_p: keep tokens with at least this share of the best token's probability.
        repetition_penalty: divide positive and multiply negative logits of tokens that the prompt or the
        output
            already holds (Keskar et al., 2019, arXiv:1909.05858); 1 changes nothing.
        seed: the same seed gives the same tokens; None takes a fresh one.
        max_tokens: how many tokens to generate at most; None goes on to the end of the context.
        stop_token_ids: further ids that end the output.
        ignore_eos: do not stop at the model's own stop ids.

    Raises:
        RequestError: a value is out of range; the message names the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _require_number("temperature", self.temperature, low=0.0)
        _require_number("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        _require_number("min_p", self.min_p, low=0.0, high=1.0)
        _require_number("repetition_penalty", self.repetition_penalty, low=0.0, low_open=True)
        _require_whole("top_k", self.top_k, low=0)
        if self.max_tokens is not None:
            _require_whole("max_tokens", self.max_tokens, low=1)
        if self.seed is not None:
            _require_whole("seed", self.seed, low=0, high=2**64 - 1)
        for token_id in self.stop_token_ids:
            _require_whole("stop_token_ids", token_id, low=0)


def sample(logits: Tensor, params: SamplingParams, seen: Sequence[int], seed: int, position: int) -> int:
    """The next token for logits [vocab_size].

    `seen` are the tokens of prompt and output so far, `position` is the number of them. The choice depends
    on the logits, the parameters, `seed` and `position` alone, never on what else runs.
    """
    scores = penalize_repetition(logits.float(), seen, params.repetition_penalty)
    if params.temperature == 0.0:
        return int(scores.argmax())
    ids, probabilities = candidates(scores, params)
    cumulative = probabilities.double().cumsum(0)
    target = uniform(seed, position) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, target, right=True))
    return int(ids[min(index, len(ids) - 1)])


def penalize_repetition(scores: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Scores [vocab_size] with those of seen tokens made less likely."""
    if penalty == 1.0 or not seen:
        return scores
    ids = torch.tensor(sorted(set(seen)), device=scores.device)
    chosen = scores[ids]
    return scores.index_copy(0, ids, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def candidates(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Token ids that may be drawn, best first, and their probabilities, which sum to one.

    The order is: temperature, then top_k, then top_p, then min_p, each on what the one before has kept.
    Equal scores are ordered by id.
    """
    ordered, ids = (scores / params.temperature).sort(descending=True, stable=True)
    if 0 < params.top_k < len(ordered):
        ordered, ids = ordered[: params.top_k], ids[: params.top_k]
    probabilities = ordered.softmax(0)
    if params.top_p < 1.0:
        before = probabilities.cumsum(0) - probabilities
        kept = max(1, int((before < params.top_p).sum()))
        probabilities, ids = probabilities[:kept] / probabilities[:kept].sum(), ids[:kept]
    if params.min_p > 0.0:
        kept = int((probabilities >= params.min_p * probabilities[0]).sum())
        probabilities, ids = probabilities[:kept] / probabilities[:kept].sum(), ids[:kept]
    return ids, probabilities


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of seed and position (Philox; Salmon et al., SC 2011)."""
    raw = np.random.Philox(key=seed, counter=position).random_raw()
    return int(raw >> 11) * 2.0**-53


def _require_number(
    name: str, value: Any, *, low: float, high: float = math.inf, low_open: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} is {value!r}; it must be a number")
    if value < low or value > high or (low_open and value == low):
        above = f"greater than {low:g}" if low_open else f"at least {low:g}"
        upto = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(f"{name} is {value}; it must be {above}{upto}")


def _require_whole(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} is {value!r}; it must be a whole number")
    if value < low or (high is not None and value > high):
        upto = "" if high is None else f" and at most {high}"
        raise RequestError(f"{name} is {value}; it must be at least {low}{upto}")
