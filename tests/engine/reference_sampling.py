"""How the next token is chosen: the plain, slow definition that the sampler is held to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.random import uniform


def sample(
    logits: Tensor,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    key: int,
    position: int,
    *,
    banned: Collection[int] = (),
    allowed: Collection[int] | None = None,
) -> int:
    """The token at a position, after prompt and output, for logits [vocab]."""
    scores = edit(logits, params, prompt, output, banned, allowed)
    if params.greedy:
        return max(range(len(scores)), key=lambda i: (scores[i], -i))
    ids, probabilities = candidates(scores, params)
    draw = uniform(key, position)
    target, reached = draw * _running(probabilities)[-1], 0.0
    for token_id, probability in zip(ids, probabilities, strict=True):
        reached += probability
        if reached > target:
            return token_id
    raise AssertionError("the draw is below 1")


def edit(
    logits: Tensor,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    banned: Collection[int] = (),
    allowed: Collection[int] | None = None,
) -> list[float]:
    """Scores [vocab]: bans, then bias, then penalties, each in float32."""
    scores = logits.float().numpy().copy()
    for i in range(len(scores)):
        if i in banned or (allowed is not None and i not in allowed):
            scores[i] = -np.inf
    for i, bias in params.logit_bias.items():
        scores[i] += np.float32(bias)
    penalty = np.float32(params.repetition_penalty)
    for i in {*prompt, *output}:
        scores[i] = scores[i] * penalty if scores[i] < 0 else scores[i] / penalty
    for i, count in Counter(output).items():
        scores[i] -= np.float32(params.frequency_penalty) * np.float32(count) + np.float32(
            params.presence_penalty
        )
    return [float(score) for score in scores]


def candidates(scores: Sequence[float], params: SamplingParams) -> tuple[list[int], list[float]]:
    """Token ids that may be drawn, best first, and their shares, which need not sum to one.

    The order is: temperature, top_k, top_p, min_p, typical_p, each on what the one before has kept. Equal
    scores are ordered by id.
    """
    ids = sorted((i for i, score in enumerate(scores) if score > -math.inf), key=lambda i: (-scores[i], i))
    shares = [math.exp((scores[i] - scores[ids[0]]) / params.temperature) for i in ids]
    if params.top_k:
        ids, shares = ids[: params.top_k], shares[: params.top_k]
    if params.top_p < 1.0:
        *before, total = [0.0, *_running(shares)]
        kept = sum(mass < params.top_p * total for mass in before)
        ids, shares = ids[:kept], shares[:kept]
    kept = sum(share >= params.min_p * shares[0] for share in shares)
    ids, shares = ids[:kept], shares[:kept]
    return typical(ids, shares, params.typical_p) if params.typical_p < 1.0 else (ids, shares)


def typical(ids: list[int], shares: list[float], mass: float) -> tuple[list[int], list[float]]:
    """The tokens whose information is nearest to the entropy, until their probabilities reach the mass."""
    possible = [place for place, share in enumerate(shares) if share > 0.0]
    total = sum(shares)
    information = {place: math.log(total) - math.log(shares[place]) for place in possible}
    probability = {place: shares[place] / total for place in possible}
    entropy = sum(probability[place] * information[place] for place in possible)
    distance = {place: abs(information[place] - entropy) for place in possible}
    nearest = sorted(possible, key=lambda place: (distance[place], place))
    reached = _running([probability[place] for place in nearest])
    last = nearest[min(sum(sum_ < mass for sum_ in reached), len(nearest) - 1)]
    kept = [place for place in possible if distance[place] <= distance[last]]
    return [ids[place] for place in kept], [shares[place] for place in kept]


def _running(values: Sequence[float]) -> list[float]:
    sums, reached = [], 0.0
    for value in values:
        reached += value
        sums.append(reached)
    return sums
