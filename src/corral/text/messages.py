"""Messages and tool calls: the one representation that every room of Corral uses."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from corral.errors import RenderError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)

# What OpenAI's and Meta's formats call the roles that Corral names differently.
_ROLE_ALIASES = {"ipython": "tool", "developer": "system"}


def new_call_id() -> str:
    """A fresh id for a tool call, in the shape that clients of OpenAI's interface expect."""
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the assistant. `arguments` is always an object, never its JSON text."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=new_call_id)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str = "tool_calls") -> ToolCall:
        """Reads OpenAI's wire form ({"id", "function": {"name", "arguments"}}) or a bare {"name",
        "arguments"}.

        Raises:
            RenderError: the name is missing, or the arguments are not an object nor the JSON text of one.
        """
        inner = fields.get("function", fields) if isinstance(fields, Mapping) else None
        if not isinstance(inner, Mapping):
            raise RenderError(f"{where}: expected an object with a name and arguments")
        name = inner.get("name")
        if not isinstance(name, str) or not name:
            raise RenderError(f"{where}.name is missing")
        arguments = inner.get("arguments", inner.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError) as error:
                raise RenderError(f"{where}.arguments is not valid JSON: {_in_words(error)}") from None
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, Mapping):
            raise RenderError(f"{where}.arguments must be an object, not {type(arguments).__name__}")
        return cls(name, dict(arguments), str(fields.get("id") or new_call_id()))

    def to_dict(self) -> dict[str, Any]:
        """The form that chat templates read: arguments as an object."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class Message:
    """One message of a dialog.

    `content` is text, except that a tool's result may be any JSON value. `tool_calls` belongs to the
    assistant; `tool_call_id` says which call a tool message answers.
    """

    role: Role
    content: Any = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RenderError(f"role is {self.role!r}; it must be one of {', '.join(ROLES)}")
        if self.role != "tool" and not isinstance(self.content, str):
            raise RenderError(
                f"content of a {self.role} message must be text, not {type(self.content).__name__}"
            )
        if self.tool_calls and self.role != "assistant":
            raise RenderError(f"tool_calls belong to an assistant message, not to a {self.role} message")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Message:
        """Reads a message in OpenAI's or Hugging Face's form.

        Null content becomes empty text, content parts of type text are joined, the role "ipython" becomes
        "tool" and "developer" becomes "system".

        Raises:
            RenderError: a field is missing or of the wrong type; the message names it.
        """
        if not isinstance(fields, Mapping):
            raise RenderError(
                f"a message must be an object with role and content, not {type(fields).__name__}"
            )
        role: Any = fields.get("role")
        if isinstance(role, str):
            role = _ROLE_ALIASES.get(role, role)
        calls = fields.get("tool_calls") or ()
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise RenderError("tool_calls must be a list")
        call_id, name = fields.get("tool_call_id"), fields.get("name")
        return cls(
            role=role,
            content=_content(fields.get("content"), role),
            tool_calls=tuple(ToolCall.from_dict(call, f"tool_calls[{i}]") for i, call in enumerate(calls)),
            tool_call_id=None if call_id is None else str(call_id),
            name=None if name is None else str(name),
        )

    def to_dict(self) -> dict[str, Any]:
        """The form that chat templates read: keys only where there is something to say."""
        fields: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            fields["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            fields["name"] = self.name
        return fields


def _in_words(error: ValueError | RecursionError) -> str:
    """Python's own words, where they are about the text and not about Python."""
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def as_messages(messages: Sequence[Message | Mapping[str, Any]]) -> list[Message]:
    """Accepts messages in either form; dictionaries go through `Message.from_dict`."""
    result = []
    for index, message in enumerate(messages):
        try:
            result.append(message if isinstance(message, Message) else Message.from_dict(message))
        except RenderError as error:
            raise RenderError(f"messages[{index}]: {error}") from None
    return result


def _content(content: Any, role: str) -> Any:
    if content is None:
        return ""
    is_parts = isinstance(content, list) and all(isinstance(p, Mapping) and "type" in p for p in content)
    if is_parts and (content or role != "tool"):
        for part in content:
            if part["type"] != "text" or not isinstance(part.get("text"), str):
                raise RenderError(f"content part of type {part['type']!r}: only text parts are supported")
        return "".join(part["text"] for part in content)
    return content
