"""The state of one output in its form: which tokens may come next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from llguidance import LLMatcher
from torch import Tensor

from corral.engine.grammar.errors import GrammarError, in_words
from corral.engine.grammar.tokens import TokenEnvironment

T = TypeVar("T")


class StateError(Exception):
    """llguidance's own message about a state that cannot go on."""

    @property
    def is_shared(self) -> bool:
        """Whether the fault may lie with the lexer, which states share, rather than with this state."""
        return any(word in str(self) for word in ("lexer error", "panic", "Poison"))


def content_mask(state: LLMatcher, environment: TokenEnvironment) -> Tensor:
    """The content that may come next, as wide as `environment.content`.

    Raises:
        StateError: a limit was passed. (llguidance itself would give a mask of the end alone.)
    """
    mask = torch.empty_like(environment.content)
    state.unsafe_compute_mask_ptr(mask.data_ptr(), 4 * environment.ll_words)
    if state.is_error():
        raise StateError(state.get_error())
    return mask.bitwise_and_(environment.content)


def may_end(state: LLMatcher) -> bool:
    """Whether the text may end here."""
    return state.is_accepting() or (state.is_stopped() and not state.is_error())


def consume(state: LLMatcher, token_id: int) -> None:
    """Goes on by a token.

    Raises:
        StateError: it is not allowed, or a limit was passed.
    """
    if not state.consume_token(token_id):
        raise StateError(state.get_error())


class CompiledGrammar:
    """A compiled form, shared by all outputs that are held to it.

    The copies of an LLMatcher share one lexer, which grows with use. Where it passes a limit it is broken for
    all of them: an output that meets that goes on with a lexer of its own, and later outputs get a new one.

    Args:
        field: the field of `structured_outputs` that gave the form, for messages.
        start: the state before the first token.
        make: compiles the form again.
    """

    def __init__(self, field: str, start: LLMatcher, make: Callable[[], LLMatcher]) -> None:
        self.field = field
        self._make = make
        self._start = start
        self._broken = False
        self._lock = threading.Lock()

    def begin(self) -> LLMatcher:
        """A state before the first token."""
        with self._lock:
            if self._broken:
                self._start, self._broken = self._make(), False
            return self._start.deep_copy()

    def begin_alone(self) -> LLMatcher:
        """A state before the first token that shares nothing; called when a shared one turned out broken."""
        with self._lock:
            self._broken = True
        return self._make()


class Grammar:
    """A form, with the ids that may end a text in it. Immutable; made by GrammarCompiler."""

    def __init__(
        self, compiled: CompiledGrammar, environment: TokenEnvironment, stop_ids: frozenset[int]
    ) -> None:
        self.compiled = compiled
        self.environment = environment
        self.stop_ids = stop_ids
        self.stop_mask = environment.mask_of(sorted(stop_ids))
        # A stop id may be content too, such as a line break: it ends the text, or it does not come.
        self.not_stop_mask = ~self.stop_mask

    def matcher(self) -> Matcher:
        """The state of a new output. Takes microseconds."""
        return Matcher(self, self.compiled.begin(), [])


class Matcher:
    """How far one output has come in its form. One thread at a time may use it.

    Attributes:
        finished: a stop id was accepted: nothing may follow.
    """

    def __init__(self, grammar: Grammar, state: LLMatcher, tokens: list[int], finished: bool = False) -> None:
        self._grammar = grammar
        self._state = state
        self._tokens = tokens
        self.finished = finished

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow. Where the request has no stop ids the text ends here."""
        return self.finished or (self._state.is_stopped() and not self._state.is_error())

    def masks(self, drafts: Sequence[int] = ()) -> list[Tensor]:
        """Which tokens may come next, and which after each of the drafts.

        Wherever the form allows the end all stop ids are allowed, elsewhere none; control tokens and padding
        never are. The state stays as it is. Python's lock is not held while a mask is computed.

        Returns:
            int32 masks [ceil(vocab_size / 32)], bit `i % 32` of word `i // 32` for token i: one for the next
            place, then one for each draft up to the first that the form does not allow or that ends the text.

        Raises:
            GrammarError: a limit was passed, or no token at all may come next.
        """
        assert not self.finished
        masks = [self._with_repair(self._mask)]
        if not drafts:
            return masks
        ahead = self._state.deep_copy()
        for draft in drafts:
            if draft in self._grammar.stop_ids or not _allows(masks[-1], draft):
                break
            try:
                consume(ahead, draft)
                masks.append(self._mask(ahead))
            except StateError:  # it may never come to that: not an error yet
                break
        return masks

    def accept(self, token_id: int) -> None:
        """Goes on by one token, which a mask has allowed.

        Raises:
            GrammarError: a limit was passed, or the token is not allowed.
        """
        assert not self.finished
        if token_id in self._grammar.stop_ids:
            if not may_end(self._state):
                raise self._error(f"does not allow the text to end yet, with token {token_id}")
            self.finished = True
            return
        self._with_repair(lambda state: consume(state, token_id))
        self._tokens.append(token_id)

    def forced(self) -> list[int]:
        """Tokens that the form leaves no choice about, in the tokenizer's own spelling: drafts that cost
        nothing. Empty where there is a choice."""
        if self.finished or self._state.is_stopped():
            return []
        return self._state.compute_ff_tokens()

    def fork(self) -> Matcher:
        """An independent copy. Takes microseconds."""
        return Matcher(self._grammar, self._state.deep_copy(), list(self._tokens), self.finished)

    def _mask(self, state: LLMatcher) -> Tensor:
        mask = content_mask(state, self._grammar.environment)
        mask &= self._grammar.not_stop_mask
        if may_end(state):
            mask |= self._grammar.stop_mask
        if not mask.any():
            raise StateError("NoExtension")
        return mask[: self._grammar.environment.num_words]

    def _with_repair(self, action: Callable[[LLMatcher], T]) -> T:
        """Runs an action on the state; if the shared lexer is broken, once more with one of its own."""
        try:
            return action(self._state)
        except StateError as error:
            if not error.is_shared:
                raise self._error(in_words(str(error))) from None
        try:
            self._state = self._grammar.compiled.begin_alone()
            for token in self._tokens:
                consume(self._state, token)
            return action(self._state)
        except StateError as error:
            raise self._error(in_words(str(error))) from None

    def _error(self, what: str) -> GrammarError:
        return GrammarError(
            f"structured_outputs.{self._grammar.compiled.field} {what} (after {len(self._tokens)} tokens)"
        )


def _allows(mask: Tensor, token_id: int) -> bool:
    in_range = 0 <= token_id < 32 * mask.shape[0]
    return in_range and bool(int(mask[token_id >> 5]) >> (token_id & 31) & 1)
