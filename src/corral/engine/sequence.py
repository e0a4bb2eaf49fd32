"""The state of what runs: a request, and the sequences that it gives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from corral.engine.cache.block_table import BlockTable
from corral.engine.events import FinishReason, Timings, TokenLogprob, TokenLogprobs, Usage
from corral.engine.grammar.matcher import Matcher
from corral.engine.handle import Handle
from corral.engine.request import Request, Score
from corral.engine.sampling.history import History
from corral.engine.sampling.stop_strings import OutputText


@dataclass(eq=False)
class PromptScore:
    """Log-probabilities of a prompt, as far as they have been computed; `told` once they were given out."""

    wanted: Score
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    next_tokens: tuple[TokenLogprob, ...] | None = None
    told: bool = False

    @property
    def done(self) -> int:
        """The first token that has not been scored."""
        return self.wanted.start + len(self.logprobs)

    @property
    def wants_next(self) -> bool:
        return bool(self.wanted.next_top or self.wanted.next_token_ids)


@dataclass(eq=False)
class RunningRequest:
    """A request that was taken on, with what its sequences share."""

    request: Request
    handle: Handle
    arrival: int
    seed: int
    max_tokens: int
    score: PromptScore | None
    submitted: float
    started: float | None = None
    cached_tokens: int = 0
    overtaken: int = 0
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def deadline(self) -> float | None:
        """When it is cancelled, on the monotonic clock."""
        timeout = self.request.timeout
        return None if timeout is None else self.submitted + timeout

    @property
    def stops(self) -> frozenset[int]:
        """The token ids that end an output."""
        params = self.request.params
        return frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else self.request.stop_ids
        )


class Sequence:
    """The tokens of one output, with its prompt, and what belongs to them.

    `num_computed` tokens have their keys and values in the blocks of `table`. What remains is computed in
    chunks; when nothing but the last token remains, the sequence decodes. A sequence that was preempted has
    computed nothing and has no blocks; it goes on from its tokens.
    """

    def __init__(
        self, owner: RunningRequest, table: BlockTable, text: OutputText, matcher: Matcher | None
    ) -> None:
        self.owner = owner
        self.index = 0
        self.tokens: list[int] = list(owner.request.tokens)
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.table = table
        self.text = text
        self.matcher = matcher
        self.history = History(owner.request.params, self.tokens)
        self.forks_left = 0 if owner.request.score else owner.request.params.n - 1
        self.draft_tokens = self.accepted_tokens = 0
        self.first_token: float | None = None
        self.finished: FinishReason | None = None

    @property
    def num_remaining(self) -> int:
        """Tokens whose keys and values are not cached."""
        return len(self.tokens) - self.num_computed

    @property
    def decodes(self) -> bool:
        """Whether only the token that was generated last remains."""
        return self.num_remaining == 1 and len(self.tokens) > self.num_prompt

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_slots(self) -> int:
        """How many running sequences this one stands for: itself and those that will fork from it."""
        return 1 + self.forks_left

    @property
    def cacheable(self) -> int:
        """How many tokens may be taken from the prefix cache: the last must be computed, and so must the
        token before each that is to be scored."""
        score = self.owner.score
        last = len(self.tokens) - 1
        return last if score is None else min(last, score.done - 1)

    def append(self, token_id: int) -> None:
        """Goes on with a generated token."""
        self.tokens.append(token_id)
        self.history.push(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    def fork(self, index: int, text: OutputText) -> Sequence:
        """Another output that has the same tokens so far."""
        twin = Sequence.__new__(Sequence)
        twin.__dict__.update(self.__dict__)
        twin.index, twin.tokens, twin.text = index, list(self.tokens), text
        twin.table, twin.history = self.table.fork(), self.history.fork()
        twin.matcher = None if self.matcher is None else self.matcher.fork()
        twin.forks_left = 0
        return twin

    def preempt(self) -> None:
        """Gives the blocks back; everything is computed again later."""
        self.table.free()
        self.num_computed = 0

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.num_prompt,
            cached_tokens=self.owner.cached_tokens,
            completion_tokens=self.num_generated,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
        )

    def timings(self) -> Timings:
        """What the time until now went into."""
        now = time.monotonic()
        started = self.owner.started or now
        first = self.first_token or now
        return Timings(started - self.owner.submitted, max(0.0, first - started), now - first)
