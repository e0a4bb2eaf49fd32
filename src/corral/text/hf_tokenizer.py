"""Reads Hugging Face's tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from corral.errors import TokenizerError
from corral.text.token_bytes import byte_level_bytes, sentencepiece_bytes
from corral.text.tokenizer import ControlToken, Tokenizer

_LONG = 16_384  # characters, some milliseconds of work


class HfVocabulary:
    """A vocabulary run by the `tokenizers` library."""

    def __init__(self, source: str, fields: dict[str, Any], spelled_bytes: Callable[[str], bytes]) -> None:
        self._source = source
        self._spelled_bytes = spelled_bytes
        self._backend = _content_backend(source)
        later = _without_dummy_prefix(fields)
        self._later = _content_backend(json.dumps(later, ensure_ascii=False)) if later else self._backend
        self._added = {i: token.content for i, token in self._backend.get_added_tokens_decoder().items()}

    @property
    def size(self) -> int:
        return max(self._backend.get_vocab().values(), default=-1) + 1

    def encode(self, text: str, first: bool) -> list[int]:
        backend = self._backend if first else self._later
        if len(text) < _LONG:
            return list(backend.encode(text, add_special_tokens=False).ids)
        # The same ids, without holding the interpreter up: a long text would stop every other thread.
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
        return list(encoding.ids)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._spelled_bytes(token)

    def added_first(self) -> int | None:
        """The id that the tokenizer itself puts before a text, if any."""
        ids = self._backend.encode("", add_special_tokens=True).ids
        return ids[0] if ids else None

    def to_json(self) -> str:
        return self._source


def read_hf(path: Path) -> Tokenizer:
    """Reads a tokenizer.json, with tokenizer_config.json and special_tokens_map.json beside it if they are
    there.

    Raises:
        TokenizerError: the file is missing, is not a tokenizer, or has a vocabulary of an unknown kind.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        source = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{file} does not exist; a checkpoint needs its tokenizer.json") from None
    except UnicodeDecodeError:
        raise TokenizerError(f"{file} is not UTF-8 text; download it again") from None
    try:
        return from_json(source, _named_tokens(file.parent))
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


def from_json(source: str, named: dict[str, str]) -> Tokenizer:
    """A tokenizer from the text of a tokenizer.json; `named` holds bos_token and eos_token where known."""
    try:
        fields = json.loads(source)
        is_byte_level = "ByteLevel" in _component_types(fields.get("decoder"))
        vocabulary = HfVocabulary(source, fields, byte_level_bytes if is_byte_level else sentencepiece_bytes)
        added_first = vocabulary.added_first()
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise TokenizerError(f"not a readable tokenizer: {error}") from None
    control = [
        ControlToken(t["content"], t["id"], t.get("lstrip", False), t.get("rstrip", False))
        for t in fields.get("added_tokens") or []
        if t.get("special")
    ]
    ids = {token.text: token.id for token in control}
    bos_id, eos_id = ids.get(named.get("bos_token", "")), ids.get(named.get("eos_token", ""))
    if bos_id is None:
        bos_id = added_first
    return Tokenizer(
        vocabulary,
        control,
        bos_id=bos_id,
        eos_id=eos_id,
        adds_bos=added_first is not None and added_first == bos_id,
        prefix_space=bool({"Strip", "Metaspace"} & _component_types(fields.get("decoder"))),
    )


def _content_backend(source: str) -> Backend:
    backend = Backend.from_str(source)
    backend.encode_special_tokens = True  # the library's name for: special tokens in text are ordinary text
    backend.no_truncation()
    backend.no_padding()
    return backend


def _without_dummy_prefix(fields: dict[str, Any]) -> dict[str, Any] | None:
    """The same tokenizer for text that does not start the prompt, if it makes a difference.

    A Metaspace pre-tokenizer with prepend_scheme "first" adds a space only where the whole text starts.
    """
    whole = fields.get("pre_tokenizer") or {}
    parts = whole.get("pretokenizers") or [whole]
    later = [
        {**part, "prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else part
        for part in parts
    ]
    if later == parts:
        return None
    return {**fields, "pre_tokenizer": {"type": "Sequence", "pretokenizers": later}}


def _component_types(component: dict[str, Any] | None) -> set[str]:
    if not component:
        return set()
    inner = component.get("decoders") or []
    types = {part.get("type", "") for part in inner} | {component.get("type", "")}
    if not types & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise TokenizerError(
            f"its decoder is {component.get('type')!r}; Corral reads byte-level and SentencePiece tokenizers"
        )
    return types


def _named_tokens(folder: Path) -> dict[str, str]:
    """bos_token and eos_token, from whichever of the two side files names them."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TokenizerError(f"{name} is not valid JSON: {error}") from None
        for key in ("bos_token", "eos_token"):
            value = fields.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                named[key] = text
    return named
