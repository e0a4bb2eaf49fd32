"""What rows say, whatever format they are in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corral.text.messages import Message

Tools = tuple[Mapping[str, Any], ...]
Said = str | tuple[Message, ...]
"""A text that is taken as it is, or messages that a prompt format writes."""


@dataclass(frozen=True)
class Text:
    """A document."""

    text: str


@dataclass(frozen=True)
class Dialog:
    """A conversation; `untrained` are the places of the assistant's messages that have weight 0."""

    messages: tuple[Message, ...]
    tools: Tools = ()
    untrained: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Completion:
    """What follows a prompt: both texts, or both messages; `desirable` where the row is rated."""

    prompt: Said
    completion: Said
    tools: Tools = ()
    desirable: bool | None = None


@dataclass(frozen=True)
class Preference:
    """Two completions of a prompt: all texts, or all messages. They may be the same."""

    prompt: Said
    chosen: Said
    rejected: Said
    tools: Tools = ()


Parsed = Text | Dialog | Completion | Preference
