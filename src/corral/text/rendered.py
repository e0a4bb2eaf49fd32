"""What a renderer gives: token ids, which of them the assistant produced, and where generation stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from corral.text.messages import Message

Tool = Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class Rendered:
    """A prompt as token ids.

    `mask[i]` is True where the assistant produced `tokens[i]`: the text of its messages and the token that
    ends each, not the headers. It is None only where a checkpoint's own chat template does not tell and
    `RenderOptions.assistant_mask` did not ask to find out. `stop_ids` are the ids that end a generated
    message.
    """

    tokens: tuple[int, ...]
    mask: tuple[bool, ...] | None
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class RenderOptions:
    """What a prompt format can vary. A renderer refuses an option that its format has no place for.

    Attributes:
        add_generation_prompt: end with the header of an assistant message, so that the model writes one.
        continue_final_message: leave the last assistant message open, so that the model continues it;
            no header is added then.
        builtin_tools: names among brave_search, wolfram_alpha and code_interpreter; an empty tuple turns the
            `Environment: ipython` mode on without any; None leaves it off.
        tools_in_user_message: where JSON tools are described; None takes the format's default.
        tool_format: how custom tools are described and called in Meta's profile: "json", "function_tag",
            "pythonic", "pythonic_tagged"; None takes the family's default.
        date: the text after `Today Date: `; None takes the format's default.
        template_kwargs: extra variables for a checkpoint's own chat template.
        assistant_mask: `Rendered.mask` is wanted, even where finding it means to render the dialog several
            times; a chat template that does not tell what the assistant produced is then refused.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    builtin_tools: tuple[str, ...] | None = None
    tools_in_user_message: bool | None = None
    tool_format: str | None = None
    date: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    assistant_mask: bool = False


class Renderer(Protocol):
    """Messages to tokens. Content is always encoded without control tokens."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
    ) -> Rendered: ...
