"""Formats of rows: which columns they have, which objectives they serve, and what they say."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from corral.text.messages import Message
from corral.tune.config import Source
from corral.tune.data.dialogs import check_order, read_messages, read_said, read_tools, untrained_messages
from corral.tune.data.parsed import Completion, Dialog, Parsed, Preference, Said, Text
from corral.tune.data.rows import Row
from corral.tune.data.split_prompt import same_beginning
from corral.tune.errors import TuneError

Fields = Mapping[str, Any]

_DOCUMENTS, _PAIRS, _RATED = ("sft", "pretrain"), ("dpo", "orpo", "reward", "kto"), ("kto",)


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as in the configuration.
        needed: the columns that tell it from others; every row has them.
        optional: columns that may be there too.
        kinds: the objectives that it serves.
        parse: what a row says, given its fields by the format's column names and the words to begin with.
    """

    name: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    kinds: tuple[str, ...]
    parse: Callable[[Fields, str], Parsed]


def _messages(fields: Fields, where: str) -> Parsed:
    at = f"{where}: messages"
    messages = read_messages(fields["messages"], at)
    return _dialog(messages, fields, where, "messages", untrained_messages(fields["messages"], at))


def _sharegpt(fields: Fields, where: str) -> Parsed:
    at = f"{where}: conversations"
    messages = read_messages(fields["conversations"], at)
    untrained = untrained_messages(fields["conversations"], at)
    system = _optional_text(fields, "system", where)
    if system and messages[0].role == "system":
        raise TuneError(f"{where} has a system column and a system message; leave one of them out")
    if system:
        messages, untrained = (Message("system", system), *messages), frozenset(i + 1 for i in untrained)
    return _dialog(messages, fields, where, "conversations", untrained)


def _alpaca(fields: Fields, where: str) -> Parsed:
    question, more = _needed_text(fields, "instruction", where), _optional_text(fields, "input", where)
    system = _optional_text(fields, "system", where)
    messages = [Message("system", system)] if system else []
    history = fields.get("history") or []
    if not isinstance(history, list) or not all(_is_exchange(exchange) for exchange in history):
        raise TuneError(f"{where}: history must be a list of pairs of texts, a question and its answer each")
    for asked, answered in history:
        messages += [Message("user", asked), Message("assistant", answered)]
    messages.append(Message("user", f"{question}\n{more}" if more else question))
    answer = _needed_text(fields, "output", where)
    return _dialog((*messages, Message("assistant", answer)), fields, where, "messages")


def _text(fields: Fields, where: str) -> Parsed:
    return Text(_needed_text(fields, "text", where))


def _prompt_completion(fields: Fields, where: str) -> Parsed:
    prompt = _prompt(fields["prompt"], f"{where}: prompt")
    completion = read_said(fields["completion"], f"{where}: completion")
    prompt, (completion,) = _alike(prompt, completion)
    _check_completion(prompt, completion, f"{where}: completion")
    return Completion(prompt, completion, read_tools(fields.get("tools"), f"{where}: tools"))


def _rated(fields: Fields, where: str) -> Parsed:
    label = fields["label"]
    if not isinstance(label, bool):
        raise TuneError(f"{where}: label must be true or false, not {label!r}")
    row = _prompt_completion(fields, where)
    assert isinstance(row, Completion), "that is what prompt and completion give"
    return Completion(row.prompt, row.completion, row.tools, label)


def _preference(fields: Fields, where: str) -> Parsed:
    tools = read_tools(fields.get("tools"), f"{where}: tools")
    chosen, rejected = (read_said(fields[key], f"{where}: {key}") for key in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise TuneError(f"{where}: chosen and rejected must both be text, or both be messages")
    given = fields.get("prompt")
    repeats_prompt = isinstance(given, str) and not isinstance(chosen, str) and chosen[0].role != "assistant"
    if given is None or repeats_prompt:
        prompt, chosen, rejected = same_beginning(chosen, rejected, where)
    else:
        prompt, (chosen, rejected) = _alike(_prompt(given, f"{where}: prompt"), chosen, rejected)
    _check_completion(prompt, chosen, f"{where}: chosen")
    _check_completion(prompt, rejected, f"{where}: rejected")
    return Preference(prompt, chosen, rejected, tools)


# In the order in which they are looked for.
FORMATS: Mapping[str, Format] = {
    known.name: known
    for known in (
        Format("preference", ("chosen", "rejected"), ("prompt", "tools"), _PAIRS, _preference),
        Format("rated", ("prompt", "completion", "label"), ("tools",), _RATED, _rated),
        Format("messages", ("messages",), ("tools",), _DOCUMENTS, _messages),
        Format("sharegpt", ("conversations",), ("system", "tools"), _DOCUMENTS, _sharegpt),
        Format("prompt_completion", ("prompt", "completion"), ("tools",), _DOCUMENTS, _prompt_completion),
        Format("alpaca", ("instruction", "output"), ("input", "system", "history"), _DOCUMENTS, _alpaca),
        Format("text", ("text",), (), _DOCUMENTS, _text),
    )
}


def wanted_columns(source: Source) -> set[str]:
    """All columns that could be of interest in a source."""
    known = {column for known in FORMATS.values() for column in (*known.needed, *known.optional)}
    return known | set(source.columns.values())


def find_format(source: Source, row: Row, kind: str) -> Format:
    """The format of a source, as it says or by the columns of its first row.

    Where the columns fit several, one that serves the objective is taken.

    Raises:
        TuneError: there is none that serves it; the message names the columns, and the nearest one.
    """
    names = _named(source, row)
    if source.format is not None:
        known = FORMATS[source.format]
        if kind not in known.kinds:
            raise _not_for(kind, known, row)
        _check_columns(known, names, row)
        return known
    fitting = [known for known in FORMATS.values() if set(known.needed) <= names]
    order = ("text", *FORMATS) if kind == "pretrain" else tuple(FORMATS)
    serving = [known for name in order for known in fitting if known.name == name and kind in known.kinds]
    if serving:
        return serving[0]
    if fitting:
        raise _not_for(kind, fitting[0], row)
    raise _missing(row, names, [known for known in FORMATS.values() if kind in known.kinds])


def parse_row(known: Format, source: Source, row: Row) -> Parsed:
    """What a row says.

    Raises:
        TuneError: a column is missing, or holds something else than it should; row and column are named.
    """
    names = _named(source, row)
    _check_columns(known, names, row)
    fields = {
        column: row.fields.get(source.columns.get(column, column))
        for column in (*known.needed, *known.optional)
    }
    for column in known.needed:
        if fields[column] is None:
            raise TuneError(f"{row.where}: {source.columns.get(column, column)} is empty; leave the row out")
    return known.parse(fields, row.where)


def _named(source: Source, row: Row) -> set[str]:
    """The columns of a row by the names of formats."""
    if not source.columns:
        return set(row.columns)
    known = {column for each in FORMATS.values() for column in (*each.needed, *each.optional)}
    for column, name in source.columns.items():
        if column not in known:
            near = _near(column, known)
            raise TuneError(f"columns has the key {column!r}, which no format has a column for{near}")
        if name not in row.columns and column not in _OPTIONAL:
            found = ", ".join(row.columns) or "none"
            raise TuneError(
                f"{row.where} has no column {name!r}, which columns names for {column!r}; its columns are: "
                f"{found}{_near(name, row.columns)}"
            )
    renamed = set(source.columns.values())
    return (set(row.columns) - renamed) | {c for c, name in source.columns.items() if name in row.columns}


_OPTIONAL = frozenset(column for known in FORMATS.values() for column in known.optional) - {
    column for known in FORMATS.values() for column in known.needed
}


def _check_columns(known: Format, names: Collection[str], row: Row) -> None:
    missing = [column for column in known.needed if column not in names]
    if missing:
        found = ", ".join(row.columns) or "none"
        raise TuneError(
            f"{row.where} has no column {missing[0]!r}, which the format {known.name} needs; its columns "
            f"are: {found}{_near(missing[0], row.columns)}"
        )


def _missing(row: Row, names: Collection[str], formats: Collection[Format]) -> TuneError:
    wanted = "; or ".join(" and ".join(map(repr, known.needed)) for known in formats)
    needed = [column for known in formats for column in known.needed if column not in names]
    near = next((words for column in needed if (words := _near(column, row.columns, column))), "")
    return TuneError(
        f"{row.where} fits no format; its columns are: {', '.join(row.columns) or 'none'}; wanted are "
        f"{wanted}{near}"
    )


def _near(wanted: str, names: Collection[str], column: str | None = None) -> str:
    close = difflib.get_close_matches(wanted, list(names), n=1, cutoff=0.7)
    if not close:
        return ""
    if column is None:
        return f". Did you mean {close[0]!r}?"
    return f". Is {close[0]!r} the column {column!r}? Then set columns to {{{column}: {close[0]}}}"


def _not_for(kind: str, known: Format, row: Row) -> TuneError:
    serving = " or ".join(each.name for each in FORMATS.values() if kind in each.kinds)
    return TuneError(f"{row.where} is in the format {known.name}, but {kind} trains on rows of {serving}")


def _dialog(
    messages: tuple[Message, ...],
    fields: Fields,
    where: str,
    column: str,
    untrained: frozenset[int] = frozenset(),
) -> Dialog:
    check_order(messages, f"{where}: {column}")
    if not any(message.role == "assistant" for message in messages):
        raise TuneError(
            f"{where}: {column} has no assistant message, so there is nothing to learn; leave the row out"
        )
    return Dialog(messages, read_tools(fields.get("tools"), f"{where}: tools"), untrained)


def _prompt(value: Any, at: str) -> Said:
    said = read_said(value, at)
    if not isinstance(said, str) and said[-1].role == "assistant":
        raise TuneError(f"{at} ends with an assistant message; that belongs to the completion")
    return said


def _alike(prompt: Said, *completions: Said) -> tuple[Said, tuple[Said, ...]]:
    """Both as texts or both as messages: a text beside messages is the user's or the assistant's."""
    if isinstance(prompt, str) and all(isinstance(said, str) for said in completions):
        return prompt, completions
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    return prompt, tuple(
        (Message("assistant", said),) if isinstance(said, str) else said for said in completions
    )


def _check_completion(prompt: Said, completion: Said, at: str) -> None:
    if isinstance(prompt, str) or isinstance(completion, str):
        if not completion:
            raise TuneError(f"{at} is empty, so there is nothing to learn; leave its row out")
        return
    if completion[0].role != "assistant":
        raise TuneError(
            f"{at} must begin with an assistant message, not with one of role {completion[0].role!r}"
        )
    if not completion[0].content and not completion[0].tool_calls:
        raise TuneError(f"{at} is empty, so there is nothing to learn; leave its row out")
    check_order((*prompt, *completion), f"{at} behind its prompt: messages")


def _needed_text(fields: Fields, column: str, where: str) -> str:
    value = _optional_text(fields, column, where)
    if not value.strip():
        raise TuneError(f"{where}: {column} is empty; leave the row out")
    return value


def _optional_text(fields: Fields, column: str, where: str) -> str:
    value = fields.get(column)
    if value is not None and not isinstance(value, str):
        raise TuneError(f"{where}: {column} must be text, not {type(value).__name__}")
    return value or ""


def _is_exchange(exchange: Any) -> bool:
    return (
        isinstance(exchange, list) and len(exchange) == 2 and all(isinstance(text, str) for text in exchange)
    )
