"""Choosing a checkpoint's prompt format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from corral.errors import RenderError, TokenizerError
from corral.text.families import FAMILIES
from corral.text.llama3 import Llama3Renderer
from corral.text.llama3_meta import Llama3MetaRenderer
from corral.text.prompt_format import (
    choose_renderer,
    describe_format,
    describe_template,
    exported_format,
    family_with_template,
)
from corral.text.rendered import RenderOptions
from corral.text.template import TemplateRenderer
from corral.text.tokenizer import Tokenizer

Make = Callable[[str], Tokenizer]


@pytest.mark.parametrize(
    ("family", "expected"), [(None, "llama-3.1"), ("llama-3.3", "llama-3.3"), ("llama-3", "llama-3.1")]
)
def test_a_published_template_gives_the_familys_own_renderer(
    family: str | None, expected: str, llama_tokenizer: Make, published: Mapping[str, str]
) -> None:
    template = f"\n{published['llama-3.1']}\n"
    renderer = choose_renderer(llama_tokenizer("llama-3.1"), chat_template=template, family=family)
    assert isinstance(renderer, Llama3Renderer)
    assert renderer.family.name == expected


def test_every_published_template_is_known(llama_tokenizer: Make, published: Mapping[str, str]) -> None:
    for family, template in published.items():
        renderer = choose_renderer(
            llama_tokenizer(family), chat_template={"default": template}, family=family
        )
        assert isinstance(renderer, Llama3Renderer)
        assert renderer.family.name == family


def test_a_changed_template_is_run_as_it_is(llama_tokenizer: Make, published: Mapping[str, str]) -> None:
    changed = published["llama-3.1"].replace("Do not use", " Do not use")
    renderer = choose_renderer(llama_tokenizer("llama-3.1"), chat_template=changed, family="llama-3.1")
    assert isinstance(renderer, TemplateRenderer)


def test_a_published_template_with_another_tokenizer_is_run_as_it_is(
    chatml_folder: Path, published: Mapping[str, str]
) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    assert isinstance(
        choose_renderer(tokenizer, chat_template=published["llama-3"], family=None), TemplateRenderer
    )


def test_a_checkpoint_without_template_has_the_format_of_its_family(llama_tokenizer: Make) -> None:
    renderer = choose_renderer(
        llama_tokenizer("llama-3.2"), chat_template=None, family="llama-3.2", stop_ids=[7]
    )
    assert isinstance(renderer, Llama3Renderer)
    assert renderer.family.name == "llama-3.2"
    assert renderer.stop_ids == {7, 128001, 128008, 128009}


@pytest.mark.parametrize("is_published", [True, False])
def test_the_native_renderer_and_the_template_agree(
    is_published: bool, llama_tokenizer: Make, published: Mapping[str, str]
) -> None:
    source = published["llama-3.1"] if is_published else FAMILIES["llama-3.1"].chat_template()
    tokenizer = llama_tokenizer("llama-3.1")
    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "c", "function": {"name": "f", "arguments": {"x": "<|eot_id|>"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a<|eot_id|>b"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<|python_tag|>", "tool_call_id": "c"},
        {"role": "assistant", "content": "done"},
    ]
    options = RenderOptions(builtin_tools=("brave_search",), assistant_mask=True)
    native, template = (
        choose_renderer(tokenizer, chat_template=source, family=None, prompt_format=name)
        for name in (None, "template")
    )
    assert isinstance(template, TemplateRenderer)
    ours, theirs = (renderer.render(messages, [tool], options) for renderer in (native, template))  # type: ignore[arg-type]
    assert ours.tokens == theirs.tokens
    assert ours.mask == theirs.mask


def test_the_format_can_be_overridden(llama_tokenizer: Make, chatml: str) -> None:
    tokenizer = llama_tokenizer("llama-3.1")

    def chosen(name: str) -> object:
        return choose_renderer(tokenizer, chat_template=chatml, family=None, prompt_format=name)

    assert isinstance(chosen("llama-3.2"), Llama3Renderer)
    assert isinstance(chosen("llama-3.3-meta"), Llama3MetaRenderer)
    assert isinstance(chosen("template"), TemplateRenderer)
    with pytest.raises(RenderError, match=r"--prompt-format is 'llama-4'; choose one of llama-3, llama-3\.1"):
        chosen("llama-4")


def test_a_format_needs_its_control_tokens(chatml_folder: Path) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    with pytest.raises(TokenizerError, match="prompt format needs"):
        choose_renderer(tokenizer, chat_template=None, family=None, prompt_format="llama-3")


def test_a_base_model_has_no_format(llama_tokenizer: Make) -> None:
    tokenizer = llama_tokenizer("llama-3.1")
    with pytest.raises(RenderError, match="base model without a chat template: use `corral generate`"):
        choose_renderer(tokenizer, chat_template=None, family=None)
    with pytest.raises(RenderError, match="the checkpoint has no chat template"):
        choose_renderer(tokenizer, chat_template=None, family="llama-3.1", prompt_format="template")


def test_a_checkpoint_is_exported_with_the_template_and_stop_ids_of_its_family(
    llama_tokenizer: Make, published: Mapping[str, str], chatml: str
) -> None:
    tokenizer = llama_tokenizer("llama-3.1")
    none, ends = frozenset[int](), frozenset({128001, 128008, 128009})
    ours = FAMILIES["llama-3.1"].chat_template()
    several = {"rag": "a", "tool_use": "b"}

    def exported(template: Any, family: str | None) -> tuple[Any, frozenset[int]]:
        return exported_format(tokenizer, chat_template=template, family=family)

    assert exported(None, "llama-3.1") == (ours, ends)
    assert exported(published["llama-3.1"], None) == (published["llama-3.1"], ends)
    assert exported(ours, None) == (ours, ends)
    assert exported(chatml, "llama-3.1") == (chatml, none)
    assert exported(several, None) == (several, none)
    assert exported(None, None) == (None, none)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-3.2-meta", r"llama-3\.2-meta, which exists only inside Corral, .* choose one of llama-3,"),
        ("template", "own chat template is exported anyway; leave the option out, or choose one of llama-3,"),
        ("chatml", r"is 'chatml'; choose one of llama-3, llama-3\.1, llama-3\.2, llama-3\.3$"),
    ],
)
def test_a_format_without_a_template_cannot_be_exported(name: str, words: str) -> None:
    with pytest.raises(RenderError, match=words):
        family_with_template(name)


def test_of_several_templates_the_one_for_tools_is_used_with_tools(chatml_folder: Path, chatml: str) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    templates = {"default": chatml, "tool_use": "{{ tools[0].function.name }}"}
    renderer = choose_renderer(tokenizer, chat_template=templates, family=None)
    user = {"role": "user", "content": "x"}
    tool = {"name": "weather"}
    assert tokenizer.decode(renderer.render([user], [tool]).tokens) == "weather"  # type: ignore[list-item]
    with pytest.raises(RenderError, match="none is called default"):
        choose_renderer(tokenizer, chat_template={"rag": "a", "tool_use": "b"}, family=None)


def test_a_template_tells_what_it_has_a_place_for(
    published: Mapping[str, str], template_folder: Path, chatml: str, llama_tokenizer: Make
) -> None:
    assert describe_template(published["llama-3.2"]).family == "llama-3.2"
    assert describe_template(published["llama-3.2"]).tools
    assert not describe_template(published["llama-3"]).tools
    about = describe_template(chatml)
    assert (about.family, about.system_role, about.tools, about.generation_blocks) == (
        None,
        True,
        False,
        False,
    )
    assert describe_template({"default": chatml, "tool_use": "{{ tools }}"}).tools
    assert describe_template((template_folder / "qwen3_training.jinja").read_text()).generation_blocks
    assert not describe_template((template_folder / "gemma.jinja").read_text()).system_role
    known = describe_format(llama_tokenizer("llama-3"), chat_template=None, family="llama-3")
    assert known == {"prompt_format": "llama-3", "system_role": True, "tools": False, "assistant_mask": True}
    assert describe_format(llama_tokenizer("llama-3"), chat_template=chatml, family=None)["tools"] is False
