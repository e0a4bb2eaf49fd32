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
        arguments_key: what JSON calls the arguments.
        opening, closing: what stands around each JSON call.
        builtin_tools: built-in tools that may be called, for `CallParser`.
        code: whether code follows `<|python_tag|>`, for `CallParser`.
    """

    arguments_key: str = "parameters"
    opening: str = ""
    closing: str = ""
    builtin_tools: tuple[str, ...] = ()
    code: bool = False


def call_form(
    renderer: Renderer, options: RenderOptions = RenderOptions(), declared: Sequence[str] = ()
) -> CallForm:
    """The form of calls in the prompts that a renderer makes of tools.

    A built-in tool is hidden by one of the same name among those that are `declared`.
    """
    builtin = tuple(name for name in options.builtin_tools or () if name not in declared)
    code = CODE_INTERPRETER in builtin
    if isinstance(renderer, Llama3MetaRenderer):
        # Meta's prompts enable the code interpreter with the environment, whether or not it is named.
        code = options.builtin_tools is not None and CODE_INTERPRETER not in declared
    return CallForm(*_written(renderer), builtin, code)


def _written(renderer: Renderer) -> tuple[str, str, str]:
    """What JSON calls the arguments, and what stands around each call: as a chat template writes them, or as
    Llama 3 models do."""
    if not isinstance(renderer, Llama3Renderer | Llama3MetaRenderer):
        # Jinja is needed for templates only.
        from corral.text.template import TemplateRenderer

        places = renderer.places() if isinstance(renderer, TemplateRenderer) else None
        if places is not None and places.tools and '"name": "' in places.call_text:
            key = "arguments" if '"arguments": {' in places.call_text else "parameters"
            opening, closing = _TOOL_CALL if "<tool_call>" in places.call_text else ("", "")
            return key, opening, closing
    return "parameters", "", ""
