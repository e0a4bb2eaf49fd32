"""Prompts of any checkpoint through its own chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from corral.errors import RenderError
from corral.text.content_guard import ContentGuard, ControlNames
from corral.text.function_schema import as_tools
from corral.text.jinja_chat import ChatTemplate
from corral.text.llama3_frame import check_continued
from corral.text.messages import Message, as_messages
from corral.text.plain_tools import TemplatePlaces, find_places, plain_dialog, told_results, uses_tools
from corral.text.rendered import Rendered, RenderOptions, Tool
from corral.text.segments import Segments
from corral.text.template_mask import Span, cut_marks, spans_by_prefix
from corral.text.tokenizer import Tokenizer
from corral.text.tool_pairs import one_call_per_message

# What options are called in templates that have a place for them.
_OPTION_VARIABLES = (
    ("builtin_tools", "builtin_tools"),
    ("tools_in_user_message", "tools_in_user_message"),
    ("date", "date_string"),
)


class TemplateRenderer:
    """Renders with a chat template in Jinja, as transformers does, but content never becomes a control token.

    An option that would silently be left out of the prompt is refused. Tools, calls and results that the
    template has no place for become plain messages (`plain_tools`), or are refused too. Where the template
    has `{% generation %}` blocks, they give the mask; without them it is found, on demand, by rendering the
    dialog up to each assistant message.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        *,
        tool_template: str | None = None,
        stop_ids: Iterable[int] = (),
        special_tokens: Mapping[str, str] | None = None,
        tools_as_text: bool = True,
    ) -> None:
        """`tool_template` is used instead where tools are given; `special_tokens` are variables such as
        `bos_token`, by default those that the tokenizer knows; `tools_as_text` is for templates that have no
        place for tools: without it, tools are refused there."""
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template)
        self._tool_template = self._template
        if tool_template is not None:
            self._tool_template = ChatTemplate(tool_template, "chat template for tools")
        known = special_tokens if special_tokens is not None else _special_tokens(tokenizer)
        self._special_tokens = dict(known)
        self._names = ControlNames(tokenizer.control.keys())
        eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self._stop_ids = frozenset((*stop_ids, *eos))
        self._tools_as_text = tools_as_text

    @property
    def sources(self) -> tuple[str, ...]:
        """The texts of the templates: the usual one, and that for tools."""
        return (self._template.source, self._tool_template.source)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a generated message."""
        return self._stop_ids

    def render(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
    ) -> Rendered:
        """Messages as a prompt.

        Raises:
            RenderError: the template refuses the dialog, fails on it, or would leave a part of it out.
        """
        dialog = as_messages(messages)
        if not dialog:
            raise RenderError("messages is empty; a prompt needs at least one message")
        if options.continue_final_message:
            check_continued(dialog)
        schemas = as_tools(tools)
        if self._tools_as_text and uses_tools(dialog, schemas):
            dialog, schemas = self._fitted(dialog, schemas)
        template = self._tool_template if schemas else self._template
        variables = {
            **self._option_variables(template, options),
            "tools": schemas or None,
            "messages": [message.to_dict() for message in dialog],
        }
        guard = ContentGuard(self._names, variables)
        draft = _Draft(template, self._special_tokens, guard)
        shown = self._guarded(draft, variables, options)
        _refuse_what_is_left_out(draft, shown)
        return self._encoded(draft, shown, options)

    def places(self, *, tools: bool = True) -> TemplatePlaces:
        """What the template has a place for that is used with tools, or without."""
        return self._tool_places if tools else self._plain_places

    @cached_property
    def _tool_places(self) -> TemplatePlaces:
        return find_places(self._tool_template, self._special_tokens)

    @cached_property
    def _plain_places(self) -> TemplatePlaces:
        same = self._tool_template is self._template
        return self._tool_places if same else find_places(self._template, self._special_tokens)

    def _fitted(
        self, dialog: list[Message], tools: list[dict[str, Any]]
    ) -> tuple[list[Message], list[dict[str, Any]]]:
        """The dialog and its tools in the form that the template has a place for."""
        places = self.places(tools=bool(tools))
        called = uses_tools(dialog, ())
        if (tools and not places.tools) or (called and not places.calls):
            return plain_dialog(dialog, tools, system=places.system), []
        if not places.several_calls:
            dialog = one_call_per_message(dialog)
        return dialog if places.results else told_results(dialog), tools

    def _option_variables(self, template: ChatTemplate, options: RenderOptions) -> dict[str, Any]:
        """The options as the template's variables; those that it does not read are refused."""
        variables = dict(options.template_kwargs)
        for name in variables:
            if name in ("messages", "tools", "add_generation_prompt", *self._special_tokens):
                raise RenderError(f"template_kwargs: {name} is set by other means")
            if name not in template.variables:
                raise RenderError(f"template_kwargs: this checkpoint's chat template does not read {name!r}")
        if options.tool_format is not None:
            raise RenderError("tool_format: this checkpoint's chat template has a format of its own")
        for option, variable in _OPTION_VARIABLES:
            value = getattr(options, option)
            if value is None:
                continue
            if variable not in template.variables:
                raise RenderError(f"{option}: this checkpoint's chat template has no place for it")
            variables[variable] = list(value) if isinstance(value, tuple) else value
        return variables

    def _guarded(self, draft: _Draft, variables: dict[str, Any], options: RenderOptions) -> dict[str, Any]:
        """The variables, guarded only as far as needed.

        The strict guard may keep a template from recognising tags in content. So it is used only if it
        changes which control tokens come out: then the template has made one from parts of content.
        """
        usual, strict = (
            {name: draft.guard.protect(value, strictly=strictly) for name, value in variables.items()}
            for strictly in (False, True)
        )
        if usual == strict:
            return usual
        same = self._controls(draft.text(usual, options)) == self._controls(draft.text(strict, options))
        return usual if same else strict

    def _controls(self, text: str) -> list[int]:
        return [piece for piece in self._tokenizer.split_control(text) if isinstance(piece, int)]

    def _encoded(self, draft: _Draft, shown: dict[str, Any], options: RenderOptions) -> Rendered:
        text, spans = cut_marks(draft.text(shown, options, mark=True), draft.guard.marks)
        has_assistant = any(message["role"] == "assistant" for message in shown["messages"])
        # Generation blocks that the assistant's messages do not pass through tell nothing.
        known = bool(spans) or not has_assistant
        if not known and options.assistant_mask:
            spans = self._spans_by_prefix(draft, shown, options, text)
            known = True
        rendered = self._tokens(text, spans, draft.guard.restore)
        return rendered if known else replace(rendered, mask=None)

    def _spans_by_prefix(
        self, draft: _Draft, shown: dict[str, Any], options: RenderOptions, text: str
    ) -> list[Span]:
        def render(count: int, header: bool) -> str:
            part = {**shown, "messages": shown["messages"][:count]}
            return draft.text(part, RenderOptions(add_generation_prompt=header))

        roles = [message["role"] for message in shown["messages"]]
        ends = [name for name, i in self._tokenizer.control.items() if i in self._stop_ids]
        return spans_by_prefix(roles, render, text, ends, is_open=options.continue_final_message)

    def _tokens(self, text: str, spans: Sequence[Span], restore: Callable[[str], str]) -> Rendered:
        """Cuts the text at the template's control tokens and at the bounds of the spans."""
        names = {token_id: name for name, token_id in self._tokenizer.control.items()}
        bounds = sorted({bound for span in spans for bound in span})
        out = Segments(self._tokenizer, join_text=True)
        position = 0
        for piece in self._tokenizer.split_control(text):
            # White space beside a control token may be gone from the pieces: find each one again.
            name = names[piece] if isinstance(piece, int) else piece
            start = text.index(name, position)
            position = start + len(name)
            if isinstance(piece, int):
                out.control(piece, assistant=_within(spans, start))
                continue
            cuts = [start, *(bound for bound in bounds if start < bound < position), position]
            for left, right in pairwise(cuts):
                out.text(restore(text[left:right]), assistant=_within(spans, left))
        return out.rendered(self._stop_ids)


class _Draft:
    """One request on its way through a template."""

    def __init__(self, template: ChatTemplate, constants: Mapping[str, str], guard: ContentGuard) -> None:
        self.template, self.guard = template, guard
        self._constants = constants

    def text(self, shown: Mapping[str, Any], options: RenderOptions, mark: bool = False) -> str:
        """The rendered text; `mark` leaves the marks of generation blocks in it."""
        header = options.add_generation_prompt and not options.continue_final_message
        marks = self.guard.marks if mark else ("", "")
        if not options.continue_final_message:
            return self._render(shown, header, marks)
        return self._continued(shown, marks)

    def _render(self, shown: Mapping[str, Any], header: bool, marks: tuple[str, str]) -> str:
        variables = {**self._constants, "documents": None, **shown, "add_generation_prompt": header}
        return self.template.render(variables, marks)

    def _continued(self, shown: Mapping[str, Any], marks: tuple[str, str]) -> str:
        """Renders with a mark and a space behind the last text, and cuts there; if the space is gone, the
        template trims texts, and so the text before the mark is trimmed as well."""
        cut, last = self.guard.cut, shown["messages"][-1]
        marked = {**last, "content": f"{last['content']}{cut} "}
        text = self._render({**shown, "messages": [*shown["messages"][:-1], marked]}, False, marks)
        before, found, after = text.rpartition(cut)
        if not found:
            raise RenderError("continue_final_message: the chat template leaves the last message's text out")
        return before if after.startswith(" ") else before.rstrip()


def _refuse_what_is_left_out(draft: _Draft, shown: Mapping[str, Any]) -> None:
    """Raises RenderError if the prompt is the same without the tools or without the tool calls."""
    options = RenderOptions()
    calls = [message for message in shown["messages"] if message.get("tool_calls")]
    if not calls and not shown["tools"]:
        return
    text = draft.text(shown, options)
    if shown["tools"] and _text_or_none(draft, {**shown, "tools": None}) == text:
        raise RenderError("tools: this checkpoint's chat template has no place for tools")
    plain = [{k: v for k, v in message.items() if k != "tool_calls"} for message in shown["messages"]]
    if calls and _text_or_none(draft, {**shown, "messages": plain}) == text:
        raise RenderError("tool_calls: this checkpoint's chat template has no place for tool calls")


def _text_or_none(draft: _Draft, shown: Mapping[str, Any]) -> str | None:
    try:
        return draft.text(shown, RenderOptions())
    except RenderError:
        return None


def _within(spans: Sequence[Span], position: int) -> bool:
    return any(start <= position < end for start, end in spans)


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    names = {token_id: name for name, token_id in tokenizer.control.items()}
    known = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {key: names[i] for key, i in known.items() if i is not None and i in names}
