"""The body of `/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from corral.engine.sampling.params import MAX_LOGPROBS, SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.llm import LLM
from corral.server.chat_task import ChatTask, Toolbox, tool_schema
from corral.server.openai.chat_body import ToolName
from corral.server.openai.refusals import refused
from corral.server.openai.responses_items import Item, dialog
from corral.server.openai.responses_truncation import shortened
from corral.server.openai.sampling_fields import SamplingFields, Schema, StreamOptions, only_form
from corral.server.wire import Body, Many

LOGPROBS = "message.output_text.logprobs"

_KEEPS_NOTHING = "this server keeps no responses; send the whole dialog as input, and leave it out"
_NO_SUCH_SERVICE = "this server has no such service; leave it out"


class ResponseTool(Body):
    """A function that the model may call. `strict` holds its arguments to the schema."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Many[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None
    output_schema: Annotated[None, refused("prompts do not show what functions give; leave it out")] = None
    async_: Annotated[Literal[False] | None, Field(alias="async")] = None

    def schema_of(self) -> dict[str, Any]:
        """In the form that prompts show."""
        return tool_schema(self.name, self.description, self.parameters)


class ChosenTool(Body):
    """A choice of one tool."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """A choice of some tools; the prompt describes no others."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Many[ChosenTool], Field(min_length=1)]


class TextFormat(Body):
    """The form of the text. A schema is always followed to the letter, `strict` or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None

    def params(self) -> StructuredOutputsParams | None:
        """What the engine holds the text to.

        Raises:
            RequestError: a schema is missing, or there where none belongs.
        """
        if (self.type == "json_schema") != (self.schema_ is not None):
            what = "is missing" if self.type == "json_schema" else "does not go with it"
            raise RequestError(f"text.format.schema: type is {self.type}, and the schema {what}")
        if self.type == "text":
            return None
        if self.type == "json_object":
            return StructuredOutputsParams(json_object=True)
        return StructuredOutputsParams(json=self.schema_)


class TextOptions(Body):
    """What the text is to be like."""

    format: TextFormat | None = None
    verbosity: Annotated[
        Literal["medium"] | None,
        refused("the model has no such setting; say in the prompt how much to write", "medium"),
    ] = None


class Reasoning(Body):
    """The model does not reason apart from its answers."""

    effort: Annotated[
        Literal["none"] | None, refused("the model has no such setting; leave it out", "none")
    ] = None
    summary: Annotated[None, refused("there is no reasoning to sum up; leave it out")] = None
    generate_summary: Annotated[None, refused("there is no reasoning to sum up; leave it out")] = None


class ResponseStreamOptions(StreamOptions):
    """What a stream tells besides. The last event always holds the usage."""

    continuous_usage_stats: Annotated[
        None, refused("these events hold no usage but the last; leave it out")
    ] = None
    include_obfuscation: Annotated[
        Literal[False] | None, refused("this server pads no events; set it to false, or leave it out", False)
    ] = None


class ResponseBody(SamplingFields):
    """A dialog to be answered. Nothing is kept: the whole dialog comes with each body."""

    input: str | Many[Item]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    max_tool_calls: Annotated[int | None, Field(ge=1)] = Field(
        None, description="Bounds the calls that the server makes itself, which are none."
    )
    tools: Many[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    include: Many[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: Reasoning | None = None
    stream_options: ResponseStreamOptions | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Annotated[
        Literal["in_memory"] | None, refused("prefixes are cached in memory only; leave it out", "in_memory")
    ] = None

    # What a server without a memory, and with one model, cannot do.
    store: Annotated[
        Literal[False] | None,
        refused("this server keeps no responses; set it to false, or leave it out", False),
    ] = None
    background: Annotated[
        Literal[False] | None, refused("this server keeps no responses; wait for it, or stream it", False)
    ] = None
    background_options: Annotated[None, refused(_KEEPS_NOTHING)] = None
    previous_response_id: Annotated[None, refused(_KEEPS_NOTHING)] = None
    conversation: Annotated[None, refused(_KEEPS_NOTHING)] = None
    prompt: Annotated[None, refused("this server keeps no prompts; send the dialog as input")] = None
    context_management: Annotated[None, refused("set truncation to auto instead, or leave it out")] = None
    prompt_cache_options: Annotated[None, refused("prefixes are cached by themselves; leave it out")] = None
    moderation: Annotated[None, refused(_NO_SUCH_SERVICE)] = None
    access_programs: Annotated[None, refused(_NO_SUCH_SERVICE)] = None
    image: Annotated[None, refused("the model reads text only; leave it out")] = None

    # What `SamplingFields` has and answers of this interface have no place for.
    n: Annotated[Literal[1] | None, refused("there is one response to a body; ask again for another", 1)] = (
        None
    )
    max_tokens: Annotated[None, refused("its name is max_output_tokens here")] = None
    prompt_logprobs: Annotated[None, refused("responses do not hold them; use /v1/completions")] = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities of the text are asked for."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """How tokens are chosen.

        Raises:
            CorralError: two fields contradict each other, or a value is out of range.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options: it goes with stream only; set stream, or leave it out")
        logprobs = self.top_logprobs or 0 if self.wants_logprobs else None
        return self.sampling(defaults, max_tokens=self.max_output_tokens, logprobs=logprobs)

    def task(self, llm: LLM, params: SamplingParams) -> ChatTask:
        """As the engine takes it.

        Raises:
            CorralError: the dialog cannot be read.
        """
        messages, toolbox = dialog(self.input, self.instructions), self.toolbox()
        if self.truncation == "auto":
            messages = shortened(llm, messages, toolbox, self.max_output_tokens)
        return ChatTask(
            messages,
            params,
            toolbox,
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
        )

    def toolbox(self) -> Toolbox:
        """The tools that may be called.

        Raises:
            RequestError: a tool is named that is not there.
        """
        tools, choice = self.tools or [], self.tool_choice
        name = choice.name if isinstance(choice, ChosenTool) else None
        if isinstance(choice, AllowedTools):
            tools = self._allowed(tools, [tool.name for tool in choice.tools])
            choice = choice.mode
        return Toolbox(
            tuple(tool.schema_of() for tool in tools),
            "required" if isinstance(choice, ChosenTool) else choice or "auto",
            name,
            self.parallel_tool_calls is not False,
            frozenset(tool.name for tool in tools if tool.strict),
        )

    def _allowed(self, tools: list[ResponseTool], names: list[str]) -> list[ResponseTool]:
        unknown = next((name for name in names if name not in [tool.name for tool in tools]), None)
        if unknown is not None:
            raise RequestError(
                f"tool_choice.tools: {unknown[:200]!r} is not among tools; name tools that are"
            )
        return [tool for tool in tools if tool.name in names]

    def _structure(self) -> StructuredOutputsParams | None:
        form = None if self.text is None else self.text.format
        return only_form(super()._structure(), None if form is None else form.params(), "text.format")
