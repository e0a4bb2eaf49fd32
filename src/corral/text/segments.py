"""Token ids built segment by segment: control tokens by id, text with no control tokens allowed."""

from __future__ import annotations

from collections.abc import Iterable

from corral.text.rendered import Rendered
from corral.text.tokenizer import Tokenizer


class Segments:
    """Collects control tokens and text, and which of them the assistant produced.

    With `join_text`, text between two control tokens is encoded as one string, as when a rendered chat
    template is tokenized; without, each piece is encoded by itself, as Meta's reference does.
    """

    def __init__(self, tokenizer: Tokenizer, *, join_text: bool) -> None:
        self._tokenizer = tokenizer
        self._join_text = join_text
        self._run: list[tuple[str, bool]] = []
        self._tokens: list[int] = []
        self._mask: list[bool] = []

    def control(self, token: str | int, *, assistant: bool = False) -> None:
        """Adds a control token, by name or id."""
        self._encode_run()
        self._tokens.append(self._tokenizer.control_id(token))
        self._mask.append(assistant)

    def text(self, text: str, *, assistant: bool = False) -> None:
        """Adds text; whatever it spells, it becomes ordinary tokens."""
        self._run.append((text, assistant))
        if not self._join_text:
            self._encode_run()

    def rendered(self, stop_ids: Iterable[int]) -> Rendered:
        """All segments as a prompt."""
        self._encode_run()
        return Rendered(tuple(self._tokens), tuple(self._mask), frozenset(stop_ids))

    def _encode_run(self) -> None:
        pieces, self._run = self._run, []
        text = "".join(piece for piece, _ in pieces)
        if not text:
            return
        ids = self._tokenizer.encode(text, first=not self._tokens)
        self._tokens.extend(ids)
        self._mask.extend(self._run_mask(ids, text, pieces))

    def _run_mask(self, ids: list[int], text: str, pieces: list[tuple[str, bool]]) -> list[bool]:
        """A token belongs to the piece in which its first byte lies."""
        if len({assistant for _, assistant in pieces}) == 1:
            return [pieces[0][1]] * len(ids)
        lengths = [len(self._tokenizer.token_bytes(i)) for i in ids]
        # A leading space that a SentencePiece vocabulary added is not part of the text.
        start = min(0, _utf8_length(text) - sum(lengths))
        produced, position = [], 0
        for piece, assistant in pieces:
            end = position + _utf8_length(piece)
            if assistant:
                produced.append(range(position, end))
            position = end
        mask = []
        for length in lengths:
            mask.append(any(max(start, 0) in span for span in produced))
            start += length
        return mask


def _utf8_length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
