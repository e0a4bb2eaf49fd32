"""The slash commands of a chat, as a table."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corral.cli.chat_file import ChatError, read_chat, write_chat
from corral.cli.chat_session import SETTINGS, Answer, ChatSession

_COMMAND = re.compile(r"/([A-Za-z?]*)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What a command leads to: something to say, a table of two columns, an answer to show, or the end."""

    text: str = ""
    rows: tuple[tuple[str, str], ...] = ()
    answer: Answer | None = None
    leave: bool = False


@dataclass(frozen=True)
class Command:
    """A slash command. `run` gets the text after the name, stripped; `argument` is how the help writes it."""

    name: str
    argument: str
    help: str
    run: Callable[[ChatSession, str], Outcome]


def is_command(line: str) -> bool:
    """Whether a line is for the program; `/usr/bin` or a line that begins with a space is for the model."""
    return _COMMAND.fullmatch(line) is not None


def run_command(session: ChatSession, line: str) -> Outcome:
    """Runs a line for which `is_command` holds.

    Raises:
        CorralError: the command is unknown or cannot be done; the dialog is as it was.
    """
    match = _COMMAND.fullmatch(line)
    assert match is not None, "the caller has asked is_command"
    name, argument = match[1].lower(), (match[2] or "").strip()
    command = next((command for command in COMMANDS if command.name == _ALIASES.get(name, name)), None)
    if command is None:
        raise ChatError(
            f"/{name} is not a command{_suggest(name, [c.name for c in COMMANDS], '/')}; see /help"
        )
    if argument and not command.argument:
        raise ChatError(f"/{command.name} takes nothing after it")
    return command.run(session, argument)


def unwrap(text: str) -> str:
    '''Text without the marks that joined its lines: a pair of `"""`, or a backslash before a line's end.'''
    stripped = text.strip()
    if stripped.startswith('"""'):
        return stripped[3:].removesuffix('"""').strip("\n")
    return text.replace("\\\n", "\n")


def is_unfinished(text: str) -> bool:
    '''Whether Enter goes to the next line: after a backslash, or within `"""`, also in a command's text.'''
    body = text.lstrip()
    match = _COMMAND.fullmatch(body)
    if match:
        body = match[2] or ""
    if body.startswith('"""'):
        return not body[3:].rstrip().endswith('"""')
    return text.endswith("\\")


def _help(_session: ChatSession, _argument: str) -> Outcome:
    commands = ((f"/{command.name} {command.argument}".strip(), command.help) for command in COMMANDS)
    return Outcome(rows=(*commands, *_KEYS))


def _system(session: ChatSession, argument: str) -> Outcome:
    if not argument:
        return Outcome(
            "There is no system message." if session.system is None else f"System: {session.system}"
        )
    session.system = _unquote(argument)
    return Outcome(f"The system message {'is set' if session.system else 'is removed'} from now on.")


def _reset(session: ChatSession, _: str) -> Outcome:
    session.reset()
    return Outcome("The dialog is empty; the system message and the settings are kept.")


def _undo(session: ChatSession, _: str) -> Outcome:
    dropped = session.undo()
    return Outcome(f"Dropped: {_shorten(dropped.question.content)}")


def _retry(session: ChatSession, _: str) -> Outcome:
    answer = session.retry()
    same = ""
    if session.params.temperature == 0:
        same = "The temperature is 0, so the answer stays the same; see /set temperature."
    elif session.params.seed is not None:
        same = "The seed is fixed, so the answer stays the same; /set seed none frees it."
    return Outcome(same, answer=answer)


def _save(session: ChatSession, argument: str) -> Outcome:
    path = _path("save", argument)
    if not session.exchanges and session.system is None:
        raise ChatError("there is nothing to save yet")
    replaced = write_chat(path, session.saved())
    return Outcome(f"Saved to {path}{', in place of an older chat' if replaced else ''}.")


def _load(session: ChatSession, argument: str) -> Outcome:
    path = _path("load", argument)
    chat = read_chat(path)
    session.restore(chat)
    count = len(session.exchanges)
    other = f" It was held with {chat.model}." if chat.model not in (None, session.model.name) else ""
    return Outcome(f"Loaded {count} exchange{'' if count == 1 else 's'} from {path}.{other}")


def _set(session: ChatSession, argument: str) -> Outcome:
    if not argument:
        return Outcome(rows=tuple((name, _show(session, name)) for name in SETTINGS))
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    name, text = name.replace("-", "_").lower(), text.strip()
    if name not in SETTINGS:
        raise ChatError(f"{name} is not a setting{_suggest(name, SETTINGS)}; /set shows all of them")
    if text == "default":
        session.set_default(name)
    elif text:
        session.set(name, _value(text))
    return Outcome(f"{name} is {_show(session, name)}")


def _tokens(session: ChatSession, _: str) -> Outcome:
    used, context = session.num_tokens(), session.model.max_model_len
    left = max(context - used, 0)
    return Outcome(
        f"The dialog takes {used:,} of {context:,} tokens ({used / context:.0%}); {left:,} are left."
    )


def _quit(_session: ChatSession, _argument: str) -> Outcome:
    return Outcome(leave=True)


COMMANDS: tuple[Command, ...] = (
    Command("help", "", "show this", _help),
    Command("system", "[TEXT]", 'show or set the system message; "" removes it', _system),
    Command("reset", "", "begin a new dialog", _reset),
    Command("undo", "", "drop the last question and its answer", _undo),
    Command("retry", "", "answer the last question again", _retry),
    Command("save", "FILE", "write the dialog to a file", _save),
    Command("load", "FILE", "go on with a saved dialog", _load),
    Command("set", "[NAME [VALUE]]", "show or change settings, like temperature 0.7", _set),
    Command("tokens", "", "show how much of the context is used", _tokens),
    Command("quit", "", "leave; Ctrl-D does too", _quit),
)
_KEYS = (
    ("Ctrl-C", "stop the answer; clear the line; leave, on an empty line"),
    ("Alt-Enter, or \\ at the end", "next line of the same message"),
    ('""" … """', "a message of several lines"),
    ("a space before /", "send a message that begins with a slash"),
)
_ALIASES = {"exit": "quit", "bye": "quit", "?": "help"}


def _suggest(name: str, known: list[str] | tuple[str, ...], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f", perhaps {prefix}{close[0]}" if close else ""


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise ChatError(f"/{command} needs a file, like /{command} talk.json")
    return Path(_unquote(argument))


def _unquote(text: str) -> str:
    for mark in ('"""', '"', "'"):
        if len(text) >= 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            return text[len(mark) : -len(mark)].strip("\n")
    return text


def _value(text: str) -> int | float | str | None:
    """A setting's value as it was typed; what is no number is left for the setting to refuse."""
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _show(session: ChatSession, name: str) -> str:
    value = getattr(session.params, name)
    if value is None:
        return "none (a fresh one each time)" if name == "seed" else "none (to the end of the context)"
    return str(value)


def _shorten(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 60 else f"{line[:59]}…"
