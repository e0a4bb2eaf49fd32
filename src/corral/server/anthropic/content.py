"""The content blocks of an answer, while it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corral.text.tool_calls import CallArguments, CallBegun, CallEnded, ChatPiece, TextPiece

Fields = dict[str, Any]


class ContentBlocks:
    """Makes blocks of pieces, in their order. The stream tells of the blocks that the whole answer holds."""

    def __init__(self) -> None:
        self._blocks: list[Fields] = []
        self._open = False

    def add(self, pieces: Sequence[ChatPiece]) -> list[Fields]:
        """Takes pieces; gives the events that tell of them."""
        told: list[Fields] = []
        for piece in pieces:
            if isinstance(piece, TextPiece):
                told += self._text(piece.text)
            elif isinstance(piece, CallBegun):
                block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
                told += [*self.close(), self._begin(block)]
            elif isinstance(piece, CallArguments):
                told.append(self._delta({"type": "input_json_delta", "partial_json": piece.text}))
            elif isinstance(piece, CallEnded):
                told += self.close()
                self._blocks[-1]["input"] = _input(piece)
        return told

    def close(self) -> list[Fields]:
        """The block that is open is over."""
        if not self._open:
            return []
        self._open = False
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def whole(self) -> list[Fields]:
        """The blocks."""
        return self._blocks

    def _text(self, text: str) -> list[Fields]:
        told: list[Fields] = []
        if not (self._open and self._blocks[-1]["type"] == "text"):
            told += [*self.close(), self._begin({"type": "text", "text": ""})]
        self._blocks[-1]["text"] += text
        return [*told, self._delta({"type": "text_delta", "text": text})]

    def _begin(self, block: Fields) -> Fields:
        self._blocks.append(block)
        self._open = True
        return {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _delta(self, delta: Fields) -> Fields:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}


def _input(ended: CallEnded) -> Fields:
    """A call's arguments. Broken ones are wrapped as Anthropic's documentation wraps them."""
    return ended.call.arguments if ended.call is not None else {"INVALID_JSON": ended.arguments_text}
