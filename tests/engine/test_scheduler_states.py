"""The scheduler, the blocks and the steps under arbitrary arrivals, ends and shortages."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.engine.cache.block_pool import BlockPool
from corral.engine.cache.block_table import BlockTable
from corral.engine.config import SchedulerConfig
from corral.engine.core import EngineCore
from corral.engine.events import Event, Failed, Finished, PromptScored, Tokens
from corral.engine.handle import Handle
from corral.engine.request import Request, Score
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.random import choice_key
from corral.engine.scheduler import Scheduler, Work
from corral.engine.sequence import PromptScore, RunningRequest
from corral.engine.sequence import Sequence as RunningSequence
from corral.engine.speculation.speculation import LookupProposer, Speculation
from corral.engine.speculation.speculator import NoSpeculation
from corral.engine.wakeups import Wakeups
from tests.engine.engines import CheckingRunner, EagerControl, digest_of, logits_after
from tests.engine.reference_sampling import sample

STOP = 9
SIZE = 2  # tokens of a block: many blocks, many edges
CONTEXT = 24


def expected(request: Request, seed: int, index: int) -> list[int]:
    """The output as one request alone would have it, by the plain definition."""
    tokens = list(request.tokens)
    key = choice_key(seed, index)
    limit = min(request.params.max_tokens or CONTEXT, CONTEXT - len(tokens))
    for _ in range(limit):
        prompt, output = tokens[: len(request.tokens)], tokens[len(request.tokens) :]
        token = sample(logits_after(digest_of(tokens)), request.params, prompt, output, key, len(tokens))
        tokens.append(token)
        if token == STOP:
            break
    return tokens[len(request.tokens) :]


class LikelyTokens(LookupProposer):
    """Guesses the best token each time, which often comes and often does not."""

    def propose(self, works: Sequence[Work]) -> list[list[int]]:
        guesses = []
        for work in works:
            tokens = list(work.sequence.tokens)
            for _ in range(work.max_drafts):
                tokens.append(int(logits_after(digest_of(tokens)).argmax()))
            guesses.append(tokens[len(work.sequence.tokens) :])
        return guesses


class EngineStates(RuleBasedStateMachine):
    """Compares every output with the definition; the device checks every slot that is read."""

    @initialize(
        blocks=st.integers(CONTEXT // SIZE + 1, 40),
        running=st.integers(2, 6),
        budget=st.integers(7, 20),
        chunk=st.none() | st.integers(1, 5),
        caching=st.booleans(),
        speculates=st.booleans(),
    )
    def start(
        self, blocks: int, running: int, budget: int, chunk: int | None, caching: bool, speculates: bool
    ) -> None:
        self.pool = BlockPool(blocks + 1, SIZE, caching)
        speculator = Speculation(EagerControl(), LikelyTokens()) if speculates else NoSpeculation()
        config = SchedulerConfig(running, budget, chunk, max_overtakes=3)
        self.scheduler = Scheduler(config, self.pool, speculator.draft_length)
        self.core = EngineCore(CheckingRunner(SIZE), self.scheduler, speculator, None)
        self.requests: list[tuple[RunningRequest, bool]] = []  # with: was cancelled
        self.arrivals = 0

    @rule(
        tokens=st.lists(st.integers(0, 2), min_size=1, max_size=CONTEXT - 2),
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 12),
        seed=st.integers(0, 2**64 - 1),
        priority=st.integers(0, 2),
        poison=st.integers(0, 9),
        score=st.integers(0, 5),
    )
    def submit(
        self,
        tokens: list[int],
        n: int,
        max_tokens: int,
        seed: int,
        priority: int,
        poison: int,
        score: int,
    ) -> None:
        n = min(n, self.scheduler.config.max_num_seqs)
        if poison == 0:
            tokens[-1] = CheckingRunner.POISON
        scoring = Score() if score == 0 and len(tokens) > 1 else None
        params = SamplingParams(
            n=n,
            max_tokens=max_tokens,
            top_k=4,
            prompt_logprobs=0 if score == 1 else None,
        )
        request = Request(tokens, params, frozenset({STOP}), score=scoring, priority=priority)
        wanted = scoring or (Score() if score == 1 else None)
        owner = RunningRequest(
            request=request,
            handle=Handle(request, 1 if scoring else n, lambda _: None, Wakeups()),
            arrival=self.arrivals,
            seed=seed,
            max_tokens=min(max_tokens, CONTEXT - len(tokens)),
            score=None if wanted is None else PromptScore(wanted),
            submitted=0.0,
        )
        self.arrivals += 1
        self.requests.append((owner, False))
        table = BlockTable(self.pool, b"")
        self.core.add(owner, RunningSequence(owner, table, self.core.output_text(owner), None))

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.requests) - 1))
        owner, _ = self.requests[index]
        if not owner.handle.done:
            self.core.cancel(owner, "no longer wanted")
            self.requests[index] = owner, True

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.core.step()

    @rule()
    def forget_prefixes(self) -> None:
        self.pool.reset_prefix_cache()

    @invariant()
    def everything_is_in_its_place(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(10_000):
            if not self.core.has_work:
                break
            self.core.step()
        assert not self.core.has_work, "a request never ends"
        self.scheduler.check_integrity()
        assert self.pool.num_used == 0, "blocks leak"
        for owner, cancelled in self.requests:
            check_events(owner, list(owner.handle), cancelled)
        self.core.close()


def check_events(owner: RunningRequest, events: Sequence[Event], cancelled: bool) -> None:
    """Asserts that a request ended as it should."""
    assert owner.handle.done
    request = owner.request
    if CheckingRunner.POISON in request.tokens:
        assert cancelled or isinstance(events[-1], Failed)
        return
    for event in events:
        if isinstance(event, PromptScored):
            check_scores(request.tokens, event)
    ends = {event.index: event for event in events if isinstance(event, Finished)}
    assert sorted(ends) == list(range(1 if request.score else request.params.n))
    for index, end in ends.items():
        got = [i for e in events if isinstance(e, Tokens) and e.index == index for i in e.token_ids]
        if request.score is not None:
            assert cancelled or end.reason == "stop"
            continue
        whole = expected(request, owner.seed, index)
        if end.reason == "cancelled":
            assert cancelled
            assert got == whole[: len(got)]
        else:
            assert got == whole
            assert end.reason == ("stop" if whole[-1] == STOP else "length")


def check_scores(tokens: Sequence[int], event: PromptScored) -> None:
    """Asserts that each token was scored after all tokens before it."""
    assert len(event.logprobs) == len(tokens) - event.start
    for i, at in enumerate(event.logprobs, event.start):
        logprobs = logits_after(digest_of(tokens[:i])).log_softmax(-1)
        assert at.chosen.token_id == tokens[i]
        assert abs(at.chosen.logprob - float(logprobs[tokens[i]])) < 1e-4


EngineStates.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestEngineStates = EngineStates.TestCase
