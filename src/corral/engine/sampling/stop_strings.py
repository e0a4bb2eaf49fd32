"""The text of one output, cut at a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from corral.engine.sampling.params import SamplingParams
from corral.text.detokenizer import IncrementalDetokenizer
from corral.text.tokenizer import Tokenizer


class StopStrings:
    """Finds stop strings in a text that arrives in pieces; however it is cut, the same one is found.

    The stop string whose end comes first ends the text; of several with the same end, the longest, which is
    the one that starts first. So it is certain as soon as its last character is there.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self.begun = ""  # the end of the text so far that a stop string may begin with

    def push(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """What there is from the first begun stop string on, up to the end of the one found; and that one.

        Without one found it is all the text, and the end of it that may still become one stays in `begun`.
        Where not `armed`, none that is complete with this text counts.
        """
        whole = self.begun + text
        found = self._first_end(whole, len(self.begun)) if armed and text else None
        if found is not None:
            end, stop = found
            self.begun = ""
            return whole[:end], stop
        self.begun = whole[self._start_of_begun(whole) :]
        return whole, None

    def _first_end(self, whole: str, old: int) -> tuple[int, str] | None:
        """The end of the first stop string that ends beyond the `old` characters, and that string."""
        ends: list[tuple[int, int, str]] = []
        for stop in self._stops:
            start = whole.find(stop, max(0, old + 1 - len(stop)))
            if start >= 0:
                ends.append((start + len(stop), start, stop))
        if not ends:
            return None
        end, _, stop = min(ends)
        return end, stop

    def _start_of_begun(self, whole: str) -> int:
        """Where the longest end of the text starts that a stop string begins with, and goes on from."""
        earliest = len(whole)
        for stop in self._stops:
            start = whole.find(stop[0], max(0, len(whole) + 1 - len(stop)), earliest)
            while start >= 0 and not stop.startswith(whole[start:]):
                start = whole.find(stop[0], start + 1, earliest)
            earliest = start if start >= 0 else earliest
        return earliest


class OutputText:
    """The text of one output, token by token. The pieces, with that of `finish`, joined, are the whole text.

    Text is held back while a character is incomplete, and while a stop string may have begun, unless that is
    to be kept anyway; nothing behind a stop string is ever given. A stop string that is complete before
    `min_tokens` tokens does not count. Without a tokenizer there is no text.

    `continues` says that the output goes on from the prompt's last text, so that a leading space is kept;
    `shown_ids` are control tokens that are not left out.

    Attributes:
        stopped: the stop string that was found; the text is complete with it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        params: SamplingParams,
        continues: bool,
        shown_ids: Collection[int] = (),
    ) -> None:
        self.stopped: str | None = None
        self._detokenizer: IncrementalDetokenizer | None = None
        self._vocab_size = 0
        if tokenizer is not None:
            self._vocab_size = tokenizer.vocab_size
            skips = params.skip_special_tokens
            self._detokenizer = IncrementalDetokenizer(
                tokenizer, skip_control=skips, shown=shown_ids, continues=continues
            )
        self._stops = StopStrings(params.stop) if params.stop else None
        self._keeps_stop = params.include_stop_str_in_output
        self._tokens_to_go = params.min_tokens

    def push(self, token_id: int) -> str:
        """The text that is certain with this token."""
        if self._detokenizer is None or self.stopped is not None:
            return ""
        self._tokens_to_go = max(0, self._tokens_to_go - 1)
        if token_id >= self._vocab_size:  # a row by which the embedding is padded: it has no text
            return ""
        return self._certain(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """The rest of the text, where the output has ended otherwise; a stop string may still end in it."""
        if self._detokenizer is None or self.stopped is not None:
            return ""
        text = self._certain(self._detokenizer.finish())
        if self._stops is None or self._keeps_stop or self.stopped is not None:
            return text
        rest, self._stops.begun = self._stops.begun, ""
        return text + rest

    def _certain(self, text: str) -> str:
        """What may be given with this new text: begun stop strings wait, unless they are kept anyway."""
        if self._stops is None:
            return text
        given = len(self._stops.begun) if self._keeps_stop else 0
        text, self.stopped = self._stops.push(text, armed=self._tokens_to_go == 0)
        held = self.stopped or self._stops.begun
        return text[given:] if self._keeps_stop else text[: len(text) - len(held)]
