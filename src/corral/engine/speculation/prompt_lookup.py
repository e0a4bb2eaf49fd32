"""Guesses without a model: what followed the same words earlier in the text."""

from __future__ import annotations

from collections.abc import Iterable

from corral.engine.speculation.suffix_automaton import SuffixAutomaton

MIN_MATCH = 3  # tokens; what followed a shorter repeat is seldom what follows now
CATCH_UP = 2048  # tokens taken into the automaton by one proposal: a few milliseconds


class PromptLookup:
    """Guesses the next tokens of one sequence from its prompt and output (Saxena, 2023, "Prompt lookup
    decoding"; Oliaro et al., 2024, "SuffixDecoding", arXiv:2411.04975).

    The rule: take the longest suffix of the text that occurs earlier too, at the most recent place where it
    does, and propose what followed there. Where that runs into the end of the text it goes on into the
    proposal itself, so that "abcabc" is continued with "abcabc…". A repeat of less than `min_match` tokens
    gives no proposal.

    Tokens are taken in when a proposal is asked for, at most `CATCH_UP` at a time: a sequence that is never
    asked costs nothing, and a long prompt delays no step by much; it only has no proposals at first.
    """

    def __init__(self, tokens: Iterable[int], min_match: int = MIN_MATCH) -> None:
        self._tokens = list(tokens)
        self._min_match = min_match
        self._automaton = SuffixAutomaton()

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens to the text."""
        self._tokens.extend(tokens)

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where nothing is known."""
        if not self._catch_up():
            return []
        repeat = self._automaton.longest_repeat()
        if repeat.length < self._min_match:
            return []
        period = len(self._tokens) - repeat.end
        return [self._tokens[repeat.end + i % period] for i in range(limit)]

    def fork(self) -> PromptLookup:
        """An independent copy."""
        copy = PromptLookup(self._tokens, self._min_match)
        copy._automaton = self._automaton.fork()
        return copy

    def _catch_up(self) -> bool:
        """Whether the automaton has taken in the whole text."""
        start = len(self._automaton)
        for token in self._tokens[start : start + CATCH_UP]:
            self._automaton.push(token)
        return len(self._automaton) == len(self._tokens)
