"""Which tokens have their keys and values in which blocks of a cache whose blocks another cache gives out."""

from __future__ import annotations

from collections.abc import Sequence

_EMPTY_PREFIX = 0


class _Content:
    """The tokens in a block, and digests of all tokens before them and with them."""

    __slots__ = ("after", "before", "tokens")

    def __init__(self, before: int, tokens: tuple[int, ...]) -> None:
        self.before, self.tokens = before, tokens
        self.after = hash((before, tokens))


class BlockContents:
    """Tokens of the blocks of a cache.

    Blocks are freed, given to other sequences, shared and copied elsewhere, and nothing of that is told here
    but the copies. So what a block holds is known by its tokens and by all tokens before them, and is valid
    for every sequence that has the same; whatever lies beyond, such as guesses that were wrong, is not.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._contents: dict[int, _Content] = {}

    def count(self, tokens: Sequence[int], blocks: Sequence[int]) -> int:
        """How many of a sequence's tokens, from its first on, are in its blocks."""
        size, before, start = self._block_size, _EMPTY_PREFIX, 0
        text = tuple(tokens)
        for block in blocks:
            content = self._contents.get(block)
            if content is None or content.before != before:
                return start
            expected = text[start : start + size]
            if content.tokens != expected or len(expected) < size:
                return start + _common(content.tokens, expected)
            before = content.after
            start += size
        return start

    def write(self, tokens: Sequence[int], start: int, blocks: Sequence[int]) -> None:
        """Notes that tokens are written from position `start` on, where all before them are in the blocks."""
        size, end = self._block_size, start + len(tokens)
        for index in range(start // size, -(-end // size)):
            first = max(start, index * size)
            new = tuple(tokens[first - start : (index + 1) * size - start])
            if first > index * size:
                old = self._contents[blocks[index]]
                content = _Content(old.before, old.tokens[: first - index * size] + new)
            else:
                before = self._contents[blocks[index - 1]].after if index else _EMPTY_PREFIX
                content = _Content(before, new)
            self._contents[blocks[index]] = content

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Notes that blocks (source, target) were copied, one after the other."""
        for source, target in pairs:
            if source in self._contents:
                self._contents[target] = self._contents[source]
            else:
                self._contents.pop(target, None)

    def forget(self, blocks: Sequence[int]) -> None:
        """Notes that blocks hold nothing any more."""
        for block in blocks:
            self._contents.pop(block, None)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
