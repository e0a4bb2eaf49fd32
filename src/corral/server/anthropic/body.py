"""The bodies of `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.server.anthropic.blocks import CacheControl, MessageBody, TextContent, joined
from corral.server.chat_task import ChatTask, Toolbox, tool_schema
from corral.server.openai.chat_body import ToolName
from corral.server.wire import Body, Many
from corral.text.messages import Message
from corral.text.rendered import RenderOptions


def _custom(tool: Any) -> Any:
    """Refuses tools that Anthropic's servers run, by their names."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind not in (None, "custom"):
        raise ValueError(f"tools of type {str(kind)[:40]!r} are not run here; give one with an input_schema")
    return tool


class Tool(Body):
    """A function that the model may call. `strict` holds its arguments to the schema."""

    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = Field(None, description="Inputs are always streamed as they come.")
    allowed_callers: Many[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None

    def schema_of(self) -> dict[str, Any]:
        """In OpenAI's form, which prompts show."""
        return tool_schema(self.name, self.description, self.input_schema)


class ToolChoice(Body):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class JsonFormat(Body):
    """A schema for the answer."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """The form of the answer."""

    format: JsonFormat | None = None
    effort: None = Field(None, description="Only null is taken: this model has no levels of effort.")


class Thinking(Body):
    """Thinking; it can only be off."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None

    def check(self) -> None:
        """Raises RequestError where it is on."""
        if self.type != "disabled" or self.budget_tokens is not None or self.display is not None:
            raise RequestError(
                "thinking: this model does not think; leave it out, or let its type be disabled"
            )


class Metadata(Body):
    """About the request."""

    user_id: str | None = None


class PromptBody(Body):
    """A dialog with tools: what has a number of tokens."""

    model: str
    messages: Many[MessageBody] = Field(min_length=1, max_length=100_000)
    system: TextContent | None = None
    tools: Many[Annotated[Tool, BeforeValidator(_custom)]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None

    def task(self, params: SamplingParams) -> ChatTask:
        """As the engine takes it.

        Raises:
            CorralError: two fields contradict each other.
        """
        if self.thinking is not None:
            self.thinking.check()
        if self.output_config is not None and self.output_config.format is not None:
            form = StructuredOutputsParams(json=self.output_config.format.schema_)
            params = replace(params, structured_outputs=form)
        dialog = self._dialog()
        continued = dialog[-1].role == "assistant"
        if continued and dialog[-1].tool_calls:
            raise RequestError("messages: the last one calls tools; give their tool_result blocks after it")
        options = RenderOptions(add_generation_prompt=not continued, continue_final_message=continued)
        return ChatTask(dialog, params, self._toolbox(), options)

    def _dialog(self) -> list[Message]:
        dialog = [Message("system", joined(self.system))] if self.system else []
        for index, message in enumerate(self.messages):
            try:
                dialog += message.messages()
            except RequestError as error:
                raise RequestError(f"messages[{index}].{error}") from None
        return dialog

    def _toolbox(self) -> Toolbox:
        tools, choice = self.tools or [], self.tool_choice or ToolChoice(type="auto")
        if (choice.type == "tool") != (choice.name is not None):
            raise RequestError("tool_choice: a name goes with the type tool, and with no other")
        return Toolbox(
            tuple(tool.schema_of() for tool in tools),
            {"auto": "auto", "none": "none"}.get(choice.type, "required"),  # type: ignore[arg-type]
            choice.name,
            not choice.disable_parallel_tool_use,
            frozenset(tool.name for tool in tools if tool.strict),
        )


class MessagesBody(PromptBody):
    """A dialog to be answered."""

    max_tokens: int = Field(ge=1)
    stop_sequences: Many[str] | None = None
    temperature: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: int | None = None
    top_p: float | None = None
    stream: bool | None = None
    # What concerns Anthropic's own services, as far as it means something here.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: None = None
    inference_geo: None = None
    diagnostics: None = None

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """How tokens are chosen: the model's defaults where nothing is said.

        Raises:
            RequestError: a value is out of range.
        """
        try:
            stop = tuple(self.stop_sequences or ())
            given = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            told = {name: value for name, value in given.items() if value is not None}
            return replace(defaults, max_tokens=self.max_tokens, stop=stop, **told)  # type: ignore[arg-type]
        except RequestError as error:
            text = str(error)
            raise RequestError(f"stop_sequences{text[4:]}" if text.startswith("stop ") else text) from None
