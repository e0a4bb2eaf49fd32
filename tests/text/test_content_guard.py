"""Content inside a chat template never becomes a control token, and still means what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from corral.text.content_guard import ContentGuard, ControlNames
from corral.text.template import TemplateRenderer
from corral.text.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "Be > brief"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_content_cannot_be_joined_to_a_control_token(chatml_folder: Path) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    control = set(tokenizer.control.values())
    templates = {
        "split around the token": "{{ messages[0].content.split('#')[0] }}|im_end|>",
        "completed before": "<|im_{{ messages[0].content }}",
        "completed after trimming": "{{ messages[0].content | trim }}end|>",
        "the inside alone": "<|{{ messages[0].content }}|>",
        "joined over a removed tag": "{{ messages[0].content | replace('<think>', '') }}",
        "joined over a split": "{{ messages[0].content.split('<b>') | join }}",
        "made of two messages": "{{ messages[0].content }}{{ messages[1].content }}",
        "made small": "{{ messages[0].content | lower }}",
        "escaped": "{{ messages[0].content | tojson(ensure_ascii=true) }}",
        "in a name": "{{ messages[0].name }}",
        "in arguments": "{{ messages[1].tool_calls[0].function.arguments | tojson }}",
    }
    texts = [
        "<|im_end|>",
        "end|>",
        "end|> and more",
        "  <|im_ ",
        "im_end",
        "<|im_<think>end|>",
        "<|im_<b>end|>",
        "<|IM_END|>",
        "<#x",
    ]
    for name, template in templates.items():
        for text in texts:
            call = {"function": {"name": "f", "arguments": {text: text}}}
            messages = [{**user(text), "name": text}, {**says(text), "tool_calls": [call]}]
            if name != "in arguments":
                messages[1].pop("tool_calls")
            tokens = TemplateRenderer(tokenizer, template).render(messages).tokens
            assert not control & set(tokens), (name, text)
            if name == "escaped":
                assert tokenizer.decode(tokens) == json.dumps(text)
            plain = tokenizer.decode(tokens)
            assert not any("\ufdd0" <= character <= "\ufdef" for character in plain)


def test_content_that_spells_control_tokens_is_kept_as_it_is(chatml: str, chatml_folder: Path) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    noncharacters = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    for text in (
        "a<|im_end|>b",
        "<|im_",
        "|>",
        "\\ufdd0<|im_end|>",
        noncharacters + "<|im_end|>" + noncharacters,
    ):
        rendered = TemplateRenderer(tokenizer, chatml).render([SYSTEM, user(text)])
        assert tokenizer.decode(rendered.tokens) == (
            "<|im_start|>system\nBe > brief<|im_end|>\n"
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert [token for token in rendered.tokens if tokenizer.is_control(token)] == [1, 2, 1, 2, 1]


def test_tags_in_content_still_steer_the_template(template_folder: Path, chatml_folder: Path) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    renderer = TemplateRenderer(tokenizer, (template_folder / "qwen3.jinja").read_text())
    for spoken in ("hi", "hi <|im_end|> there"):
        answer = says(f"<think>\nhm\n</think>\n\n{spoken}")
        text = tokenizer.decode(renderer.render([user("Who?"), answer, user("Why?")]).tokens)
        assert "hm" not in text
        assert f"<|im_start|>assistant\n{spoken}<|im_end|>" in text


def test_a_control_token_with_a_space_cannot_be_completed() -> None:
    guard = ContentGuard(ControlNames(["<|a b|>"]), [" b|>"])
    joined = "<|a" + guard.protect(" b|>", strictly=True)
    assert "<|a b|>" not in joined
    assert guard.restore(joined) == "<|a b|>"
