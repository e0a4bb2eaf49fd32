"""Llama 3, 3.1, 3.2 and 3.3 prompts that equal Meta's prompt-format documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corral.errors import RenderError
from corral.text.call_formats import CallFormat
from corral.text.control_tokens import BEGIN_OF_TEXT, END_OF_MESSAGE, END_OF_TURN, PYTHON_TAG
from corral.text.families import CODE_INTERPRETER, Family
from corral.text.function_schema import as_tools
from corral.text.llama3_frame import Llama3Format, add_header, check_request, first_user, with_content
from corral.text.messages import Message, as_messages
from corral.text.rendered import Rendered, RenderOptions, Tool
from corral.text.segments import Segments
from corral.text.tool_pairs import one_call_per_message
from corral.text.tool_prompts import (
    Schema,
    meta_function_tag_tools,
    meta_json_tools,
    meta_pythonic_system,
    meta_pythonic_user,
    to_json,
)


class Llama3MetaRenderer(Llama3Format):
    """The `meta` profile: the formats of Meta's documents, encoded piece by piece as Meta's reference does.

    There is a system message only where messages, tools or options ask for one, and content is never trimmed.
    `RenderOptions.tool_format` is one of the family's documented formats; `RenderOptions.date` adds the two
    lines of dates; `RenderOptions.builtin_tools` turns `Environment: ipython` on, which enables the code
    interpreter whether or not it is named. Formats with one call per message get one message per call, each
    with its result.
    """

    def render(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
    ) -> Rendered:
        """Messages as a prompt.

        Raises:
            RenderError: the family's documents have no place for a message, a tool or an option.
        """
        dialog = as_messages(messages)
        check_request(self.family, dialog, tools, options)
        schemas = as_tools(tools)
        calls = self._call_format(schemas, options)
        dialog = one_call_per_message(dialog, lambda message: calls.allows_several(message.tool_calls))
        dialog = _place_tools(self.family, dialog, schemas, calls.custom, options)
        out = Segments(self._tokenizer, join_text=False)
        out.control(BEGIN_OF_TEXT)
        for index, message in enumerate(dialog):
            is_open = options.continue_final_message and index == len(dialog) - 1
            _add_message(out, message, calls, is_open)
        if options.add_generation_prompt and not options.continue_final_message:
            add_header(out, "assistant")
        return out.rendered(self.stop_ids)

    def _call_format(self, tools: Sequence[Schema], options: RenderOptions) -> CallFormat:
        family, known = self.family, self.family.meta_tool_formats
        if options.tool_format is not None and options.tool_format not in known:
            formats = f"choose one of {', '.join(known)}" if known else "it has none"
            raise RenderError(f"tool_format: {family.title} has no format {options.tool_format!r}; {formats}")
        for name in options.builtin_tools or ():
            if name not in family.meta_builtin_tools:
                raise RenderError(f"builtin_tools: {family.title} was not trained for {name}")
        ipython = options.builtin_tools is not None
        builtin = {*(options.builtin_tools or ()), *((CODE_INTERPRETER,) if ipython else ())}
        declared = {tool["function"]["name"] for tool in tools}
        custom = options.tool_format or next(iter(known), "")
        return CallFormat(custom, ipython, frozenset(builtin - declared))


def _place_tools(
    family: Family, dialog: list[Message], tools: Sequence[Schema], tool_format: str, options: RenderOptions
) -> list[Message]:
    """The dialog with its system message, and with the tools where the format describes them."""
    in_user_message = options.tools_in_user_message
    system_tools = ""
    if tools and tool_format in ("json", "function_tag"):
        if in_user_message is False:
            raise RenderError(f"tools_in_user_message: the {tool_format} format needs them in a user message")
        text = meta_json_tools(tools) if tool_format == "json" else meta_function_tag_tools(tools)
        place = first_user(dialog, "tools are described before the first user message")
        dialog = [*dialog[:place], Message("user", text), *dialog[place:]]
    elif tools and in_user_message:
        place = first_user(dialog, "tools are described in the first user message")
        text = meta_pythonic_user(family.name, tools, dialog[place].content)
        dialog = [*dialog[:place], with_content(dialog[place], text), *dialog[place + 1 :]]
    elif tools:
        system_tools = meta_pythonic_system(tools)
    return _with_system(dialog, _environment(options), system_tools)


def _with_system(dialog: list[Message], environment: str, tools: str) -> list[Message]:
    """Puts the environment and the tools before the text of the system message."""
    if not environment and not tools:
        return dialog
    has_system = dialog[0].role == "system"
    texts = [text for text in (tools, dialog[0].content if has_system else "") if text]
    if environment and (texts or "\n" in environment):
        environment += "\n"
    blank = "\n" if environment and texts else ""
    system = Message("system", environment + blank + "\n\n".join(texts))
    return [system, *dialog[has_system:]]


def _environment(options: RenderOptions) -> str:
    """The lines that open a system message, as in the documents: a blank line stands before the dates where
    nothing but the environment precedes them."""
    lines = []
    if options.builtin_tools is not None:
        lines.append("Environment: ipython")
        listed = [name for name in options.builtin_tools if name != CODE_INTERPRETER]
        if listed:
            lines.append("Tools: " + ", ".join(listed))
    if options.date is not None:
        lines += [""] if len(lines) == 1 else []
        lines += ["Cutting Knowledge Date: December 2023", f"Today Date: {options.date}"]
    return "\n".join(lines)


def _add_message(out: Segments, message: Message, calls: CallFormat, is_open: bool) -> None:
    assistant = message.role == "assistant"
    add_header(out, message.role)
    content = (
        message.content if isinstance(message.content, str) else to_json(message.content, "a tool's result")
    )
    out.text(content, assistant=assistant)
    end = END_OF_TURN
    if message.tool_calls:
        written = calls.write(message.tool_calls)
        if written.python_tag:
            out.control(PYTHON_TAG, assistant=True)
        out.text(written.text, assistant=True)
        end = END_OF_MESSAGE if written.end_of_message else END_OF_TURN
    if not is_open:
        out.control(end, assistant=assistant)
