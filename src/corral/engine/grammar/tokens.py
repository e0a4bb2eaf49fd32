"""A tokenizer's vocabulary as llguidance wants it: the bytes of each token, and which are content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLTokenizer
from torch import Tensor

from corral.text.tokenizer import Tokenizer

_FRONT_CHARACTERS = 1024
_FRONT_TOKENS = 64
_MARKER = b"\xff"  # llguidance writes it before control tokens; no UTF-8 text holds that byte


class TokenTable:
    """The object from which llguidance makes its own tokenizer: it reads these names, and calls it on text.

    One token is added to the vocabulary: the end of the text. Requests differ in their stop ids, so it is the
    only one that llguidance is told of.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self.eos_token_id = size
        self.special_token_ids = [i for i in range(size) if tokenizer.is_control(i)]
        spelled = [tokenizer.token_bytes(i) for i in range(size)]
        self.tokens = [b"" if token.startswith(_MARKER) else token for token in spelled] + [b""]
        self._longest = max(map(len, self.tokens))
        self._ids: dict[bytes, int] = {}

    def __call__(self, text: str) -> list[int]:
        """Ids that spell exactly this text, which a grammar forces to come next.

        Only the first few decide what comes next, so of a long text the front is enough: spelling all of it
        again for each token would take quadratic time.
        """
        if len(text) > _FRONT_CHARACTERS:
            front = self._spell(text[:_FRONT_CHARACTERS])
            if len(front) > _FRONT_TOKENS:
                return front[: -_FRONT_TOKENS // 4]
        return self._spell(text)

    def _spell(self, text: str) -> list[int]:
        wanted = text.encode()
        ids = self._tokenizer.encode(text)
        if self._bytes(ids) == wanted:
            return ids
        # SentencePiece may add a space where a text begins: let something else begin it, and drop that.
        ids = self._tokenizer.encode("\n" + text)
        for dropped in range(1, len(ids)):
            if self._bytes(ids[dropped:]) == wanted:
                return ids[dropped:]
        return self._longest_tokens(wanted)

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)

    def _longest_tokens(self, text: bytes) -> list[int]:
        if not self._ids:
            control = set(self.special_token_ids)
            self._ids = {token: i for i, token in enumerate(self.tokens) if token and i not in control}
        ids, start = [], 0
        while start < len(text):
            ends = range(min(start + self._longest, len(text)), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), None)
            if end is None:  # no token has this byte
                break
            ids.append(self._ids[text[start:end]])
            start = end
        return ids


class TokenEnvironment:
    """llguidance's tokenizer for a vocabulary, and the masks that go with it. Takes a third of a second and
    50 MB for 128,000 tokens: one is made for each model.

    Attributes:
        ll_tokenizer: the tokenizer from which matchers are made.
        num_words: 32-bit words of a mask over the model's logits.
        ll_words: those of llguidance's, which covers the tokenizer's ids and the end of the text.
        content: int32 [max(num_words, ll_words)], the ids that text may consist of: no control tokens, none
            without bytes, none of the rows that pad an embedding.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        table = TokenTable(tokenizer)
        self.vocab_size = vocab_size
        self.ll_tokenizer = LLTokenizer(table)  # type: ignore[arg-type]
        self.num_words = _words(vocab_size)
        self.ll_words = _words(len(table.tokens))
        control = set(table.special_token_ids)
        self.content = self.mask_of(
            [i for i, token in enumerate(table.tokens[:vocab_size]) if token and i not in control]
        )

    def mask_of(self, ids: Sequence[int]) -> Tensor:
        """A mask, as wide as `content`, that allows these ids; ids that the model lacks are left out."""
        bits = np.zeros(32 * max(self.num_words, self.ll_words), dtype=bool)
        bits[[i for i in ids if 0 <= i < self.vocab_size]] = True
        return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))


def _words(bits: int) -> int:
    return (bits + 31) // 32
