"""What models write, and what it means: one table, each entry with where it comes from.

The sources are bugs of other parsers, the published prompt formats, and what this parser promises.
"""

# ruff: noqa: E501 - a table: one entry a line

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TAG = "<|python_tag|>"


def tool(name: str, properties: Mapping[str, Any] | None = None, **schema: Any) -> dict[str, Any]:
    """A declared tool. Without properties it says nothing about its parameters."""
    function: dict[str, Any] = {"name": name, "description": f"The tool {name}."}
    if properties is not None:
        function["parameters"] = {"type": "object", "properties": dict(properties), **schema}
    return {"type": "function", "function": function}


TEXT = {"type": "string"}
TOOLS = [
    tool("f"),
    tool("g"),
    tool("get_weather", {"city": TEXT, "unit": {"type": "string", "enum": ["C", "F"]}}, required=["city"]),
    tool("math.factorial", {"number": {"type": "integer"}}, required=["number"]),
    tool(
        "typed",
        {
            "i": {"type": "integer"},
            "x": {"type": "number"},
            "b": {"type": "boolean"},
            "a": {"type": "array", "items": {"type": "integer"}},
            "o": {"type": "object", "properties": {"n": {"$ref": "#/$defs/count"}}},
            "z": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "t": {"type": ["string", "integer"]},
        },
        **{"$defs": {"count": {"type": "integer"}}},
    ),
    tool("write-file", {"path": TEXT, "from": TEXT}),
]
BUILTIN = ("brave_search", "wolfram_alpha")


@dataclass(frozen=True)
class Call:
    """A call that is expected; `notes` are texts of which each is part of some note."""

    name: str
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Broken:
    """A call that is expected to break off, with what there is of its arguments."""

    name: str
    arguments_text: str
    error: str = "cannot be read"


@dataclass(frozen=True)
class Entry:
    """A model's text and what it holds: texts, calls and broken calls in order."""

    source: str
    text: str
    expected: tuple[str | Call | Broken, ...]
    code: bool = False
    complete: bool = True
    parallel: bool = True
    tools: list[dict[str, Any]] = field(default_factory=lambda: TOOLS)


def stays(source: str, text: str, **settings: Any) -> Entry:
    """Text that holds no call."""
    return Entry(source, text, (text,) if text else (), **settings)


def one(source: str, text: str, name: str, arguments: dict[str, Any], *notes: str, **settings: Any) -> Entry:
    """Text that is one call and nothing else."""
    return Entry(source, text, (Call(name, arguments, notes),), **settings)


def _json(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "parameters": arguments})


F = '{"name": "f", "parameters": {"x": 1}}'
F1 = Call("f", {"x": 1})
G = '{"name": "g", "parameters": {}}'
G0 = Call("g", {})
WEATHER = '{"name": "get_weather", "parameters": {"city": "Zürich"}}'
WEATHER_CALL = Call("get_weather", {"city": "Zürich"})

CORPUS: tuple[Entry, ...] = (
    # --- the forms of the prompt formats
    one("3.1 JSON, as the published template writes it", F, "f", {"x": 1}),
    one("3.1 JSON in Meta's document", '{\n    "type": "function",\n    "name": "f",\n    "parameters": {}\n}', "f", {}),
    one("3.1 JSON behind the tag", TAG + F, "f", {"x": 1}),
    one("white space behind the tag", f"{TAG}\n {F}\n", "f", {"x": 1}),
    one("OpenAI's nesting", '{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}', "f", {"x": 1}),
    one("OpenAI's list with ids", '[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]', "f", {"x": 1}, "JSON text inside a string"),
    one("the name under function", '{"type": "function", "function": "f", "parameters": {"x": 1}}', "f", {"x": 1}),
    one("function tag", '<function=f>{"x": 1}</function>', "f", {"x": 1}),
    one("function tag behind the tag", TAG + '<function=f>{"x": 1}</function>', "f", {"x": 1}),
    one("3.2 pythonic", "[f(x=1, s='a')]", "f", {"x": 1, "s": "a"}),
    one("3.2 pythonic behind the tag", TAG + '[f(x=1, s="a")]', "f", {"x": 1, "s": "a"}),
    one("built-in", TAG + 'brave_search.call(query="a b")', "brave_search", {"query": "a b"}),
    one("code", TAG + "import os\nprint('hi')\n", "code_interpreter", {"code": "import os\nprint('hi')\n"}, code=True),
    one("SmolLM2's own form", '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', "f", {"x": 1}),
    one("a list in SmolLM2's tags", f"<tool_call>[{F}]</tool_call>", "f", {"x": 1}),
    # --- bugs of Meta's reference
    one("nested objects in a function tag", '<function=f>{"a": {"b": 1}, "c": 2}</function>', "f", {"a": {"b": 1}, "c": 2}),
    one("an apostrophe in a function tag", '<function=f>{"q": "it\'s"}</function>', "f", {"q": "it's"}),
    one("the key arguments", '{"name":"f","arguments":{"x":1}}', "f", {"x": 1}),
    stays("type but no name", '{"type":"function","foo":1}'),
    one("a built-in in JSON without arguments", '{"name":"brave_search","parameters":{}}', "brave_search", {}, "query is required"),
    one("a built-in in JSON", '{"name":"brave_search","parameters":{"query":"q"}}', "brave_search", {"query": "q"}),
    Entry("two objects with a semicolon", f"{F}; {G}", (F1, G0)),
    Entry("text and JSON", f"Let me see.\n{F}", ("Let me see.", F1)),
    Entry("two pythonic calls", "[f(x=1), g(y=2)]", (F1, Call("g", {"y": 2}))),
    one("a dotted name", "[math.factorial(number=5)]", "math.factorial", {"number": 5}),
    one("a dotted name in a function tag", '<function=math.factorial>{"number": 5}</function>', "math.factorial", {"number": 5}),
    one("foo.call( inside code", f'{TAG}x = foo.call(query="z")\nprint(x)', "code_interpreter", {"code": 'x = foo.call(query="z")\nprint(x)'}, code=True),
    one("an undeclared foo.call( at the start of code", f'{TAG}foo.call(query="z")', "code_interpreter", {"code": 'foo.call(query="z")'}, code=True),
    one("escaped quotes in a built-in call", TAG + r'brave_search.call(query="say \"hi\"")', "brave_search", {"query": 'say "hi"'}),
    one("escaped quotes in a built-in call beside code", TAG + r'brave_search.call(query="say \"hi\"")', "brave_search", {"query": 'say "hi"'}, code=True),
    one("quotes that templates leave unescaped", TAG + 'brave_search.call(query="say "hi"")', "brave_search", {"query": 'say "hi"'}, "not escaped"),
    one("code in the template's form", TAG + 'code_interpreter.call(code="print("hi")")', "code_interpreter", {"code": 'print("hi")'}, code=True),
    one("code in the template's form, escaped", TAG + r'code_interpreter.call(code="a(\"b\")\nc")', "code_interpreter", {"code": 'a("b")\nc'}, code=True),
    one("code in JSON", '{"name": "code_interpreter", "parameters": {"code": "1"}}', "code_interpreter", {"code": "1"}, code=True),
    one("a built-in call of a declared tool", TAG + 'get_weather.call(city="Bern")', "get_weather", {"city": "Bern"}),
    one("a bare call behind the tag", TAG + 'get_weather(city="Bern")', "get_weather", {"city": "Bern"}),
    one("a bare call behind the tag is code where there is code", TAG + 'get_weather(city="Bern")', "code_interpreter", {"code": 'get_weather(city="Bern")'}, code=True),
    one("code that begins like a built-in call", TAG + "brave_search.call(query=q)", "code_interpreter", {"code": "brave_search.call(query=q)"}, code=True),
    one("code that begins with a dictionary", TAG + '{"a": 1}["a"]', "code_interpreter", {"code": '{"a": 1}["a"]'}, code=True),
    one("code that begins with a list", TAG + "[h(x) for x in y]", "code_interpreter", {"code": "[h(x) for x in y]"}, code=True),
    Entry("prose before code", f"I compute.\n{TAG}1+1", ("I compute.", Call("code_interpreter", {"code": "1+1"})), code=True),
    Entry("two built-in calls", TAG + 'brave_search.call(query="a"); wolfram_alpha.call(query="b")', (Call("brave_search", {"query": "a"}), Call("wolfram_alpha", {"query": "b"}))),
    stays("an undeclared built-in", TAG + 'photogen.call(query="z")'),
    stays("the tag before prose", TAG + "hello"),
    stays("the tag alone", TAG, code=True),
    # --- other engines' bugs
    one("a semicolon in a string", _json("f", q="a; b}; {"), "f", {"q": "a; b}; {"}),
    one("deep nesting", _json("f", a={"b": {"c": [{"d": {}}]}}), "f", {"a": {"b": {"c": [{"d": {}}]}}}),
    Entry("a semicolon without white space", f"{F};{G}", (F1, G0)),
    Entry("a comma", f"{F},\n{G}", (F1, G0)),
    Entry("a line break", f"{F}\n{G}", (F1, G0)),
    Entry("nothing between", F + G, (F1, G0)),
    Entry("a list", f"[{F}, {G}]", (F1, G0)),
    Entry("a list behind the tag", f"{TAG}[{F}, {G}]", (F1, G0)),
    Entry("a tag before each", f"{TAG}{F}{TAG}{G}", (F1, G0)),
    Entry("a separator at the end", f"{F};", (F1,)),
    Entry("text behind a call", f"{F}\n\nI called it.  Done.\n", (F1, "I called it.  Done.\n")),
    Entry("text between calls", f"First {F} then {G} end", ("First", F1, "then", G0, "end")),
    Entry("text behind a separator", f"{F}; and", (F1, "; and")),
    Entry("several function tags", '<function=f>{"x": 1}</function><function=g>{}</function>', (F1, G0)),
    Entry("a function tag behind text on its line", 'See: <function=f>{"x": 1}</function> ok', ("See:", F1, "ok")),
    Entry("several of SmolLM2's tags", '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>', (F1, G0)),
    one("letters outside ASCII", _json("f", q="東京 für 🦙"), "f", {"q": "東京 für 🦙"}),
    one("letters outside ASCII as they are", '{"name": "f", "parameters": {"q": "東京 🦙"}}', "f", {"q": "東京 🦙"}),
    one("surrogate escapes", r'{"name": "f", "parameters": {"q": "\ud83e\udd99!"}}', "f", {"q": "🦙!"}),
    one("half a surrogate pair", r'{"name": "f", "parameters": {"q": "a\ud83e b\u0041"}}', "f", {"q": "a\ufffd bA"}, "half of a character"),
    one("negative numbers", "[f(x=-1, y=-2.5, z=+3, e=-1e-3)]", "f", {"x": -1, "y": -2.5, "z": 3, "e": -0.001}),
    Entry("pythonic behind text", "Sure! [f(x=1)]", ("Sure!", F1)),
    one("nested lists", "[f(x=[[1, 2], [3]])]", "f", {"x": [[1, 2], [3]]}),
    one("a missing bracket", "[f(x=1)", "f", {"x": 1}),
    one("JSON where pythonic was asked for", F, "f", {"x": 1}),
    one("a bracket in a string", "[f(s='a]b)')]", "f", {"s": "a]b)"}),
    one("a raw line break in a Python string", "[f(s='a\nb')]", "f", {"s": "a\nb"}),
    one("a raw line break in a JSON string", '{"name": "f", "parameters": {"s": "a\nb\tc"}}', "f", {"s": "a\nb\tc"}),
    one("a string that ends in a backslash", r"[f(s='C:\\')]", "f", {"s": "C:\\"}),
    one("a JSON string that ends in a backslash", r'{"name": "f", "parameters": {"s": "C:\\"}}', "f", {"s": "C:\\"}),
    one("tuples", "[f(x=(1, 2), y=(), z=(1,), p=(1))]", "f", {"x": [1, 2], "y": [], "z": [1], "p": 1}),
    one("a keyword as a parameter", "[write-file(from='a', path='b')]", "write-file", {"from": "a", "path": "b"}),
    one("dictionaries", "[f(d={'k': 1, \"l\": {'m': None}})]", "f", {"d": {"k": 1, "l": {"m": None}}}),
    one("None, True and False", "[f(a=None, b=True, c=False, d=true, e=null)]", "f", {"a": None, "b": True, "c": False, "d": True, "e": None}),
    one("Python's words in JSON", '{"name": "f", "parameters": {"a": None, "b": True}}', "f", {"a": None, "b": True}, "None is Python's"),
    one("strings of all kinds", "[f(a=r'\\d', b='''x'y\"\"''', c='a' \"b\", d=u'e', g='\\x41\\u0042\\N{BULLET}\\101')]", "f", {"a": "\\d", "b": "x'y\"\"", "c": "ab", "d": "e", "g": "AB•A"}),
    one("numbers of all kinds", "[f(a=0x1F, b=1_000, c=1., d=.5, e=1e3)]", "f", {"a": 31, "b": 1000, "c": 1.0, "d": 0.5, "e": 1000.0}),
    one("an argument without a name", "[get_weather('Bern')]", "get_weather", {"city": "Bern"}, "without a name was taken for city"),
    one("trailing commas in Python", "[f(x=[1,], y=(2,),),]", "f", {"x": [1], "y": [2]}),
    Entry("a set", "[f(x={1, 2})]", (Broken("f", "x={1, 2})]"),)),
    Entry("a set of texts", "[f(y=0, x={'a'})]", (Broken("f", "{\"y\": 0, x={'a'})]", "a set has no form in JSON"),)),
    Entry("a name as a value", "[f(y=0, x=os)]", (Broken("f", '{"y": 0, x=os)]'),)),
    Entry("an expression", "[f(x=__import__('os').system('true'))]", (Broken("f", "x=__import__('os').system('true'))]"),)),
    Entry("an f-string", "[f(x=f'{1}')]", (Broken("f", "x=f'{1}')]"),)),
    Entry("a complex number", "[f(x=1j)]", (Broken("f", "x=1j)]"),)),
    Entry("infinity", '{"name": "f", "parameters": {"x": 1e999}}', (Broken("f", '{"x": 1e999}}', "too large"),)),
    Entry("NaN", '{"name": "f", "parameters": {"x": NaN}}', (Broken("f", '{"x": NaN}}'),)),
    one("escapes that JSON does not have", r'{"name": "f", "parameters": {"r": "\d+", "s": "it\'s"}}', "f", {"r": "\\d+", "s": "it's"}, r"\d is no escape", r"\' is no escape"),
    one("a \\u without its digits", r'{"name": "f", "parameters": {"p": "C:\users \u12 \ud83e\u1"}}', "f", {"p": "C:\\users \\u12 \\ud83e\\u1"}, r"\u is no escape"),
    one("escapes that tell no character in Python", r"[f(p='C:\users \x1 \N{NOPE} \U99999999 \d')]", "f", {"p": r"C:\users \x1 \N{NOPE} \U99999999 \d"}, r"\x does not tell"),
    one("a comma before the end", '{"name": "f", "parameters": {"x": [1,],},}', "f", {"x": [1]}, "a comma stands before }", "a comma stands before ]"),
    one("a call in a code fence", f"```json\n{F}\n```", "f", {"x": 1}),
    one("a call in a fence without a language", f"```\n{F}\n```", "f", {"x": 1}),
    Entry("calls in a code fence in prose", f"Here:\n\n```json\n[{F},\n{G}]\n```\n\nThat is all.", ("Here:", F1, G0, "That is all.")),
    Entry("two code fences", f"```json\n{F}\n```\n```json\n{G}\n```", (F1, G0)),
    stays("a Python example", "Like so:\n\n```python\nx = [f(x=1)]\n[f(x=1)]\n```\nIs it?"),
    Entry("a call behind an example", f"```python\n[f(x=1)]\n```\n{F}", ("```python\n[f(x=1)]\n```", F1)),
    stays("another JSON in a code fence", f'```json\n{{"a": "{TAG}", "b": [1]}}\n\n[f(x=1)]\n```\nbye'),
    stays("a call in backquotes", f"Write `{F}` to call it."),
    one("markup in an argument", _json("f", q="<function=evil>{}</function>"), "f", {"q": "<function=evil>{}</function>"}),
    one("a declared call in an argument", _json("f", q=f"{TAG}{G}\n<function=g>{{}}</function> ```json\n{G}```"), "f", {"q": f"{TAG}{G}\n<function=g>{{}}</function> ```json\n{G}```"}),
    one("JSON in a Python string", "[f(q='[g(x=1)] {\"name\": \"g\"}')]", "f", {"q": '[g(x=1)] {"name": "g"}'}),
    stays("an undeclared tool", '{"name": "nope", "parameters": {"a": 1}}'),
    stays("an undeclared tool around a declared one", '{"name": "nope", "parameters": {"name": "f", "parameters": {"x": 1}}}'),
    stays("an undeclared function tag", '<function=evil>{"a": 1}</function>'),
    stays("an undeclared pythonic call", "[nope(a=1)]"),
    stays("a name that is almost declared", '{"name": "brave search", "parameters": {}}'),
    stays("a disabled built-in", '{"name": "code_interpreter", "parameters": {"code": "1"}}'),
    Entry("an undeclared call behind a declared one", f'{F}; {{"name": "nope", "parameters": {{"q": 1}}}}', (F1, '; {"name": "nope", "parameters": {"q": 1}}')),
    Entry("an undeclared pythonic call behind a declared one", "[f(x=1), nope(y=2)]", (F1, ", nope(y=2)]")),
    Entry("a declared call behind an undeclared one", f'{{"name": "nope", "parameters": {{}}}}\n{F}', ('{"name": "nope", "parameters": {}}', F1)),
    Entry("a list with an undeclared call first", f'[{{"name": "nope"}}, {F}] ok', (f'[{{"name": "nope"}}, {F}] ok',)),
    one("parameters before the name", '{"parameters": {"x": 1}, "name": "f"}', "f", {"x": 1}),
    stays("parameters before an undeclared name", '{"parameters": {"x": 1}, "name": "nope"} '),
    one("both keys", '{"name": "f", "parameters": {"x": 1}, "arguments": {"x": 2, "y": 3}}', "f", {"x": 1, "y": 3}, "x is given twice"),
    one("both keys, the first empty", '{"name": "f", "parameters": {}, "arguments": {"x": 2}}', "f", {"x": 2}),
    one("empty parameters", G, "g", {}),
    one("no parameters", '{"name": "g"}', "g", {}),
    one("null parameters", '{"name": "g", "parameters": null}', "g", {}),
    one("empty text as parameters", '{"name": "g", "parameters": ""}', "g", {}, tools=TOOLS),
    one("no arguments in Python", "[g()]", "g", {}),
    one("an empty function tag", "<function=g></function>", "g", {}),
    one("arguments as JSON text", r'{"name": "f", "arguments": "{\"x\": [1, \"a\"]}"}', "f", {"x": [1, "a"]}, "JSON text inside a string"),
    one("more than the arguments", '{"name": "f", "parameters": {"x": 1}, "reason": "because {"}', "f", {"x": 1}, "reason has no place"),
    one("an argument twice", '{"name": "f", "parameters": {"x": 1, "x": 2}}', "f", {"x": 1}, "x is given twice"),
    one("a missing brace at the end", '{"name": "f", "parameters": {"x": 1}', "f", {"x": 1}, "closing brace is missing"),
    Entry("a missing brace before the next", f'{{"name": "f", "parameters": {{"x": 1}}; {G}', (F1, G0)),
    Entry("arguments that are a list", '{"name": "f", "parameters": [1]}', (Broken("f", "[1]}"),)),
    Entry("arguments that are text", '{"name": "f", "parameters": "x"}', (Broken("f", '"x"}'),)),
    Entry("quotes that are not escaped", '{"name": "f", "parameters": {"x": 1, "code": "print("hi")"}}', (Broken("f", '{"x": 1, "code": "print("hi")"}}'),)),
    Entry("two values", '{"name": "f", "parameters": {"x": 1 2}}', (Broken("f", '{"x": 1 2}}'),)),
    stays("a tool's description", '{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}'),
    stays("a JSON answer", '{\n  "answer": "a",\n  "name": "f",\n  "list": [1, {"name": "f", "parameters": {}}]\n}\n'),
    stays("a JSON answer with a declared name", '{"name": "f", "age": 3}'),
    stays("a JSON answer with markup", f'{{"a": "{TAG} <function=f>{{}}</function> [f(x=1)]"}}'),
    stays("a JSON list", '[1, "<function=f>{}</function>", {"name": "f"}]'),
    stays("a JSON list of texts", '["[f(x=1)]"]  '),
    stays("an object with another type", '{"type": "object", "name": "f", "parameters": {}}'),
    stays("prose", "Hello there.\n\n  I am [1] a {model}; see [link](url) <b>x</b>.\n"),
    stays("white space alone", " \n\t "),
    stays("nothing", ""),
    stays("the beginning of a call", '{"name": "get_wea'),
    stays("the beginning of a tag", "<func"),
    stays("the beginning of a fence", "``"),
    stays("a bracket", "["),
    Entry("white space before a call", f"\n\n {F}", (F1,)),
    # --- schemas
    one("integers as text", _json("typed", i="10", x="-1.5"), "typed", {"i": 10, "x": -1.5}, 'i: the text "10"', 'x: the text "-1.5"'),
    one("integers as text in Python", "[math.factorial(number='5')]", "math.factorial", {"number": 5}, 'number: the text "5"'),
    one("an integer as text in a function tag", '<function=math.factorial>{"number": "5"}</function>', "math.factorial", {"number": 5}, 'number: the text "5"'),
    one("booleans as text", _json("typed", b="True"), "typed", {"b": True}, 'b: the text "True"'),
    one("lists as text", _json("typed", a='[1, "2"]'), "typed", {"a": [1, 2]}, "a: the text", 'a[1]: the text "2"'),
    one("Python's lists as text", _json("typed", a="[1, 2,]"), "typed", {"a": [1, 2]}, "a: the text"),
    one("objects as text", _json("typed", o='{"n": "3"}'), "typed", {"o": {"n": 3}}, "o: the text", 'o.n: the text "3"'),
    one("a union", _json("typed", z="7"), "typed", {"z": 7}, 'z: the text "7"'),
    one("null as text", _json("typed", z="null"), "typed", {"z": None}, 'z: the text "null"'),
    one("text that may be text", _json("typed", t="5"), "typed", {"t": "5"}),
    one("text without a schema", _json("f", x="5"), "f", {"x": "5"}),
    one("text that is no integer", _json("typed", i="ten"), "typed", {"i": "ten"}, 'i is "ten", but must be integer'),
    one("text that is no whole number", _json("typed", i="1.5"), "typed", {"i": "1.5"}, "must be integer"),
    one("an integer for text", _json("get_weather", city=5), "get_weather", {"city": 5}, "city is 5, but must be string"),
    one("another choice", _json("get_weather", city="Bern", unit="K"), "get_weather", {"city": "Bern", "unit": "K"}, 'unit is "K", which is not one of'),
    one("a missing argument", _json("get_weather"), "get_weather", {}, "city is required, but missing"),
    one("an unknown argument", _json("get_weather", city="Bern", when=1), "get_weather", {"city": "Bern", "when": 1}, "when is not among the parameters"),
    # --- cut off by a limit
    Entry("cut off in a text", '{"name": "get_weather", "parameters": {"city": "Zür', (Broken("get_weather", '{"city": "Zür', "cut off"),), complete=False),
    Entry("cut off in a value", '{"name": "f", "parameters": {"x": 1, "y": [1, {"a"', (Broken("f", '{"x": 1, "y": [1, {"a"', "cut off"),), complete=False),
    Entry("cut off before the arguments", '{"name": "f", "parameters": ', (Broken("f", "", "cut off"),), complete=False),
    stays("cut off before it is certain", '{"name": "f", "para', complete=False),
    Entry("cut off in Python", "[f(x=1, y='a", (Broken("f", '{"x": 1, "y": "a', "cut off"),), complete=False),
    Entry("cut off in code", TAG + "print('a", (Broken("code_interpreter", "{\"code\": \"print('a", "cut off"),), code=True, complete=False),
    Entry("cut off in what closes", '<function=f>{"x": 1}</func', (F1,), complete=False),
    Entry("cut off behind the arguments", '{"name": "f", "parameters": {"x": 1}', (F1,), complete=False),
    Entry("a text that ends in a call", '{"name": "f", "parameters": {"x": "a', (Broken("f", '{"x": "a', "ends inside a string"),)),
    # --- one call only
    Entry("one call is wanted", f"{F}; {G} text", (F1,), parallel=False),
    Entry("one call of a list is wanted", f"Well: [{F}, {G}]", ("Well:", F1), parallel=False),
    Entry("one pythonic call is wanted", "[f(x=1), g()]", (F1,), parallel=False),
)  # fmt: skip
