"""A rendered dialog, cut where an answer begins as it is cut when the answer is generated."""

from __future__ import annotations

from collections.abc import Sequence

from corral.errors import RenderError
from corral.text.tokenizer import Tokenizer


def part_behind(
    tokenizer: Tokenizer, head: Sequence[int], tokens: Sequence[int], mask: Sequence[bool]
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Tokens and mask of a dialog, none of whose tokens goes across the end of `head`.

    A chat template joins a header and the text that follows it, so a token may be made of the end of one and
    the beginning of the other, as of two line breaks. When the answer is generated, the header has been cut
    already. Only what stands between the two control tokens around the end of `head` changes.

    Args:
        tokenizer: what the tokens were made with.
        head: the dialog up to an answer, with the header that the answer follows.
        tokens: the whole dialog.
        mask: which of them the assistant produced.

    Raises:
        RenderError: the dialog does not begin with what `head` spells.
    """
    if tuple(tokens[: len(head)]) == tuple(head):
        return tuple(tokens), tuple(mask)
    spelled = tokenizer.token_bytes
    text, seen, place = b"".join(map(spelled, head)), b"", 0
    while len(seen) < len(text) and place < len(tokens):
        seen += spelled(tokens[place])
        place += 1
    if not seen.startswith(text):
        raise RenderError("the prompt format writes the prompt in another way when an answer follows it")
    before, end = _after_control(tokenizer, tokens, place), place
    while end < len(tokens) and not tokenizer.is_control(tokens[end]):
        end += 1
    tail = head[_after_control(tokenizer, head, len(head)) :]
    rest = seen[len(text) :] + b"".join(map(spelled, tokens[place:end]))
    answer = tokenizer.encode(rest.decode("utf-8", "replace"))
    return (
        (*tokens[:before], *tail, *answer, *tokens[end:]),
        (*mask[:before], *(False,) * len(tail), *(True,) * len(answer), *mask[end:]),
    )


def _after_control(tokenizer: Tokenizer, tokens: Sequence[int], stop: int) -> int:
    """One after the last control token before a place."""
    return next((i + 1 for i in reversed(range(stop)) if tokenizer.is_control(tokens[i])), 0)
