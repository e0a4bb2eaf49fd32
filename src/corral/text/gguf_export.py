"""Writes a tokenizer as the metadata of a GGUF file.

The fields are those that `gguf_tokenizer` reads. They say less than a tokenizer.json does: the way to cut
text has a name (`tokenizer.ggml.pre`), and a SentencePiece vocabulary has scores in place of merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from corral.errors import TokenizerError
from corral.text.gguf_tokenizer import (
    BYTE,
    CONTROL,
    GPT_2_PATTERN,
    NORMAL,
    PATTERNS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WHOLE_WORDS_FIRST,
)
from corral.text.tokenizer import Tokenizer, check_fits

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
# Of names that mean the same, the first is written. What "default" means is another thing to llama.cpp.
_NAMES = [name for name in PATTERNS if name != "default"]


@dataclass(frozen=True)
class GgufVocabulary:
    """A tokenizer as GGUF metadata.

    Attributes:
        fields: `tokenizer.ggml.*`, but for the ids that end a message, which the tokenizer does not know.
        losses: what GGUF has no place for: a sentence each.
    """

    fields: dict[str, Any]
    losses: tuple[str, ...] = ()


def to_gguf(tokenizer: Tokenizer, embedding_rows: int) -> GgufVocabulary:
    """The metadata of a tokenizer, padded with unused tokens to the rows of the embedding.

    Raises:
        TokenizerError: GGUF cannot hold the tokenizer, or it belongs to another model.
    """
    check_fits(tokenizer, embedding_rows)
    source = json.loads(tokenizer.to_json())
    model = source["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(
            f"the tokenizer is a {model['type']} model; GGUF files hold BPE for Llama models"
        )
    tokens, types = _tokens(source, embedding_rows)
    is_byte_level = "ByteLevel" in _types_in(source.get("decoder"), "decoders")
    fields, losses = (_byte_level(source), []) if is_byte_level else _sentencepiece(source, tokens, types)
    fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"] = tokens, types
    fields["tokenizer.ggml.add_bos_token"] = tokenizer.adds_bos
    if tokenizer.bos_id is not None:
        fields["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    if model.get("unk_token") in tokens:
        fields["tokenizer.ggml.unknown_token_id"] = tokens.index(model["unk_token"])
    flagged = [
        t["content"] for t in _added(source) if t.get("lstrip") or t.get("rstrip") or t.get("single_word")
    ]
    if flagged:
        losses = [
            *losses,
            f"GGUF has no place for the white space that {flagged[0]} takes away, or for where it may stand",
        ]
    return GgufVocabulary(fields, tuple(losses))


def _added(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    return source.get("added_tokens") or []


def _tokens(source: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Each id's token and its type. An id without a token gets a name that llama.cpp's converter gives it."""
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    falls_back = source["model"].get("byte_fallback")
    for token, token_id in source["model"]["vocab"].items():
        tokens[token_id] = token
        types[token_id] = BYTE if falls_back and _BYTE_TOKEN.fullmatch(token) else NORMAL
    for added in _added(source):
        if added["id"] >= rows:
            raise TokenizerError(
                f"{added['content']} has the id {added['id']}, which the model has no row for"
            )
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    unknown = source["model"].get("unk_token")
    if falls_back and unknown in tokens:
        types[tokens.index(unknown)] = UNKNOWN
    return tokens, types


# Byte-level vocabularies.


def _byte_level(source: Mapping[str, Any]) -> dict[str, Any]:
    model = source["model"]
    if source.get("normalizer") is not None:
        kind = source["normalizer"].get("type")
        raise TokenizerError(f"the tokenizer changes text first ({kind}); GGUF has no place for that")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre(_patterns(source), bool(model.get("ignore_merges"))),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(model)],
    }


def _patterns(source: Mapping[str, Any]) -> list[str]:
    """The patterns by which a byte-level tokenizer cuts text, one after another."""
    patterns = []
    for part in _components(source.get("pre_tokenizer"), "pretokenizers"):
        kind = part["type"]
        if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            patterns.append(str(part["pattern"].get("Regex", part["pattern"].get("String"))))
        elif kind == "Digits" and part.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind == "ByteLevel" and not part.get("add_prefix_space"):
            patterns += [GPT_2_PATTERN] if part.get("use_regex", True) else []
        else:
            raise TokenizerError(f"the tokenizer's pre_tokenizer {part} has no name in GGUF")
    return patterns


def _pre(patterns: list[str], whole_words_first: bool) -> str:
    for name in _NAMES:
        if PATTERNS[name] == patterns and (name in WHOLE_WORDS_FIRST) == whole_words_first:
            return name
    whole = ", whole words first" if whole_words_first else ""
    raise TokenizerError(
        f"the tokenizer cuts text by {patterns}{whole}; GGUF has no name for that among those that Corral "
        f"knows ({', '.join(_NAMES)})"
    )


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges, best first; older files have each as text with one space."""
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or [])
    return [(left, right) for left, right in merges]


# SentencePiece vocabularies.


def _sentencepiece(
    source: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> tuple[dict[str, Any], list[str]]:
    model = source["model"]
    prefix, losses = _space_prefix(source)
    merges = _merges(model)
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    if not _follow_from_scores(merges, ranks, tokens, types):
        losses.append(
            "GGUF has a score for each token in place of merges: some words may be cut in another way"
        )
    # What no merge makes comes last, should it come from a merge after all.
    scores = [
        -float(ranks.get(token, len(ranks))) if kind == NORMAL else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.scores": scores,
    }
    return fields, losses


def _space_prefix(source: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether a space is put before text; and how GGUF's way differs, which does so after each control token,
    and before text that starts with a space too (as SentencePiece does)."""
    normalizers = _components(source.get("normalizer"), "normalizers")
    pre = _components(source.get("pre_tokenizer"), "pretokenizers")
    unknown = [p for p in normalizers if p not in (_PREPEND, _REPLACE)]
    unknown += [p for p in pre if p["type"] != "Metaspace" or p.get("replacement", _SPACE) != _SPACE]
    if unknown:
        raise TokenizerError(f"the tokenizer changes text by {unknown[0]}; GGUF has no place for that")
    if _PREPEND in normalizers:
        return True, []
    scheme = pre[0].get("prepend_scheme", "always") if pre else "never"
    losses = []
    if scheme == "first":
        losses.append(
            "GGUF's tokenizer puts a space after each control token too, not before the prompt alone"
        )
    if scheme in ("first", "always"):
        losses.append("GGUF's tokenizer puts a space before text that starts with one, too")
    if pre and pre[0].get("split", True):
        losses.append("GGUF's tokenizer may join words that this one keeps apart")
    return scheme != "never", losses


def _follow_from_scores(
    merges: Sequence[tuple[str, str]], ranks: Mapping[str, int], tokens: Sequence[str], types: Sequence[int]
) -> bool:
    """Whether merging the neighbours whose union scores best is the same as going by the ranks of merges.

    It is if all pairs that make a token are merges, and follow each other.
    """
    if sum(1 for _ in groupby(left + right for left, right in merges)) != len(ranks):
        return False
    known = set(tokens)
    ordinary = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    makers = {
        (token[:cut], token[cut:])
        for token in ordinary
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    }
    return makers == {(left, right) for left, right in merges if left + right in ordinary}


def _components(component: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """A component of a tokenizer.json, or the ones that it is a sequence of."""
    if not component:
        return []
    return component.get(inner) or [component]


def _types_in(component: Mapping[str, Any] | None, inner: str) -> set[str]:
    return {part["type"] for part in _components(component, inner)}
