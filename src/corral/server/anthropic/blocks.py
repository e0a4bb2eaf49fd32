"""The content blocks of Anthropic's messages, and what they say in Corral's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag

from corral.errors import RequestError
from corral.server.wire import Body, Many
from corral.text.messages import Message, ToolCall

Item = TypeVar("Item")


class CacheControl(Body):
    """Where a cached prefix may end. All prefixes are cached here, so that there is nothing left to do."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Body):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class DirectCaller(Body):
    """The model itself has called the tool."""

    type: Literal["direct"]


class ToolUseBlock(Body):
    """A call in an assistant's message."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None


def _reads(*kinds: str) -> BeforeValidator:
    """Refuses a block of a kind that the model cannot read there, by its name."""

    def check(block: Any) -> Any:
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            raise ValueError(f"a block of type {kind[:40]!r} cannot be read here; {', '.join(kinds)} can")
        return block

    return BeforeValidator(check)


def _kind(block: Any) -> str:
    """The name of a block's member in the union. It begins with a capital, to stay out of fields' paths."""
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    kinds = {"tool_use": "ToolUse", "tool_result": "ToolResult"}
    return kinds.get(kind, "Text") if isinstance(kind, str) else "Text"


def _form(content: Any) -> str:
    return "Plain" if isinstance(content, str) else "Blocks"


PlainText = Annotated[str, Tag("Plain")]
ReadTextBlock = Annotated[TextBlock, _reads("text")]
TextContent = Annotated[PlainText | Annotated[Many[ReadTextBlock], Tag("Blocks")], Discriminator(_form)]


class ToolResultBlock(Body):
    """What a tool has given, in a user's message."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextContent | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = Annotated[
    Annotated[TextBlock, Tag("Text")]
    | Annotated[ToolUseBlock, Tag("ToolUse")]
    | Annotated[ToolResultBlock, Tag("ToolResult")],
    Discriminator(_kind),
    _reads("text", "tool_use", "tool_result"),
]
Content = Annotated[PlainText | Annotated[Many[Block], Tag("Blocks")], Discriminator(_form)]


class MessageBody(Body):
    """A message of the dialog, also as this interface has answered it."""

    role: Literal["user", "assistant", "system"]
    content: Content

    def messages(self) -> list[Message]:
        """The same in Corral's form, where each tool's result is a message of its own.

        Raises:
            RequestError: a block does not belong into a message of this role.
        """
        if isinstance(self.content, str):
            return [Message(self.role, self.content)]
        belongs = {"user": ToolResultBlock, "assistant": ToolUseBlock}.get(self.role)
        for block in self.content:
            if not isinstance(block, TextBlock) and not (belongs and isinstance(block, belongs)):
                raise RequestError(f"content: a {block.type} block does not belong to the {self.role}")
        texts, calls = _of(TextBlock, self.content), _of(ToolUseBlock, self.content)
        results = [_result(block) for block in _of(ToolResultBlock, self.content)]
        if results and not texts:
            return results
        made = tuple(ToolCall(block.name, block.input, block.id) for block in calls)
        return [*results, Message(self.role, joined(texts), made)]


def joined(blocks: Sequence[TextBlock] | str | None) -> str:
    """The text of blocks; each begins a line."""
    if blocks is None or isinstance(blocks, str):
        return blocks or ""
    return "\n".join(block.text for block in blocks)


def _result(block: ToolResultBlock) -> Message:
    text = joined(block.content)
    return Message("tool", f"Error: {text}" if block.is_error else text, tool_call_id=block.tool_use_id)


def _of(kind: type[Item], blocks: Sequence[object]) -> list[Item]:
    return [block for block in blocks if isinstance(block, kind)]
