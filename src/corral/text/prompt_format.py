"""Which prompt format a checkpoint speaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from corral.errors import RenderError
from corral.text.base import render_text
from corral.text.families import FAMILIES, Family
from corral.text.llama3 import Llama3Renderer
from corral.text.llama3_meta import Llama3MetaRenderer
from corral.text.rendered import Renderer
from corral.text.tokenizer import Tokenizer

__all__ = [
    "PROMPT_FORMATS",
    "TemplateInfo",
    "choose_renderer",
    "describe_format",
    "describe_template",
    "exported_format",
    "family_with_template",
    "render_text",
]

# What a checkpoint comes with: one chat template, or several by name ("default", "tool_use").
Templates = str | Mapping[str, str]

_META = "-meta"
PROMPT_FORMATS = (*FAMILIES, *(name + _META for name in FAMILIES), "template")

_PROBE, _TOOL_PROBE = "probe-of-the-system-text", "probe_of_a_tool"


@dataclass(frozen=True)
class TemplateInfo:
    """What a chat template has a place for. `family` is set if it is known as Llama 3's."""

    family: str | None
    system_role: bool
    tools: bool
    generation_blocks: bool


def choose_renderer(
    tokenizer: Tokenizer,
    *,
    chat_template: Templates | None,
    family: str | None,
    prompt_format: str | None = None,
    stop_ids: Iterable[int] = (),
) -> Renderer:
    """The renderer of a checkpoint.

    Args:
        tokenizer: of the checkpoint.
        chat_template: the checkpoint's own, or several by name.
        family: the Llama 3 family of an instruction-tuned checkpoint; None for base and other models.
        prompt_format: one of `PROMPT_FORMATS`; None decides: a template known as Llama 3's, or no
            template and a known family, gives the family's own renderer; any other template is run as it is.
        stop_ids: ids that end a message, as the checkpoint states them; the renderer adds its own.

    Raises:
        RenderError: there is no such format, or a base model has none.
        TokenizerError: the tokenizer lacks a control token of the format.
    """
    if prompt_format is not None:
        return _named(prompt_format, tokenizer, chat_template, stop_ids)
    native = _native_family(tokenizer, chat_template, family)
    if native is not None:
        return Llama3Renderer(tokenizer, native.name, stop_ids)
    if chat_template:
        return _template_renderer(tokenizer, chat_template, stop_ids)
    raise RenderError(
        "this is a base model without a chat template: use `corral generate` to continue a text, "
        "or choose a format with --prompt-format"
    )


def exported_format(
    tokenizer: Tokenizer,
    *,
    chat_template: Templates | None,
    family: str | None,
    prompt_format: str | None = None,
) -> tuple[Templates | None, frozenset[int]]:
    """The chat template that a checkpoint is written with, and the ids that must end its messages.

    The family that `prompt_format` names gives the template; else the checkpoint's own stays; else that of
    its family is taken. A base model has none. Only a Llama 3 family tells ids.

    Raises:
        RenderError: `prompt_format` has no template.
        TokenizerError: the tokenizer lacks a control token of the format.
    """
    if prompt_format is not None:
        known = family_with_template(prompt_format)
        return known.chat_template(), known.stop_ids(tokenizer)
    native = _native_family(tokenizer, chat_template, family)
    if native is None:
        return chat_template, frozenset()
    return chat_template or native.chat_template(), native.stop_ids(tokenizer)


def family_with_template(prompt_format: str) -> Family:
    """The family whose chat template can be written, named as one of `PROMPT_FORMATS`.

    Raises:
        RenderError: no template can be written for the name.
    """
    if prompt_format in FAMILIES:
        return FAMILIES[prompt_format]
    choices = f"choose one of {', '.join(FAMILIES)}"
    if prompt_format == "template":
        raise RenderError(
            "--prompt-format is template, but the checkpoint's own chat template is exported anyway; "
            f"leave the option out, or {choices}"
        )
    if prompt_format in PROMPT_FORMATS:
        raise RenderError(
            f"--prompt-format is {prompt_format}, which exists only inside Corral, not as a chat template; "
            f"{choices}"
        )
    raise RenderError(f"--prompt-format is {prompt_format!r}; {choices}")


def describe_format(
    tokenizer: Tokenizer, *, chat_template: Templates | None, family: str | None
) -> dict[str, str | bool]:
    """What the prompt format that `choose_renderer` picks has a place for.

    Raises:
        RenderError: a base model has no format.
    """
    renderer = choose_renderer(tokenizer, chat_template=chat_template, family=family)
    if isinstance(renderer, Llama3Renderer):
        known = renderer.family
        return {
            "prompt_format": known.name,
            "system_role": True,
            "tools": known.tools,
            "assistant_mask": True,
        }
    assert chat_template, "any other renderer was made of a template"
    found = describe_template(chat_template)
    return {
        "prompt_format": "template",
        "system_role": found.system_role,
        "tools": found.tools,
        "assistant_mask": found.generation_blocks,
    }


def describe_template(chat_template: Templates) -> TemplateInfo:
    """What a chat template has a place for, found by rendering probes.

    Raises:
        RenderError: the template cannot be compiled.
    """
    from corral.text.jinja_chat import ChatTemplate

    default, for_tools = _default_and_tools(chat_template)
    template = ChatTemplate(default)
    tool_template = template if for_tools is None else ChatTemplate(for_tools)
    user = {"role": "user", "content": "hello"}
    system = {"role": "system", "content": _PROBE}
    function = {"name": _TOOL_PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]

    def shows(probed: ChatTemplate, probe: str, variables: Mapping[str, object]) -> bool:
        tokens = {"bos_token": "", "eos_token": ""}
        try:
            return probe in probed.render({**tokens, "add_generation_prompt": True, **variables})
        except RenderError:
            return False

    return TemplateInfo(
        family=_family_of_text(default, None),
        system_role=shows(template, _PROBE, {"messages": [system, user], "tools": None}),
        tools=shows(tool_template, _TOOL_PROBE, {"messages": [user], "tools": tools}),
        generation_blocks=template.has_generation,
    )


def _named(
    name: str, tokenizer: Tokenizer, chat_template: Templates | None, stop_ids: Iterable[int]
) -> Renderer:
    if name in FAMILIES:
        return Llama3Renderer(tokenizer, name, stop_ids)
    if name.removesuffix(_META) in FAMILIES:
        return Llama3MetaRenderer(tokenizer, name.removesuffix(_META), stop_ids)
    if name != "template":
        raise RenderError(f"--prompt-format is {name!r}; choose one of {', '.join(PROMPT_FORMATS)}")
    if not chat_template:
        raise RenderError("--prompt-format is template, but the checkpoint has no chat template")
    return _template_renderer(tokenizer, chat_template, stop_ids)


def _template_renderer(tokenizer: Tokenizer, chat_template: Templates, stop_ids: Iterable[int]) -> Renderer:
    # Jinja is needed for templates only.
    from corral.text.template import TemplateRenderer

    default, for_tools = _default_and_tools(chat_template)
    return TemplateRenderer(tokenizer, default, tool_template=for_tools, stop_ids=stop_ids)


def _default_and_tools(chat_template: Templates) -> tuple[str, str | None]:
    if isinstance(chat_template, str):
        return chat_template, None
    if len(chat_template) == 1:
        return next(iter(chat_template.values())), None
    if "default" not in chat_template:
        names = ", ".join(chat_template)
        raise RenderError(f"the checkpoint has several chat templates ({names}), but none is called default")
    return chat_template["default"], chat_template.get("tool_use")


def _native_family(
    tokenizer: Tokenizer, chat_template: Templates | None, family: str | None
) -> Family | None:
    """The family whose format this is: by the template's text, if the tokenizer has the control tokens too;
    without a template, by the checkpoint's own family."""
    if not chat_template:
        return FAMILIES.get(family or "")
    texts = [chat_template] if isinstance(chat_template, str) else list(chat_template.values())
    found = _family_of_text(texts[0], family) if len(texts) == 1 else None
    known = FAMILIES.get(found or "")
    if known is None or not all(token in tokenizer.control for token in known.control_tokens):
        return None
    return known


def _family_of_text(template: str, family: str | None) -> str | None:
    """The family whose template this is, the published one or Corral's.

    Llama 3.1 and 3.3 share theirs: the checkpoint's own family decides between them.
    """
    text = template.strip()
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = [
        name
        for name, known in FAMILIES.items()
        if known.template_sha256 == digest or known.chat_template().strip() == text
    ]
    return family if family in found else next(iter(found), None)
