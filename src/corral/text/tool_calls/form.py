"""Which form of call a prompt asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corral.text.families import CODE_INTERPRETER
from corral.text.llama3 import Llama3Renderer
from corral.text.llama3_meta import Llama3MetaRenderer
from corral.text.rendered import Renderer, RenderOptions

_TOOL_CALL = ("<tool_call>\n", "\n</tool_call>")


@dataclass(frozen=True)
class CallForm:
    """How a model is told to call tools: what grammar to hold it to, and how to set the parser up.

    Attributes:
        style: "json", "function_tag", "pythonic", "pythonic_tagged", or "other" for a form of a checkpoint's
            own that is none of them.
        arguments_key: what JSON calls the arguments.
        opening, closing: what stands around each JSON call.
        builtin_tools: built-in tools that may be called, for `CallParser`.
        code: whether code follows `<|python_tag|>`, for `CallParser`.
        described_as_text: Corral describes the tools itself, since the chat template has no place for them.
    """

    style: str
    arguments_key: str = "parameters"
    opening: str = ""
    closing: str = ""
    builtin_tools: tuple[str, ...] = ()
    code: bool = False
    described_as_text: bool = False


def call_form(
    renderer: Renderer, options: RenderOptions = RenderOptions(), declared: Sequence[str] = ()
) -> CallForm:
    """The form of calls in the prompts that a renderer makes of tools.

    A built-in tool is hidden by one of the same name among those that are `declared`.
    """
    builtin = tuple(name for name in options.builtin_tools or () if name not in declared)
    code = CODE_INTERPRETER in builtin
    if isinstance(renderer, Llama3MetaRenderer):
        style = options.tool_format or next(iter(renderer.family.meta_tool_formats), "json")
        # Meta's prompts enable the code interpreter with the environment, whether or not it is named.
        code = options.builtin_tools is not None and CODE_INTERPRETER not in declared
        return CallForm(style, builtin_tools=builtin, code=code)
    if isinstance(renderer, Llama3Renderer):
        return CallForm("json", builtin_tools=builtin, code=code)
    return _template_form(renderer, builtin, code)


def _template_form(renderer: Renderer, builtin: tuple[str, ...], code: bool) -> CallForm:
    # Jinja is needed for templates only.
    from corral.text.template import TemplateRenderer

    if not isinstance(renderer, TemplateRenderer):
        return CallForm("json", builtin_tools=builtin, code=code)
    places = renderer.places()
    if not places.tools:
        return CallForm("json", builtin_tools=builtin, code=code, described_as_text=True)
    text = places.call_text
    if '"name": "' not in text:
        return CallForm("other", builtin_tools=builtin, code=code)
    key = "arguments" if '"arguments": {' in text else "parameters"
    opening, closing = _TOOL_CALL if "<tool_call>" in text else ("", "")
    return CallForm("json", key, opening, closing, builtin, code)
