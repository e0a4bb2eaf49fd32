"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.server.chat_task import ChatTask, Toolbox, tool_schema
from corral.server.openai.sampling_fields import SamplingFields, Schema, only_form
from corral.server.wire import Body, Many
from corral.text.rendered import RenderOptions

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class ContentPart(Body):
    """A part of a message. Only text can be read."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """What an assistant's message called; `arguments` is the JSON text of an object."""

    name: str
    arguments: str | dict[str, Any] | None = None
    description: None = None  # as TGI's clients send a call back


class AssistantCall(Body):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction
    index: int | None = None


class ChatMessage(Body):
    """A message of the dialog, also as this interface has answered it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[ContentPart] | None = None
    name: str | None = None
    tool_calls: Many[AssistantCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    reasoning: None = None
    annotations: list[Any] | None = Field(None, max_length=0)

    def fields(self) -> dict[str, Any]:
        """As `Message.from_dict` reads it."""
        return self.model_dump(exclude_none=True)


class FunctionTool(Body):
    """A function that the model may call. `strict` holds its arguments to the schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool."""

    type: Literal["function"]
    function: FunctionTool

    def schema_of(self) -> dict[str, Any]:
        """In the form that prompts show: without `strict`, with parameters."""
        return tool_schema(self.function.name, self.function.description, self.function.parameters)


class NamedFunction(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """A choice of one tool."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Body):
    """A schema for the answer. It is always followed to the letter, `strict` or not."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer. "json" and "regex", with a `value`, are TGI's words."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: JsonSchema | None = None
    value: Schema | str | None = None

    def params(self) -> StructuredOutputsParams | None:
        """What the engine holds the answer to.

        Raises:
            RequestError: a field that belongs to the type is missing, or another is there.
        """
        uses = {"json_schema": "json_schema", "json": "value", "regex": "value"}.get(self.type)
        if self.type == "json_object" and self.value is not None:  # how TGI's clients send a JSON schema
            uses = "value"
        for name in ("json_schema", "value"):
            there = getattr(self, name) is not None
            if there != (name == uses):
                what = "is missing" if name == uses else "does not go with it"
                raise RequestError(f"response_format: type is {self.type}, and {name} {what}")
        if self.type == "text":
            return None
        if self.type == "json_object" and self.value is None:
            return StructuredOutputsParams(json_object=True)
        if self.type == "regex":
            if not isinstance(self.value, str):
                raise RequestError("response_format.value: a regular expression is a text")
            return StructuredOutputsParams(regex=self.value)
        schema = self.value
        if self.json_schema is not None:
            schema = {} if self.json_schema.schema_ is None else self.json_schema.schema_
        return StructuredOutputsParams(json=schema)


class ChatBody(SamplingFields):
    """A dialog to be answered."""

    messages: Many[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Many[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: Many[Literal["text"]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Many[dict[str, Any]] | None = None
    tool_prompt: str | None = Field(
        None, description="TGI's; only null is taken: the prompt format has its own."
    )
    # Hints of OpenAI's own caches and safety systems: whatever they say, the answer is the same here.
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def task(self, defaults: SamplingParams) -> ChatTask:
        """As the engine takes it.

        Raises:
            CorralError: two fields contradict each other, or a value is out of range.
        """
        self.check_stream()
        if self.tool_prompt is not None:
            raise RequestError(
                "tool_prompt: the model's prompt format says how tools are described; remove it"
            )
        return ChatTask(
            [message.fields() for message in self.messages],
            self.sampling(defaults, max_tokens=self._max_tokens(), logprobs=self._logprobs()),
            self._toolbox(),
            self._options(),
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
        )

    def _structure(self) -> StructuredOutputsParams | None:
        wanted = None if self.response_format is None else self.response_format.params()
        return only_form(super()._structure(), wanted, "response_format")

    def _max_tokens(self) -> int | None:
        if self.max_completion_tokens is None:
            return self.max_tokens
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise RequestError("max_completion_tokens: max_tokens says something else; leave one of them out")
        return self.max_completion_tokens

    def _logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs is not None:
            raise RequestError("top_logprobs: it goes with logprobs only; set logprobs to true")
        return None

    def _toolbox(self) -> Toolbox:
        tools, choice = self.tools or [], self.tool_choice
        name = choice.function.name if isinstance(choice, NamedTool) else None
        return Toolbox(
            tuple(tool.schema_of() for tool in tools),
            "required" if isinstance(choice, NamedTool) else choice or "auto",
            name,
            self.parallel_tool_calls is not False,
            frozenset(tool.function.name for tool in tools if tool.function.strict),
        )

    def _options(self) -> RenderOptions:
        kwargs = dict(self.chat_template_kwargs or {})
        if self.documents is not None:
            kwargs["documents"] = self.documents
        builtin = kwargs.pop("builtin_tools", None)
        if builtin is not None and not (
            isinstance(builtin, list) and all(isinstance(b, str) for b in builtin)
        ):
            raise RequestError("chat_template_kwargs.builtin_tools: it must be a list of names")
        date, in_user = kwargs.pop("date_string", None), kwargs.pop("tools_in_user_message", None)
        if date is not None and not isinstance(date, str):
            raise RequestError("chat_template_kwargs.date_string: it must be a text")
        if in_user is not None and not isinstance(in_user, bool):
            raise RequestError("chat_template_kwargs.tools_in_user_message: it must be true or false")
        continued = bool(self.continue_final_message)
        if continued and self.add_generation_prompt:
            raise RequestError("continue_final_message: it contradicts add_generation_prompt; leave one out")
        return RenderOptions(
            add_generation_prompt=not continued and self.add_generation_prompt is not False,
            continue_final_message=continued,
            builtin_tools=None if builtin is None else tuple(builtin),
            tools_in_user_message=in_user,
            date=date,
            template_kwargs=kwargs,
        )
