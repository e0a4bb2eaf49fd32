"""What a run will train on, for a person to look at before it begins."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from corral.text.tokenizer import Tokenizer
from corral.tune.data.prepare import Prepared
from corral.tune.data.report import rows_in_words
from corral.tune.examples import Example, Item, Pair, Rated
from corral.tune.packing import pack

_TRAINED, _CONTROL, _REST = "bold green", "magenta", "bright_black"
_MARKS = ("«", "»")  # around what is trained, where there are no colours
_BINS, _WIDTH = 10, 40
_TOKENS = 600  # of a document that are shown


def inspect_data(
    prepared: Prepared,
    tokenizer: Tokenizer,
    console: Console,
    *,
    rows: int = 3,
    packing: bool = True,
) -> None:
    """Writes the first rows with their trained tokens marked, what became of all rows, and the lengths.

    Trained tokens are green on a terminal, and stand between « and » elsewhere. Control tokens show their
    names, and control characters in texts show as escapes.

    Args:
        prepared: the data.
        tokenizer: the model's.
        console: where to write.
        rows: how many are shown.
        packing: whether short rows will share one.
    """
    colours = console.is_terminal and not console.no_color
    for number in range(min(rows, len(prepared.train))):
        _show_item(prepared.train[number], number, prepared, tokenizer, console, colours)
    for line in prepared.report.lines():
        _line(console, line)
    _line(console, f"lengths of {rows_in_words(len(prepared.train))}, in tokens:")
    for line in histogram(prepared.train.lengths, bar="█" if colours else "#"):
        _line(console, line)
    if packing:
        _line(console, packing_line(prepared.train.lengths, prepared.max_length))


def histogram(lengths: NDArray[np.int64], bar: str = "#") -> list[str]:
    """Lines with how many items have lengths in each of ten ranges, from the shortest to the longest."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    step = max(1, -(-(longest - shortest + 1) // _BINS))
    counts = np.bincount((lengths - shortest) // step)
    digits, width = len(f"{longest:,}"), len(f"{counts.max():,}")
    lines = []
    for place, count in enumerate(counts.tolist()):
        low = shortest + place * step
        high = min(low + step - 1, longest)
        filled = bar * -(-count * _WIDTH // int(counts.max()))
        lines.append(f"  {low:{digits},} to {high:{digits},}  {count:{width},}  {filled}".rstrip())
    return lines


def packing_line(lengths: NDArray[np.int64], max_length: int) -> str:
    """How many rows are left when items share rows of some tokens, and how full those are."""
    packed = len(pack(lengths.tolist(), max_length))
    tokens = int(np.minimum(lengths, max_length).sum())
    return (
        f"packing: {rows_in_words(len(lengths))} in {packed:,} of {max_length:,} tokens, "
        f"{tokens / (packed * max_length):.1%} full"
    )


def marked_text(example: Example, tokenizer: Tokenizer, *, colours: bool) -> Text:
    """A document as text: trained tokens green or between marks, control tokens by their names."""
    text = Text()
    open_mark = False
    for trained, control, shown in _runs(example, tokenizer):
        if not colours and trained != open_mark:
            text.append(_MARKS[0] if trained else _MARKS[1])
            open_mark = trained
        style = _TRAINED if trained else _CONTROL if control else _REST
        text.append(shown, f"{style} italic" if colours and trained and control else style if colours else "")
    if open_mark:
        text.append(_MARKS[1])
    if len(example) > _TOKENS:
        text.append(f" … and {len(example) - _TOKENS:,} tokens more")
    return text


def _show_item(
    item: Item, number: int, prepared: Prepared, tokenizer: Tokenizer, console: Console, colours: bool
) -> None:
    for name, example in _documents(item):
        kind = f", {name}" if name else ""
        title = f"row {number + 1} of {len(prepared.train):,}{kind}: {len(example):,} tokens, "
        title += f"{example.num_trained:,} trained"
        console.print(Text(title, "bold" if colours else ""), soft_wrap=True)
        console.print(marked_text(example, tokenizer, colours=colours), soft_wrap=True)
        console.print()


def _documents(item: Item) -> list[tuple[str, Example]]:
    match item:
        case Example():
            return [("", item)]
        case Pair():
            return [("chosen", item.chosen), ("rejected", item.rejected)]
        case Rated():
            return [("desirable" if item.desirable else "undesirable", item.example)]


def _runs(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[bool, bool, str]]:
    """Runs of tokens that look the same: whether they are trained, whether control tokens, and their text."""
    tokens = zip(example.tokens[:_TOKENS].tolist(), example.trained[:_TOKENS].tolist(), strict=True)
    for (trained, control), run in groupby(tokens, lambda pair: (pair[1], tokenizer.is_control(pair[0]))):
        spelled = b"".join(tokenizer.token_bytes(token) for token, _ in run)
        yield trained, control, _visible(spelled.decode("utf-8", "replace"))


def _visible(text: str) -> str:
    """Line ends get a sign; what a terminal would obey becomes an escape."""
    return "".join(
        "↵\n" if c == "\n" else c if c == "\t" or unicodedata.category(c) not in ("Cc", "Cf") else _escape(c)
        for c in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _line(console: Console, text: str) -> None:
    console.print(Text(_visible(text)), soft_wrap=True)
