"""What is wrong with a form, in one sentence that names its field."""

from __future__ import annotations

import re

from corral.errors import RequestError

_MAX_REASON = 200

# How llguidance begins a message, and what that means. What is not here is told in its own words.
_MEANINGS = (
    ("Unsatisfiable schema: ", "cannot match anything: {rest}"),
    ("NoExtension", "cannot match anything: no token can come next"),
    ("Resource '", "refers to '{until_quote}, which is outside the schema; only '#/...' can be followed"),
    ("oneOf constraints", "has a oneOf whose options may overlap, which cannot be enforced; use anyOf"),
    ("schema too large", "is too complex to compile; simplify it"),
    ("initial lexer configuration", "is too complex to compile; simplify it"),
    ("lexer precomputation", "is too complex to compile; simplify it"),
    ("lexer error", "is too complex: {rest}"),
    ("Parser Error: token ", "does not allow the token {rest}"),
    ("parser stopped", "allows nothing but the end"),
    ("parser error: ", "is too complex: {rest}"),
    ("Parser Error: ", "is too complex: {rest}"),
    ("panic", "is too complex to compile; simplify it"),
)
_PLACE = re.compile(r'^at \d+\(\d+\): |^invalid regex ".*?" \(in [\w ]+\): ')


class GrammarError(RequestError):
    """An output that cannot go on in its form: a limit was passed, or a token came that is not allowed."""


def refusal(field: str, what: str) -> RequestError:
    """The error for a form that cannot be used, as `structured_outputs.FIELD what`."""
    return RequestError(f"structured_outputs.{field} {what}")


def in_words(message: str) -> str:
    """llguidance's message, which may be a page long, as the rest of a sentence about the form."""
    reason = _one_line(message)
    for beginning, meaning in _MEANINGS:
        if reason.startswith(beginning):
            rest = reason.removeprefix(beginning).lstrip(": ")
            return meaning.format(rest=rest, until_quote=rest.split("'")[0] + "'")
    return f"cannot be used: {reason}"


def _one_line(message: str) -> str:
    """The line that says what is wrong: a regular expression's parse error has it after a drawing."""
    lines = message.splitlines() or [""]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = named[0] if named else lines[0]
    while (shorter := _PLACE.sub("", reason)) != reason:
        reason = shorter
    return reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}..."
