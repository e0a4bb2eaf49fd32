"""The prompt that two completions share, where a data set does not say it."""

from __future__ import annotations

from dataclasses import replace

from corral.text.messages import Message
from corral.tune.data.parsed import Said
from corral.tune.errors import TuneError


def same_beginning(chosen: Said, rejected: Said, where: str) -> tuple[Said, Said, Said]:
    """Prompt, chosen and rejected completion of two documents with a common beginning.

    Dialogs are parted before their first different message; texts at the last white space before their first
    different character, which stays with the completions. Where both are the same, the last answer is the
    completion.

    Raises:
        TuneError: nothing is common, or what differs begins with another message than the assistant's.
    """
    if isinstance(chosen, str) or isinstance(rejected, str):
        assert isinstance(chosen, str) and isinstance(rejected, str), "both are texts"  # noqa: PT018
        return _texts(chosen, rejected)
    same = 0
    while same < min(len(chosen), len(rejected)) and _alike(chosen[same], rejected[same]):
        same += 1
    if same == len(chosen) == len(rejected):
        same = (
            max(i for i, message in enumerate(chosen) if message.role == "assistant")
            if _answered(chosen)
            else 0
        )
    if same == 0:
        raise TuneError(
            f"{where}: chosen and rejected have no message in common at the beginning; give a prompt column"
        )
    for key, dialog in (("chosen", chosen), ("rejected", rejected)):
        if same == len(dialog):
            raise TuneError(
                f"{where}: {key} is only the beginning of the other; both need an answer of their own"
            )
        if dialog[same].role != "assistant":
            raise TuneError(
                f"{where}: {key}[{same}], the first message that is not in both, has role "
                f"{dialog[same].role!r}; chosen and rejected must differ in an assistant message"
            )
    return chosen[:same], chosen[same:], rejected[same:]


def _texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    same = 0
    shortest = min(len(chosen), len(rejected))
    while same < shortest and chosen[same] == rejected[same]:
        same += 1
    while same > 0 and not chosen[same : same + 1].isspace():
        same -= 1
    while same > 0 and chosen[same - 1].isspace():  # all white space before the first different word
        same -= 1
    return chosen[:same], chosen[same:], rejected[same:]


def _answered(dialog: tuple[Message, ...]) -> bool:
    return any(message.role == "assistant" for message in dialog)


def _alike(one: Message, other: Message) -> bool:
    """Ids of calls, which may be drawn by chance, tell nothing."""
    return _without_ids(one) == _without_ids(other)


def _without_ids(message: Message) -> Message:
    calls = tuple(replace(call, id="") for call in message.tool_calls)
    return replace(message, tool_calls=calls, tool_call_id=None)
