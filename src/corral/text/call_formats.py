"""How an assistant's tool calls are written: one function per format, and the token that ends the message.

Formats: the built-in `name.call(query="...")`, raw code for the code interpreter, Meta's JSON, the
`<function=...>` tag, and a list of calls in Python syntax. Sources as for `tool_prompts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corral.errors import RenderError
from corral.text.families import CODE_INTERPRETER
from corral.text.messages import ToolCall
from corral.text.tool_prompts import to_json


@dataclass(frozen=True)
class WrittenCalls:
    """Tool calls as a model writes them: the text, whether `<|python_tag|>` precedes it, and whether the
    message ends with `<|eom_id|>` (a result is awaited) rather than `<|eot_id|>`."""

    text: str
    python_tag: bool
    end_of_message: bool


@dataclass(frozen=True)
class CallFormat:
    """How calls are written in one prompt: the format of custom tools, and what is built in.

    `builtin_tools` are the names that are called in the built-in way; `ipython` says that the system message
    has `Environment: ipython`.
    """

    custom: str
    ipython: bool
    builtin_tools: frozenset[str]

    def allows_several(self, calls: Sequence[ToolCall]) -> bool:
        """Whether one message can hold all these calls."""
        return self.custom in _PYTHONIC and not any(call.name in self.builtin_tools for call in calls)

    def write(self, calls: Sequence[ToolCall]) -> WrittenCalls:
        """The calls of one message; several only where `allows_several` says so.

        Raises:
            RenderError: arguments that the format cannot express.
        """
        call = calls[0]
        if call.name in self.builtin_tools:
            is_code = call.name == CODE_INTERPRETER
            return WrittenCalls(_code(call) if is_code else _builtin(call), True, True)
        if self.custom == "json":
            return WrittenCalls(_meta_json(call), self.ipython, self.ipython)
        if self.custom == "function_tag":
            arguments = to_json(call.arguments, _where(call))
            return WrittenCalls(f"<function={call.name}>{arguments}</function>", False, False)
        return WrittenCalls(_pythonic(calls, self.custom), self.custom == "pythonic_tagged", False)


_PYTHONIC = ("pythonic", "pythonic_tagged")


def template_call(call: ToolCall) -> str:
    """A call as the published templates of Llama 3.1 to 3.3 write it."""
    return f'{{"name": "{call.name}", "parameters": {to_json(call.arguments, _where(call))}}}'


def template_builtin_call(call: ToolCall) -> str:
    """A built-in call as the published templates write it, which leave quotes as they are.

    Raises:
        RenderError: an argument is not text.
    """
    return f"{call.name}.call(" + ", ".join(f'{key}="{value}"' for key, value in _texts(call)) + ")"


def _builtin(call: ToolCall) -> str:
    arguments = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in _texts(call))
    return f"{call.name}.call({', '.join(arguments)})"


def _code(call: ToolCall) -> str:
    code = call.arguments.get("code")
    if len(call.arguments) != 1 or not isinstance(code, str):
        raise RenderError('a call of code_interpreter must have exactly the arguments {"code": "..."}')
    return code


def _meta_json(call: ToolCall) -> str:
    fields = {"type": "function", "name": call.name, "parameters": call.arguments}
    return to_json(fields, _where(call), 4)


def _pythonic(calls: Sequence[ToolCall], custom: str) -> str:
    return "[" + ", ".join(_python_call(call, custom == "pythonic_tagged") for call in calls) + "]"


def _python_call(call: ToolCall, double_quotes: bool) -> str:
    arguments = (
        f"{key}={_python_literal(value, double_quotes, _where(call))}"
        for key, value in call.arguments.items()
    )
    return f"{call.name}({', '.join(arguments)})"


def _python_literal(value: Any, double_quotes: bool, where: str) -> str:
    """A JSON value as a Python literal; a string in JSON's double quotes is one too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if double_quotes else repr(value)
    if isinstance(value, Mapping):
        items = (
            f"{_python_literal(key, double_quotes, where)}: {_python_literal(item, double_quotes, where)}"
            for key, item in value.items()
        )
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_python_literal(item, double_quotes, where) for item in value) + "]"
    is_number = isinstance(value, (bool, int, float)) and value == value and abs(value) != float("inf")
    if value is None or is_number:
        return repr(value)
    raise RenderError(f"{where}: {value!r} has no form as a literal")


def _texts(call: ToolCall) -> list[tuple[str, str]]:
    for key, value in call.arguments.items():
        if not isinstance(value, str):
            raise RenderError(
                f"{_where(call)}: {key} is {type(value).__name__}, but a built-in tool takes only text"
            )
    return list(call.arguments.items())


def _where(call: ToolCall) -> str:
    return f"the arguments of the call of {call.name}"
