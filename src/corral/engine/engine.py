"""The engine: many requests, one model, one thread that owns it."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import TypeVar

from corral.engine.admission import check_request
from corral.engine.cache.block_pool import BlockPool
from corral.engine.cache.block_table import BlockTable
from corral.engine.cache.prefix import prefix_salt
from corral.engine.config import SchedulerConfig
from corral.engine.core import EngineCore
from corral.engine.grammar.compiler import GrammarCompiler
from corral.engine.grammar.matcher import Matcher
from corral.engine.handle import Handle
from corral.engine.request import Request, Score
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.runner import Runner
from corral.engine.scheduler import Scheduler
from corral.engine.sequence import PromptScore, RunningRequest, Sequence
from corral.engine.speculation.speculator import NoSpeculation, Speculator
from corral.engine.stats import EngineStats
from corral.engine.wakeups import Wakeups
from corral.errors import EngineError, RequestError
from corral.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Engine:
    """Runs requests on a model, many at once. Every method may be called from any thread.

    Args:
        runner: runs the steps on the device.
        pool: the blocks of the runner's key-value cache.
        adapters: the adapters that the runner applies.
        vocab_size, max_model_len: of the model; the context as it was fitted to the cache.
        tokenizer: for text and grammars; None gives token ids only.
        config: bounds of a step and of the queue.
        speculator: guesses tokens ahead.
    """

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        adapters: AdapterSet,
        *,
        vocab_size: int,
        max_model_len: int,
        tokenizer: Tokenizer | None = None,
        config: SchedulerConfig = SchedulerConfig(),
        speculator: Speculator | None = None,
    ) -> None:
        self.config, self.vocab_size, self.max_model_len = config, vocab_size, max_model_len
        self._pool, self._adapters = pool, adapters
        self._grammars = None if tokenizer is None else GrammarCompiler(tokenizer, vocab_size)
        speculator = speculator or NoSpeculation()
        scheduler = Scheduler(config, pool, speculator.draft_length)
        self._core = EngineCore(runner, scheduler, speculator, tokenizer)
        self._arrivals = count()
        self._changed = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._closing = False
        self._wakeups = Wakeups()
        self._thread = threading.Thread(target=self._run, name="corral-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Handle:
        """Takes a request on. A grammar is compiled here, in the caller's thread.

        Raises:
            RequestError: the request cannot be run; the message names the field.
            EngineBusyError: the queue is full.
            EngineError: the engine has been closed.
        """
        check_request(request, self.vocab_size, self.max_model_len, self.config.max_num_seqs)
        salt = self._salt(request)
        matcher = self._matcher(request)
        owner = self._owner(request)
        sequence = Sequence(owner, BlockTable(self._pool, salt), self._core.output_text(owner), matcher)
        with self._changed:
            self._check_open()
            if self._salt(request) != salt:  # its adapter was loaded anew meanwhile
                sequence.table = BlockTable(self._pool, self._salt(request))
            self._core.backlog.add(owner)
            self._inbox.append(lambda: self._core.add(owner, sequence))
            self._changed.notify()
        return owner.handle

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Makes a PEFT LoRA folder usable under a name.

        Raises:
            CorralError: the folder cannot be read, does not fit the model, or the name is taken.
        """
        self._adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter that no request uses. Whoever submits later is told that it is not loaded.

        Raises:
            RequestError: there is none of this name, or a request that was taken on with it has not ended.
        """
        self._in_thread(lambda: self._unload(name))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters."""
        return tuple(self._adapters.names)

    def stats(self) -> EngineStats:
        """A look at what runs and what has been done."""
        scheduler, pool = self._core.scheduler, self._pool
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_used=pool.num_used,
            blocks=pool.num_blocks,
            block_size=pool.block_size,
            preemptions=scheduler.num_preemptions,
            evictions=pool.num_evictions,
            counters=self._core.counters.copy(),
        )

    def reset_prefix_cache(self) -> None:
        """Forgets the prefixes that no running request uses."""
        self._in_thread(self._pool.reset_prefix_cache)

    def check_integrity(self) -> None:
        """Asserts that blocks and sequences are where they should be; for tests."""
        self._in_thread(self._core.scheduler.check_integrity)

    def close(self, *, drain: bool = False) -> None:
        """Ends the engine: lets what was submitted run to its end (`drain`), or cancels it."""
        with self._changed:
            if not self._closing:
                self._closing = True
                if not drain:
                    self._inbox.append(lambda: self._cancel_all("the engine was closed"))
                self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        """The engine's thread: sleeps without work, and otherwise runs step after step."""
        while True:
            with self._changed:
                while not (self._inbox or self._core.has_work or self._closing):
                    self._changed.wait()
                if self._closing and not self._inbox and not self._core.has_work:
                    break
            try:
                for _ in range(len(self._inbox)):
                    self._inbox.popleft()()
                self._core.expire()
                self._core.step()
            except BaseException as error:  # whatever it is, no caller may wait for ever
                logger.exception("the engine failed between steps; all its requests fail")
                self._core.fail_all(self._core.requests, error)
        self._core.close()

    def _owner(self, request: Request) -> RunningRequest:
        params = request.params
        room = self.max_model_len - len(request.tokens)
        score = request.score
        if score is None and params.prompt_logprobs is not None:
            score = Score(start=1, top=params.prompt_logprobs)
        outputs = 1 if request.score is not None else params.n
        owner = RunningRequest(
            request=request,
            handle=Handle(request, outputs, lambda _: self._cancel(owner), self._wakeups),
            arrival=next(self._arrivals),
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            score=None if score is None else PromptScore(score),
            submitted=time.monotonic(),
        )
        return owner

    def _salt(self, request: Request) -> bytes:
        """What keeps the cached prefixes of adapters and tenants apart."""
        return prefix_salt(self._adapters.salt(request.adapter), request.cache_salt)

    @property
    def grammars(self) -> GrammarCompiler:
        """Compiles forms for this engine's model.

        Raises:
            RequestError: the engine has no tokenizer.
        """
        if self._grammars is None:
            raise RequestError("structured_outputs needs a tokenizer, and this engine has none")
        return self._grammars

    def _matcher(self, request: Request) -> Matcher | None:
        spec = None if request.score is not None else request.params.structured_outputs
        if spec is None:
            return None
        stops = request.stop_ids | frozenset(request.params.stop_token_ids)
        return self.grammars.compile(spec, stops).matcher()

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError("the engine has been closed")

    def _cancel(self, owner: RunningRequest) -> None:
        with self._changed:
            self._inbox.append(lambda: self._core.cancel(owner, "cancelled by the caller"))
            self._changed.notify()

    def _cancel_all(self, message: str) -> None:
        for owner in list(self._core.requests):
            self._core.cancel(owner, message)

    def _unload(self, name: str) -> None:
        with self._changed:  # so that no request is just being taken on
            if any(owner.request.adapter == name for owner in (*self._core.requests, *self._core.backlog)):
                raise RequestError(
                    f"adapter {name!r} is used by a request that runs or waits; let it end, or cancel it"
                )
            self._adapters.unload(name)

    def _in_thread(self, call: Callable[[], T]) -> T:
        """Runs something between two steps and waits for it."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        with self._changed:
            self._check_open()
            self._inbox.append(run)
            self._changed.notify()
        return done.result()
