"""What all Llama 3 prompts share: the headers of messages, and what is refused before any token is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from corral.errors import RenderError
from corral.text.control_tokens import END_HEADER, START_HEADER
from corral.text.families import BUILTIN_TOOLS, Family, family_named
from corral.text.messages import Message
from corral.text.rendered import RenderOptions, Tool
from corral.text.segments import Segments
from corral.text.tokenizer import Tokenizer


class Llama3Format:
    """What the renderers of both profiles are made of: a tokenizer, a family, and what ends a message.

    Raises:
        RenderError: there is no such family.
        TokenizerError: the tokenizer lacks one of its control tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, family: str = "llama-3.1", extra_stop_ids: Iterable[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self.family = family_named(family)
        self._stop_ids = self.family.stop_ids(tokenizer) | frozenset(extra_stop_ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a generated message."""
        return self._stop_ids


def add_header(out: Segments, role: str) -> None:
    """`<|start_header_id|>role<|end_header_id|>` and two line breaks; the role "tool" is called "ipython"."""
    out.control(START_HEADER)
    out.text("ipython" if role == "tool" else role)
    out.control(END_HEADER)
    out.text("\n\n")


def check_request(
    family: Family, dialog: Sequence[Message], tools: Sequence[Tool], options: RenderOptions
) -> None:
    """Refuses what no Llama 3 format can express.

    Raises:
        RenderError: the dialog is empty, an option does not fit, or tools are used that the family lacks.
    """
    if not dialog:
        raise RenderError("messages is empty; a prompt needs at least one message")
    if options.template_kwargs:
        names = ", ".join(options.template_kwargs)
        raise RenderError(f"template_kwargs ({names}): the {family.title} format has no variables")
    if options.continue_final_message:
        check_continued(dialog)
    uses_tools = tools or any(message.tool_calls or message.role == "tool" for message in dialog)
    if not family.tools and (uses_tools or options.builtin_tools is not None):
        raise RenderError(f"{family.title} was not trained for tools; use Llama 3.1 or later")
    if not family.tools and options.date is not None:
        raise RenderError(
            f"date: {family.title} prompts have no place for it; write it into a system message"
        )
    for name in options.builtin_tools or ():
        if name not in BUILTIN_TOOLS:
            raise RenderError(f"builtin_tools: {name!r} is not one of {', '.join(BUILTIN_TOOLS)}")


def check_continued(dialog: Sequence[Message]) -> None:
    """Refuses to continue anything but the text of an assistant message at the end.

    Raises:
        RenderError: the last message is another.
    """
    if not dialog or dialog[-1].role != "assistant" or dialog[-1].tool_calls:
        raise RenderError(
            "continue_final_message: the last message must be the assistant's, without tool calls"
        )


def first_user(dialog: Sequence[Message], need: str) -> int:
    """The index of the first user message.

    Raises:
        RenderError: there is none; `need` says what it is needed for.
    """
    for index, message in enumerate(dialog):
        if message.role == "user":
            return index
    raise RenderError(f"{need}, but messages has none")


def with_content(message: Message, content: str) -> Message:
    """The same message with another text."""
    return replace(message, content=content)
