"""What the chat shows of a conversation: Gradio's messages, and which message of the conversation each is."""

from __future__ import annotations

import json
import re
from typing import Any

from corral.server.page.conversation import Call, ChatMessage, Conversation, Stats

# In a pattern's order: what stays as it is; formulas between single dollars; pictures from elsewhere; HTML.
# `$x$` is a formula if no space is inside next to the dollars and no digit follows: "$5 and $6" is money.
_REWRITTEN = re.compile(
    r"(?P<kept>```.*?(?:```|\Z)|`[^`\n]+`|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\))"
    r"|(?<![\\$\w])\$(?P<math>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![\d$])"
    r"|!(?P<picture>\[[^\]\n]*\]\((?:https?:)?//[^)\n]*\))"
    r"|<(?!/?(?:br|sub|sup|kbd)\b[\s/]*>)(?=[a-zA-Z/!?])",
    re.DOTALL,
)
_HTML_OR_ENTITY = re.compile(r"[<&](?=[a-zA-Z/!?#])")
_JOINER = "\u2060"  # invisible; after "<" it keeps the browser from taking text for a tag
LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
_LONG_RESULT = 60  # characters of a result in the one-line title of a call


def for_page(text: str) -> str:
    """A model's Markdown as the page shows it.

    Outside code, formulas between single dollars are rewritten as `\\( \\)`; HTML is shown, not obeyed; and
    pictures from elsewhere become links, for the page fetches nothing from other servers.
    """
    return _REWRITTEN.sub(_rewrite, text)


def _rewrite(found: re.Match[str]) -> str:
    if found["math"] is not None:
        return f"\\({found['math']}\\)"
    return found["kept"] or found["picture"] or f"<{_JOINER}"


def question_for_page(text: str) -> str:
    """A person's message: Markdown too, but with every "<" and "&" as it was typed."""
    return _HTML_OR_ENTITY.sub(lambda found: found[0] + _JOINER, text)


def question_from_page(text: str) -> str:
    """The message that was made of `question_for_page`, when it comes back edited."""
    return text.replace(_JOINER, "")


def chat_messages(
    conversation: Conversation, *, writing: bool = False
) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages to show, and for each the index of the message of the conversation that it shows.

    Args:
        conversation: what to show.
        writing: the last answer is still being made.
    """
    shown: list[dict[str, Any]] = []
    origins: list[int] = []
    last = len(conversation.messages) - 1
    for index, message in enumerate(conversation.messages):
        results = [conversation.result_of(index, call) for call in message.calls]
        for part in _parts(message, results, writing=writing and index == last):
            shown.append(part)
            origins.append(index)
    return shown, origins


def _parts(message: ChatMessage, results: list[str | None], *, writing: bool) -> list[dict[str, Any]]:
    if message.role == "user":
        return [{"role": "user", "content": question_for_page(message.content)}]
    if message.role == "tool":  # shown with the call that it answers
        return []
    parts: list[dict[str, Any]] = []
    nothing_yet = writing and not message.calls
    if message.content or nothing_yet:
        parts.append({"role": "assistant", "content": for_page(message.content) or "…"})
    parts += [_call(call, result) for call, result in zip(message.calls, results, strict=True)]
    if message.error:
        parts.append({"role": "assistant", "content": f"⚠️ {message.error}"})
    if message.stats is not None and not writing:
        parts.append(_stats(message.stats, stopped=message.stopped))
    return parts


def _call(call: Call, result: str | None) -> dict[str, Any]:
    """A call as a box that opens: its arguments and, once there is one, its result."""
    title = f"🔧 {call.name}({_arguments_in_brief(call.arguments)})"
    if result is not None:
        brief = " ".join(result.split())
        title += f" → {brief}" if len(brief) <= _LONG_RESULT else f" → {brief[:_LONG_RESULT]}…"
    content = f"Arguments\n{_fenced(_pretty(call.arguments), 'json')}"
    if result is not None:
        content += f"\n\nResult\n{_fenced(_pretty(result))}"
    status = "pending" if result is None else "done"
    return {"role": "assistant", "content": content, "metadata": {"title": title, "status": status}}


def _stats(stats: Stats, *, stopped: bool) -> dict[str, Any]:
    title, details = stats_in_words(stats, stopped=stopped)
    return {"role": "assistant", "content": details, "metadata": {"title": title, "status": "done"}}


def stats_in_words(stats: Stats, *, stopped: bool = False) -> tuple[str, str]:
    """One line on how an answer was made, and a table of the details."""
    used = stats.prompt_tokens + stats.completion_tokens
    window = f" of {stats.context_length:,}" if stats.context_length else ""
    brief = ["stopped"] if stopped else ["cut off at the limit"] if stats.finish_reason == "length" else []
    rows = [("Model", stats.model)]
    if stats.tokens_per_second is not None:
        brief.append(f"{stats.tokens_per_second:.1f} tokens/s")
    if stats.first_token_s is not None:
        brief.append(f"first token {stats.first_token_s:.2f} s")
        rows.append(("First token", f"{stats.first_token_s:.3f} s"))
    rows.append(("Whole answer", f"{stats.total_s:.2f} s"))
    if used:
        brief.append(f"context {used:,}{window}")
        cached = f", {stats.cached_tokens:,} of them from the cache" if stats.cached_tokens else ""
        rows.append(("Prompt", f"{stats.prompt_tokens:,} tokens{cached}"))
        rows.append(("Answer", f"{stats.completion_tokens:,} tokens"))
    if stats.context_length:
        rows.append(
            ("Context in use", f"{100 * used / stats.context_length:.1f}% of {stats.context_length:,}")
        )
    if stats.finish_reason:
        rows.append(("Ended by", stats.finish_reason))
    table = "| | |\n| :-- | :-- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
    return " · ".join(brief) or "answer", table


def _arguments_in_brief(arguments: str) -> str:
    try:
        given = json.loads(arguments)
        brief = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())
    except (ValueError, AttributeError, RecursionError):
        brief = " ".join(arguments.split())
    return brief if len(brief) <= 80 else brief[:79] + "…"


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _fenced(text: str, language: str = "") -> str:
    """`text` as a code block whose fence it cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
