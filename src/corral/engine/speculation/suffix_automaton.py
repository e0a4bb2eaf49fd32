"""All substrings of a growing text, in memory and time linear in its length.

The suffix automaton (Blumer et al., 1985, "The smallest automaton recognizing the subwords of a text") has a
state for each set of substrings that end at the same places of the text, and a transition for each token
that may follow them. The suffix link of a state leads to the longest suffix that ends at further places too:
so the link of the state of the whole text is its longest suffix that occurs a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

_ROOT = 0  # the state of the empty text
_NONE = -1  # the root's link
REACH = 32  # nested repeats that remember their most recent place


@dataclass(frozen=True)
class Repeat:
    """A suffix of the text of `length` tokens that also occurs earlier: most recently before index `end`."""

    length: int
    end: int


class SuffixAutomaton:
    """The substrings of a text that grows token by token.

    Where a substring occurs at several places, its state remembers the most recent. The suffixes that repeat
    may be nested as deeply as the text is long (in "aaaa", every one), so a push brings only the `REACH`
    longest of them up to date; shorter ones may remember an older place.
    """

    def __init__(self) -> None:
        self._transitions: list[dict[int, int]] = [{}]
        self._links = [_NONE]
        self._lengths = [0]  # tokens of the longest substring of the state
        self._recent = [0]  # the index after its most recent occurrence, the one that ends the text left out
        self._last = _ROOT  # the state of the whole text

    def __len__(self) -> int:
        return self._lengths[self._last]

    def push(self, token: int) -> None:
        """Appends a token."""
        self._remember_end()
        transitions, links, lengths = self._transitions, self._links, self._lengths
        state, length = self._last, len(self) + 1
        new = self._add({}, _ROOT, length, length)
        while state != _NONE and token not in transitions[state]:
            transitions[state][token] = new
            state = links[state]
        if state != _NONE:
            target = transitions[state][token]
            is_longest = lengths[target] == lengths[state] + 1
            links[new] = target if is_longest else self._split(state, token, target)
        self._last = new

    def longest_repeat(self) -> Repeat:
        """The longest suffix of the text that occurs earlier too, maybe overlapping; of length 0 if none."""
        state = max(self._links[self._last], _ROOT)
        return Repeat(self._lengths[state], self._recent[state])

    def fork(self) -> SuffixAutomaton:
        """An independent copy."""
        copy = SuffixAutomaton()
        copy._transitions = [transitions.copy() for transitions in self._transitions]
        copy._links = self._links.copy()
        copy._lengths = self._lengths.copy()
        copy._recent = self._recent.copy()
        copy._last = self._last
        return copy

    def _remember_end(self) -> None:
        """Notes that the repeated suffixes occur here, before the text grows beyond."""
        end, state = len(self), self._links[self._last]
        for _ in range(REACH):
            if state <= _ROOT:
                return
            self._recent[state] = end
            state = self._links[state]

    def _split(self, state: int, token: int, target: int) -> int:
        """Gives the substrings of `target` that end at the new place too a state of their own."""
        transitions, links = self._transitions, self._links
        short = self._add(
            transitions[target].copy(), links[target], self._lengths[state] + 1, self._recent[target]
        )
        links[target] = short
        while state != _NONE and transitions[state].get(token) == target:
            transitions[state][token] = short
            state = links[state]
        return short

    def _add(self, transitions: dict[int, int], link: int, length: int, recent: int) -> int:
        self._transitions.append(transitions)
        self._links.append(link)
        self._lengths.append(length)
        self._recent.append(recent)
        return len(self._links) - 1
