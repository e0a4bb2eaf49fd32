"""The input items of `/v1/responses`, and the dialog that they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from corral.errors import RequestError
from corral.server.openai.refusals import refused
from corral.server.wire import Body, Many

Status = Literal["in_progress", "completed", "incomplete"]

_KINDS = {"message": "Message", "function_call": "Call", "function_call_output": "Output"}
_REFUSALS = {
    "item_reference": "this server keeps no items; give the item itself",
    "reasoning": "the model does not reason apart from its answers; leave this item out",
}


class TextPart(Body):
    """A part of a message. Only text can be read."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: Annotated[None, refused("prefixes are cached by themselves; leave it out")] = (
        None
    )


Text = str | Many[TextPart]


class MessageItem(Body):
    """A message, also as this interface has answered it."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Text
    id: str | None = None
    status: Status | None = None
    phase: Annotated[None, refused("the model knows no phases of an answer; leave it out")] = None


class CallItem(Body):
    """A call that the model made; `arguments` is the JSON text of an object."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    namespace: Annotated[None, refused("functions have no namespaces here; leave it out")] = None


class OutputItem(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Text
    id: str | None = None
    status: Status | None = None
    name: str | None = None


def _kind(item: Any) -> str | None:
    kind = item.get("type") if isinstance(item, dict) else None
    return "Message" if kind is None else _KINDS.get(kind)


def _known(item: Any) -> Any:
    """Refuses, in words, items of another type."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind is None or (isinstance(kind, str) and kind in _KINDS):
        return item
    why = _REFUSALS.get(kind) if isinstance(kind, str) else None
    raise ValueError(why or f"its type is {str(kind)[:100]!r}; this server takes {', '.join(_KINDS)}")


Item = Annotated[
    Annotated[MessageItem, Tag("Message")]
    | Annotated[CallItem, Tag("Call")]
    | Annotated[OutputItem, Tag("Output")],
    Discriminator(_kind),
    BeforeValidator(_known),
]


def dialog(given: str | Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The messages that items stand for, in the form that `Message.from_dict` reads. Calls become part of the
    assistant's message before them.

    Raises:
        RequestError: there are no items, or one cannot be read, or answers a call that is not there.
    """
    if not given:
        raise RequestError("input: it is empty; give a text, or items")
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    names: dict[str, str] = {}
    for number, item in enumerate(given):
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": text_of(item.content)})
        elif isinstance(item, CallItem):
            names[item.call_id] = item.name
            _add_call(messages, item, f"input[{number}].arguments")
        else:
            if item.call_id not in names:
                raise RequestError(f"input[{number}].call_id: no function_call before it has this call_id")
            told = {"tool_call_id": item.call_id, "name": item.name or names[item.call_id]}
            messages.append({"role": "tool", "content": text_of(item.output), **told})
    return messages


def text_of(content: Text) -> str:
    """The text of a content, whose parts are joined."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _add_call(messages: list[dict[str, Any]], item: CallItem, where: str) -> None:
    try:
        arguments = json.loads(item.arguments) if item.arguments.strip() else {}
    except (ValueError, RecursionError):
        raise RequestError(f"{where}: it is not valid JSON; give the JSON text of an object") from None
    if not isinstance(arguments, dict):
        raise RequestError(f"{where}: it is no JSON object; give the JSON text of an object")
    call = {"id": item.call_id, "function": {"name": item.name, "arguments": arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)
