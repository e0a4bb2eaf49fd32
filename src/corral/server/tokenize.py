"""Text to tokens and back, and dialogs to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from corral.errors import RequestError, TokenizerError
from corral.llm import LLM
from corral.server.openai.chat_body import ChatBody
from corral.server.openai.completions_body import text_tokens
from corral.server.openai.logprobs import token_text
from corral.server.service import Service
from corral.server.wire import Body, JsonRoute, Many, json_response

MAX_CHARACTERS = 2**21
MAX_TOKENS = 2**18


class TokenizeText(Body):
    """A text."""

    prompt: str = Field(max_length=MAX_CHARACTERS)
    model: str | None = None
    add_special_tokens: bool | None = Field(None, description="With the token that begins a text.")
    return_token_strs: bool | None = None

    def tokens(self, llm: LLM) -> Sequence[int]:
        """As the completions route takes it."""
        return text_tokens(llm.tokenizer, self.prompt, self.add_special_tokens)


class TokenizeChat(ChatBody):
    """A dialog with its tools: the body of a chat request, of which only the prompt is made."""

    return_token_strs: bool | None = None

    def tokens(self, llm: LLM) -> tuple[int, ...]:
        """The prompt."""
        return prompt_of(llm, self)


class DetokenizeBody(Body):
    """Tokens."""

    tokens: Many[Annotated[int, Field(ge=0)]] = Field(max_length=MAX_TOKENS)
    model: str | None = None


def _kind(body: Any) -> str:
    if isinstance(body, dict):
        return "Chat" if "messages" in body else "Text"
    return "Chat" if isinstance(body, TokenizeChat) else "Text"


TokenizeBody = Annotated[
    Annotated[TokenizeText, Tag("Text")] | Annotated[TokenizeChat, Tag("Chat")], Discriminator(_kind)
]


def prompt_of(llm: LLM, body: ChatBody) -> tuple[int, ...]:
    """The prompt that a chat request gives.

    Raises:
        CorralError: the prompt format cannot express it, or a field is out of range.
    """
    return body.task(llm.default_sampling_params()).rendered(llm).tokens


def tokenize_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Tokens"], route_class=JsonRoute)

    @router.post("/tokenize", summary="Text, or a dialog, to tokens")
    async def tokenize(body: TokenizeBody) -> Response:
        llm = service.llm
        service.adapter(body.model)

        def work() -> dict[str, Any]:
            tokens = body.tokens(llm)
            result = {"count": len(tokens), "max_model_len": llm.max_model_len, "tokens": tokens}
            if body.return_token_strs:
                result["token_strs"] = [token_text(llm.tokenizer, token) for token in tokens]
            return result

        return json_response(await service.in_thread(work))

    @router.post("/detokenize", summary="Tokens to text")
    async def detokenize(body: DetokenizeBody) -> Response:
        llm = service.llm
        service.adapter(body.model)
        try:
            text = await service.in_thread(lambda: llm.tokenizer.decode(body.tokens))
        except TokenizerError as error:
            raise RequestError(f"tokens: {error}") from None
        return json_response({"prompt": text})

    @router.post("/apply-template", summary="The text of the prompt that a dialog gives")
    async def apply_template(body: ChatBody) -> Response:
        llm = service.llm
        service.adapter(body.model)
        text = await service.in_thread(lambda: llm.tokenizer.decode(prompt_of(llm, body)))
        return json_response({"prompt": text})

    return router
