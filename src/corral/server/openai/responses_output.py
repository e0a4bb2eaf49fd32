"""The output items of a response while it is made, and the events that tell of each change."""

from __future__ import annotations

import uuid
from typing import Any

from corral.server.answers import Said
from corral.server.openai.logprobs import chat_logprobs
from corral.text.tokenizer import Tokenizer
from corral.text.tool_calls import CallArguments, CallBegun, CallEnded, TextPiece

Json = dict[str, Any]
Change = tuple[str, Json]
"""The type of an event and its fields, but for its number."""


class OutputItems:
    """Makes items of the pieces of an answer: a message of each run of text, and an item of each call.

    Log-probabilities of a text's tokens go with the text that is certain with them; those of calls are not
    told.

    Attributes:
        items: what there is so far.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.items: list[Json] = []
        self._message: Json | None = None
        self._call: Json | None = None
        self._text: list[str] = []
        self._waiting: list[Json] = []  # log-probabilities of tokens whose text has not come

    def add(self, said: Said) -> list[Change]:
        """Adds the next pieces."""
        if said.logprobs is not None:
            self._waiting += chat_logprobs(self._tokenizer, said.logprobs)["content"]
        changes: list[Change] = []
        for piece in said.pieces:
            if isinstance(piece, TextPiece):
                changes += self._say(piece.text)
            elif isinstance(piece, CallBegun):
                changes += [*self.end_text("completed"), self._begin_call(piece)]
            elif isinstance(piece, CallArguments):
                changes.append(self._add_arguments(piece.text))
            else:
                changes += self._end_call(piece)
        return changes

    def finish(self, complete: bool) -> list[Change]:
        """The answer has come to its end; one without any item is an empty message."""
        begun = [] if self.items else self._begin_text()
        return [*begun, *self.end_text("completed" if complete else "incomplete", self._take_waiting())]

    def broken_off(self) -> list[Json]:
        """The items as they are when the answer fails."""
        if self._message is not None:
            self._part["text"] = "".join(self._text)
        for item in self.items:
            if item["status"] == "in_progress":
                item["status"] = "incomplete"
        return self.items

    @property
    def _part(self) -> Json:
        """The text of the message that is being written."""
        assert self._message is not None, "a message has been begun"
        part: Json = self._message["content"][0]
        return part

    def _begin_text(self) -> list[Change]:
        self._message = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "status": "in_progress"}
        self._message |= {"role": "assistant", "content": []}
        self._text.clear()
        added = self._added(self._message)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._message["content"].append(part)
        return [added, ("response.content_part.added", {**self._place(), "part": {**part, "logprobs": []}})]

    def _say(self, text: str) -> list[Change]:
        if not text:
            return []
        begun = [] if self._message is not None else self._begin_text()
        logprobs = self._take_waiting()
        self._text.append(text)
        self._part["logprobs"] += logprobs
        delta = {**self._place(), "delta": text, "logprobs": logprobs}
        return [*begun, ("response.output_text.delta", delta)]

    def end_text(self, status: str, logprobs: list[Json] | None = None) -> list[Change]:
        """Ends the message that is being written, if one is."""
        if self._message is None:
            return []
        part, place = self._part, self._place()
        part["text"] = "".join(self._text)
        part["logprobs"] += logprobs or []
        self._message["status"] = status
        item, self._message = self._message, None
        return [
            ("response.output_text.done", {**place, "text": part["text"], "logprobs": part["logprobs"]}),
            ("response.content_part.done", {**place, "part": part}),
            ("response.output_item.done", {"output_index": place["output_index"], "item": item}),
        ]

    def _begin_call(self, begun: CallBegun) -> Change:
        self._call = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": "in_progress"}
        self._call |= {"call_id": begun.id, "name": begun.name, "arguments": ""}
        return self._added(self._call)

    def _add_arguments(self, text: str) -> Change:
        call = self._open_call()
        call["arguments"] += text
        return "response.function_call_arguments.delta", {**self._item_place(call), "delta": text}

    def _end_call(self, ended: CallEnded) -> list[Change]:
        call = self._open_call()
        call["status"] = "completed" if ended.call is not None else "incomplete"
        self._take_waiting()
        self._call = None
        place = self._item_place(call)
        told = {"name": call["name"], "arguments": call["arguments"]}
        return [
            ("response.function_call_arguments.done", {**place, **told}),
            ("response.output_item.done", {"output_index": place["output_index"], "item": call}),
        ]

    def _open_call(self) -> Json:
        assert self._call is not None, "a call has been begun"
        return self._call

    def _added(self, item: Json) -> Change:
        self.items.append(item)
        shown = {**item, "content": []} if "content" in item else dict(item)
        return "response.output_item.added", {"output_index": len(self.items) - 1, "item": shown}

    def _item_place(self, item: Json) -> Json:
        return {"item_id": item["id"], "output_index": len(self.items) - 1}

    def _place(self) -> Json:
        assert self._message is not None, "a message has been begun"
        return {**self._item_place(self._message), "content_index": 0}

    def _take_waiting(self) -> list[Json]:
        waiting, self._waiting = self._waiting, []
        return waiting
