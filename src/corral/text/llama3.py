"""Llama 3, 3.1, 3.2 and 3.3 prompts that equal the chat templates published with the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from corral.errors import RenderError
from corral.text.call_formats import template_builtin_call, template_call
from corral.text.control_tokens import BEGIN_OF_TEXT, END_OF_MESSAGE, END_OF_TURN, PYTHON_TAG
from corral.text.families import CODE_INTERPRETER
from corral.text.function_schema import as_tools
from corral.text.llama3_frame import Llama3Format, add_header, check_request
from corral.text.messages import Message, as_messages
from corral.text.rendered import Rendered, RenderOptions, Tool
from corral.text.segments import Segments
from corral.text.tool_pairs import one_call_per_message
from corral.text.tool_prompts import Schema, template_tools, to_json

_KNOWLEDGE_DATE = "Cutting Knowledge Date: December 2023\n"


class Llama3Renderer(Llama3Format):
    """The `hf` profile: what the published Jinja templates give, built without Jinja and safe from content.

    As the templates do: 3.1 and later always write a system message with dates; texts are trimmed; the text
    beside a tool call is dropped; a tool's result is written as JSON (text in quotes) unless it is a number.
    Several calls in one message, which the templates refuse, become one message per call, each with its
    result.
    """

    def render(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
    ) -> Rendered:
        """Messages as a prompt.

        Raises:
            RenderError: the template has no place for a message, a tool or an option.
        """
        dialog = one_call_per_message(as_messages(messages))
        check_request(self.family, dialog, tools, options)
        self._check_options(options)
        out = Segments(self._tokenizer, join_text=True)
        out.control(BEGIN_OF_TEXT)
        if self.family.tools:
            dialog = self._open_with_system(out, dialog, as_tools(tools), options)
        for index, message in enumerate(dialog):
            is_open = options.continue_final_message and index == len(dialog) - 1
            self._add_message(out, message, options, is_open)
        if options.add_generation_prompt and not options.continue_final_message:
            add_header(out, "assistant")
        return out.rendered(self.stop_ids)

    def _check_options(self, options: RenderOptions) -> None:
        title = self.family.title
        if options.tool_format is not None:
            raise RenderError(
                f"tool_format: the published template of {title} has one format; Meta's profile "
                f"({self.family.name}-meta) has several"
            )
        if options.builtin_tools is not None and not self.family.template_builtin_tools:
            raise RenderError(
                f"builtin_tools: the published template of {title} has no place for them; "
                f"Meta's profile ({self.family.name}-meta) knows the code interpreter"
            )

    def _open_with_system(
        self, out: Segments, dialog: list[Message], tools: Sequence[Schema], options: RenderOptions
    ) -> list[Message]:
        """Writes the system message, and the first user message if it describes the tools; gives the rest."""
        system = dialog[0].content.strip() if dialog[0].role == "system" else ""
        rest = dialog[1:] if dialog[0].role == "system" else dialog
        in_user_message = options.tools_in_user_message is not False
        add_header(out, "system")
        out.text(self._environment(bool(tools), options))
        if tools and not in_user_message:
            out.text(template_tools(tools, in_user_message=False))
        out.text(system)
        out.control(END_OF_TURN)
        if not tools or not in_user_message:
            return rest
        if not rest or rest[0].role != "user":
            raise RenderError(
                f"{self.family.title} describes tools in the first user message: let a user message follow "
                "the system message, or set tools_in_user_message to false"
            )
        add_header(out, "user")
        out.text(template_tools(tools, in_user_message=True) + rest[0].content.strip())
        out.control(END_OF_TURN)
        return rest[1:]

    def _environment(self, has_tools: bool, options: RenderOptions) -> str:
        builtin, lines = options.builtin_tools, ""
        if has_tools or builtin is not None:
            lines += "Environment: ipython\n"
        if builtin is not None:
            lines += "Tools: " + ", ".join(name for name in builtin if name != CODE_INTERPRETER) + "\n\n"
        date = self.family.template_date if options.date is None else options.date
        if date is None:
            date = datetime.now().strftime("%d %b %Y")
        return f"{lines}{_KNOWLEDGE_DATE}Today Date: {date}\n\n"

    def _add_message(self, out: Segments, message: Message, options: RenderOptions, is_open: bool) -> None:
        assistant = message.role == "assistant"
        add_header(out, message.role)
        if message.tool_calls:
            self._add_call(out, message, options)
            return
        content = _result(message.content) if message.role == "tool" else message.content.strip()
        out.text(content, assistant=assistant)
        if not is_open:
            out.control(END_OF_TURN, assistant=assistant)

    def _add_call(self, out: Segments, message: Message, options: RenderOptions) -> None:
        (call,) = message.tool_calls
        if call.name in (options.builtin_tools or ()):
            out.control(PYTHON_TAG, assistant=True)
            out.text(template_builtin_call(call), assistant=True)
        else:
            out.text(template_call(call), assistant=True)
        end = END_OF_TURN if options.builtin_tools is None else END_OF_MESSAGE
        out.control(end, assistant=True)


def _result(content: object) -> str:
    """The templates test for "iterable", which a text is too: it gets quotes."""
    if isinstance(content, str | Mapping | Sequence):
        return to_json(content, "the result of a tool")
    return str(content)
