"""A dialog to be answered, as every chat interface hands it in, and the answer it gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from starlette.requests import Request as HttpRequest

from corral.engine.grammar.calls import call_grammar, explain_refusal
from corral.engine.grammar.json_schema import canonical
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.llm import LLM
from corral.server.answers import Answer, PieceReader, PlainText
from corral.server.service import Service
from corral.text.control_tokens import PYTHON_TAG
from corral.text.messages import Message
from corral.text.rendered import Rendered, RenderOptions
from corral.text.tool_calls import CallParser
from corral.text.tool_calls.form import CallForm, call_form

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Toolbox:
    """The tools of a request.

    Attributes:
        tools: in OpenAI's form.
        choice: "auto" leaves it to the model whether it calls one, "required" makes it, "none" keeps the
            tools out of the prompt.
        name: the one tool that may be called, where `choice` is "required".
        parallel: an answer may hold several calls.
        strict: names of the tools whose calls must follow their schemas.
    """

    tools: tuple[Schema, ...] = ()
    choice: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True
    strict: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        names = [_name(tool) for tool in self.tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RequestError(f"tools: {twice!r} is there twice; each name may be there once")
        if self.choice == "required" and not self.tools:
            raise RequestError("tool_choice: it asks for a call, but tools is empty; give tools")
        if self.name is not None and self.name not in names:
            raise RequestError(
                f"tool_choice: {self.name!r} is not among tools; name one of {', '.join(names)}"
            )

    @property
    def shown(self) -> tuple[Schema, ...]:
        """Those that the prompt describes."""
        return () if self.choice == "none" else self.tools

    @property
    def callable(self) -> tuple[Schema, ...]:
        """Those that may be called."""
        return tuple(tool for tool in self.shown if self.name in (None, _name(tool)))


@dataclass(frozen=True)
class ChatTask:
    """A dialog and how to answer it.

    Attributes:
        messages: the dialog.
        params: how tokens are chosen; `structured_outputs` is the form of an answer that is no call.
        toolbox: what may be called.
        options: of the prompt format.
        priority, cache_salt: as in the engine's requests.
    """

    messages: Sequence[Message | Mapping[str, Any]]
    params: SamplingParams
    toolbox: Toolbox = field(default_factory=Toolbox)
    options: RenderOptions = RenderOptions()
    priority: int = 0
    cache_salt: str = ""

    @property
    def reads_calls(self) -> bool:
        """Whether an answer may hold calls."""
        return bool(self.toolbox.shown or self.options.builtin_tools)

    def _form(self, llm: LLM) -> CallForm:
        """How the prompt asks for calls."""
        return call_form(llm.renderer, self.options, [_name(tool) for tool in self.toolbox.shown])

    def rendered(self, llm: LLM) -> Rendered:
        """The prompt.

        Raises:
            CorralError: the prompt format cannot express it.
        """
        count, context = len(self.messages), llm.max_model_len
        if count > context:  # each is a token at least, and rendering them all takes a while
            raise RequestError(f"messages: {count:,} cannot fit into the context of {context:,} tokens")
        return llm.render(self.messages, self.toolbox.shown, self.options)

    def request(self, llm: LLM, adapter: str | None, timeout: float | None) -> Request:
        """As a request for the engine.

        Raises:
            CorralError: the prompt format cannot express it, or a field is out of range.
        """
        params, structure = self.params, self._structure(llm)
        if structure is not params.structured_outputs:
            params = replace(params, structured_outputs=structure)
        rendered = self.rendered(llm)
        tag = llm.tokenizer.control.get(PYTHON_TAG) if self.reads_calls else None
        return Request(
            rendered.tokens,
            params,
            rendered.stop_ids,
            frozenset() if tag is None else frozenset({tag}),
            continues=self.options.continue_final_message,
            adapter=adapter,
            cache_salt=self.cache_salt,
            priority=self.priority,
            timeout=timeout,
        )

    def reader(self, llm: LLM) -> PieceReader:
        """Reads one output of the answer."""
        if not self.reads_calls:
            return PlainText()
        box, form = self.toolbox, self._form(llm)
        return CallParser(
            box.callable, builtin_tools=form.builtin_tools, code=form.code, parallel=box.parallel
        )

    def _structure(self, llm: LLM) -> StructuredOutputsParams | None:
        """The form that the output is held to: of the answer, of the calls, or one of both."""
        wanted, box = self.params.structured_outputs, self.toolbox
        held = box.choice == "required" or wanted is not None or bool(box.strict)
        if not (box.callable and held):
            return wanted
        form = self._form(llm)
        grammar = call_grammar(
            box.callable,
            several=box.parallel,
            answer=self._answer(),
            arguments_key=form.arguments_key,
            opening=form.opening,
            closing=form.closing,
        )
        return StructuredOutputsParams(grammar=grammar)

    def _answer(self) -> Schema | Literal["object", "text"] | None:
        """What may come instead of calls."""
        wanted = self.params.structured_outputs
        if wanted is not None and wanted.json is None and not wanted.json_object:
            raise RequestError(
                "structured_outputs: with tools, an answer can be held to JSON only; leave the tools out, or "
                "set tool_choice to none"
            )
        if self.toolbox.choice == "required":
            return None
        if wanted is None:
            return "text"
        if wanted.json_object:
            return "object"
        schema = json.loads(canonical("json", {} if wanted.json is None else wanted.json))
        if schema is False:
            raise RequestError("structured_outputs.json cannot match anything: the schema is false")
        return {} if schema is True else dict(schema)


def _name(tool: Schema) -> str:
    return str(tool["function"]["name"])


def tool_schema(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A function in OpenAI's form, which prompts show: also where it has no description or parameters."""
    function = {
        "name": name,
        "description": description or "",
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


async def answer_chat(
    service: Service, request: HttpRequest, model: str | None, task: Callable[[], ChatTask]
) -> Answer:
    """Has the engine answer a dialog.

    `task` makes the task; that, the prompt and its grammar are made in a thread.

    Raises:
        ApiError, CorralError: it was refused.
    """
    llm, adapter, timeout = service.llm, service.adapter(model), service.timeout(request.headers)
    tasks: list[ChatTask] = []

    def make() -> Request:
        tasks.append(task())
        return tasks[0].request(llm, adapter, timeout)

    try:
        running = await service.submit(request.scope, model, make)
    except RequestError as error:
        tools = tasks[0].toolbox.callable if tasks else ()
        if not (tools and str(error).startswith("structured_outputs")):
            raise
        explain = partial(explain_refusal, llm.engine.grammars, tools, error)
        raise await service.in_thread(explain) from None
    return Answer(running, lambda: tasks[0].reader(llm))
