"""Usage and speed, as answers carry them."""

from __future__ import annotations

from typing import Any

from corral.engine.events import Timings, Usage


def usage_body(usage: Usage) -> dict[str, Any]:
    """Tokens, in OpenAI's form."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.draft_tokens:
        body["completion_tokens_details"] = {
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.draft_tokens - usage.accepted_tokens,
        }
    return body


def timings_body(usage: Usage, timings: Timings) -> dict[str, float]:
    """Milliseconds, and tokens per second, under llama.cpp's names.

    The prompt's time is that from the queue to the first token, which is the prompt's work.
    """
    computed, decoded = usage.prompt_tokens - usage.cached_tokens, max(0, usage.completion_tokens - 1)
    return {
        "queued_ms": round(timings.queued * 1e3, 3),
        "prompt_n": computed,
        "prompt_ms": round(timings.prefill * 1e3, 3),
        "prompt_per_second": _rate(computed, timings.prefill),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(timings.decode * 1e3, 3),
        "predicted_per_second": _rate(decoded, timings.decode),
    }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0
