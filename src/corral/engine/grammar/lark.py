"""Checks a Lark grammar before it is compiled. The tokens are those of the Lark reference and of llguidance's
syntax document.

Refused here: control tokens, which text never holds; attributes that Corral would have to ignore; grammars in
grammars; and rules that overflow a stack or that only an endless text follows. JSON schemas inside are
checked like any other. What this reader cannot make sense of is left to llguidance, whose messages about
syntax are good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

from corral.engine.grammar.endless import deepest, that_can_end
from corral.engine.grammar.errors import refusal
from corral.engine.grammar.json_schema import canonical, checked

_MAX_GROUPS = 30  # llguidance's own bound on groups inside each other

_TOKEN = re.compile(
    r"""
      (?P<skip>     [ \t\r]+ | (?://|\#)[^\n]* )
    | (?P<string>   "(?:\\.|[^"\\\n])*"i? )
    | (?P<regex>    /(?:\\.|[^/\\])+/[imslux]* )
    | (?P<special>  <[^<>\s]+> )
    | (?P<data>     %(?:json|regex|llguidance)\b )
    | (?P<name>     !?[_?]?[a-z][_a-z0-9-]* | _?[A-Z][_A-Z0-9-]* )
    | (?P<newline>  \n\s*(?:(?://|\#)[^\n]*\s*)* )
    | (?P<other>    %\w+ | [+-]?\d[\d.]* | :: | -> | \.\. | @[\w-]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_REFUSED_ATTRIBUTES = {
    "temperature": "set the request's temperature instead",
    "stop": "use suffix or lazy, which keep the text",
}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


@dataclass(frozen=True)
class _Group:
    """Alternatives of sequences of names and groups, without those that may be left out."""

    alternatives: tuple[tuple[str | _Group, ...], ...]

    def can_end(self, rules: Collection[str], ending: Collection[str]) -> bool:
        return any(all(_ends(item, rules, ending) for item in items) for items in self.alternatives)


def _ends(item: str | _Group, rules: Collection[str], ending: Collection[str]) -> bool:
    if isinstance(item, _Group):
        return item.can_end(rules, ending)
    return item not in rules or item in ending


def checked_lark(field: str, text: str, max_nesting: int, max_depth: int) -> str:
    """The grammar, with the options that its JSON schemas are to be compiled with.

    Raises:
        RequestError: see above.
    """
    tokens: list[_Token] = []
    pieces: list[str] = []
    for kind, piece in _tokens(text):
        if kind == "schema":
            inner = f"{field}: a JSON schema in it"
            piece = " " + json.dumps(checked(inner, canonical(inner, piece), max_nesting, max_depth))
        pieces.append(piece)
        if kind not in ("skip", "schema"):
            tokens.append(_Token(kind, piece))
    tokens.append(_Token("newline", "\n"))
    _check_features(field, tokens)
    try:
        rules, mentions = _Reader(tokens).rules()
    except _UnknownSyntaxError:
        return "".join(pieces)
    if deepest("start", lambda name: mentions.get(name, ())) > max_depth:
        raise refusal(field, f"has more than {max_depth} rules inside each other")
    ending = that_can_end(list(reversed(rules)), lambda name, known: rules[name].can_end(rules, known))
    if "start" in rules and "start" not in ending:
        raise refusal(field, "cannot match anything that ends: the rule 'start' needs itself again and again")
    return "".join(pieces)


def _check_features(field: str, tokens: list[_Token]) -> None:
    for token, following in pairwise(tokens):
        instead = _REFUSED_ATTRIBUTES.get(token.text) if following.text == "=" else None
        if instead:
            raise refusal(field, f"sets {token.text} in a rule, which would be ignored; {instead}")
        if token.kind == "special":
            raise refusal(
                field, f"names the token {token.text}; a text holds no control tokens, so remove it"
            )
        if token.text == "%lark":
            raise refusal(field, "has a grammar inside it (%lark); write its rules into the grammar itself")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None  # the last alternative takes any character
        kind = match.lastgroup or ""
        yield kind, match[0]
        position = match.end()
        if kind == "data":
            end = _end_of_json(text, position)
            yield ("schema" if match[0] == "%json" else "skip"), text[position:end]
            position = end


def _end_of_json(text: str, start: int) -> int:
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return start  # llguidance says what is wrong with it


class _UnknownSyntaxError(Exception):
    pass


class _Reader:
    """Reads rules down to what they are made of: names, and groups of names."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._groups = 0
        self._mentioned: list[str] = []

    def rules(self) -> tuple[dict[str, _Group], dict[str, list[str]]]:
        """What each rule is made of, and the names that it mentions in order."""
        rules: dict[str, _Group] = {}
        mentions: dict[str, list[str]] = {}
        while self._at < len(self._tokens):
            if self._next.kind == "name":
                name, self._mentioned = self._take().text.lstrip("!?"), []
                self._skip_head()
                rules[name], mentions[name] = self._group(), self._mentioned
            else:
                self._skip_line()
        return rules, mentions

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _Token("newline", "")

    def _peek(self, ahead: int) -> str:
        at = self._at + ahead
        return self._tokens[at].text if at < len(self._tokens) else ""

    def _take(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _skip_line(self) -> None:
        while self._take().kind != "newline":
            pass

    def _skip_head(self) -> None:
        """The rest of a rule's name, to the colon: `rule.2[attribute=value]:` or `rule::_:`."""
        while (token := self._take()).text != ":":
            if token.kind == "newline":
                raise _UnknownSyntaxError

    def _group(self) -> _Group:
        self._groups += 1
        if self._groups > _MAX_GROUPS:
            raise _UnknownSyntaxError
        alternatives: list[tuple[str | _Group, ...]] = []
        while True:
            alternatives.append(self._sequence())
            if self._next.kind == "newline" and self._peek(1) == "|":
                self._take()
            if self._next.text != "|":
                self._groups -= 1
                return _Group(tuple(alternatives))
            self._take()

    def _sequence(self) -> tuple[str | _Group, ...]:
        items: list[str | _Group] = []
        while self._next.kind != "newline" and self._next.text not in ("|", ")", "]"):
            item = self._item()
            if not self._may_be_left_out() and item is not None:
                items.append(item)
        return tuple(items)

    def _item(self) -> str | _Group | None:
        """One item; None where it is no rule or may be left out."""
        token = self._take()
        if token.text == "(":
            return self._closed(")")
        if token.text == "[":
            self._closed("]")
            return None
        if token.text in ("->", "%if"):
            self._skip_to_next_alternative()
            return None
        if token.kind != "name":
            return None
        name = token.text.lstrip("!?")
        self._mentioned.append(name)
        if self._next.text == "::":
            self._take()
            self._skip_parameter()
        return name

    def _closed(self, bracket: str) -> _Group:
        group = self._group()
        if self._take().text != bracket:
            raise _UnknownSyntaxError
        return group

    def _may_be_left_out(self) -> bool:
        """Reads what says how often the last item comes: `?`, `*`, `+`, `~2..3`, `{2,3}`."""
        operator = self._next.text
        if operator in ("?", "*", "+"):
            self._take()
            return operator != "+"
        least = self._peek(1)
        if operator == "~" and least[:1].isdigit():
            self._at += 2
            return least.split("..")[0] == "0"
        if operator == "{":
            self._skip_braces()
            return least in ("0", ",")
        return False

    def _skip_braces(self) -> None:
        depth = 0
        while self._at < len(self._tokens):
            depth += {"{": 1, "}": -1}.get(self._take().text, 0)
            if depth == 0:
                return
        raise _UnknownSyntaxError

    def _skip_parameter(self) -> None:
        self._take()
        if self._next.text == "(":
            while self._take().text != ")":
                if self._next.kind == "newline":
                    raise _UnknownSyntaxError

    def _skip_to_next_alternative(self) -> None:
        depth = 0
        while self._next.kind != "newline":
            if depth == 0 and self._next.text in ("|", ")", "]"):
                return
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(self._next.text, 0)
            self._take()
