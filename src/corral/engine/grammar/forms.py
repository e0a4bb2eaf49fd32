"""From what a request asks for to the text that llguidance compiles."""

from __future__ import annotations

import json
from dataclasses import dataclass

from corral.engine.grammar.errors import refusal
from corral.engine.grammar.json_schema import canonical, checked
from corral.engine.grammar.lark import checked_lark
from corral.engine.sampling.params import StructuredOutputsParams

MAX_SCHEMA_BYTES = 256 * 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_NESTING = 100
MAX_DEPTH = 200


@dataclass(frozen=True)
class Form:
    """What an output is held to. Equal ones compile to the same.

    Attributes:
        field: the field of `structured_outputs` that gives it.
        text: that field as text.
    """

    field: str
    text: str

    def grammar(self) -> str:
        """The form in llguidance's input language, checked.

        Raises:
            RequestError: it is refused.
        """
        if self.field in ("json", "json_object"):
            schema = checked(self.field, self.text, MAX_NESTING, MAX_DEPTH)
            return _wrapped("json_schema", schema)
        if self.field == "regex":
            return _wrapped("lark_grammar", f"start: /{_in_slashes(self.text)}/")
        if self.field == "choice":
            return _wrapped("lark_grammar", _choice(json.loads(self.text)))
        return _wrapped("lark_grammar", checked_lark(self.field, self.text, MAX_NESTING, MAX_DEPTH))


def read_form(params: StructuredOutputsParams) -> Form:
    """What the parameters ask for.

    JSON is compact or not, as the model likes, within bounds (`json_schema.WHITE_SPACE`), with nothing before
    or after it. A regular expression is one of Rust's `regex` crate, without look-around and back references,
    that the whole text matches. A choice is exactly one of the texts. A grammar is in llguidance's dialect of
    Lark.

    Raises:
        RequestError: it is no text, or larger than 256 KiB (JSON schemas and choices) or 64 KiB (others).
    """
    if params.json_object:
        return Form("json_object", '{"type": "object"}')
    if params.json is not None:
        if not isinstance(params.json, str):
            return _bounded("json", canonical("json", params.json), MAX_SCHEMA_BYTES)
        _bounded("json", params.json, MAX_SCHEMA_BYTES)
        return Form("json", canonical("json", params.json))
    if params.choice is not None:
        return _bounded("choice", json.dumps(_texts(params.choice), ensure_ascii=False), MAX_SCHEMA_BYTES)
    field, text = ("regex", params.regex) if params.regex is not None else ("grammar", params.grammar)
    if not isinstance(text, str):
        raise refusal(field, f"is {text!r}; it must be a text")
    return _bounded(field, text, MAX_TEXT_BYTES)


def _bounded(field: str, text: str, most: int) -> Form:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise refusal(field, "holds half of a surrogate pair, which no text can hold") from None
    if size > most:
        raise refusal(field, f"has {size} bytes; it may have {most}")
    return Form(field, text)


def _texts(choice: object) -> list[str]:
    if not isinstance(choice, tuple) or not choice:
        raise refusal("choice", f"is {choice!r}; it must be a list of at least one text")
    for text in choice:
        if not isinstance(text, str):
            raise refusal("choice", f"holds {text!r}; it must hold texts")
    return list(choice)


def _choice(texts: list[str]) -> str:
    # Lark's strings are JSON's. In one terminal they are one automaton, which stays small.
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text) for text in texts)


def _in_slashes(regex: str) -> str:
    """The expression between the slashes of Lark, which ends it at the first slash that is not escaped."""
    escaped, at = [], 0
    while at < len(regex):
        if regex[at] == "\\":
            escaped.append(regex[at : at + 2])
            at += 2
        else:
            escaped.append("\\/" if regex[at] == "/" else regex[at])
            at += 1
    return "".join(escaped)


def _wrapped(kind: str, grammar: object) -> str:
    return json.dumps({"grammars": [{kind: grammar}]})
