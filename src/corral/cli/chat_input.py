"""The prompt of a chat: line editing, history, several lines, completion of commands."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from corral.checkpoints.cache import cache_folder
from corral.cli.chat_commands import COMMANDS, is_unfinished
from corral.cli.chat_session import SETTINGS

_PROMPT, _CONTINUATION = ">>> ", "... "


class ChatInput:
    """Reads messages and commands from the terminal."""

    def __init__(self) -> None:
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            multiline=True,
            prompt_continuation=_CONTINUATION,
            history=ChatHistory(cache_folder() / "history"),
            key_bindings=_keys(),
            completer=ChatCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_open_in_editor=True,
            enable_suspend=True,
            input=create_input(),
            output=create_output(always_prefer_tty=True),  # answers alone go to a redirected standard output
        )

    def read(self) -> str | None:
        """The next line or lines; None when the user leaves with Ctrl-D or with Ctrl-C on an empty line."""
        try:
            return self._session.prompt()
        except (EOFError, KeyboardInterrupt):
            return None


class ChatHistory(FileHistory):
    """A history in a file of the user's own; where it cannot be written, it lives as long as the program."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """The texts in the file, the newest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Appends to the file, if that is possible."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
            super().store_string(string)
        except (OSError, ValueError):  # a text may hold characters that no file can
            return


class ChatCompleter(Completer):
    """Completes the names of commands and of settings, and paths of saved chats."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What can stand at the cursor."""
        line = document.text_before_cursor
        if not line.startswith("/") or "\n" in line:
            return
        name, space, argument = line.partition(" ")
        if not space:
            yield from _starting(name, (f"/{c.name}{' ' if c.argument else ''}" for c in COMMANDS))
        elif name in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), complete_event)
        elif name == "/set" and " " not in argument:
            yield from _starting(argument, SETTINGS)


def _starting(begun: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, -len(begun)) for word in words if word.startswith(begun))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def next_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys
