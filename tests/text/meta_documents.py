"""The examples of Meta's prompt-format documents, each as the dialog and the options that make it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corral.text.rendered import RenderOptions

Dialog = list[dict[str, Any]]

TEXT_3_1, TEXT_3_2 = "llama3_1/prompt_format.md", "llama3_2/text_prompt_format.md"
_EXAMPLE = re.compile(
    r"##### Input Prompt Format\n```\n(.*?)\n```\n+##### Model Response Format\n```\n(.*?)\n```", re.DOTALL
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def result(content: Any, call_id: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


def calls(*made: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(made)}


def songs(**types: str) -> dict[str, Any]:
    """The tool of the documents, with its parameters in their order; the documents differ in both."""
    said = {"n": "The number of songs to return", "genre": "The genre of the songs to return"}
    properties = {name: {"type": kind, "description": said[name]} for name, kind in types.items()}
    return {
        "name": "trending_songs",
        "description": "Returns the trending songs on a Music site",
        "parameters": {"type": "object", "properties": properties, "required": ["n"]},
    }


SONGS_JSON = songs(n="object", genre="object")
SONGS_TAG = songs(genre="string", n="integer")
WEATHER = {
    "name": "get_weather",
    "description": "Get weather info for places",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The name of the city to get the weather for"},
            "metric": {
                "type": "string",
                "description": "The metric for weather. Options are: celsius, fahrenheit",
                "default": "celsius",
            },
        },
        "required": ["city"],
    },
}
WOLFRAM = {
    "queryresult": {
        "success": True,
        "inputstring": "100th decimal of pi",
        "pods": [
            {
                "title": "Input interpretation",
                "subpods": [{"title": "", "plaintext": "100th digit | π"}],
            },
            {
                "title": "Nearby digits",
                "subpods": [
                    {
                        "title": "",
                        "plaintext": "...86208998628034825342117067982148086513282306647093...",
                    }
                ],
            },
            {"title": "Result", "primary": True, "subpods": [{"title": "", "plaintext": "7"}]},
        ],
    }
}
# The document indents this prompt's JSON by hand, as no JSON printer does: so it is given as the user's text.
HAND_WRITTEN = "Zero shot function calling with user message"
USER_INFO = {
    "name": "get_user_info",
    "description": "Retrieve details for a specific user by their unique identifier. "
    "Note that the provided function is in Python 3 syntax.",
    "parameters": {"type": "object", "properties": {"user_id": {"type": "integer"}}, "required": ["user_id"]},
}
QUESTION = (
    "Can you retrieve the details for the user with the ID 7890, who has black as their special request?"
)


@dataclass(frozen=True)
class Case:
    """The dialog and options that give an example, and the message that gives the model's response to it."""

    messages: Dialog
    reply: dict[str, Any]
    tools: tuple[Mapping[str, Any], ...] = ()
    options: RenderOptions = field(default_factory=RenderOptions)


HELPFUL = system("You are a helpful assistant.\n")
SEARCH = ("brave_search", "wolfram_alpha")
DATED = RenderOptions(builtin_tools=(), date="21 September 2024")

CASES: dict[str, dict[str, Case]] = {
    TEXT_3_1: {
        "User and assistant conversation": Case(
            [
                system("You are a helpful assistant"),
                user("Answer who are you in the form of jeopardy?"),
            ],
            says('Here\'s my response\n\n"What is a helpful assistant?"'),
        ),
        "Builtin Tool Calling": Case(
            [HELPFUL, user("Search the web for the latest price of 1oz gold?")],
            calls(call("brave_search", query="latest price of 1oz gold")),
            options=RenderOptions(builtin_tools=SEARCH, date="21 September 2024"),
        ),
        "Builtin Code Interpreter": Case(
            [user("Write code to check if number is prime, use that to see if the number 7 is prime")],
            calls(
                call(
                    "code_interpreter",
                    code="def is_prime(n):\n    if n <= 1\n        return False\n"
                    "    for i in range(2, int(n**0.5) + 1):\n"
                    "        if n % i == 0:\n            return False\n"
                    "    return True\n\nprint(is_prime(7))  # Output: True",
                )
            ),
            options=RenderOptions(builtin_tools=("code_interpreter",)),
        ),
        "Built-in tools full interaction": Case(
            [
                user("What is the 100th decimal of pi?"),
                calls(call("wolfram_alpha", query="100th decimal of pi")),
                result("\n" + json.dumps(WOLFRAM, indent=4, ensure_ascii=False) + "\n"),
            ],
            says("The 100th decimal of pi is 7."),
            options=RenderOptions(builtin_tools=SEARCH),
        ),
        "JSON based tool calling": Case(
            [HELPFUL, user("Use tools to get latest trending songs")],
            calls(call("trending_songs", n="10", genre="all")),
            (SONGS_JSON,),
            replace(DATED, tool_format="json"),
        ),
        "`<function>` based tool calling": Case(
            [HELPFUL, user("Use tools to get latest trending songs")],
            calls(call("trending_songs", n=10)),
            (SONGS_TAG,),
            replace(DATED, tool_format="function_tag"),
        ),
    },
    TEXT_3_2: {
        "User and assistant conversation": Case(
            [system("You are a helpful assistant"), user("Who are you?")],
            says("{response}"),
        ),
        "Zero shot function calling": Case(
            [user("What is the weather in SF and Seattle?")],
            calls(
                call("get_weather", city="San Francisco", metric="celsius"),
                call("get_weather", city="Seattle", metric="celsius"),
            ),
            (WEATHER,),
        ),
        HAND_WRITTEN: Case(
            [user("{prompt}")],
            calls(call("get_user_info", user_id=7890, special="black")),
        ),
        "Code Interpreter": Case(
            [user("Write code to check if number is prime. Use it to verify if number 7 is prime")],
            calls(call("code_interpreter", code="{response}")),
            options=RenderOptions(builtin_tools=(), date="24 September 2024"),
        ),
        "Zero shot function calling E2E format": Case(
            [
                user("What is the weather in SF?"),
                calls(call("get_weather", city="San Francisco", metric="celsius")),
                result('"25 C"'),
            ],
            says("The weather in San Francisco is 25 C."),
            (WEATHER,),
            RenderOptions(tool_format="pythonic_tagged"),
        ),
    },
}
BASE_HEADINGS = {TEXT_3_1: "Llama 3.1 Base Model", TEXT_3_2: "Prompt format for base models"}
FAMILY = {TEXT_3_1: "llama-3.1", TEXT_3_2: "llama-3.2"}


def examples(folder: Path, document: str) -> dict[str, tuple[str, str]]:
    """Heading -> (prompt, response) of every example in a document."""
    text = (folder / document).read_text(encoding="utf-8")
    found = {}
    for match in _EXAMPLE.finditer(text):
        heading = re.findall(r"^##+ (.*)$", text[: match.start()], re.MULTILINE)[-1]
        found[heading] = (match[1], match[2])
    return found
