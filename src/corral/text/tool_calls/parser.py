"""The incremental parser of tool calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from corral.text.messages import new_call_id
from corral.text.tool_calls.attempt import FENCE, Attempt, NoCallError
from corral.text.tool_calls.grammars import CallGrammars
from corral.text.tool_calls.open_call import DeclaredTools, Schema
from corral.text.tool_calls.pieces import ChatPiece, Pieces
from corral.text.tool_calls.reader import Reader, Steps

_SEPARATORS = frozenset(";,")
_QUOTING = frozenset("`'\"")
_BRACKETS = {"{": 1, "[": 1, "}": -1, "]": -1}


class CallParser:
    """Finds the calls of declared tools in a model's text, while it is written.

    The pieces depend on the text alone: however it is cut into parts, the pieces are the same when those of
    one text or one call are joined.

    Calls are read in all forms that Llama 3 models use: JSON objects, alone, in a list or one after the
    other; `<function=name>{...}</function>`; `[name(key=value)]`; and behind `<|python_tag|>` any of these,
    `name.call(key="text")`, or code. JSON may stand in a code fence or between `<tool_call>` tags. A call
    begins at the start of the text, behind a tag or another call, or, in prose, with a tag anywhere or with
    a bracket behind white space. Its first characters decide the form, and only that is read up to its end:
    what an argument contains is never a call, nor is what stands in other JSON values or code fences.

    Text stays as it is but for white space next to a call. A call of an undeclared name is text. A call
    whose arguments cannot be read takes the rest of the text and ends with an error.

    Args:
        tools: the declared tools in OpenAI's form, as `function_schema.as_tools` gives them.
        builtin_tools: names of built-in tools that may be called.
        code: what follows `<|python_tag|>` is code for the code interpreter, if it is no other call.
        parallel: more than one call may come; else the parser is `done` after the first, and drops the rest.
        new_id: gives the id of each call.

    Attributes:
        done: the text has all that is wanted: no more need be written.
    """

    def __init__(
        self,
        tools: Sequence[Schema],
        *,
        builtin_tools: Collection[str] = (),
        code: bool = False,
        parallel: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self.done = False
        self._parallel = parallel
        self._reader = Reader()
        self._pieces = Pieces()
        declared = DeclaredTools(tools, builtin_tools, code)
        self._grammars = CallGrammars(self._reader, self._pieces, declared, code, new_id)
        self._steps = self._read()
        self._go_on()

    def push(self, text: str) -> list[ChatPiece]:
        """More of the text, in which `<|python_tag|>` is spelled out; gives what is certain by now."""
        assert not self._reader.ended, "the text has ended"
        if text and not self.done:
            self._reader.give(text)
            self._go_on()
        return self._pieces.take()

    def finish(self, *, complete: bool) -> list[ChatPiece]:
        """The text has ended; gives all that is left.

        Args:
            complete: the model ended it; False where a limit cut it off.
        """
        assert not self._reader.ended, "the text has ended"
        self._reader.ended = True
        self._grammars.complete = complete
        if not self.done:
            self._go_on()
            self.done = True
        return self._pieces.take()

    def _go_on(self) -> None:
        try:
            next(self._steps)
        except StopIteration:
            self.done = True

    def _read(self) -> Steps[None]:
        """The whole text: calls, and text between them."""
        reader, pieces = self._reader, self._pieces
        while character := (yield from reader.peek()):
            if not _may_begin(character, pieces.last):
                reader.take()
                pieces.text(character)
                reader.forget()
                continue
            yield from self._calls(Attempt(reader.at))
            if self.done:
                return
        pieces.close()

    def _calls(self, attempt: Attempt) -> Steps[None]:
        """Calls one after the other, up to what is none: that is text."""
        reader, between = self._reader, ""
        while True:
            try:
                yield from self._grammars.one_call(attempt)
            except NoCallError:
                self._pieces.text(between)
                yield from self._as_text(attempt)
                return
            if not self._parallel or self._grammars.broken:
                self.done = True
                return
            reader.forget()
            passed = yield from self._between(attempt.closings)
            if not (yield from reader.peek()):
                return
            between = reader.since(passed)
            attempt = Attempt(reader.at, attempt.closings, attempt.bare)

    def _between(self, closings: list[str]) -> Steps[int]:
        """Goes past what stands between two calls. Gives the position from which on it would be text if no
        call followed; only what closes a call never is."""
        reader = self._reader
        passed = reader.at
        while character := (yield from reader.skip_space()):
            if character in _SEPARATORS:
                reader.take()
                continue
            start = reader.at
            closed = yield from reader.one_of([text for text in closings if text[0] == character])
            if closed:
                while closings.pop() != closed:
                    pass
                passed = reader.at
                continue
            ended = not (yield from reader.peek())
            if not (ended and any(text.startswith(reader.since(start)) for text in closings)):
                reader.at = start
                break
        return passed

    def _as_text(self, attempt: Attempt) -> Steps[None]:
        """What turned out to be no call: code, or text to the end of its code fence or JSON value."""
        reader, pieces = self._reader, self._pieces
        if attempt.code_at is not None:
            reader.at = attempt.code_at
            yield from self._grammars.code()
        elif attempt.fenced:
            pieces.text(reader.since(attempt.start))
            yield from self._fence()
        elif attempt.value_at is not None:
            reader.at = attempt.value_at
            pieces.text(reader.since(attempt.start))
            yield from self._value()
        else:
            pieces.text(reader.since(attempt.start))

    def _fence(self) -> Steps[None]:
        """Text up to the fence that closes the one that has been read."""
        run = 0
        while run < len(FENCE) and (character := (yield from self._reader.next())):
            run = run + 1 if character == FENCE[0] else 0
            self._pieces.text(character)
            self._reader.forget()

    def _value(self) -> Steps[None]:
        """Text up to the bracket that closes the JSON value which begins here."""
        depth, quoted = 0, False
        while character := (yield from self._reader.next()):
            self._pieces.text(character)
            self._reader.forget()
            if character == "\\" and quoted:
                self._pieces.text((yield from self._reader.next()))
            elif character == '"':
                quoted = not quoted
            elif not quoted and character in _BRACKETS:
                depth += _BRACKETS[character]
                if depth == 0:
                    return


def _may_begin(character: str, before: str) -> bool:
    """Whether a call may begin with a character behind another; behind none at the start of the text."""
    if character == "<":
        return before not in _QUOTING
    return character in "{[`" and (not before or before.isspace())
