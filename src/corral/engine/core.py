"""What the engine's thread does: takes requests on, runs steps, says what came of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from corral.devices import is_out_of_memory, out_of_memory
from corral.engine.backlog import Backlog
from corral.engine.events import Failed, Finished, FinishReason, PromptScored, Started, Tokens
from corral.engine.run.runner import Runner
from corral.engine.sampling.sampler import Sampled
from corral.engine.sampling.stop_strings import OutputText
from corral.engine.scheduler import Scheduler, Work
from corral.engine.sequence import RunningRequest, Sequence
from corral.engine.speculation.speculator import Speculator
from corral.engine.stats import Counters
from corral.engine.step import Outcome, compute
from corral.errors import CorralError, EngineError
from corral.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class EngineCore:
    """The engine without its thread: whoever calls it, calls it from one thread at a time.

    Attributes:
        requests: those that were taken on and have not ended.
        backlog: those of them that have not started, and those that are on their way here.
        counters: what has been done since the start.
    """

    def __init__(
        self, runner: Runner, scheduler: Scheduler, speculator: Speculator, tokenizer: Tokenizer | None
    ) -> None:
        self.requests: set[RunningRequest] = set()
        self.backlog = Backlog(scheduler.config)
        self.counters = Counters()
        self.scheduler = scheduler
        self._runner, self._speculator, self._tokenizer = runner, speculator, tokenizer
        self._grammars = ThreadPoolExecutor(1, thread_name_prefix="corral-grammar")

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, owner: RunningRequest, sequence: Sequence) -> None:
        """Takes a request on; its first sequence waits for its turn."""
        self.requests.add(owner)
        owner.sequences = [sequence]
        self.scheduler.add(sequence)

    def output_text(self, owner: RunningRequest) -> OutputText:
        """An empty output."""
        request = owner.request
        return OutputText(self._tokenizer, request.params, request.continues, request.shown_ids)

    def cancel(self, owner: RunningRequest, message: str) -> None:
        """Ends what is left of a request."""
        for sequence in list(owner.sequences):
            unborn = sequence.forks_left
            self._finish(sequence, "cancelled", message=message)
            for index in range(sequence.index + 1, sequence.index + 1 + unborn):
                usage, timings = sequence.usage(), sequence.timings()
                owner.handle.push(Finished(index, "cancelled", usage, timings, message=message))

    def fail(self, owner: RunningRequest, error: CorralError) -> None:
        """Ends a request that could not be run."""
        self.counters.failures += 1
        self._forget(owner)
        try:
            self._discard(list(owner.sequences))
        finally:
            owner.handle.push(Failed(error))

    def fail_all(self, owners: Iterable[RunningRequest], error: BaseException) -> None:
        """Ends requests for a bug, so that none hangs for it and the next ones may go well."""
        for owner in set(owners):
            try:
                self.fail(owner, _as_corral_error(error))
            except BaseException:
                logger.exception("a request that failed could not be cleared away")

    def expire(self) -> None:
        """Cancels the requests whose time is over."""
        now = time.monotonic()
        for owner in [r for r in self.requests if r.deadline is not None and r.deadline <= now]:
            self.cancel(owner, f"the timeout of {owner.request.timeout:g} s has passed")

    def step(self) -> None:
        """Runs one step, if there is work."""
        works = self.scheduler.schedule()
        if not works:
            return
        self._start(works)
        try:
            self._copy_blocks(works)
        except BaseException as error:
            logger.exception("blocks could not be copied; the requests of the step fail")
            self.fail_all((work.sequence.owner for work in works), error)
            return
        began = time.perf_counter()
        drafts = self._propose(works)
        try:
            outcomes = compute(works, drafts, self._runner, self._grammars)
        except BaseException as error:  # also Rust's panics, which are no Exception
            self._run_alone(works, drafts, error)
        else:
            self._speculator.record_step(works, drafts, time.perf_counter() - began)
            for outcome in outcomes:
                self._settle(outcome)
        self.counters.steps += 1

    def close(self) -> None:
        """Ends what the engine has started beside its thread."""
        self._grammars.shutdown()

    def _copy_blocks(self, works: list[Work]) -> None:
        copies = [pair for work in works for pair in work.copies]
        if copies:
            self._runner.copy_blocks(copies)
            self._speculator.copy_blocks(copies)

    def _propose(self, works: list[Work]) -> list[list[int]]:
        """Guesses; none where guessing fails, for nothing depends on them."""
        try:
            return self._speculator.propose(works)
        except BaseException:
            logger.exception("no tokens could be guessed")
            return [[] for _ in works]

    def _run_alone(self, works: list[Work], drafts: list[list[int]], error: BaseException) -> None:
        """Runs each sequence of a step that raised for itself: who raises again is the culprit."""
        logger.warning("a step of %d sequences failed: %s", len(works), error, exc_info=error)
        for work, guesses in zip(works, drafts, strict=True):
            owner = work.sequence.owner
            if work.sequence not in owner.sequences:
                continue  # another output of the same request has failed
            if len(works) > 1:
                try:
                    (outcome,) = compute([work], [guesses], self._runner, self._grammars)
                except BaseException as own:
                    error = own
                else:
                    self._settle(outcome)
                    continue
            self.fail_all([owner], error)

    def _start(self, works: list[Work]) -> None:
        """Says of requests that are in a step for the first time that they have started."""
        for work in works:
            owner = work.sequence.owner
            if owner.started is None:
                self.backlog.remove(owner)
                owner.started = time.monotonic()
                owner.cached_tokens = work.sequence.num_computed
                self.counters.prompt_tokens += work.sequence.num_prompt
                self.counters.cached_tokens += owner.cached_tokens
                owner.handle.push(Started(work.sequence.num_prompt, owner.cached_tokens))

    def _settle(self, outcome: Outcome) -> None:
        """Keeps what a step gave for a sequence; where that goes wrong, its request fails alone."""
        try:
            self._keep(outcome)
        except BaseException as error:
            logger.exception("what a step gave could not be kept")
            self.fail_all([outcome.work.sequence.owner], error)

    def _keep(self, outcome: Outcome) -> None:
        """Makes what a step gave for a sequence part of it."""
        sequence = outcome.work.sequence
        if sequence not in sequence.owner.sequences:
            return  # its request has ended in this very step
        self._keep_score(outcome)
        sequence.num_computed += outcome.work.count
        sequence.table.commit(sequence.tokens, sequence.num_computed)
        if sequence.owner.request.score is not None:
            if sequence.num_remaining == 0:
                self._finish(sequence, "stop")
            return
        outputs = [sequence, *self._forks(sequence)] if outcome.choices else []
        for output, sampled in zip(outputs, outcome.choices, strict=True):
            if outcome.num_drafts:
                self._record_drafts(output, outcome.num_drafts, len(sampled) - 1)
            self._advance(output, sampled)

    def _keep_score(self, outcome: Outcome) -> None:
        sequence = outcome.work.sequence
        score = sequence.owner.score
        if score is None or score.told:
            return
        score.logprobs += outcome.scored
        if outcome.next_tokens is not None:
            score.next_tokens = outcome.next_tokens
        if sequence.num_computed + outcome.work.count >= sequence.num_prompt:
            score.told = True
            event = PromptScored(score.wanted.start, tuple(score.logprobs), score.next_tokens or ())
            sequence.owner.handle.push(event)

    def _forks(self, sequence: Sequence) -> list[Sequence]:
        """The further outputs of a request, at the moment when its prompt has been read."""
        owner = sequence.owner
        first, last = sequence.index + 1, sequence.index + sequence.forks_left
        forks = [sequence.fork(index, self.output_text(owner)) for index in range(first, last + 1)]
        sequence.forks_left = 0
        for fork in forks:
            owner.sequences.append(fork)
            self.scheduler.add_fork(fork)
        return forks

    def _record_drafts(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        sequence.draft_tokens += drafted
        sequence.accepted_tokens += accepted
        self.counters.draft_tokens += drafted
        self.counters.accepted_tokens += accepted
        self._speculator.record(sequence, drafted, accepted)

    def _advance(self, sequence: Sequence, sampled: list[Sampled]) -> None:
        """Goes on with the tokens that were chosen, up to the one that ends the output."""
        params, before = sequence.owner.request.params, len(sequence.tokens)
        sequence.first_token = sequence.first_token or time.monotonic()
        text, end = _append(sequence, sampled)
        ids = tuple(sequence.tokens[before:])
        self.counters.generated_tokens += len(ids)
        # Of the tokens that stand, all but the last have their keys and values cached.
        sequence.num_computed = max(sequence.num_computed, len(sequence.tokens) - 1)
        sequence.table.commit(sequence.tokens, sequence.num_computed)
        if ids or text:
            logprobs = tuple(t.logprobs for t in sampled[: len(ids)] if t.logprobs is not None)
            asked = params.logprobs is not None
            sequence.owner.handle.push(Tokens(sequence.index, ids, text, logprobs if asked else None))
        if end is not None:
            self._finish(sequence, end.reason, stop=end.stop, message=end.message)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop: int | str | None = None,
        message: str | None = None,
    ) -> None:
        owner = sequence.owner
        sequence.finished = reason
        usage, timings = sequence.usage(), sequence.timings()
        if reason == "error":
            self._discard([sequence])
        else:
            self._remove(sequence)
        if not owner.sequences:
            self._forget(owner)
        self.counters.finished[reason] += 1
        owner.handle.push(Finished(sequence.index, reason, usage, timings, stop, message))

    def _forget(self, owner: RunningRequest) -> None:
        self.requests.discard(owner)
        self.backlog.remove(owner)

    def _discard(self, sequences: list[Sequence]) -> None:
        """Removes sequences that went wrong: what they have cached, which may not be numbers, goes too."""
        spoilt = []
        for sequence in sequences:
            spoilt += sequence.table.discard()
            self._remove(sequence)
        self._runner.clear_blocks(spoilt)
        self._speculator.clear_blocks(spoilt)

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self._speculator.forget(sequence)
        sequence.owner.sequences.remove(sequence)


@dataclass(frozen=True)
class _End:
    reason: FinishReason
    stop: int | str | None = None
    message: str | None = None


def _append(sequence: Sequence, sampled: list[Sampled]) -> tuple[str, _End | None]:
    """Appends tokens up to one that ends the output; gives the text that is certain, and the end."""
    text = ""
    for token in sampled:
        if token.error is not None:
            return text + sequence.text.finish(), _End("error", message=token.error)
        try:
            sequence.append(token.token_id)
        except CorralError as error:  # the grammar has reached one of its limits
            return text + sequence.text.finish(), _End("error", message=str(error))
        if token.token_id in sequence.owner.stops:
            asked = token.token_id in sequence.owner.request.params.stop_token_ids
            return text + sequence.text.finish(), _End("stop", token.token_id if asked else None)
        text += sequence.text.push(token.token_id)
        if sequence.text.stopped is not None:
            return text, _End("stop", sequence.text.stopped)
        if sequence.matcher is not None and sequence.matcher.complete:
            return text + sequence.text.finish(), _End("stop")
        if sequence.num_generated >= sequence.owner.max_tokens:
            return text + sequence.text.finish(), _End("length")
    return text, None


def _as_corral_error(error: BaseException) -> CorralError:
    """An error that a caller can read; the original one is its cause."""
    if isinstance(error, CorralError):
        return error
    wrapped: CorralError = EngineError(f"the request failed in the engine: {type(error).__name__}: {error}")
    if is_out_of_memory(error):
        wrapped = out_of_memory("the device")
    wrapped.__cause__ = error
    return wrapped
