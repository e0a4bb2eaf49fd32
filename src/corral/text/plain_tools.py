"""Dialogs with tools as plain messages, for chat templates that have no place for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from corral.errors import RenderError
from corral.text.call_formats import template_call
from corral.text.jinja_chat import ChatTemplate
from corral.text.messages import Message, ToolCall
from corral.text.tool_prompts import Schema, plain_tools, to_json

SEPARATOR = "; "

_TOOL, _KEY, _VALUE = "probe_of_a_tool", "probe_of_a_key", "probe-of-a-value"
_RESULT, _SYSTEM = "probe-of-a-result", "probe-of-the-system-text"


@dataclass(frozen=True)
class TemplatePlaces:
    """What a chat template has a place for, found by rendering probes.

    Attributes:
        tools: descriptions of tools.
        calls: the assistant's calls.
        several_calls: more than one call in a message.
        results: what tools gave.
        system: a system message.
        call_text: what a message with one call looks like, with what the template puts around it; empty
            where it has no place for calls.
    """

    tools: bool
    calls: bool
    several_calls: bool
    results: bool
    system: bool
    call_text: str


def find_places(template: ChatTemplate, constants: Mapping[str, Any]) -> TemplatePlaces:
    """What a template has a place for; `constants` are variables such as `bos_token`."""
    function = {"name": _TOOL, "description": "", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    user = Message("user", "hello")
    calls = tuple(ToolCall(_TOOL, {_KEY: f"{_VALUE}{i}"}, f"call{i}xxxx") for i in range(2))
    one = Message("assistant", "", tool_calls=calls[:1])
    result = Message("tool", _RESULT, tool_call_id=calls[0].id, name=_TOOL)

    def text(messages: Sequence[Message], tools: Sequence[Schema] | None = None) -> str:
        shown = {"messages": [message.to_dict() for message in messages], "tools": tools, "documents": None}
        try:
            return template.render({**constants, **shown, "add_generation_prompt": False})
        except RenderError:
            return ""

    called = text([user, one, result], tools)
    two = text([user, replace(one, tool_calls=calls)], tools)
    shows_call = f"{_VALUE}0" in called
    return TemplatePlaces(
        tools=_TOOL in text([user], tools),
        calls=shows_call,
        several_calls=f"{_VALUE}0" in two and f"{_VALUE}1" in two,
        results=_RESULT in called,
        system=_SYSTEM in text([Message("system", _SYSTEM), user]),
        call_text=text([user, one], tools).removeprefix(text([user], tools)) if shows_call else "",
    )


def uses_tools(messages: Sequence[Message], tools: Sequence[Schema]) -> bool:
    """Whether a dialog needs a place for tools."""
    return bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)


def plain_dialog(messages: Sequence[Message], tools: Sequence[Schema], *, system: bool) -> list[Message]:
    """The dialog without tools: described in the system text, called in JSON, their results told by the user.

    With `system`, there may be a system message; else the tools are described before the first user text.

    Raises:
        RenderError: arguments or results that have no form in JSON, or no message to describe the tools in.
    """
    dialog = [_with_calls_as_text(message) for message in told_results(messages)]
    if not tools:
        return dialog
    described = plain_tools(tools)
    if system:
        has_system = bool(dialog) and dialog[0].role == "system"
        text = f"{dialog[0].content}\n\n{described}" if has_system and dialog[0].content else described
        return [Message("system", text), *dialog[has_system:]]
    for index, message in enumerate(dialog):
        if message.role == "user":
            first = replace(message, content=f"{described}\n\n{message.content}")
            return [*dialog[:index], first, *dialog[index + 1 :]]
    raise RenderError(
        "tools: this checkpoint's chat template describes them in a user message, but there is none"
    )


def told_results(messages: Sequence[Message]) -> list[Message]:
    """The dialog with what tools gave in user messages, results of one turn in one message."""
    dialog: list[Message] = []
    calls: dict[str, ToolCall] = {}
    follows_result = False
    for message in messages:
        calls.update((call.id, call) for call in message.tool_calls)
        if message.role != "tool":
            dialog.append(message)
        elif follows_result:
            dialog[-1] = replace(dialog[-1], content=f"{dialog[-1].content}\n\n{_told(message, calls)}")
        else:
            dialog.append(Message("user", _told(message, calls)))
        follows_result = message.role == "tool"
    return dialog


def _told(result: Message, calls: Mapping[str, ToolCall]) -> str:
    call = calls.get(result.tool_call_id or "")
    content = (
        result.content if isinstance(result.content, str) else to_json(result.content, "a tool's result")
    )
    what = template_call(call) if call is not None else result.name or "the function"
    return f"Result of {what}:\n{content}"


def _with_calls_as_text(message: Message) -> Message:
    if not message.tool_calls:
        return message
    written = SEPARATOR.join(map(template_call, message.tool_calls))
    content = f"{message.content}\n{written}" if message.content else written
    return replace(message, content=content, tool_calls=())
