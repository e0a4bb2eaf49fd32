"""Text to token ids and back, whichever file the vocabulary came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from corral.errors import TokenizerError


class Vocabulary(Protocol):
    """What a tokenizer file provides. Implementations: tokenizer.json, Meta's ranks, GGUF metadata."""

    @property
    def size(self) -> int:
        """One more than the highest id."""

    def encode(self, text: str, first: bool) -> list[int]:
        """Ids of text, special tokens never recognised; `first` says that the text starts a prompt."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that an ordinary token stands for."""

    def to_json(self) -> str:
        """The vocabulary as a tokenizer.json."""


@dataclass(frozen=True)
class ControlToken:
    """A token that only a prompt format may write. `lstrip` and `rstrip`: it swallows white space beside it
    when it is recognised in the text of a chat template."""

    text: str
    id: int
    lstrip: bool = False
    rstrip: bool = False


class Tokenizer:
    """Encodes content and decodes tokens.

    Content never becomes a control token: `encode` treats the text `<|eot_id|>` as seven ordinary tokens.
    Only `encode_prompt_text`, for the trusted text of prompt formats, recognises control tokens.

    Attributes:
        vocab_size: one more than the highest id.
        control: text of each control token to its id.
        bos_id, eos_id: ids that start and end a text, where the vocabulary names them.
        adds_bos: whether plain text starts with `bos_id`.
        prefix_space: SentencePiece's dummy prefix: the first token's leading space is not part of the text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        control: Sequence[ControlToken],
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        adds_bos: bool = False,
        prefix_space: bool = False,
    ) -> None:
        self._vocabulary = vocabulary
        self._control_tokens = {token.text: token for token in control}
        self._control_texts = {token.id: token.text for token in control}
        self.control: Mapping[str, int] = {token.text: token.id for token in control}
        self.vocab_size = max([vocabulary.size, *(token.id + 1 for token in control)])
        self.bos_id, self.eos_id = bos_id, eos_id
        self.adds_bos = adds_bos and bos_id is not None
        self.prefix_space = prefix_space
        self._split_pattern = _alternation(self._control_tokens)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_hf(cls, path: str | Path) -> Tokenizer:
        """Reads a tokenizer.json (or a folder with one, and tokenizer_config.json beside it)."""
        from corral.text.hf_tokenizer import read_hf

        return read_hf(Path(path))

    @classmethod
    def from_meta(cls, path: str | Path, family: str = "llama-3.1") -> Tokenizer:
        """Reads Meta's tokenizer.model; the control tokens are those of the family."""
        from corral.text.meta_tokenizer import read_meta

        return read_meta(Path(path), family)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Reads the `tokenizer.ggml.*` fields of a GGUF file."""
        from corral.text.gguf_tokenizer import read_gguf

        return read_gguf(metadata)

    def control_id(self, token: str | int) -> int:
        """The id of a control token, given by name or id.

        Raises:
            TokenizerError: it is no control token of this vocabulary.
        """
        if token in self.control:
            return self.control[token]  # type: ignore[index]
        if isinstance(token, int) and token in self._control_texts:
            return token
        raise TokenizerError(f"{token!r} is not a control token of this tokenizer")

    def is_control(self, token_id: int) -> bool:
        """Whether an id is a control token."""
        return token_id in self._control_texts

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        """Ids of content; never a control id.

        `first` says that the text starts the prompt, where SentencePiece vocabularies may add a space.
        """
        if not text:
            return []
        ids = self._vocabulary.encode(_without_surrogates(text), first)
        if any(token_id in self._control_texts for token_id in ids):
            return self._respell(ids)
        return ids

    def encode_prompt_text(self, text: str) -> list[int]:
        """Ids of the trusted text of a prompt format: control tokens are recognised."""
        ids: list[int] = []
        for index, piece in enumerate(self.split_control(text)):
            ids.extend([piece] if isinstance(piece, int) else self.encode(piece, first=index == 0))
        return ids

    def split_control(self, text: str) -> list[str | int]:
        """Cuts trusted text into control ids and the pieces of text between them."""
        pieces: list[str | int] = []
        end = 0
        for match in self._split_pattern.finditer(text):
            token = self._control_tokens[match[0]]
            between = text[end : match.start()]
            pieces.append(between.rstrip() if token.lstrip else between)
            pieces.append(token.id)
            end = match.end()
            while token.rstrip and text[end : end + 1].isspace():
                end += 1
        return [piece for piece in [*pieces, text[end:]] if piece != ""]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; for a control token those of its name.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        known = self._bytes.get(token_id)
        if known is None:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
            text = self._control_texts.get(token_id)
            known = self._vocabulary.token_bytes(token_id) if text is None else text.encode()
            self._bytes[token_id] = known
        return known

    def decode(self, ids: Sequence[int], *, skip_control: bool = False) -> str:
        """The text of tokens. Bytes that are not UTF-8 become U+FFFD."""
        kept = [i for i in ids if not (skip_control and self.is_control(i))]
        text = b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")
        strips = self.prefix_space and kept and not self.is_control(kept[0])
        return text.removeprefix(" ") if strips else text

    def to_json(self) -> str:
        """The tokenizer as a Hugging Face tokenizer.json."""
        return self._vocabulary.to_json()

    def _respell(self, ids: list[int]) -> list[int]:
        """Spells out control tokens that a vocabulary with unusual merges has formed from content."""
        result: list[int] = []
        for token_id in ids:
            text = self._control_texts.get(token_id)
            spelled = [token_id] if text is None else [i for c in text for i in self._character_ids(c)]
            result.extend(spelled)
        return result

    def _character_ids(self, character: str) -> list[int]:
        ids = self._vocabulary.encode(character, False)
        return [i for i in ids if i not in self._control_texts]


def _alternation(texts: Mapping[str, object]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _without_surrogates(text: str) -> str:
    """Joins surrogate pairs and replaces lone surrogates, which no UTF-8 text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def first_difference(one: Tokenizer, other: Tokenizer) -> int | None:
    """The first id that does not mean the same to both, as far as both go. Control tokens may differ in name,
    as the reserved ones of Llama 3 do between its versions."""
    for token_id in range(min(one.vocab_size, other.vocab_size)):
        if one.token_bytes(token_id) != other.token_bytes(token_id) and not (
            one.is_control(token_id) and other.is_control(token_id)
        ):
            return token_id
    return None


def check_fits(tokenizer: Tokenizer, embedding_rows: int) -> None:
    """Refuses a tokenizer that belongs to another model.

    Embeddings are sometimes padded a little beyond the vocabulary; they are never smaller.

    Raises:
        TokenizerError: the vocabulary is larger than the embedding, or smaller by more than a tenth.
    """
    size = tokenizer.vocab_size
    if size > embedding_rows or size < 0.9 * embedding_rows - 1024:
        raise TokenizerError(
            f"the tokenizer has {size} tokens but the model's embedding has {embedding_rows} rows; "
            "they belong to different models"
        )
