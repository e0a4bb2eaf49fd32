"""Prompt lookup against a search by hand through all earlier places."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.speculation import prompt_lookup, suffix_automaton
from corral.engine.speculation.prompt_lookup import PromptLookup
from corral.engine.speculation.suffix_automaton import Repeat, SuffixAutomaton

# Texts over few letters repeat themselves at every length; they are shorter than the automaton's reach.
texts = st.integers(1, 4).flatmap(lambda letters: st.lists(st.integers(0, letters), max_size=30))


def longest_repeat(tokens: Sequence[int]) -> Repeat:
    """The definition: the longest suffix that ends earlier too, where it last does."""
    for length in range(len(tokens) - 1, 0, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return Repeat(length, end)
    return Repeat(0, 0)


def automaton_of(tokens: Sequence[int]) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for token in tokens:
        automaton.push(token)
    return automaton


@given(texts)
def test_the_longest_repeat_is_that_of_a_search_by_hand_after_every_token(tokens: list[int]) -> None:
    automaton = SuffixAutomaton()
    for end, token in enumerate(tokens, start=1):
        automaton.push(token)
        repeat = automaton.longest_repeat()
        expected = longest_repeat(tokens[:end])
        assert repeat.length == expected.length
        assert repeat == expected or repeat.length == 0


@given(texts, texts, st.integers(0, 10))
def test_a_proposal_is_what_followed_the_longest_repeat(
    tokens: list[int], further: list[int], limit: int
) -> None:
    lookup = PromptLookup(tokens, min_match=2)
    lookup.propose(limit)
    lookup.extend(further)
    text = tokens + further
    repeat = longest_repeat(text)
    expected: list[int] = []
    if repeat.length >= 2:
        for i in range(limit):
            expected.append((text + expected)[repeat.end + i])
    assert lookup.propose(limit) == expected


@given(texts, texts, texts)
def test_forks_go_their_own_ways(tokens: list[int], one: list[int], other: list[int]) -> None:
    lookup = PromptLookup(tokens, min_match=1)
    lookup.propose(1)
    twin = lookup.fork()
    lookup.extend(one)
    twin.extend(other)
    assert lookup.propose(5) == PromptLookup(tokens + one, min_match=1).propose(5)
    assert twin.propose(5) == PromptLookup(tokens + other, min_match=1).propose(5)


def test_a_repeat_shorter_than_the_least_match_proposes_nothing() -> None:
    tokens = [1, 2, 3, 4, 9, 2, 3]
    assert PromptLookup(tokens, min_match=3).propose(2) == []
    assert PromptLookup(tokens, min_match=2).propose(2) == [4, 9]


def test_a_text_that_repeats_itself_goes_on_for_as_long_as_is_asked() -> None:
    assert PromptLookup([1, 2, 3, 1, 2, 3]).propose(8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_of_several_places_the_most_recent_counts() -> None:
    assert PromptLookup([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]).propose(1) == [8]


def test_a_long_prompt_is_taken_in_over_several_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_lookup, "CATCH_UP", 4)
    lookup = PromptLookup([1, 2, 3, 4, 5, 1, 2, 3])
    assert lookup.propose(1) == []
    assert lookup.propose(1) == [4]


@pytest.mark.parametrize("tokens", [[1] * 5000, [1, 2] * 2500, [*range(2500), *range(2500)]])
def test_memory_is_linear_even_in_text_of_nothing_but_repeats(tokens: list[int]) -> None:
    automaton = automaton_of(tokens)
    assert len(automaton._links) <= 2 * len(tokens)
    assert sum(map(len, automaton._transitions)) <= 3 * len(tokens)


def test_repeats_nested_deeper_than_the_reach_name_a_true_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suffix_automaton, "REACH", 3)
    tokens = [*[1] * 40, 2, *[1] * 7, 3, *[1] * 9]
    older = 0
    for end in range(1, len(tokens) + 1):
        text = tokens[:end]
        repeat = automaton_of(text).longest_repeat()
        assert repeat.length == longest_repeat(text).length
        assert repeat.end < len(text)
        assert text[repeat.end - repeat.length : repeat.end] == text[len(text) - repeat.length :]
        older += repeat.end < longest_repeat(text).end
    assert older, "only the longest repeats are brought up to date, or the time is not linear"
