"""Messages of data sets: OpenAI's form, Hugging Face's and ShareGPT's; and which may follow which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from corral.errors import RenderError
from corral.text.messages import ROLES, Message
from corral.tune.data.parsed import Said, Tools
from corral.tune.errors import TuneError

_SHAREGPT_ROLES = MappingProxyType(
    {
        "human": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "model": "assistant",
        "function_call": "assistant",
        "tool_call": "assistant",
        "observation": "tool",
        "tool_response": "tool",
        "function_response": "tool",
    }
)
"""What ShareGPT and its descendants call roles, beside the usual names."""

_CALLS = ("function_call", "tool_call")
_START = "the beginning"
# What may stand before a message.
_AFTER = MappingProxyType(
    {
        "system": (_START,),
        "user": (_START, "system", "assistant", "tool"),
        "assistant": ("user", "tool"),
        "tool": ("assistant", "tool"),
    }
)
_ADVICE = MappingProxyType(
    {
        "system": "a system message can only be the first",
        "user": "an assistant message belongs between two user messages",
        "assistant": "a user message or a tool's result belongs before it",
        "tool": "a tool's result follows the assistant that called it",
    }
)


def read_messages(value: Any, where: str) -> tuple[Message, ...]:
    """The messages of a column.

    Each has role and content, or ShareGPT's from and value, in which calls of tools are JSON text. Calls
    without an id get one that depends on their place only.

    Raises:
        TuneError: it is no list of messages, or one of them is not valid; `where` begins the sentence.
    """
    if not isinstance(value, list):
        raise TuneError(f"{where} must be a list of messages, not {_kind(value)}")
    if not value:
        raise TuneError(f"{where} is empty; a dialog has messages")
    messages, calls = [], 0
    for index, fields in enumerate(value):
        at = f"{where}[{index}]"
        if not isinstance(fields, dict):
            raise TuneError(f"{at} must be an object with role and content, not {_kind(fields)}")
        plain = _from_sharegpt(fields, at)
        if isinstance(plain.get("tool_calls"), list):
            plain["tool_calls"] = [_with_id(call, calls + i) for i, call in enumerate(plain["tool_calls"])]
            calls += len(plain["tool_calls"])
        try:
            messages.append(Message.from_dict(plain))
        except RenderError as error:
            raise TuneError(f"{at}: {error}") from None
        _check_content(messages[-1], plain, at)
    return tuple(messages)


def untrained_messages(value: Sequence[Mapping[str, Any]], where: str) -> frozenset[int]:
    """The places of assistant messages with `weight` 0, as OpenAI's format for fine-tuning has it.

    Raises:
        TuneError: another weight than 0 and 1, or at another's message.
    """
    found = []
    for index, fields in enumerate(value):
        weight = fields.get("weight")
        if weight is None:
            continue
        role = fields.get("role", fields.get("from"))
        if _SHAREGPT_ROLES.get(str(role), role) != "assistant":
            raise TuneError(f"{where}[{index}].weight belongs to an assistant message")
        if isinstance(weight, bool) or weight not in (0, 1):
            raise TuneError(f"{where}[{index}].weight is {weight!r}; it must be 0 or 1")
        found += [index] if weight == 0 else []
    return frozenset(found)


def check_order(messages: Sequence[Message], where: str) -> None:
    """Refuses messages of a whole dialog that cannot follow each other; `where` begins the sentence.

    Raises:
        TuneError: a system message that is not the first, two users' or assistants' messages in a row, an
            assistant message at the beginning, or a tool's result that follows no assistant.
    """
    before: Message | None = None
    for index, message in enumerate(messages):
        last = before.role if before is not None else _START
        if last not in _AFTER[message.role]:
            what = "at the beginning" if before is None else f"after one of role {last!r}"
            raise TuneError(f"{where}[{index}] has role {message.role!r} {what}; {_ADVICE[message.role]}")
        before = message


def read_tools(value: Any, where: str) -> Tools:
    """The tools of a row: a list of schemas, or the JSON text of one; none where it is empty.

    Raises:
        TuneError: it is neither.
    """
    if isinstance(value, str) and value.strip():
        value = _json(value, where)
    if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, list):
        raise TuneError(f"{where} must be a list of tools, not {_kind(value)}")
    tools = [_json(tool, f"{where}[{i}]") if isinstance(tool, str) else tool for i, tool in enumerate(value)]
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise TuneError(f"{where}[{index}] must be an object that describes a tool, not {_kind(tool)}")
    return tuple(tools)


def read_said(value: Any, where: str) -> Said:
    """A text or messages; a single message may stand for a list of one.

    Raises:
        TuneError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise TuneError(f"{where} must be text or a list of messages, not {_kind(value)}")
    return read_messages(value, where)


def _from_sharegpt(fields: Mapping[str, Any], at: str) -> dict[str, Any]:
    plain = dict(fields)
    if "from" in plain and "role" not in plain:
        plain["role"] = plain.pop("from")
    if "value" in plain and "content" not in plain:
        plain["content"] = plain.pop("value")
    said = plain.get("role")
    if said is None:
        raise TuneError(f"{at} has no role; its keys are: {', '.join(map(str, fields)) or 'none'}")
    if isinstance(said, str):
        plain["role"] = _SHAREGPT_ROLES.get(said, said)
        if plain["role"] not in (*ROLES, "ipython", "developer"):
            known = ", ".join((*ROLES, *_SHAREGPT_ROLES))
            raise TuneError(f"{at} has role {said!r}; it must be one of {known}")
        if said in _CALLS:
            found = _json(plain.get("content"), f"{at}, a call of a tool,")
            plain |= {"content": "", "tool_calls": found if isinstance(found, list) else [found]}
    return plain


def _with_id(call: Any, number: int) -> Any:
    """Renderings must not depend on ids that are drawn by chance."""
    if isinstance(call, dict) and not call.get("id"):
        return {**call, "id": f"call{number:05d}"}
    return call


def _check_content(message: Message, fields: Mapping[str, Any], at: str) -> None:
    has_content = fields.get("content") is not None
    if message.role == "assistant" and not message.tool_calls and not message.content.strip():
        raise TuneError(f"{at} is an assistant message that says nothing; leave its row out")
    if not has_content and not message.tool_calls:
        raise TuneError(f"{at} has no content; its keys are: {', '.join(map(str, fields))}")


def _json(text: Any, where: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TuneError(f"{where} is not valid JSON: {error}") from None


def _kind(value: Any) -> str:
    return {"NoneType": "null", "str": "text", "dict": "an object", "list": "a list"}.get(
        type(value).__name__, type(value).__name__
    )
