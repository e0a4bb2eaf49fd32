"""Texts cut into the windows that a model reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from corral.engine.sampling.checks import require_whole
from corral.errors import RequestError
from corral.evals.errors import EvalError
from corral.text.tokenizer import Tokenizer

DEFAULT_CONTEXT = 1024


@dataclass(frozen=True)
class WindowOptions:
    """How texts are cut.

    Attributes:
        context: tokens of a window, a begin-of-text token included; None is 1,024, or the model's context
            where that is shorter.
        stride: how many tokens a window goes on from the one before; None is the context, so that windows
            do not overlap.
        tokens: cut so many tokens of the texts, and no more; None takes all.
    """

    context: int | None = None
    stride: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.context is not None:
            require_whole("context", self.context, low=2)
        if self.stride is not None:
            require_whole("stride", self.stride, low=1)
        if self.tokens is not None:
            require_whole("tokens", self.tokens, low=2)
        if self.context is not None and self.stride is not None and self.stride > self.context:
            raise RequestError(_too_far(self.stride, self.context))

    def fitted(self, longest: int) -> tuple[int, int]:
        """Context and stride for a model whose context is `longest`.

        Raises:
            RequestError: the stride is larger than the context that the model has.
        """
        context = min(DEFAULT_CONTEXT, longest) if self.context is None else self.context
        stride = context if self.stride is None else self.stride
        if stride > context:
            raise RequestError(_too_far(stride, context))
        return context, stride


WHOLE = WindowOptions()
"""All of the texts, in windows that do not overlap."""


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of one text, as a model reads it.

    Attributes:
        text: the token ids of the whole text.
        start, end: the piece of it.
        bos: the id that the model has before any text, if it has one.
        first: the first token that counts, as an offset into `tokens`; those after it count too.
        num_bytes: what the counted tokens take as text.
    """

    text: Sequence[int]
    start: int
    end: int
    bos: int | None
    first: int
    num_bytes: int

    @property
    def tokens(self) -> list[int]:
        """What the model reads, and what it is to predict: the token i from those before it."""
        return [*(() if self.bos is None else (self.bos,)), *self.text[self.start : self.end]]

    @property
    def counted(self) -> list[int]:
        """The tokens that count."""
        return self.tokens[self.first :]

    @property
    def num_counted(self) -> int:
        """How many count."""
        return len(self) - self.first

    def __len__(self) -> int:
        return self.end - self.start + (self.bos is not None)


def cut(length: int, context: int, stride: int, *, has_bos: bool = False) -> Iterator[tuple[int, int, int]]:
    """Start, end and first counted offset of the windows over a text of `length` tokens.

    A window holds `context` tokens, the last one perhaps fewer; with `has_bos` the begin-of-text token is the
    first of them. A token counts where at least `context - stride` tokens stand before it in its window, and
    one in any case: nothing predicts the first. So no token counts twice, and those that never do are the
    first `context - stride` of the text, or the first of each window where windows do not overlap; a
    begin-of-text token is among the tokens of a window here, and takes the place of one.
    """
    first, space = max(1, context - stride), context - has_bos
    start = end = 0
    while end < length:
        end = min(start + space, length)
        if end - start + has_bos > first:
            yield start, end, first
        start += min(stride, space)


def windows_of(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    context: int,
    stride: int,
    tokens: int | None = None,
) -> list[Window]:
    """The windows of texts, none of which holds parts of two; `tokens` limits what is taken of them together.

    Texts are content: the name of a control token in them is ordinary text.

    Raises:
        EvalError: no token counts, or the texts have fewer than two.
    """
    bos = tokenizer.bos_id if tokenizer.adds_bos else None
    windows: list[Window] = []
    taken = 0
    for text in texts:
        if taken == tokens:
            break
        ids = tokenizer.encode(text, first=True)[: None if tokens is None else tokens - taken]
        taken += len(ids)
        for start, end, first in cut(len(ids), context, stride, has_bos=bos is not None):
            at = start + first - (bos is not None)
            windows.append(Window(ids, start, end, bos, first, num_bytes(tokenizer, ids, at, end)))
    if taken < 2:
        raise EvalError(f"the text has {taken} {'token' if taken == 1 else 'tokens'}; two are the least")
    if not windows:
        raise EvalError(
            f"no text is long enough: with context {context} and stride {stride} a token counts where "
            f"{max(1, context - stride)} stand before it; give longer texts, or a larger stride"
        )
    return windows


def num_bytes(tokenizer: Tokenizer, ids: Sequence[int], start: int, end: int) -> int:
    """Bytes of text that the tokens from `start` to `end` of a text stand for, in UTF-8.

    The space that a SentencePiece vocabulary puts before a text is none of it.
    """
    total = sum(len(tokenizer.token_bytes(token_id)) for token_id in ids[start:end])
    added = start == 0 and tokenizer.prefix_space and tokenizer.token_bytes(ids[0]).startswith(b" ")
    return total - added


def _too_far(stride: int, context: int) -> str:
    return f"stride is {stride}, but context is {context}; tokens between windows would be left out"
