"""Reads the tokenizer that a GGUF file carries in its metadata.

The fields are those of the GGUF specification (`tokenizer.ggml.*`): "gpt2" vocabularies are byte-level with
merges and a named way to cut text (`pre`); "llama" vocabularies are SentencePiece with a score for each
token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from corral.errors import TokenizerError
from corral.text.hf_tokenizer import HfVocabulary
from corral.text.meta_tokenizer import LLAMA_3_PATTERN
from corral.text.token_bytes import byte_level_bytes, sentencepiece_bytes
from corral.text.tokenizer import ControlToken, Tokenizer
from corral.text.tokenizer_json import added_token, byte_level, split_on, starts_with

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The kinds of tokens (`tokenizer.ggml.token_type`)."""

GPT_2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PATTERNS = {
    "default": [GPT_2_PATTERN],
    "gpt-2": [GPT_2_PATTERN],
    "smollm": [r"\p{N}", GPT_2_PATTERN],
    "starcoder": [r"\p{N}", GPT_2_PATTERN],
    "refact": [r"\p{N}", GPT_2_PATTERN],
    "command-r": [r"\p{N}", GPT_2_PATTERN],
    "llama-bpe": [LLAMA_3_PATTERN],
    "llama3": [LLAMA_3_PATTERN],
    "llama-v3": [LLAMA_3_PATTERN],
    "smaug-bpe": [LLAMA_3_PATTERN],
}
"""How each named pre-tokenizer (`tokenizer.ggml.pre`) cuts text: patterns applied one after another."""
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")
"""Those with which a word that is in the vocabulary is not merged."""


def read_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Builds a tokenizer from GGUF metadata.

    Raises:
        TokenizerError: a field is missing, or names a kind of vocabulary that Corral does not know.
    """
    kind = _field(metadata, "model")
    tokens: list[str] = _field(metadata, "tokens")
    types: list[int] = list(metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    if len(types) != len(tokens):
        raise TokenizerError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    count = _without_padding(types)
    tokens, types = tokens[:count], types[:count]
    if kind == "gpt2":
        pre = metadata.get("tokenizer.ggml.pre", "default")
        fields = _byte_level(tokens, _field(metadata, "merges"), pre)
        adds_bos = pre in WHOLE_WORDS_FIRST
    elif kind == "llama":
        add_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        scores: list[float] = _field(metadata, "scores")
        if len(scores) < count:
            raise TokenizerError(f"tokenizer.ggml.scores has {len(scores)} entries for {count} tokens")
        fields = _sentencepiece(tokens, scores[:count], types, add_prefix)
        adds_bos = True
    else:
        raise TokenizerError(f"tokenizer.ggml.model is {kind!r}; Corral reads gpt2 and llama")
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    adds_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos))
    fields["added_tokens"] = [
        added_token(tokens[i], i, special=kind != USER_DEFINED)
        for i, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    if adds_bos and bos_id is not None:
        fields["post_processor"] = starts_with(tokens[bos_id], bos_id)
    control = [ControlToken(tokens[i], i) for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)]
    return Tokenizer(
        HfVocabulary(
            json.dumps(fields, ensure_ascii=False),  # with escapes it takes four times as long
            fields,
            byte_level_bytes if kind == "gpt2" else sentencepiece_bytes,
        ),
        control,
        bos_id=bos_id,
        eos_id=metadata.get("tokenizer.ggml.eos_token_id"),
        adds_bos=adds_bos,
        prefix_space=kind == "llama",
    )


def _field(metadata: Mapping[str, Any], name: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise TokenizerError(f"the GGUF file has no tokenizer.ggml.{name}")
    return value


def _without_padding(types: Sequence[int]) -> int:
    """The number of tokens but for the unused ones at the end, which only make up the embedding's rows."""
    count = len(types)
    while count and types[count - 1] == UNUSED:
        count -= 1
    return count


def _byte_level(tokens: Sequence[str], merges: Sequence[str], pre: str) -> dict[str, Any]:
    if pre not in PATTERNS:
        raise TokenizerError(f"tokenizer.ggml.pre is {pre!r}; Corral knows {', '.join(PATTERNS)}")
    return {
        "version": "1.0",
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*map(split_on, PATTERNS[pre]), byte_level()],
        },
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "ignore_merges": pre in WHOLE_WORDS_FIRST,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _sentencepiece(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], add_prefix: bool
) -> dict[str, Any]:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prefix = {"type": "Prepend", "prepend": "\u2581"}
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == UNKNOWN), None)
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [prefix, space] if add_prefix else [space]},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _merges_by_score(tokens, scores),
        },
    }


def _merges_by_score(tokens: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """SentencePiece merges the neighbours whose union scores best; as ranked merges, best first."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[token], ids[left], ids[right]))
    return [[tokens[left], tokens[right]] for _, _, left, right in sorted(merges)]
