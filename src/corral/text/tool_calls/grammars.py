"""The forms in which calls are written, one grammar each, and which characters each begins with.

A grammar reads one call, from its first character on. Before the call is certain to be one, it gives up with
`NoCallError` and nothing is lost; afterwards whatever is wrong breaks the call off. Sources: the chat
templates and prompt-format documents of Llama 3.1 to 3.3; OpenAI's interface; the templates of SmolLM2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from corral.text.control_tokens import PYTHON_TAG
from corral.text.families import CODE_INTERPRETER
from corral.text.tool_calls.attempt import FENCE, FENCED, OPENINGS, Attempt, NoCallError
from corral.text.tool_calls.json_reader import json_key, json_text, json_value
from corral.text.tool_calls.open_call import DeclaredTools, OpenCall
from corral.text.tool_calls.pieces import Pieces
from corral.text.tool_calls.python_reader import (
    QUOTES,
    python_arguments,
    python_name,
    python_text,
    python_value,
)
from corral.text.tool_calls.reader import BrokenError, Reader, Steps, UnfinishedError, read_whole, unexpected

_FIELDS = ("type", "id", "function", "name", "parameters", "arguments")
CUT_OFF = "the output was cut off in the middle of the call"


@dataclass
class _Envelope:
    """What a JSON object has told about a call so far."""

    name: str = ""
    has_arguments: bool = False


class CallGrammars:
    """Reads calls, one at a time.

    Args:
        reader: of the model's text.
        pieces: gets what the calls tell.
        tools: the names that may be called.
        code: whether code follows `<|python_tag|>`.
        new_id: gives the id of a call.
    """

    def __init__(
        self, reader: Reader, pieces: Pieces, tools: DeclaredTools, code: bool, new_id: Callable[[], str]
    ) -> None:
        self._reader = reader
        self._pieces = pieces
        self._tools = tools
        self._code = code
        self._new_id = new_id
        self.complete = True  # whether the model ended the text itself
        self.calls = 0
        self.broken = False

    def one_call(self, attempt: Attempt) -> Steps[None]:
        """A call, with what opens before it.

        Raises:
            NoCallError: there is none.
        """
        character = yield from self._reader.peek()
        if character == "{":
            yield from self._json(attempt)
        elif character == "[":
            yield from self._list(attempt)
        elif character == "<":
            yield from self._opened(attempt)
        elif character == "`" and not attempt.fenced:
            yield from self._fenced(attempt)
        elif attempt.bare == "pythonic":
            yield from self._pythonic(attempt)
        elif attempt.bare == "builtin":
            yield from self._builtin(attempt)
        else:
            raise NoCallError

    def code(self) -> Steps[None]:
        """All that follows, as a call of the code interpreter."""
        reader, call = self._reader, self._new_call()
        call.begin(CODE_INTERPRETER, reader)
        part, text = call.begin_text("code"), []
        while character := (yield from reader.next()):
            part(character)
            text.append(character)
        if self.complete:
            call.end_text("code", "".join(text), reader)
        self._close(call, None if self.complete else UnfinishedError())

    def _list(self, attempt: Attempt) -> Steps[None]:
        """A list of calls in JSON or in Python's syntax."""
        start = self._reader.at
        self._reader.take()
        character = yield from self._reader.skip_space()
        attempt.closings.append("]")
        if character == "{":
            yield from self._json(attempt, start)
        elif character.isalpha() or character == "_":
            attempt.bare = "pythonic"
            yield from self._pythonic(attempt)
        else:
            attempt.value_at = start
            raise NoCallError

    def _opened(self, attempt: Attempt) -> Steps[None]:
        opening = yield from self._reader.one_of(OPENINGS)
        if opening == "<function=":
            attempt.closings.append("</function>")
            yield from self._function_tag()
        elif opening == "<tool_call>":
            attempt.closings.append("</tool_call>")
            yield from self._inside(attempt, "{[<")
        elif opening == PYTHON_TAG:
            yield from self._tagged(attempt)
        else:
            raise NoCallError

    def _fenced(self, attempt: Attempt) -> Steps[None]:
        if not (yield from self._reader.one_of((FENCE,))):
            raise NoCallError
        attempt.fenced = True
        attempt.closings.append(FENCE)
        try:
            language = yield from self._reader.word()
        except BrokenError:
            raise NoCallError from None
        if language.lower() not in FENCED:
            raise NoCallError
        yield from self._inside(attempt, "{[<")

    def _inside(self, attempt: Attempt, beginnings: str) -> Steps[None]:
        character = yield from self._reader.skip_space()
        if not character or character not in beginnings:
            raise NoCallError
        yield from self.one_call(attempt)

    def _tagged(self, attempt: Attempt) -> Steps[None]:
        """What follows `<|python_tag|>`."""
        start = self._reader.at
        character = yield from self._reader.skip_space()
        if not character:
            raise NoCallError
        if self._code:
            attempt.code_at = start
        if character in "{[<":
            yield from self.one_call(attempt)
        else:
            attempt.bare = "builtin"
            yield from self._builtin(attempt)

    def _json(self, attempt: Attempt, outer: int | None = None) -> Steps[None]:
        """`{"name": ..., "parameters": {...}}` and the like; `outer` is where a list around it begins."""
        reader, call, envelope = self._reader, self._new_call(), _Envelope()
        place = reader.at if outer is None else outer

        def looks_like_json() -> None:
            if attempt.value_at is None:
                attempt.value_at = place

        reader.take()
        yield from self._reading(call, self._fields(call, envelope, looks_like_json))

    def _fields(
        self, call: OpenCall, envelope: _Envelope, looks_like_json: Callable[[], None], inner: bool = False
    ) -> Steps[None]:
        reader, first = self._reader, True
        while True:
            yield from reader.skip_space()
            start = reader.at
            try:
                key = yield from json_key(reader, first)
            except BrokenError as error:
                is_end = isinstance(error, UnfinishedError) or reader.at == start
                if envelope.has_arguments and call.begun and is_end:
                    reader.notes.append("a closing brace is missing")
                    return
                raise
            looks_like_json()
            first = False
            if key is None:
                break
            yield from self._field(call, envelope, key, inner)
        if not inner and not call.begun:
            self._begin(call, envelope)

    def _field(self, call: OpenCall, envelope: _Envelope, key: str, inner: bool) -> Steps[None]:
        reader = self._reader
        if key not in _FIELDS and not call.begun:
            raise NoCallError
        character = yield from reader.skip_space()
        if key in ("parameters", "arguments"):
            if envelope.name and not call.begun:
                self._begin(call, envelope)
            yield from self._json_arguments(call)
            envelope.has_arguments = True
        elif key == "function" and character == "{" and not inner:
            reader.take()
            yield from self._fields(call, envelope, lambda: None, inner=True)
        elif key in ("name", "function") and not call.begun:
            envelope.name = yield from json_value(reader)
            self._accept(envelope.name)
            if envelope.has_arguments:
                self._begin(call, envelope)
        elif key in ("type", "id"):
            value = yield from json_value(reader)
            if key == "type" and value != "function" and not call.begun:
                raise NoCallError
        else:
            yield from json_value(reader)
            reader.notes.append(f"{key} has no place beside the arguments of a call")

    def _begin(self, call: OpenCall, envelope: _Envelope) -> None:
        self._accept(envelope.name)
        call.begin(envelope.name, self._reader)

    def _accept(self, name: Any) -> None:
        if not isinstance(name, str) or name not in self._tools:
            raise NoCallError

    def _json_arguments(self, call: OpenCall) -> Steps[None]:
        reader = self._reader
        character = yield from reader.skip_space()
        if character == "{":
            reader.take()
            yield from self._json_members(call)
            return
        if character not in ('"', "n", "N"):
            raise unexpected(character, "an object with the arguments")
        value = yield from json_value(reader)
        if isinstance(value, str):
            if value.strip():
                value = read_whole(value, json_value)
                reader.notes.append("the arguments are JSON text inside a string")
            else:
                value = {}
        if value is not None and not isinstance(value, dict):
            raise BrokenError("the arguments are no object")
        for key, item in (value or {}).items():
            call.add(key, item, reader)

    def _json_members(self, call: OpenCall) -> Steps[None]:
        reader, first = self._reader, True
        while (key := (yield from json_key(reader, first))) is not None:
            first = False
            character = yield from reader.skip_space()
            if character == '"' and call.may_stream(key):
                reader.take()
                text = yield from json_text(reader, call.begin_text(key))
                call.end_text(key, text, reader)
            else:
                call.add(key, (yield from json_value(reader)), reader)

    def _function_tag(self) -> Steps[None]:
        """`<function=name>{...}</function>`, behind the first equals sign."""
        reader, call = self._reader, self._new_call()
        try:
            name = yield from reader.word("_-. ")
        except BrokenError:
            raise NoCallError from None
        if (yield from reader.next()) != ">" or name not in self._tools:
            raise NoCallError
        character = yield from reader.skip_space()
        if character not in ("{", "<", ""):
            raise NoCallError
        call.begin(name, reader)
        yield from self._reading(call, self._json_arguments(call) if character == "{" else _nothing())

    def _pythonic(self, attempt: Attempt) -> Steps[None]:
        """`name(key=value)`, in a list."""
        name, call = (yield from self._called_name()), self._new_call()
        self._accept(name)
        call.begin(name, self._reader)
        yield from self._reading(call, self._python_arguments(call, name))

    def _builtin(self, attempt: Attempt) -> Steps[None]:
        """`name.call(key="text")`, or `name(...)` where no code could stand instead."""
        written, call = (yield from self._called_name()), self._new_call()
        name = written.removesuffix(".call")
        self._accept(name)
        if name == written and self._code:
            raise NoCallError
        if name == CODE_INTERPRETER and name != written:
            yield from self._code_in_call(call)
            return
        # Code may begin like a call: then it is one if all of it is.
        if not self._code:
            call.begin(name, self._reader)
        yield from self._reading(call, self._python_arguments(call, name, loose=True), name)

    def _called_name(self) -> Steps[str]:
        """A name and the parenthesis behind it."""
        try:
            name = yield from python_name(self._reader, "_-.")
        except BrokenError:
            raise NoCallError from None
        if (yield from self._reader.peek()) != "(":
            raise NoCallError
        self._reader.take()
        return name

    def _python_arguments(self, call: OpenCall, name: str, loose: bool = False) -> Steps[None]:
        reader = self._reader

        def read(key: str) -> Steps[None]:
            if (yield from reader.peek()) not in QUOTES:
                call.add(key, (yield from python_value(reader)), reader)
            elif call.may_stream(key):
                text = yield from python_text(reader, call.begin_text(key), loose=loose)
                call.end_text(key, text, reader)
            else:
                call.add(key, (yield from python_text(reader, loose=loose)), reader)

        yield from python_arguments(reader, read, lambda: call.positional(name))

    def _code_in_call(self, call: OpenCall) -> Steps[None]:
        """`code_interpreter.call(code="...")`, where templates leave the quotes in the code as they are."""
        reader = self._reader
        start = reader.at
        while (yield from reader.next()):
            pass
        code = _code_of_call(reader.since(start))
        if code is None:
            raise NoCallError
        call.begin(CODE_INTERPRETER, reader)
        call.add("code", code, reader)
        self._close(call, None)

    def _reading(self, call: OpenCall, steps: Steps[None], late_name: str = "") -> Steps[None]:
        """Reads a call to its end, or to where it breaks."""
        try:
            yield from steps
        except BrokenError as error:
            if not call.begun:
                raise NoCallError from None
            yield from self._break_off(call, error)
            return
        if not call.begun:
            call.begin(late_name, self._reader)
        self._close(call, None)

    def _break_off(self, call: OpenCall, error: BrokenError) -> Steps[None]:
        """Where quotes or brackets do not match, nothing tells where the call ends: it takes the rest."""
        self.broken = True
        while (yield from self._reader.next()):
            pass
        self._close(call, error)

    def _close(self, call: OpenCall, error: BrokenError | None) -> None:
        notes = tuple(self._reader.notes)
        if error is None:
            call.end(notes)
        else:
            cut = isinstance(error, UnfinishedError) and not self.complete
            rest = self._reader.since(call.told_to) if call.told_to >= 0 else ""
            call.break_off(CUT_OFF if cut else f"the arguments cannot be read: {error}", rest, notes)
        self.calls += 1

    def _new_call(self) -> OpenCall:
        self._reader.notes.clear()
        return OpenCall(self.calls, self._new_id, self._tools, self._pieces)


def _nothing() -> Steps[None]:
    yield from ()


def _code_of_call(text: str) -> str | None:
    """The code in `code="...")`: as a literal, or all between the first quote and the last."""
    found: dict[str, str] = {}

    def arguments(reader: Reader) -> Steps[None]:
        def read(key: str) -> Steps[None]:
            if (yield from reader.peek()) not in QUOTES:
                raise BrokenError("code is text")
            found[key] = yield from python_text(reader, loose=True)

        yield from python_arguments(reader, read, lambda: "code")

    try:
        read_whole(text, arguments)
    except BrokenError:
        key, equals, rest = text.partition("=")
        quoted = rest.strip().removesuffix(")").rstrip()
        is_quoted = len(quoted) > 1 and quoted[0] in QUOTES and quoted[-1] == quoted[0]
        return quoted[1:-1] if key.strip() == "code" and equals and is_quoted else None
    return found.get("code") if len(found) == 1 else None
