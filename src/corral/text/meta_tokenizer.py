"""Reads Meta's tokenizer.model: 128,000 byte sequences with their merge ranks, for tiktoken."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiktoken

from corral.errors import TokenizerError
from corral.text.control_tokens import BEGIN_OF_TEXT, END_OF_TEXT, FIRST_CONTROL_ID, control_names
from corral.text.token_bytes import byte_characters
from corral.text.tokenizer import ControlToken, Tokenizer
from corral.text.tokenizer_json import added_token, byte_level, split_on, starts_with

# How Llama 3 cuts text before merging bytes.
LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Meta's reference cuts very long texts and very long runs, which tiktoken cannot take whole; the same cuts
# give the same ids.
_MAX_CHARS = 400_000
_MAX_RUN = 25_000
_LONG_RUN = re.compile(rf"\s{{{_MAX_RUN + 1},}}|\S{{{_MAX_RUN + 1},}}")


class MetaVocabulary:
    """A vocabulary run by the `tiktoken` library."""

    def __init__(self, ranks: dict[bytes, int], family: str) -> None:
        self._ranks = ranks
        self._family = family
        self._encoding = tiktoken.Encoding(
            "llama-3", pat_str=LLAMA_3_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    @property
    def size(self) -> int:
        return len(self._ranks)

    def encode(self, text: str, first: bool) -> list[int]:
        del first  # byte-level vocabularies do not care
        return [i for piece in _pieces(text) for i in self._encoding.encode_ordinary(piece)]

    def token_bytes(self, token_id: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token_id)

    def to_json(self) -> str:
        return json.dumps(_to_hf(self._ranks, self._family), ensure_ascii=False)


def read_meta(file: Path, family: str) -> Tokenizer:
    """Reads a tokenizer.model.

    Raises:
        TokenizerError: the file is missing, is no rank file, or does not have 128,000 ranks.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        raise TokenizerError(f"{file} cannot be read; a Meta checkpoint needs its tokenizer.model") from None
    try:
        ranks = {
            base64.b64decode(t, validate=True): int(r) for t, r in (line.split() for line in lines if line)
        }
    except (ValueError, binascii.Error):
        raise TokenizerError(
            f"{file} is not a Llama 3 tokenizer.model: expected lines of a base64 token and its rank"
        ) from None
    if sorted(ranks.values()) != list(range(FIRST_CONTROL_ID)):
        raise TokenizerError(
            f"{file} has {len(ranks)} ranks; Llama 3's tokenizer.model has {FIRST_CONTROL_ID}"
        )
    names = control_names(family)
    return Tokenizer(
        MetaVocabulary(ranks, family),
        [ControlToken(text, token_id) for text, token_id in names.items()],
        bos_id=names[BEGIN_OF_TEXT],
        eos_id=names[END_OF_TEXT],
        adds_bos=True,
    )


def _pieces(text: str) -> Iterator[str]:
    if len(text) <= _MAX_RUN:
        yield text
        return
    for start in range(0, len(text), _MAX_CHARS):
        chunk = text[start : start + _MAX_CHARS]
        cuts = [
            c for run in _LONG_RUN.finditer(chunk) for c in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN)
        ]
        for begin, end in zip([0, *cuts], [*cuts, len(chunk)], strict=True):
            yield chunk[begin:end]


def _to_hf(ranks: dict[bytes, int], family: str) -> dict[str, Any]:
    """The ranks as a tokenizer.json: each rank becomes the merges that can make its bytes."""
    characters = byte_characters()
    spelled = {token: "".join(characters[byte] for byte in token) for token in ranks}
    control = control_names(family)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(text, token_id) for text, token_id in control.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                split_on(LLAMA_3_PATTERN),
                byte_level(),
            ],
        },
        "post_processor": starts_with(BEGIN_OF_TEXT, control[BEGIN_OF_TEXT]),
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled[token]: rank for token, rank in ranks.items()},
            "merges": [[spelled[left], spelled[right]] for left, right in _merges(ranks)],
        },
    }


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(a, b) for a, b in splits if a in ranks and b in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
