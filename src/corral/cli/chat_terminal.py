"""A chat on the terminal: answers as they come, notices, and the loop of a dialog."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.table import Table
from rich.text import Text

from corral.cli.chat_commands import is_command, run_command, unwrap
from corral.cli.chat_interrupt import Stop, silent_keys, stoppable
from corral.cli.chat_markdown import Line, MarkdownStream
from corral.cli.chat_session import Answer, ChatSession
from corral.errors import CorralError, RequestError

_REFRESH = 0.08  # seconds between two drawings
_SHARE = 5  # drawing takes at most one part in so many of the time


class AnswerView(Protocol):
    """Shows one answer."""

    def write(self, text: str) -> None: ...

    def finish(self) -> None: ...


class Reader(Protocol):
    """Where messages and commands come from; None is the end."""

    def read(self) -> str | None: ...


class PlainView:
    """The answer as the model gives it, and one line end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Shows a piece at once."""
        self._stream.write(text)
        self._stream.flush()

    def finish(self) -> None:
        """Ends the line."""
        self.write("\n")


class MarkdownView:
    """The answer as rendered Markdown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stream = MarkdownStream(console)
        self._waiting = console.status("", spinner="dots")
        self._waiting.start()
        self._height = 0  # lines below the finished ones, to be replaced
        self._next = 0.0

    def write(self, text: str) -> None:
        """Takes a piece and shows it with the next drawing."""
        if text:
            self._waiting.stop()
        self._stream.push(text)
        if text and time.monotonic() >= self._next:
            begun = time.monotonic()
            self.redraw()
            now = time.monotonic()
            self._next = now + max(_REFRESH, _SHARE * (now - begun))

    def redraw(self) -> None:
        """Shows what has come so far."""
        self._draw(*self._stream.update())

    def finish(self) -> None:
        """Shows the rest."""
        self._waiting.stop()
        self._draw(self._stream.finish(), [])

    def _draw(self, fixed: list[Line], moving: list[Line]) -> None:
        moving = moving[-max(self._console.height - 2, 1) :]
        segments = [segment for line in fixed for segment in (*line, Segment.line())]
        for index, line in enumerate(moving):
            segments += [*([Segment.line()] if index else []), *line]
        control = self._erase()
        self._height = len(moving)
        with self._console:  # one write, so that nothing flickers
            self._console.control(control)
            self._console.print(Segments(segments), end="", soft_wrap=True)

    def _erase(self) -> Control:
        if not self._height:
            return Control()
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * (self._height - 1)
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up)


class ChatTerminal:
    """What a chat shows: answers on standard output; anything else too, unless that is redirected.

    `stats` says after each answer how fast it came; None means where a person sees it.
    """

    def __init__(self, stats: bool | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an answer may hold what the encoding lacks
        self.answers = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False)
        self.notes = self.answers if self.answers.is_terminal else self.errors
        self.stats = self.errors.is_terminal if stats is None else stats

    def say(self, text: str, style: str = "") -> None:
        """Shows something that is not from the model."""
        _print(self.notes, text, style)

    def say_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Shows two columns."""
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row(*map(Text, row))
        self.notes.print(table)

    def fail(self, error: CorralError) -> None:
        """Shows why something cannot be done."""
        _print(self.notes, str(error), "red")

    def show(self, answer: Answer, stop: Stop) -> None:
        """Shows an answer while it comes, to its end or until Ctrl-C, and keeps it in the dialog."""
        with silent_keys(), answer, self._view() as view:
            for piece in stop.pieces(iter(answer)):
                view.write(piece)

    def show_stats(self, answer: Answer, *, max_tokens: int | None) -> None:
        """Says how fast the answer came, and what ended it if that was not the model."""
        parts = []
        if self.stats:
            rate = answer.tokens_per_second
            parts = [f"{answer.num_tokens} tokens", *([] if rate is None else [f"{rate:.1f} tokens/s"])]
            parts.append(f"first after {answer.seconds_to_first_token:.2f} s")
        if answer.interrupted:
            parts.append("stopped")
        elif answer.finish_reason == "length":
            full = max_tokens is None or answer.num_tokens < max_tokens
            parts.append("cut off: the context is full" if full else f"cut off by max_tokens {max_tokens}")
        if parts:
            _print(self.errors if self.stats else self.notes, f"[{', '.join(parts)}]", "bright_black")

    @contextmanager
    def _view(self) -> Iterator[AnswerView]:
        view: AnswerView
        if self.answers.is_terminal and not self.answers.is_dumb_terminal:
            view = MarkdownView(self.answers)
        else:
            view = PlainView(sys.stdout)
        try:
            yield view
        finally:
            view.finish()


def converse(session: ChatSession, reader: Reader, terminal: ChatTerminal) -> None:
    """Holds a dialog until the user leaves. What cannot be done is said, and the dialog goes on."""
    with stoppable() as stop:
        while (line := reader.read()) is not None:
            stop.wished = False
            if line.strip() and _step(session, line, terminal, stop):
                return


def _step(session: ChatSession, line: str, terminal: ChatTerminal, stop: Stop) -> bool:
    """Does what a line asks for, or says why it cannot be done; true where that is the end."""
    try:
        return _do(session, line, terminal, stop)
    except CorralError as error:
        terminal.fail(error)
        if isinstance(error, RequestError) and session.exchanges and not is_command(line):
            terminal.say("Nothing is lost: /undo drops the last exchange, /reset all of them.")
    return False


def _do(session: ChatSession, line: str, terminal: ChatTerminal, stop: Stop) -> bool:
    if is_command(line):
        outcome = run_command(session, line)
        if outcome.text:
            terminal.say(outcome.text)
        if outcome.rows:
            terminal.say_rows(outcome.rows)
        answer = outcome.answer
        if outcome.leave:
            return True
    else:
        answer = session.ask(unwrap(line))
    if answer is not None:
        terminal.show(answer, stop)
        terminal.show_stats(answer, max_tokens=session.params.max_tokens)
    return False


def _print(console: Console, text: str, style: str) -> None:
    console.print(Text(text, style), soft_wrap=True)
