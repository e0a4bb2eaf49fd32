"""A call while it is read: its arguments are converted and told as soon as each is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from corral.text.families import BRAVE_SEARCH, CODE_INTERPRETER, WOLFRAM_ALPHA
from corral.text.messages import ToolCall
from corral.text.tool_calls.pieces import CallBegun, CallEnded, Pieces
from corral.text.tool_calls.reader import BrokenError, Reader
from corral.text.tool_calls.schemas import ParameterSchemas

Schema = Mapping[str, Any]


def _one_text(name: str) -> Schema:
    return {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}


_BUILTIN: Mapping[str, Schema] = MappingProxyType(
    {
        BRAVE_SEARCH: _one_text("query"),
        WOLFRAM_ALPHA: _one_text("query"),
        CODE_INTERPRETER: _one_text("code"),
    }
)


class DeclaredTools:
    """Which names may be called, and with what parameters."""

    def __init__(self, tools: Sequence[Schema], builtin_tools: Collection[str], code: bool) -> None:
        names = {*builtin_tools, CODE_INTERPRETER} if code else {*builtin_tools}
        self._parameters = {name: ParameterSchemas(_BUILTIN.get(name, {})) for name in names}
        for tool in tools:
            function = tool["function"]
            parameters = function.get("parameters")
            schema = parameters if isinstance(parameters, Mapping) else {}
            self._parameters[function["name"]] = ParameterSchemas(schema)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __getitem__(self, name: str) -> ParameterSchemas:
        return self._parameters[name]


class OpenCall:
    """One call. Arguments that come before it has begun are told when it begins.

    Attributes:
        name: of the call; empty until it has begun.
        told_to: the reader's position up to which the arguments have been told.
    """

    def __init__(self, index: int, new_id: Callable[[], str], tools: DeclaredTools, pieces: Pieces) -> None:
        self.name = ""
        self.told_to = 0
        self._index = index
        self._new_id = new_id
        self._tools = tools
        self._pieces = pieces
        self._waiting: list[tuple[str, Any]] = []
        self._arguments: dict[str, Any] = {}
        self._fragments: list[str] = []
        self._notes: list[str] = []

    @property
    def begun(self) -> bool:
        """Whether the name is known and declared."""
        return bool(self.name)

    def begin(self, name: str, reader: Reader) -> None:
        """The name is declared and the form is certain: this is a call."""
        self.name, self.told_to = name, reader.at
        self._id = self._new_id()
        self._schemas = self._tools[name]
        self._pieces.begin(CallBegun(self._index, self._id, name))
        for key, value in self._waiting:
            self._tell(key, value)

    def add(self, key: str, value: Any, reader: Reader) -> None:
        """An argument is complete."""
        if self.begun:
            self._tell(key, value)
            self.told_to = reader.at
        else:
            self._waiting.append((key, value))

    def may_stream(self, key: str) -> bool:
        """Whether a text can be told while it is read: it is taken as it is."""
        return self.begun and key not in self._arguments and self._schemas.takes_text(key)

    def begin_text(self, key: str) -> Callable[[str], None]:
        """The text of an argument begins; gives what takes its parts."""
        self._fragment(f'{self._before(key)}"')
        self._arguments[key] = None

        def part(text: str) -> None:
            self._fragment(text if text.isalnum() else json.dumps(text, ensure_ascii=False)[1:-1])

        self.told_to = -1  # the text is told as it comes
        return part

    def end_text(self, key: str, text: str, reader: Reader) -> None:
        """The text of an argument is complete."""
        self._fragment('"')
        self._arguments[key] = self._schemas.converted(key, text, self._notes)
        self.told_to = reader.at

    def positional(self, name: str) -> str:
        """The parameter of the tool `name` that an argument without a name is for: the first that has none.

        Raises:
            BrokenError: there is none.
        """
        given = {*self._arguments, *(key for key, _ in self._waiting)}
        free = next((key for key in self._tools[name].names() if key not in given), None)
        if free is None:
            raise BrokenError("an argument has no name")
        self._notes.append(f"an argument without a name was taken for {free}")
        return free

    def end(self, notes: Sequence[str]) -> None:
        """The call is complete."""
        self._fragment("}" if self._arguments else "{}")
        self._schemas.check(self._arguments, self._notes)
        call = ToolCall(self.name, self._arguments, self._id)
        self._end(call, notes, None)

    def break_off(self, error: str, rest: str, notes: Sequence[str]) -> None:
        """The call cannot be completed; `rest` is the text behind what has been told."""
        self._fragment(rest)
        self._end(None, notes, error)

    def _end(self, call: ToolCall | None, notes: Sequence[str], error: str | None) -> None:
        everything = tuple(dict.fromkeys((*notes, *self._notes)))
        self._pieces.end(CallEnded(self._index, call, "".join(self._fragments), everything, error))

    def _tell(self, key: str, value: Any) -> None:
        if key in self._arguments:
            self._notes.append(f"{key} is given twice; the first counts")
            return
        before = self._before(key)
        self._arguments[key] = converted = self._schemas.converted(key, value, self._notes)
        self._fragment(before + json.dumps(converted, ensure_ascii=False))

    def _before(self, key: str) -> str:
        return f"{', ' if self._arguments else '{'}{json.dumps(key, ensure_ascii=False)}: "

    def _fragment(self, text: str) -> None:
        self._fragments.append(text)
        self._pieces.arguments(text)
