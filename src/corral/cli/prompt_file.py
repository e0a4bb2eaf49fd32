"""A file of prompts: one JSON object in each line.

A row is {"prompt": text}, {"prompt_token_ids": [ids]} or {"messages": [...]} (with "tools" if need be). It
may have an "id", any JSON scalar, and fields of `SamplingParams` by their names, which go before the flags.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corral.cli.chat_file import is_text
from corral.engine.sampling.checks import require_whole
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import CorralError
from corral.text.messages import as_messages

if TYPE_CHECKING:
    from corral.engine.request import Request
    from corral.llm import LLM

_KINDS = ("prompt", "prompt_token_ids", "messages")
_SAMPLING = tuple(f.name for f in fields(SamplingParams))
_FORMS: Mapping[str, tuple[type, ...]] = {
    "json": (dict, bool, str),
    "json_object": (bool,),
    "regex": (str,),
    "choice": (list,),
    "grammar": (str,),
}


class PromptFileError(CorralError):
    """A file of prompts, or of results, that cannot be used as it is; the message names it and the line."""


@dataclass(frozen=True)
class Row:
    """A row of a file: its number among the rows, from 0, and what it asks for."""

    index: int
    content: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> dict[str, Any]:
        """What its result begins with."""
        return {"index": self.index} | ({"id": self.content["id"]} if "id" in self.content else {})

    def request(self, llm: LLM, params: SamplingParams, adapter: str | None) -> Request:
        """The request to the engine; `params` are for what the row leaves open.

        Raises:
            CorralError: the row cannot be run.
        """
        params = replace(params, **self.settings)
        if "messages" in self.content:
            tools = self.content.get("tools", ())
            return llm.chat_request(self.content["messages"], params, tools, adapter=adapter)
        prompt = self.content.get("prompt", self.content.get("prompt_token_ids"))
        assert prompt is not None, "a row has a prompt in one of its forms"
        return llm.request(prompt, params, adapter=adapter)


@dataclass(frozen=True)
class PromptFile:
    """A file whose rows have all been looked at. They are read again as they are needed, not kept."""

    path: Path
    sha256: str
    num_rows: int
    has_dialogs: bool

    @classmethod
    def check(cls, path: Path, params: SamplingParams) -> PromptFile:
        """Reads a file to its end; `params` are what the flags say.

        Raises:
            PromptFileError: it cannot be read, or a row is wrong; the message names line and field.
        """
        digest, count, dialogs = hashlib.sha256(), 0, False
        for number, line in _lines(path):
            digest.update(line)
            if not line.strip():
                continue
            row = _row(f"{path} line {number}", count, line, params)
            count += 1
            dialogs |= "messages" in row.content
        if not count:
            raise PromptFileError(f"{path} has no rows; give one JSON object in each line")
        return cls(path, digest.hexdigest(), count, dialogs)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows from number `start` on.

        Raises:
            PromptFileError: the file has been changed meanwhile.
        """
        count = 0
        for number, line in _lines(self.path):
            if not line.strip():
                continue
            if count >= start:
                yield _row(f"{self.path} line {number}", count, line)
            count += 1


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.exists() and not path.is_file():
        raise PromptFileError(f"{path} is not a file; it is read twice, so that a pipe will not do")
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise PromptFileError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None


def _row(where: str, index: int, line: bytes, params: SamplingParams | None = None) -> Row:
    """The row of a line; its settings are tried on `params`."""
    try:
        row = _split(index, _parse(line.removeprefix(codecs.BOM_UTF8) if index == 0 else line))
        if params is not None:
            replace(params, **row.settings)
    except CorralError as error:
        raise PromptFileError(f"{where}: {error}") from None
    return row


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise PromptFileError(f"not UTF-8 text at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise PromptFileError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise PromptFileError(f"a row must be an object, not {_kind(row)}")
    if b"\\ud" in line.lower() and not is_text(json.dumps(row, ensure_ascii=False)):
        raise PromptFileError("it holds half of a surrogate pair, which is not valid Unicode text")
    return row


def _split(index: int, row: dict[str, Any]) -> Row:
    """Tells prompt and settings apart, with every field checked."""
    known = (*_KINDS, "tools", "id", *_SAMPLING)
    unknown = next((name for name in row if name not in known), None)
    if unknown is not None:
        raise PromptFileError(f"{unknown!r} is no field; there are {', '.join(known)}")
    given = [name for name in _KINDS if name in row]
    if len(given) != 1:
        what = f"has {' and '.join(given)}" if given else "has no prompt"
        raise PromptFileError(f"the row {what}; give exactly one of {', '.join(_KINDS)}")
    if isinstance(row.get("id"), dict | list):
        raise PromptFileError(f"id is {_kind(row['id'])}; it must be a text, a number, true, false or null")
    _check_prompt(given[0], row[given[0]])
    if "tools" in row:
        _check_tools(row["tools"], given[0])
    content = {name: value for name, value in row.items() if name not in _SAMPLING}
    return Row(index, content, {name: _setting(name, row[name]) for name in row if name in _SAMPLING})


def _check_prompt(name: str, value: Any) -> None:
    _require_filled(name, value)
    if name == "messages":
        as_messages(value)
    for token_id in value if name == "prompt_token_ids" else ():
        require_whole("prompt_token_ids: a token id", token_id, low=0)


def _require_filled(name: str, value: Any) -> None:
    kind, words = (str, "a text") if name == "prompt" else (list, "a list")
    if not isinstance(value, kind):
        raise PromptFileError(f"{name} is {_kind(value)}; it must be {words}")
    if not value:
        raise PromptFileError(f"{name} is empty")


def _check_tools(tools: Any, prompt: str) -> None:
    if prompt != "messages":
        raise PromptFileError(f"tools go with messages, not with {prompt}")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise PromptFileError("tools must be a list of objects")


def _setting(name: str, value: Any) -> Any:
    """A field of `SamplingParams` as JSON has it."""
    if name == "structured_outputs" and value is not None:
        return _structured(value)
    if name != "logit_bias" or not isinstance(value, dict):
        return value
    try:
        return {int(token_id): bias for token_id, bias in value.items()}
    except ValueError:
        raise PromptFileError("logit_bias must map token ids to numbers") from None


def _structured(value: Any) -> StructuredOutputsParams:
    if not isinstance(value, dict):
        raise PromptFileError(f"structured_outputs is {_kind(value)}; it must be an object")
    for name, form in value.items():
        if name not in _FORMS:
            names = ", ".join(_FORMS)
            raise PromptFileError(f"structured_outputs.{name} is no field; there are {names}")
        if form is not None and not isinstance(form, _FORMS[name]):
            raise PromptFileError(f"structured_outputs.{name} is {_kind(form)}, which it cannot be")
    if any(not isinstance(text, str) for text in value.get("choice") or ()):
        raise PromptFileError("structured_outputs.choice must be a list of texts")
    return StructuredOutputsParams(**value)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PromptFileError(f"{twice!r} is given twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise PromptFileError(f"not valid JSON: {text}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
