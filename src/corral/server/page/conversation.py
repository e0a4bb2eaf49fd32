"""A conversation as the browser keeps it: settings, messages, and what became of each answer.

The server holds none of it: the browser sends the conversation with each event and gets it back. What arrives
is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_MESSAGES = 2000
MAX_TEXT = 1_000_000  # characters of one message
MAX_TITLE = 120


class _Kept(BaseModel):
    """What is read from a browser or a file. Unknown fields are left out: files of later versions load."""

    model_config = ConfigDict(extra="ignore")


class Call(_Kept):
    """A call of a tool that the model asked for. `arguments` is JSON text, as the model wrote it."""

    id: str = Field(max_length=200)
    name: str = Field(max_length=200)
    arguments: str = Field(default="", max_length=MAX_TEXT)


class Stats(_Kept):
    """How an answer was made: tokens, seconds, and the context window of the model."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    total_s: float = 0.0
    context_length: int | None = None
    model: str = ""
    finish_reason: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first, as their own speed; None for fewer than two."""
        if self.first_token_s is None or self.completion_tokens < 2 or self.total_s <= self.first_token_s:
            return None
        return (self.completion_tokens - 1) / (self.total_s - self.first_token_s)


class ChatMessage(_Kept):
    """One message. Only `role`, `content`, `calls` and `call_id` are sent to a model."""

    role: Literal["user", "assistant", "tool"]
    content: str = Field(default="", max_length=MAX_TEXT)
    calls: list[Call] = Field(default_factory=list, max_length=128)
    call_id: str = Field(default="", max_length=200)  # of a tool's message: the call it answers
    stats: Stats | None = None
    error: str = Field(default="", max_length=10_000)  # why an answer broke off, or never began
    stopped: bool = False


class Settings(_Kept):
    """What is sent along with the messages. Sampling has only what differs from the server's defaults."""

    model: str = Field(default="", max_length=500)
    system: str = Field(default="", max_length=MAX_TEXT)
    sampling: dict[str, float] = Field(default_factory=dict, max_length=32)
    tools: list[str] = Field(default_factory=list, max_length=32)
    must_call: bool = False  # a tool, in answer to a question
    custom_tools: str = Field(default="", max_length=MAX_TEXT)


class Conversation(_Kept):
    """A conversation with its settings."""

    id: str = Field(default_factory=lambda: uuid4().hex, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    title: str = Field(default="", max_length=MAX_TITLE)
    updated: str = Field(default="", max_length=40)
    settings: Settings = Field(default_factory=lambda: Settings())
    messages: list[ChatMessage] = Field(default_factory=list, max_length=MAX_MESSAGES)

    def ask(self, text: str) -> None:
        """Add a person's message; calls that still wait for a result get none."""
        for call in self.open_calls():
            self.give_result(call, "(no result was given)")
        self.messages.append(ChatMessage(role="user", content=text))
        if not self.title:
            self.title = title_of(text)

    def open_calls(self) -> list[Call]:
        """The calls of the last answer that have no result yet."""
        answered = set()
        for message in reversed(self.messages):
            if message.role == "tool":
                answered.add(message.call_id)
                continue
            return [call for call in message.calls if call.id not in answered]
        return []

    def result_of(self, index: int, call: Call) -> str | None:
        """What was answered to a call of the message at `index`; None while it is open."""
        for message in self.messages[index + 1 :]:
            if message.role != "tool":
                return None
            if message.call_id == call.id:
                return message.content
        return None

    def give_result(self, call: Call, result: str) -> None:
        """Answer a call."""
        self.messages.append(ChatMessage(role="tool", content=result[:MAX_TEXT], call_id=call.id))

    def back_to_question(self) -> bool:
        """Drop what follows the last question. False where there is no question."""
        while self.messages and self.messages[-1].role != "user":
            self.messages.pop()
        return bool(self.messages)

    def undo(self) -> str:
        """Drop the last question and its answers, and return the question."""
        return self.messages.pop().content if self.back_to_question() else ""

    def edit(self, index: int, text: str) -> bool:
        """Replace the question at `index` and drop all that follows. False if there is no question there."""
        if not 0 <= index < len(self.messages) or self.messages[index].role != "user":
            return False
        del self.messages[index:]
        self.ask(text)
        return True

    def touch(self) -> None:
        """Note that it was changed now."""
        self.updated = datetime.now(UTC).isoformat(timespec="milliseconds")

    def for_api(self) -> list[dict[str, Any]]:
        """The messages as a chat completion takes them. Answers that never began are left out."""
        sent: list[dict[str, Any]] = []
        if self.settings.system.strip():
            sent.append({"role": "system", "content": self.settings.system})
        for message in self.messages:
            if message.role == "tool":
                sent.append({"role": "tool", "tool_call_id": message.call_id, "content": message.content})
            elif message.role == "user":
                sent.append({"role": "user", "content": message.content})
            elif message.content or message.calls:
                sent.append(_answer_for_api(message))
        return sent


def _answer_for_api(message: ChatMessage) -> dict[str, Any]:
    answer: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.calls:
        answer["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in message.calls
        ]
    return answer


def title_of(text: str) -> str:
    """A short title: the first line of the first question."""
    line = " ".join(text.strip().split("\n", 1)[0].split())
    return line if len(line) <= 48 else line[:47].rstrip() + "…"


def read_conversations(text: str) -> list[Conversation]:
    """The conversations in an exported file: one, or a list of them.

    Raises:
        ValueError: it is not such a file; the message says what is wrong with it.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("The file is not JSON: import a file that this page has exported as JSON.") from None
    entries = found if isinstance(found, list) else [found]
    conversations = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "messages" not in entry:
            raise ValueError('The file has no "messages": import a file that this page has exported as JSON.')
        try:
            conversations.append(Conversation.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"The file's field {place} is wrong: {first['msg']}.") from None
    return conversations


def as_markdown(conversation: Conversation) -> str:
    """The conversation as a Markdown document."""
    parts = [f"# {conversation.title or 'Conversation'}"]
    if conversation.settings.system.strip():
        parts.append(f"**System prompt**\n\n{conversation.settings.system}")
    names = {call.id: call.name for message in conversation.messages for call in message.calls}
    for message in conversation.messages:
        if message.role == "tool":
            parts.append(
                f"**Result of {names.get(message.call_id, 'a tool')}**\n\n```\n{message.content}\n```"
            )
            continue
        parts.append(f"## {'You' if message.role == 'user' else 'Assistant'}")
        if message.content:
            parts.append(message.content)
        parts += [f"**Call of {call.name}**\n\n```json\n{call.arguments}\n```" for call in message.calls]
        if message.error:
            parts.append(f"> {message.error}")
    return "\n\n".join(parts) + "\n"
