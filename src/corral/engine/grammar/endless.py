"""Rules that refer to each other: how deep, and whether a text that follows them can end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable


def that_can_end(rules: Collection[str], can_end: Callable[[str, Collection[str]], bool]) -> set[str]:
    """The rules by which some finite text can be made: a least fixed point.

    Args:
        rules: their names, best those first that others need.
        can_end: whether a rule can end, given the names of others that can.
    """
    ending: set[str] = set()
    before = -1
    while len(ending) > before:
        before = len(ending)
        for name in rules:
            if name not in ending and can_end(name, ending):
                ending.add(name)
    return ending


def deepest(start: str, mentions: Callable[[str], Iterable[str]]) -> int:
    """How many rules a compiler is inside of at most, which goes into each rule where it first meets it."""
    seen, most = {start}, 1
    path = [iter(mentions(start))]
    while path:
        name = next(path[-1], None)
        if name is None:
            path.pop()
        elif name not in seen:
            seen.add(name)
            path.append(iter(mentions(name)))
            most = max(most, len(path))
    return most
