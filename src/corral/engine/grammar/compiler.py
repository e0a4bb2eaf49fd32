"""Compiles forms before admission, within bounds, and keeps those that were used last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from llguidance import LLMatcher, LLParserLimits

from corral.engine.grammar.errors import in_words, refusal
from corral.engine.grammar.forms import Form, read_form
from corral.engine.grammar.matcher import CompiledGrammar, Grammar, StateError, consume, content_mask, may_end
from corral.engine.grammar.tokens import TokenEnvironment
from corral.engine.sampling.params import StructuredOutputsParams
from corral.errors import RequestError
from corral.text.tokenizer import Tokenizer

_MAX_KEPT = 64
_MAX_AT_ONCE = 4
_PROBE_TOKENS = 4

# llguidance recurses as deep as a form is nested. Bounds on that are checked before; this is ample for them
# whatever stack the caller's threads have, and only what is used of it takes memory.
_STACK_BYTES = 64 * 1024 * 1024
_STACK_SIZE_LOCK = threading.Lock()

# A mask takes some 15 ms at most, by llguidance's own bounds and this one on its parser. An automaton grows
# as outputs use it: some 100 MB at most, and one that passes that bound is made anew.
_MAX_ITEMS = 100_000
_MAX_LEXER_STATES = 50_000


class GrammarCompiler:
    """Makes grammars for one model. Safe to call from many threads.

    Args:
        tokenizer: the model's.
        vocab_size: of its logits; they may be more than the tokenizer's tokens.
        seconds: a form that takes longer to compile is refused, and one that waits longer for its turn.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, seconds: float = 5.0) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._seconds = seconds
        self._limits = LLParserLimits(
            step_max_items=_MAX_ITEMS, max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False
        )
        self._environment: TokenEnvironment | None = None
        self._environment_lock = threading.Lock()
        self._kept: OrderedDict[Form, CompiledGrammar] = OrderedDict()
        self._kept_lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_AT_ONCE)

    def compile(self, params: StructuredOutputsParams, stop_ids: frozenset[int]) -> Grammar:
        """A grammar that allows exactly the texts that the parameters ask for, each followed by a stop id.

        The first call for a model takes a third of a second more, for its vocabulary.

        Raises:
            RequestError: the form is invalid, too large or too deep, takes too long, cannot match anything,
                or asks for what cannot be enforced. The message names the field.
        """
        form = read_form(params)
        environment = self.environment()
        with self._kept_lock:
            compiled = self._kept.get(form)
            if compiled is not None:
                self._kept.move_to_end(form)
        if compiled is None:
            compiled = self._in_time(form, lambda: self._compiled(form, environment))
            self._keep(form, compiled)
        return Grammar(compiled, environment, stop_ids)

    def environment(self) -> TokenEnvironment:
        """The vocabulary as llguidance sees it, made at the first call."""
        with self._environment_lock:
            if self._environment is None:
                self._environment = TokenEnvironment(self._tokenizer, self._vocab_size)
            return self._environment

    def _keep(self, form: Form, compiled: CompiledGrammar) -> None:
        with self._kept_lock:
            self._kept[form] = compiled
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)

    def _compiled(self, form: Form, environment: TokenEnvironment) -> CompiledGrammar:
        grammar = form.grammar()

        def make() -> LLMatcher:
            return LLMatcher(environment.ll_tokenizer, grammar, log_level=0, limits=self._limits)

        start = make()
        if start.is_error():
            raise refusal(form.field, in_words(start.get_error()))
        if warnings := start.get_grammar_warnings():  # about what it would leave out
            raise refusal(form.field, in_words(warnings[0]))
        try:
            _probe(start.deep_copy(), environment)
        except StateError as error:
            raise refusal(form.field, in_words(str(error))) from None
        return CompiledGrammar(form.field, start, make)

    def _in_time(self, form: Form, work: Callable[[], CompiledGrammar]) -> CompiledGrammar:
        """Does the work in a thread of its own. One that is overdue goes on there, and its result is lost: no
        thread can be stopped, but llguidance's own limits end it, and few may be at work at once."""
        if not self._slots.acquire(timeout=self._seconds):
            raise refusal(form.field, "cannot be compiled now: others take long to compile; try again later")
        done: Future[CompiledGrammar] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # also Rust's panics, which are no Exception
                done.set_exception(error if isinstance(error, RequestError) else _panicked(form, error))
            finally:
                self._slots.release()

        _start_thread(run)
        try:
            return done.result(self._seconds)
        except TimeoutError:
            what = f"takes over {self._seconds:g} seconds to compile; simplify it"
            raise refusal(form.field, what) from None


def _probe(state: LLMatcher, environment: TokenEnvironment) -> None:
    """Goes a few tokens into the grammar: some limits are passed only there."""
    for _ in range(_PROBE_TOKENS):
        words = content_mask(state, environment)
        found = words.nonzero()
        if not len(found):
            if not may_end(state):
                raise StateError("NoExtension")
            return
        word = int(found[0])
        bits = int(words[word])
        consume(state, 32 * word + (bits & -bits).bit_length() - 1)


def _panicked(form: Form, error: BaseException) -> RequestError:
    return refusal(form.field, f"made the compiler fail ({type(error).__name__}); simplify it")


def _start_thread(run: Callable[[], None]) -> None:
    with _STACK_SIZE_LOCK:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="corral-grammar").start()
        finally:
            threading.stack_size(before)
