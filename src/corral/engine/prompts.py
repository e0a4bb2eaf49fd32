"""Prompts as callers give them: one or several, as text, as token ids, or as dialogs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any, TypeVar

from corral.errors import RequestError
from corral.text.messages import Message

T = TypeVar("T")
Prompt = str | Sequence[int]
Dialog = Sequence[Message | Mapping[str, Any]]


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One text, or one row of token ids, is a list of one prompt.

    Raises:
        RequestError: it is neither, nor a list of them.
    """
    if isinstance(prompts, str):
        return [prompts]
    _require_list("prompts", prompts, "a text, a list of token ids, or a list of these")
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    for number, prompt in enumerate(prompts):
        require_prompt(f"prompts[{number}]", prompt)
    return prompts  # type: ignore[return-value]


def require_prompt(name: str, prompt: object) -> None:
    """Raises RequestError where a prompt is neither a text nor a list."""
    if not isinstance(prompt, str):
        _require_list(name, prompt, "a text or a list of token ids")


def as_dialogs(messages: Dialog | Sequence[Dialog]) -> Sequence[Dialog]:
    """One dialog is a list of one.

    Raises:
        RequestError: it is no list.
    """
    _require_list("messages", messages, "a list of messages, or a list of dialogs")
    if messages and isinstance(messages[0], Sequence) and not isinstance(messages[0], str):
        return messages  # type: ignore[return-value]
    return [messages]  # type: ignore[list-item]


def one_for_each(name: str, kind: type[T], values: T | Sequence[T] | None, count: int) -> Sequence[T | None]:
    """One value for each of `count` prompts; None takes what is usual.

    Raises:
        RequestError: there are more or fewer, or one is of another type.
    """
    several = [values] * count if values is None or isinstance(values, kind) else values
    _require_list(name, several, f"a {kind.__name__}, or one for each prompt")
    if len(several) != count:  # type: ignore[arg-type]
        raise RequestError(
            f"{name} has {len(several)} entries for {count} prompts; give one, or one for each"  # type: ignore[arg-type]
        )
    for value in several:  # type: ignore[union-attr]
        if value is not None and not isinstance(value, kind):
            raise RequestError(f"{name} holds {short(value)}; it must be a {kind.__name__}")
    return several  # type: ignore[return-value]


def _require_list(name: str, value: object, wanted: str) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        raise RequestError(f"{name} is {short(value)}; it must be {wanted}")
