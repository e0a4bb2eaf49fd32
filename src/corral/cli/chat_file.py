"""A dialog as a file: one JSON object with the messages in OpenAI's form, readable by other tools."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corral.errors import CorralError, RenderError
from corral.text.messages import Message, as_messages


class ChatError(CorralError):
    """A chat command or a saved chat that cannot be used as it is."""


@dataclass(frozen=True)
class SavedChat:
    """What a saved chat holds.

    `messages` begins with the system message, if there is one. `interrupted` are the indices of the assistant
    messages that were stopped before they ended. `settings` are fields of `SamplingParams` by name.
    """

    messages: tuple[Message, ...]
    interrupted: frozenset[int] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None


def write_chat(path: Path, chat: SavedChat) -> bool:
    """Writes a chat, whole or not at all; true where an older saved chat was replaced.

    Raises:
        ChatError: the file cannot be written, or holds something that is not a saved chat.
    """
    path = Path(os.path.realpath(path.expanduser()))  # a link keeps pointing to the chat
    replaces = path.exists()
    if replaces and not _is_chat(path):
        raise ChatError(f"{path} exists and is not a saved chat; choose another name")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(_to_json(chat), encoding="utf-8", errors="backslashreplace")
        beside.replace(path)
    except OSError as error:
        raise ChatError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        _remove(beside)
    return replaces


def read_chat(path: Path) -> SavedChat:
    """Reads a saved chat, or a bare list of messages in OpenAI's form.

    Raises:
        ChatError: the file is missing, is no JSON, or a field is wrong; the message names it.
    """
    path = path.expanduser()
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChatError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{path} is not a saved chat: it is not valid JSON ({error})") from None
    try:
        return _from_json({"messages": fields} if isinstance(fields, list) else fields)
    except (ChatError, RenderError) as error:
        raise ChatError(f"{path} is not a saved chat: {error}") from None


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: bytes that are no text come from the system as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _to_json(chat: SavedChat) -> str:
    fields = {
        "model": chat.model,
        "settings": dict(chat.settings),
        "messages": [message.to_dict() for message in chat.messages],
        "interrupted": sorted(chat.interrupted),
    }
    return json.dumps(fields, ensure_ascii=False, indent=2) + "\n"


def _from_json(fields: Any) -> SavedChat:
    if not isinstance(fields, Mapping) or not isinstance(fields.get("messages"), list):
        raise ChatError("expected an object with a list of messages")
    messages = tuple(as_messages(fields["messages"]))
    for index, message in enumerate(messages):
        if isinstance(message.content, str) and not is_text(message.content):
            raise ChatError(f"messages[{index}]: content is not valid Unicode text")
    settings = fields.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ChatError("settings must be an object")
    interrupted = fields.get("interrupted", [])
    if not isinstance(interrupted, list) or not all(isinstance(index, int) for index in interrupted):
        raise ChatError("interrupted must be a list of indices of messages")
    model = fields.get("model")
    return SavedChat(messages, frozenset(interrupted), settings, None if model is None else str(model))


def _is_chat(path: Path) -> bool:
    try:
        read_chat(path)
    except ChatError:
        return False
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # what went wrong has been said already
        return
