"""Tokens and ends, as TGI writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corral.engine.events import PromptScored, TokenLogprob, TokenLogprobs
from corral.server.answers import Ended, Output
from corral.server.openai.logprobs import token_text
from corral.server.wire import finite
from corral.text.detokenizer import IncrementalDetokenizer
from corral.text.tokenizer import Tokenizer


def token_body(tokenizer: Tokenizer, token: TokenLogprob, text: str | None = None) -> dict[str, Any]:
    """A token; its text is that of the token alone where none is given."""
    return {
        "id": token.token_id,
        "text": token_text(tokenizer, token.token_id) if text is None else text,
        "logprob": finite(token.logprob),
        "special": tokenizer.is_control(token.token_id),
    }


def tokens_body(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """The tokens of a text. Where a character has several, its text is with the last."""
    reader = IncrementalDetokenizer(tokenizer, skip_control=False, continues=True)
    chosen = [at.chosen for at in logprobs]
    known = [token.token_id < tokenizer.vocab_size for token in chosen]
    texts = [reader.push(token.token_id) if has else "" for token, has in zip(chosen, known, strict=True)]
    if texts:
        texts[-1] += reader.finish()
    return [token_body(tokenizer, token, text) for token, text in zip(chosen, texts, strict=True)]


def top_body(tokenizer: Tokenizer, at: TokenLogprobs) -> list[dict[str, Any]]:
    """The most likely tokens at a place."""
    return [token_body(tokenizer, token) for token in at.top]


def prefill_body(tokenizer: Tokenizer, prompt: Sequence[int], scored: PromptScored) -> list[dict[str, Any]]:
    """The prompt's tokens. The first has no log-probability: there is nothing before it."""
    logprobs = [None] * scored.start + [finite(at.chosen.logprob) for at in scored.logprobs]
    return [
        {"id": token, "text": token_text(tokenizer, token), "logprob": logprob}
        for token, logprob in zip(prompt, logprobs, strict=True)
    ]


def finish_reason(ended: Ended) -> str:
    """Why a text has ended, in TGI's words."""
    if ended.reason == "length":
        return "length"
    return "stop_sequence" if isinstance(ended.stop, str) else "eos_token"


def total_logprob(output: Output) -> float:
    """How likely a text is."""
    return sum(finite(at.chosen.logprob) for at in output.logprobs or ())
