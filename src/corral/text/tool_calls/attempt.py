"""A place in a text where a call may begin."""

from __future__ import annotations

from dataclasses import dataclass, field

from corral.text.control_tokens import PYTHON_TAG

OPENINGS = ("<function=", "<tool_call>", PYTHON_TAG)
FENCE = "```"
FENCED = ("", "json", "tool_call", "tool_code")  # the languages of a code fence around calls


class NoCallError(Exception):
    """What began like a call is none."""


@dataclass
class Attempt:
    """Where a call may begin.

    Attributes:
        start: the reader's position there.
        closings: what must close behind the call, innermost last.
        bare: "pythonic" or "builtin" where the next call may begin with its name alone.
        value_at: where a JSON value begins, once it looks like one.
        fenced: whether a code fence was opened.
        code_at: where code begins, if this should be no call in another form.
    """

    start: int
    closings: list[str] = field(default_factory=list)
    bare: str = ""
    value_at: int | None = None
    fenced: bool = False
    code_at: int | None = None
