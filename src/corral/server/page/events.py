"""What the page does: the events of its components.

Nothing of a conversation stays on the server between events: each event brings it, and takes it back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from pydantic import ValidationError
from starlette.types import ASGIApp

from corral.server.page.answer import answer
from corral.server.page.api import Api, ApiFailure, ServedModel
from corral.server.page.conversation import Conversation, Settings, as_markdown, read_conversations
from corral.server.page.display import chat_messages, question_from_page
from corral.server.page.layout import Parts, Sampling
from corral.server.page.running import RunningAnswers

_SHOW_S = 0.08  # between two looks at a growing answer
_KEEP_S = 1.0  # between two copies of it into the browser's store
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0.0, "min_p": 0.0, "repetition_penalty": 1.0}

Updates = dict[Any, Any]


class Events:
    """The functions behind the page.

    Args:
        app: the server's application, whose HTTP API answers.
        parts: the components of the page.
    """

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts
        self._running = RunningAnswers()

    # Opening

    async def open_page(self, kept: Any, key: str, request: gr.Request) -> Updates:
        """Ask the server for its models, then show the conversation that was open last."""
        served, updates = await self._connect(key, request)
        return {**self._view(_read(kept), served), **updates}

    async def connect(self, kept: Any, key: str, request: gr.Request) -> Updates:
        """Ask the server again, with a new key or once the model is loaded."""
        served, updates = await self._connect(key, request)
        return {**self._settings_view(_read(kept), served), **updates}

    async def open_chat(self, kept: Any, served: Any, request: gr.Request) -> Updates:
        """Show another conversation, or a new one; an answer that is being made is stopped and kept."""
        await self._running.end(_session(request))
        return self._view(_read(kept), _served(served))

    def list_chats(self, index: list[dict[str, str]]) -> Any:
        """The conversations in the browser, as choices. `index` ends with the one that is open."""
        *chats, current = index
        return gr.update(
            choices=[(chat["title"], chat["id"]) for chat in chats],
            value=current["id"] if any(chat["id"] == current["id"] for chat in chats) else None,
        )

    async def _connect(self, key: str, request: gr.Request) -> tuple[list[ServedModel], Updates]:
        parts = self._parts
        try:
            async with self._api(key, request) as api:
                served = await api.models()
        except ApiFailure as failure:
            unauthorized = failure.status in (401, 403)
            words = (
                "This server asks for an API key: enter yours under Settings."
                if unauthorized
                else failure.message
            )
            return [], {
                parts.notice: gr.update(value=words, visible=True),
                parts.key: gr.update(visible=True) if unauthorized else gr.skip(),
                parts.served: [],
                parts.retry_loading: gr.Timer(active=failure.status == 503),
            }
        return served, {
            parts.notice: gr.update(value="", visible=False),
            parts.key: gr.update(visible=True) if key else gr.skip(),
            parts.served: [_plain(model) for model in served],
            parts.retry_loading: gr.Timer(active=False),
        }

    # Asking

    async def ask(
        self, text: str, kept: Any, served: Any, key: str, request: gr.Request, *settings: Any
    ) -> AsyncIterator[Updates]:
        """Answer a new message. While an answer is being made, the message stays in the box."""
        conversation = self._with_settings(kept, served, settings)
        if text.strip() and not self._running.is_making(_session(request)):
            await self._running.end(_session(request))
            conversation.ask(text)
            async for updates in self._answer(conversation, served, key, request, {self._parts.box: ""}):
                yield updates

    async def regenerate(
        self, kept: Any, served: Any, key: str, request: gr.Request, *settings: Any
    ) -> AsyncIterator[Updates]:
        """Answer the last question once more."""
        await self._running.end(_session(request))
        conversation = self._with_settings(kept, served, settings)
        if conversation.back_to_question():
            async for updates in self._answer(conversation, served, key, request):
                yield updates

    async def edit(
        self, kept: Any, served: Any, key: str, edited: gr.EditData, request: gr.Request, *settings: Any
    ) -> AsyncIterator[Updates]:
        """Change a question, and go on from there."""
        await self._running.end(_session(request))
        conversation = self._with_settings(kept, served, settings)
        origins = chat_messages(conversation)[1]
        shown = edited.index[0] if isinstance(edited.index, tuple | list) else edited.index
        if shown < len(origins) and conversation.edit(origins[shown], question_from_page(str(edited.value))):
            async for updates in self._answer(conversation, served, key, request):
                yield updates

    async def give_result(
        self, result: str, kept: Any, served: Any, key: str, request: gr.Request, *settings: Any
    ) -> AsyncIterator[Updates]:
        """Take what a person's own tool returns; with the last open call answered, the model goes on."""
        conversation = self._with_settings(kept, served, settings)
        calls = conversation.open_calls()
        if not calls:
            return
        conversation.give_result(calls[0], result)
        if len(calls) > 1:
            yield {**self._chat_view(conversation), self._parts.result: ""}
            return
        async for updates in self._answer(conversation, served, key, request, {self._parts.result: ""}):
            yield updates

    async def _answer(
        self,
        conversation: Conversation,
        served: Any,
        key: str,
        request: gr.Request,
        first: Updates | None = None,
    ) -> AsyncIterator[Updates]:
        """Let the answer grow on the page. The browser keeps it at once, every second, and at its end."""
        conversation.touch()
        context_length = next(
            (model.context_length for model in _served(served) if model.name == conversation.settings.model),
            None,
        )
        shown = kept_at = 0.0
        async with self._api(key, request) as api:
            with self._running.begin(_session(request)) as running:
                yield {**self._chat_view(conversation, writing=True), **(first or {})}
                async for _ in answer(api, conversation, running.stop, context_length):
                    now = time.monotonic()
                    if now - shown < _SHOW_S:
                        continue
                    shown = now
                    updates = self._chat_view(conversation, writing=True)
                    if now - kept_at < _KEEP_S:
                        del updates[self._parts.kept]
                    else:
                        kept_at = now
                    yield updates
                conversation.touch()
                running.is_made = True
                yield self._chat_view(conversation)

    async def stop(self, request: gr.Request) -> None:
        """End the answer that is being made; what there is of it stays."""
        self._running.stop(_session(request))

    # Changing a conversation

    async def undo(self, kept: Any, request: gr.Request) -> Updates:
        """Take the last question and its answer away; the question goes back into the box."""
        await self._running.end(_session(request))
        conversation = _read(kept)
        question = conversation.undo()
        conversation.touch()
        return {**self._chat_view(conversation), self._parts.box: gr.update(value=question)}

    def rename(self, title: str, kept: Any) -> Updates:
        """Give the conversation another title."""
        conversation = _read(kept)
        conversation.title = title.strip()[:120] or conversation.title
        return {self._parts.kept: conversation.model_dump(), self._parts.title: conversation.title}

    def keep_settings(self, kept: Any, served: Any, *settings: Any) -> Any:
        """Keep the settings with the conversation."""
        return self._with_settings(kept, served, settings).model_dump()

    def default_sampling(self, model: str, served: Any) -> list[Any]:
        """The server's sampling parameters for a model, in the order of the controls."""
        defaults = _defaults(_served(served), model)
        return [defaults.get(name) for name in Sampling.names()]

    # Files

    def export_markdown(self, kept: Any) -> dict[str, str]:
        """The open conversation as a Markdown file for the browser to save."""
        conversation = _read(kept)
        return {
            "name": f"{_file_name(conversation)}.md",
            "type": "text/markdown",
            "text": as_markdown(conversation),
        }

    def export_json(self, kept: Any) -> dict[str, str]:
        """The open conversation as a JSON file for the browser to save."""
        conversation = _read(kept)
        text = conversation.model_dump_json(indent=2)
        return {"name": f"{_file_name(conversation)}.json", "type": "application/json", "text": text}

    def import_file(self, text: str | None) -> list[dict[str, Any]]:
        """The conversations in a file that the browser has read. Ids of their own: none replaces another."""
        if not text:
            return []
        try:
            conversations = read_conversations(text)
        except ValueError as error:
            gr.Warning(str(error), title="Nothing was imported")
            return []
        return [found.model_copy(update={"id": Conversation().id}).model_dump() for found in conversations]

    # Helpers

    def _api(self, key: str, request: gr.Request) -> Api:
        client = request.client
        return Api(self._app, key.strip(), (client.host, client.port) if client else ("127.0.0.1", 0))

    def _with_settings(self, kept: Any, served: Any, settings: tuple[Any, ...]) -> Conversation:
        """The conversation with the settings on the page; of the sampling, what differs from the server's."""
        conversation = _read(kept)
        model, system, tools, must_call, custom_tools, *sampling = settings
        defaults = _defaults(_served(served), model)
        changed = {
            name: float(value)
            for name, value in zip(Sampling.names(), sampling, strict=True)
            if value is not None and value != defaults.get(name)
        }
        conversation.settings = Settings(
            model=model or "",
            system=system,
            sampling=changed,
            tools=tools,
            must_call=must_call,
            custom_tools=custom_tools,
        )
        return conversation

    def _view(self, conversation: Conversation, served: list[ServedModel]) -> Updates:
        return {**self._chat_view(conversation), **self._settings_view(conversation, served)}

    def _chat_view(self, conversation: Conversation, *, writing: bool = False) -> Updates:
        parts = self._parts
        calls = [] if writing else conversation.open_calls()
        words = f"**{calls[0].name}** was called with\n```json\n{calls[0].arguments}\n```" if calls else ""
        return {
            parts.kept: conversation.model_dump(),
            parts.chat: chat_messages(conversation, writing=writing)[0],
            parts.title: conversation.title,
            parts.results: gr.update(visible=bool(calls)),
            parts.call: words,
            parts.box: gr.update(submit_btn=not writing, stop_btn=writing),
        }

    def _settings_view(self, conversation: Conversation, served: list[ServedModel]) -> Updates:
        parts, settings = self._parts, conversation.settings
        names = [model.name for model in served]
        model = settings.model if settings.model in names else next(iter(names), None)
        values = {**_defaults(served, model), **settings.sampling}
        sampling = zip(Sampling.names(), parts.sampling.components(), strict=True)
        return {
            parts.model: gr.update(choices=[(model.label, model.name) for model in served], value=model),
            parts.system: settings.system,
            parts.tools: settings.tools,
            parts.must_call: settings.must_call,
            parts.custom_tools: settings.custom_tools,
            **{component: values.get(name) for name, component in sampling},
        }


def _read(kept: Any) -> Conversation:
    """The conversation that a browser sent; a new one if it sent none."""
    try:
        return Conversation.model_validate(kept or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise gr.Error(
            f"This conversation cannot be read: {place}: {first['msg']}.", print_exception=False
        ) from None


def _served(served: Any) -> list[ServedModel]:
    return [ServedModel(**entry) for entry in served or []]


def _plain(model: ServedModel) -> dict[str, Any]:
    return {**vars(model), "default_sampling": dict(model.default_sampling)}


def _defaults(served: list[ServedModel], name: str | None) -> dict[str, float]:
    """The sampling of the model where the server tells it, else what a chat completion has by definition."""
    model = next((model for model in served if model.name == name), None)
    return {**_DEFAULTS, **(model.default_sampling if model else {})}


def _session(request: gr.Request) -> str:
    return request.session_hash or ""


def _file_name(conversation: Conversation) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in conversation.title.lower())
    return "-".join(part for part in kept.split("-") if part)[:60] or "conversation"
