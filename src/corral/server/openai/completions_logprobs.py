"""Log-probabilities in the form of OpenAI's text completions: four lists, with an entry for each token."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from typing import Any

from corral.engine.events import TokenLogprobs
from corral.server.wire import finite
from corral.text.tokenizer import Tokenizer

Place = tuple[int, TokenLogprobs | None]
"""A token, and what is known of its place: nothing of the first one, before which is nothing."""


class LogprobLists:
    """Writes the lists of one answer, part by part.

    `text_offset` counts the characters of the answer's text that stand before a token. A token that holds the
    middle of a character has the offset of that character; one that is left out of the text adds nothing.

    Args:
        tokenizer: of the model.
        top: how many of the most likely tokens are told at each place, besides the one that stands there.
        shows_control: the text holds control tokens.
    """

    def __init__(self, tokenizer: Tokenizer, top: int, shows_control: bool) -> None:
        self._tokenizer, self._top, self._shows_control = tokenizer, top, shows_control
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def prompt(self, tokens: Sequence[int], scored: Sequence[TokenLogprobs], is_text: bool) -> dict[str, Any]:
        """Of the prompt, which begins the answer's text. `is_text`: it was given as a text, in which no
        control token stands."""
        places: list[Place] = [(tokens[0], None), *zip(tokens[1:], scored, strict=True)]
        shows_control, self._shows_control = self._shows_control, self._shows_control and not is_text
        if self._tokenizer.prefix_space and not self._tokenizer.is_control(tokens[0]):
            self._length -= 1  # the space before the first word is not part of the text
        lists = self._write(places)
        self._shows_control = shows_control
        return lists

    def output(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Of tokens that were generated."""
        return self._write((at.chosen.token_id, at) for at in logprobs)

    def _write(self, places: Iterable[Place]) -> dict[str, Any]:
        lists: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, at in places:
            lists["tokens"].append(unique_text(self._tokenizer, token_id))
            lists["token_logprobs"].append(None if at is None else finite(at.chosen.logprob))
            lists["top_logprobs"].append(None if at is None else self._likely(at))
            lists["text_offset"].append(max(0, self._length))
            self._length += len(self._decoder.decode(self._shown(token_id)))
        return lists

    def _likely(self, at: TokenLogprobs) -> dict[str, float]:
        """The most likely tokens by their texts, and the one that stands there."""
        likely: dict[str, float] = {}
        for token in (*at.top[: self._top], at.chosen):
            likely.setdefault(unique_text(self._tokenizer, token.token_id), finite(token.logprob))
        return likely

    def _shown(self, token_id: int) -> bytes:
        """What a token adds to the text."""
        if token_id >= self._tokenizer.vocab_size:
            return b""
        if self._tokenizer.is_control(token_id) and not self._shows_control:
            return b""
        return self._tokenizer.token_bytes(token_id)


def unique_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of a token alone. Tokens that are no whole characters are written as OpenAI writes them, by
    their bytes, so that no two look the same: `bytes:\\xe2\\x82`."""
    if token_id >= tokenizer.vocab_size:
        return f"token_id:{token_id}"  # a row by which the embedding is padded
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The lists of several parts as one."""
    return {name: [entry for part in parts for entry in part[name]] for name in parts[0]}
