"""One row of logits to sample from, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corral.engine.events import TokenLogprobs
from corral.engine.sampling.history import History
from corral.engine.sampling.params import SamplingParams


@dataclass(frozen=True)
class Row:
    """Everything, besides the logits, that decides the token at one position of one sequence.

    Attributes:
        params: how the token is chosen.
        history: the tokens of the sequence, without the drafts.
        drafts: tokens that are assumed to stand between the sequence and this position.
        key: of the sequence's random numbers, see `choice_key`.
        position: the number of tokens before this one, drafts included.
        banned: ids that may not come.
        allowed: int32 bits [ceil(vocab / 32)]: bit i is set where token i may come.
        logprobs: as `SamplingParams.logprobs`.
    """

    params: SamplingParams
    history: History
    drafts: tuple[int, ...]
    key: int
    position: int
    banned: frozenset[int] = frozenset()
    allowed: Tensor | None = None
    logprobs: int | None = None

    @property
    def is_edited(self) -> bool:
        """Whether anything but the model's own logits decides."""
        return bool(
            self.allowed is not None or self.banned or self.params.logit_bias or self.history.penalizes
        )


@dataclass(frozen=True)
class Sampled:
    """The token of a row; or -1, and a sentence that says why there is none."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
