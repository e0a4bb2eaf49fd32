"""One step: computed first, kept afterwards.

Nothing in a sequence changes until everything that can raise has run, so that a step can be run again for
each of its sequences alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import chain, islice

from torch import Tensor

from corral.engine.events import TokenLogprob, TokenLogprobs
from corral.engine.run.batch import Span
from corral.engine.run.runner import Runner
from corral.engine.sampling.logprobs import next_token_logprobs, score_rows
from corral.engine.sampling.random import choice_key
from corral.engine.sampling.sampler import Row as SamplerRow
from corral.engine.sampling.sampler import Sampled, sample_rows
from corral.engine.scheduler import Work
from corral.engine.sequence import Sequence

SCORED_AT_ONCE = 128  # rows whose logits over the whole vocabulary are in memory together
_NOTHING: frozenset[int] = frozenset()


@dataclass
class Outcome:
    """What a step gave for one sequence.

    `choices` holds the new tokens: those of the sequence itself, then those of each output that forks from
    it.
    """

    work: Work
    choices: list[list[Sampled]] = field(default_factory=list)
    scored: list[TokenLogprobs] = field(default_factory=list)
    next_tokens: tuple[TokenLogprob, ...] | None = None
    num_drafts: int = 0


class _Share:
    """One sequence's share while a step is computed: which hidden states it wants, and what for."""

    def __init__(self, work: Work, drafts: list[int]) -> None:
        sequence, count = work.sequence, work.count
        self.work, self.sequence, self.drafts = work, sequence, drafts
        self.samples = work.completes and sequence.owner.request.score is None
        start = sequence.num_computed
        self.scored = range(0)
        self.scores_next = False
        score = sequence.owner.score
        if score is not None:
            last = min(sequence.num_prompt - 1, start + count)
            self.scored = range(score.done, max(last + 1, score.done))  # tokens; each from the row before
            ends = start < sequence.num_prompt <= start + count
            self.scores_next = score.wants_next and score.next_tokens is None and ends
        self.wanted = sorted(self._wanted(start, count))
        self.first_row = 0  # among the hidden states of the step

    def _wanted(self, start: int, count: int) -> set[int]:
        offsets = {token - 1 - start for token in self.scored}
        if self.scores_next:
            offsets.add(self.sequence.num_prompt - 1 - start)
        if self.samples:
            offsets.update(range(count - 1, count + len(self.drafts)))
        return offsets

    def row(self, offset: int) -> int:
        """The row of the step's hidden states for one of this share's tokens."""
        return self.first_row + self.wanted.index(offset)

    def rows(self, first_offset: int, count: int) -> range:
        """The rows for adjacent tokens."""
        first = self.row(first_offset) if count else 0
        return range(first, first + count)

    @property
    def samples_all(self) -> bool:
        """Whether a token is sampled from each wanted hidden state, and that is all."""
        cut_short = self.sequence.matcher is not None and len(self.drafts) > 0  # by the grammar
        return self.sequence.owner.score is None and not self.sequence.forks_left and not cut_short

    @property
    def span(self) -> Span:
        sequence = self.sequence
        start = sequence.num_computed
        tokens = [*sequence.tokens[start : start + self.work.count], *self.drafts]
        return Span(tokens, start, sequence.table.blocks, self.wanted, sequence.owner.request.adapter)


def compute(works: Row[Work], drafts: Row[list[int]], runner: Runner, executor: Executor) -> list[Outcome]:
    """Runs a step. Masks of grammars are computed by the executor while the network runs."""
    shares = [_Share(work, guesses) for work, guesses in zip(works, drafts, strict=True)]
    masks = {
        share.sequence: executor.submit(share.sequence.matcher.masks, share.drafts)
        for share in shares
        if share.samples and share.sequence.matcher is not None
    }
    first_row = 0
    for share in shares:
        share.first_row = first_row
        first_row += len(share.wanted)
    spans = [share.span for share in shares]
    outcomes = [Outcome(share.work) for share in shares]
    if all(share.samples_all for share in shares) and first_row > 0:
        scores = runner.next_logits(spans)
        rows = [_sampler_rows(share, masks) for share in shares]
        sampled = sample_rows(scores.logits, list(chain(*rows)), scores.best, scores.scan)
        _hand_out(shares, outcomes, rows, sampled)
        return outcomes
    hidden = runner.run(spans)
    for share, outcome in zip(shares, outcomes, strict=True):
        _score(share, outcome, hidden, runner)
    _sample(shares, outcomes, hidden, runner, masks)
    return outcomes


def _score(share: _Share, outcome: Outcome, hidden: Tensor, runner: Runner) -> None:
    """Log-probabilities of the prompt, few rows of logits at a time."""
    sequence, score = share.sequence, share.sequence.owner.score
    if score is None:
        return
    adapter = sequence.owner.request.adapter
    start = sequence.num_computed
    for first in range(share.scored.start, share.scored.stop, SCORED_AT_ONCE):
        chosen = sequence.tokens[first : min(first + SCORED_AT_ONCE, share.scored.stop)]
        rows = share.rows(first - 1 - start, len(chosen))
        logits = runner.logits(hidden[rows.start : rows.stop], [adapter] * len(chosen))
        outcome.scored += score_rows(logits, chosen, score.wanted.top)
    if share.scores_next:
        row = share.row(sequence.num_prompt - 1 - start)
        logits = runner.logits(hidden[row : row + 1], [adapter])
        wanted = score.wanted
        outcome.next_tokens = next_token_logprobs(logits[0], wanted.next_top, wanted.next_token_ids)


def _sample(
    shares: Row[_Share],
    outcomes: Row[Outcome],
    hidden: Tensor,
    runner: Runner,
    masks: dict[Sequence, Future[list[Tensor]]],
) -> None:
    """Chooses the next tokens of all sequences that have come to their end."""
    rows = [_sampler_rows(share, masks) for share in shares]
    hidden_rows: list[int] = []
    adapters: list[str | None] = []
    for share, mine in zip(shares, rows, strict=True):
        copies = 1 + share.sequence.forks_left
        positions = share.rows(share.work.count - 1, len(mine) // copies)
        hidden_rows += [row for row in positions for _ in range(copies)]
        adapters += [share.sequence.owner.request.adapter] * len(mine)
    if hidden_rows:
        logits = runner.logits(hidden[hidden_rows], adapters)
        _hand_out(shares, outcomes, rows, sample_rows(logits, list(chain(*rows))))


def _hand_out(
    shares: Row[_Share], outcomes: Row[Outcome], rows: Row[Row[SamplerRow]], sampled: Row[Sampled]
) -> None:
    """Gives each sequence what was sampled for its rows."""
    rest = iter(sampled)
    for share, outcome, mine in zip(shares, outcomes, rows, strict=True):
        tokens = list(islice(rest, len(mine)))
        if share.sequence.forks_left:
            outcome.choices = [[token] for token in tokens]
        elif tokens:
            outcome.num_drafts = len(tokens) - 1
            outcome.choices = [accepted(tokens, share.drafts)]


def _sampler_rows(share: _Share, masks: dict[Sequence, Future[list[Tensor]]]) -> list[SamplerRow]:
    """A row for the next token and for each that follows a guess; or, before forks, one for each output."""
    if not share.samples:
        return []
    sequence = share.sequence
    allowed = masks[sequence].result() if sequence in masks else None
    owner, params = sequence.owner, sequence.owner.request.params
    count = len(share.drafts) + 1 if allowed is None else len(allowed)
    return [
        SamplerRow(
            params=params,
            history=sequence.history,
            drafts=tuple(share.drafts[:i]),
            key=choice_key(owner.seed, sequence.index + fork),
            position=len(sequence.tokens) + i,
            banned=owner.stops if sequence.num_generated + i < params.min_tokens else _NOTHING,
            allowed=None if allowed is None else allowed[i],
            logprobs=params.logprobs,
        )
        for i in range(count)
        for fork in range(1 + sequence.forks_left)
    ]


def accepted(sampled: Row[Sampled], drafts: Row[int]) -> list[Sampled]:
    """The tokens that stand: each was chosen after guesses that were chosen too."""
    for i, (token, draft) in enumerate(zip(sampled, drafts, strict=False)):
        if token.token_id != draft:
            return list(sampled[: i + 1])
    return list(sampled)
