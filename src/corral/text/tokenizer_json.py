"""Pieces of Hugging Face's tokenizer.json, for vocabularies that come from other files."""

from __future__ import annotations

from typing import Any


def added_token(text: str, token_id: int, *, special: bool = True) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, **flags, "special": special}


def split_on(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts text into the matches of a pattern and what is between them."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level() -> dict[str, Any]:
    """The pre-tokenizer (and decoder) that spells each byte as a printable character."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def starts_with(text: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts one token before a text."""
    token = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, {"SpecialToken": {"id": text, "type_id": 1}}, second],
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]}},
    }
