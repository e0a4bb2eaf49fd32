"""Dialogs for formats that allow one tool call per message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from corral.text.messages import Message, ToolCall


def one_call_per_message(
    messages: Sequence[Message], keep: Callable[[Message], bool] = lambda _: False
) -> list[Message]:
    """Splits a message with several calls into messages with one call, each followed by its result.

    Results are the tool messages right after the calls. A result belongs to the call of its `tool_call_id`,
    else to the first call that has none yet. Text beside the calls stays with the first. Messages for which
    `keep` holds are left as they are.
    """
    result: list[Message] = []
    index = 0
    while index < len(messages):
        message = messages[index]
        index += 1
        if len(message.tool_calls) < 2 or keep(message):
            result.append(message)
            continue
        end = index
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        result.extend(_pairs(message, messages[index:end]))
        index = end
    return result


def _pairs(message: Message, results: Sequence[Message]) -> list[Message]:
    answers, left = _answers(message.tool_calls, results)
    dialog: list[Message] = []
    for index, (call, found) in enumerate(zip(message.tool_calls, answers, strict=True)):
        content = message.content if index == 0 else ""
        dialog.append(replace(message, content=content, tool_calls=(call,)))
        dialog.extend(found)
    return dialog + left


def _answers(
    calls: Sequence[ToolCall], results: Sequence[Message]
) -> tuple[list[list[Message]], list[Message]]:
    """The results of each call, and those that belong to none."""
    answers: list[list[Message]] = [[] for _ in calls]
    place = {call.id: index for index, call in enumerate(calls)}
    unnamed = []
    for result in results:
        index = place.get(result.tool_call_id) if result.tool_call_id is not None else None
        if index is None:
            unnamed.append(result)
        else:
            answers[index].append(result)
    free = [found for found in answers if not found]
    for found, result in zip(free, unnamed, strict=False):
        found.append(result)
    return answers, unnamed[len(free) :]
