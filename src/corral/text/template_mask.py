"""Which characters of a rendered chat template the assistant produced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from corral.errors import RenderError

Span = tuple[int, int]  # first character, and one after the last


def cut_marks(text: str, marks: tuple[str, str]) -> tuple[str, list[Span]]:
    """Takes the marks of generation blocks out of a text and gives the spans between them."""
    start_mark, end_mark = marks
    spans: list[Span] = []
    first, *marked = text.split(start_mark)
    plain = first.replace(end_mark, "")
    for piece in marked:
        inside, _, outside = piece.partition(end_mark)
        # A dialog that is cut inside its last block has no end mark there.
        spans.append((len(plain), len(plain) + len(inside)))
        plain += inside + outside.replace(end_mark, "")
    return plain, spans


def spans_by_prefix(
    roles: Sequence[str],
    render: Callable[[int, bool], str],
    text: str,
    end_tokens: Sequence[str],
    *,
    is_open: bool,
) -> list[Span]:
    """The spans of assistant messages for a template without generation blocks.

    A message's span is what it adds to the rendering of the messages before it with the assistant's header,
    up to and with the token that ends it. `render(count, header)` renders the first `count` messages; `text`
    is the whole prompt, its last message left open if `is_open`.

    Raises:
        RenderError: an earlier rendering is not the beginning of a later one, so the spans are unknown.
    """
    spans = []
    for index, role in enumerate(roles):
        if role != "assistant":
            continue
        before = _rendering(render, index, True)
        open_now = is_open and index == len(roles) - 1
        after = text if open_now else _rendering(render, index + 1, False)
        if not after.startswith(before) or not text.startswith(after):
            raise _unknown(index)
        spans.append((len(before), _end(after, len(before), end_tokens)))
    return spans


def _rendering(render: Callable[[int, bool], str], count: int, header: bool) -> str:
    try:
        return render(count, header)
    except RenderError:
        raise _unknown(count if header else count - 1) from None


def _unknown(index: int) -> RenderError:
    return RenderError(
        f"messages[{index}]: this checkpoint's chat template does not tell which tokens the assistant "
        "produced; use a template with {% generation %} blocks"
    )


def _end(text: str, start: int, end_tokens: Sequence[str]) -> int:
    """What a template puts after the last end token, such as a line break, is not the assistant's."""
    ends = [text.rfind(token, start) + len(token) for token in end_tokens if token in text[start:]]
    return max(ends, default=len(text))
