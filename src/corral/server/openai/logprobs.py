"""Log-probabilities, as OpenAI's interfaces write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corral.engine.events import PromptScored, TokenLogprob, TokenLogprobs
from corral.server.wire import finite
from corral.text.tokenizer import Tokenizer


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of a token alone, with its space; empty for the rows by which an embedding is padded."""
    return tokenizer.token_bytes(token_id).decode(errors="replace") if token_id < tokenizer.vocab_size else ""


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Of a chat answer: each token with the most likely ones at its place."""

    def one(token: TokenLogprob) -> dict[str, Any]:
        known = token.token_id < tokenizer.vocab_size
        data = tokenizer.token_bytes(token.token_id) if known else b""
        return {
            "token": token_text(tokenizer, token.token_id),
            "logprob": finite(token.logprob),
            "bytes": list(data),
        }

    content = [{**one(at.chosen), "top_logprobs": [one(token) for token in at.top]} for at in logprobs]
    return {"content": content, "refusal": None}


def prompt_logprobs(tokenizer: Tokenizer, scored: PromptScored) -> list[dict[str, Any] | None]:
    """Of the prompt's tokens, in vLLM's form: None for the first one, before which is nothing."""

    def at_place(at: TokenLogprobs) -> dict[str, Any]:
        return {
            str(token.token_id): {
                "logprob": finite(token.logprob),
                "rank": token.rank,
                "decoded_token": token_text(tokenizer, token.token_id),
            }
            for token in (at.chosen, *at.top)
        }

    return [*[None] * scored.start, *map(at_place, scored.logprobs)]
