"""Tokens to text while they arrive."""

from __future__ import annotations

import codecs
from collections.abc import Collection

from corral.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Gives the text of each token as soon as it is certain.

    A character whose bytes are spread over several tokens is held back until its last byte is there, and
    nothing else is. The pieces, with that of `finish`, joined, equal `Tokenizer.decode` of all the tokens.

    `skip_control` leaves control tokens out, but for those among `shown`. `continues` says that the tokens go
    on from earlier text, so that a SentencePiece token's leading space is kept.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_control: bool = True,
        shown: Collection[int] = (),
        continues: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_control, self._shown = skip_control, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_space = tokenizer.prefix_space and not continues

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still incomplete."""
        is_control = self._tokenizer.is_control(token_id)
        if is_control and self._skip_control and token_id not in self._shown:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._strip_space:
            data = data if is_control else data.removeprefix(b" ")
            self._strip_space = False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """The replacement character for bytes that never became a character, if there are any."""
        return self._decoder.decode(b"", final=True)
