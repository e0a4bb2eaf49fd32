"""Runs the parser over parts of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count, pairwise
from typing import Any

from corral.text.tool_calls.parser import CallParser
from corral.text.tool_calls.pieces import CallArguments, CallBegun, CallEnded, ChatPiece, TextPiece
from tests.text.tool_calls.corpus import BUILTIN, Entry


def counted_ids() -> Callable[[], str]:
    """Ids that are the same in each run."""
    numbers = count()
    return lambda: f"call_{next(numbers)}"


def parser_for(entry: Entry) -> CallParser:
    """The parser that an entry asks for."""
    return CallParser(
        entry.tools, builtin_tools=BUILTIN, code=entry.code, parallel=entry.parallel, new_id=counted_ids()
    )


def read(parser: CallParser, parts: Iterable[str], complete: bool = True) -> list[ChatPiece]:
    """All pieces."""
    pieces: list[ChatPiece] = []
    for part in parts:
        pieces += parser.push(part)
    return pieces + parser.finish(complete=complete)


def joined(pieces: Sequence[ChatPiece]) -> list[ChatPiece]:
    """Pieces with neighbours of one text, and of one call's arguments, joined."""
    result: list[ChatPiece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, TextPiece) and isinstance(last, TextPiece):
            result[-1] = TextPiece(last.text + piece.text)
        elif isinstance(piece, CallArguments) and isinstance(last, CallArguments):
            assert piece.index == last.index
            result[-1] = CallArguments(piece.index, last.text + piece.text)
        else:
            result.append(piece)
    return result


def check_order(pieces: Sequence[ChatPiece]) -> None:
    """Each call begins, tells its arguments and ends before anything else comes; no piece is empty."""
    index, current, told = 0, None, ""
    for piece in pieces:
        if isinstance(piece, TextPiece):
            assert current is None
            assert piece.text
        elif isinstance(piece, CallBegun):
            assert current is None
            assert piece.index == index
            current, told = piece, ""
        elif isinstance(piece, CallArguments):
            assert current is not None
            assert piece.index == index
            assert piece.text
            told += piece.text
        else:
            assert current is not None
            assert piece.index == index
            assert piece.arguments_text == told
            assert (piece.call is None) == (piece.error is not None)
            if piece.call is not None:
                assert (piece.call.id, piece.call.name) == (current.id, current.name)
            index, current = index + 1, None
    assert current is None


def in_parts(text: str, size: int) -> list[str]:
    """A text in parts of one size."""
    return [text[i : i + size] for i in range(0, len(text), size)]


def at_cuts(text: str, cuts: Iterable[int]) -> list[str]:
    """A text cut at some places."""
    places = sorted({0, *cuts, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


def calls_of(pieces: Sequence[ChatPiece]) -> list[tuple[str, dict[str, Any]]]:
    """The names and arguments of all calls; none may have broken off."""
    ended = [piece for piece in pieces if isinstance(piece, CallEnded)]
    assert not [piece.error for piece in ended if piece.error]
    return [(piece.call.name, piece.call.arguments) for piece in ended if piece.call is not None]
