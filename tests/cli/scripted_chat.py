"""A program for the terminal tests: the chat with a model that says what a file tells it to.

Usage: scripted_chat.py FILE [SECONDS]. Every answer is FILE's text, a few characters each SECONDS.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from corral.cli.chat_input import ChatInput
from corral.cli.chat_session import ChatSession
from corral.cli.chat_terminal import ChatTerminal, converse
from corral.engine.outputs import Delta
from corral.engine.sampling.params import SamplingParams
from corral.text.messages import Message
from corral.text.rendered import Rendered

_PIECE = 3  # characters of one token


class ScriptedModel:
    """A model that answers everything with the same text; one character of the dialog is one token."""

    name = "scripted"
    max_model_len = 1_000_000

    def __init__(self, text: str, seconds: float = 0.0) -> None:
        self.text, self.seconds = text, seconds
        self.asked: list[tuple[Message, ...]] = []

    def render(self, messages: Sequence[Message]) -> Rendered:
        tokens = tuple(ord(character) for message in messages for character in str(message.content))
        return Rendered(tokens, (False,) * len(tokens), frozenset())

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Delta]:
        params = sampling_params
        self.asked.append(tuple(messages))
        longest = len(self.text) if params is None or params.max_tokens is None else params.max_tokens
        return self._pieces(longest)

    def _pieces(self, longest: int) -> Iterator[Delta]:
        pieces = [self.text[start : start + _PIECE] for start in range(0, len(self.text), _PIECE)]
        for number, piece in enumerate(pieces[:longest]):
            time.sleep(self.seconds)
            yield Delta(piece, (number,))
        yield Delta("", (), "stop" if longest >= len(pieces) else "length")


if __name__ == "__main__":
    script = Path(sys.argv[1]).read_text(encoding="utf-8")
    model = ScriptedModel(script, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    converse(ChatSession(model, SamplingParams()), ChatInput(), ChatTerminal(stats=False))
