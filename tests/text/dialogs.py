"""Dialogs that the published templates render, each with what the template is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral.text.rendered import RenderOptions

Dialog = list[dict[str, Any]]

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Météo <b>& more</b> in a 'city'",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}},
            "required": ["city"],
        },
    },
}
OTHER_TOOL = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {}}}


def user(text: str = "What is the weather?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calls(name: str, call_id: str = "c1", /, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def result(content: Any, call_id: str = "c1") -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id}


SYSTEM = {"role": "system", "content": "  You are terse.\n"}
CHAT = [SYSTEM, user(" hi\n"), says("\n Hello! \n"), user("And\n\nnow?\t")]
NESTED = {"a": {"b": [1, 2.5, None, True]}, "quote": 'say "hi"', "text": "für 東京 <&>"}


@dataclass(frozen=True)
class Case:
    """A dialog, and what the template is called with. `normalised` is the dialog in the template's terms."""

    messages: Dialog
    tools: tuple[dict[str, Any], ...] = ()
    options: RenderOptions = RenderOptions()
    variables: Mapping[str, Any] = field(default_factory=dict)
    normalised: Dialog | None = None


def with_builtin(*names: str) -> tuple[RenderOptions, dict[str, Any]]:
    return RenderOptions(builtin_tools=names), {"builtin_tools": list(names)}


PLAIN = {
    "user only": Case([user()]),
    "all roles, texts to trim": Case(CHAT),
    "no header at the end": Case(CHAT, options=RenderOptions(add_generation_prompt=False)),
    "ends with the assistant": Case([user(), says("Fine.")]),
    "two assistant messages in a row": Case([user(), says("One."), says("Two."), user("3?")]),
    "system in the middle": Case([user(), says("ok"), SYSTEM, user("go on")]),
    "system only": Case([SYSTEM]),
    "empty texts": Case([{"role": "system", "content": ""}, user(""), says(""), user("\n")]),
    "white space of many kinds": Case([user("\u00a0\u2003 x\x1f\x85 "), says("\x0b\x0cy\u3000")]),
    "many scripts": Case([user("नमस्ते 👩🏽‍💻 — مرحبا"), says("ǅ ﬁ \u200b end\u200b"), user("x" * 300)]),
    "null content and parts": Case(
        [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None},
            user("c"),
        ],
        normalised=[user("ab"), says(""), user("c")],
    ),
}

TOOLS = {
    "dates given": Case(
        CHAT, options=RenderOptions(date="1 January 2025"), variables={"date_string": "1 January 2025"}
    ),
    "tool in the user message": Case(CHAT, (TOOL,)),
    "two tools": Case([user()], (TOOL, OTHER_TOOL)),
    "tools in the system message": Case(
        CHAT,
        (TOOL, OTHER_TOOL),
        RenderOptions(tools_in_user_message=False),
        {"tools_in_user_message": False},
    ),
    "tools in the system message, assistant first": Case(
        [says("Hello"), user()],
        (TOOL,),
        RenderOptions(tools_in_user_message=False),
        {"tools_in_user_message": False},
    ),
    "call and text result": Case([user(), calls("get_weather", city="Zürich"), result("25 C")], (TOOL,)),
    "call without tools": Case([user(), calls("f", x=1), result('{"t": 25}'), says("25"), user("ok")]),
    "nested arguments": Case([user(), calls("f", **NESTED), result(NESTED)], (TOOL,)),
    "no arguments": Case([user(), calls("now"), result(["a", 1])], (OTHER_TOOL,)),
    "number as result": Case([user(), calls("now"), result(25.5)], (OTHER_TOOL,)),
    "boolean as result": Case([user(), calls("now"), result(True)], (OTHER_TOOL,)),
    "result in the role ipython": Case(
        [user(), calls("now"), {"role": "ipython", "content": "noon"}],
        normalised=[user(), calls("now"), {"role": "tool", "content": "noon"}],
    ),
    "arguments as text": Case(
        [user(), {**says(""), "tool_calls": [{"function": {"name": "f", "arguments": '{"n": 1}'}}]}],
        normalised=[user(), calls("f", n=1)],
    ),
    "null content beside a call": Case(
        [user(), {**calls("f", n=1), "content": None}], normalised=[user(), calls("f", n=1)]
    ),
    "text beside a call is dropped": Case(
        [user(), {**calls("f", n=1), "content": "I will call f."}, result("1")]
    ),
    "empty list of calls": Case(
        [user(), {**says("hi"), "tool_calls": []}, user("x")], normalised=[user(), says("hi"), user("x")]
    ),
    "several calls, paired by id": Case(
        [
            user(),
            {
                **says(""),
                "tool_calls": calls("f", "a", n=1)["tool_calls"] + calls("g", "b", n=2)["tool_calls"],
            },
            result("two", "b"),
            result("one", "a"),
            says("done"),
        ],
        (TOOL,),
        normalised=[
            user(),
            calls("f", "a", n=1),
            result("one", "a"),
            calls("g", "b", n=2),
            result("two", "b"),
            says("done"),
        ],
    ),
    "several calls, paired by order": Case(
        [
            user(),
            {
                **says(""),
                "tool_calls": calls("f", "a", n=1)["tool_calls"] + calls("g", "b", n=2)["tool_calls"],
            },
            {"role": "tool", "content": "one"},
            {"role": "tool", "content": "two"},
        ],
        normalised=[
            user(),
            calls("f", "a", n=1),
            {"role": "tool", "content": "one"},
            calls("g", "b", n=2),
            {"role": "tool", "content": "two"},
        ],
    ),
}

SEARCH = [user(), calls("brave_search", query="gold price"), result("2000"), says("$2000"), user("thanks")]
BUILTIN = {
    "search enabled": Case(SEARCH, (), *with_builtin("brave_search", "wolfram_alpha")),
    "code interpreter alone": Case(
        [user(), calls("code_interpreter", code="print(1)"), result("1")],
        (),
        *with_builtin("code_interpreter"),
    ),
    "none named": Case([user()], (), *with_builtin()),
    "built-in and custom": Case(
        [user(), calls("get_weather", city="Zürich"), result("1"), calls("wolfram_alpha", query='say "hi"')],
        (TOOL,),
        *with_builtin("wolfram_alpha", "code_interpreter"),
    ),
    "several arguments": Case(
        [user(), calls("wolfram_alpha", query="pi", form="exact")], (), *with_builtin("wolfram_alpha")
    ),
    "search in history, not enabled": Case(SEARCH),
}

EACH = (
    [
        (family, name, case)
        for family in ("llama-3", "llama-3.1", "llama-3.2", "llama-3.3")
        for name, case in PLAIN.items()
    ]
    + [
        (family, name, case)
        for family in ("llama-3.1", "llama-3.2", "llama-3.3")
        for name, case in TOOLS.items()
    ]
    + [(family, name, case) for family in ("llama-3.1", "llama-3.3") for name, case in BUILTIN.items()]
)
