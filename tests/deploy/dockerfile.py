"""The instructions of the Dockerfile."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.deploy.tools import ROOT

_STAGE = re.compile(r"(\S+)(?: AS (\S+))?")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions and their arguments by stage, those of the stages it is made from first."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    for instruction in re.split(r"(?<!\\)\n", "\n".join(lines)):
        word, _, rest = instruction.replace("\\\n", " ").partition(" ")
        if word == "FROM":
            match = _STAGE.fullmatch(rest)
            assert match is not None
            name = match[2]
            found[name] = list(found.get(match[1], [(word, match[1])]))
        elif word:
            found[name].append((word, rest.strip()))
    return found


def last(stage: str, word: str) -> str:
    """The arguments of the last instruction of a kind, which is the one that counts."""
    return [rest for instruction, rest in stages()[stage] if instruction == word][-1]


def health_check(stage: str) -> list[str]:
    """The command of HEALTHCHECK."""
    command: list[str] = json.loads(last(stage, "HEALTHCHECK").partition("CMD ")[2])
    return command


def environment(stage: str) -> dict[str, str]:
    """The variables of an image."""
    pairs = [pair for word, rest in stages()[stage] if word == "ENV" for pair in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def entrypoint(stage: str) -> list[str]:
    """What runs, with the arguments of CMD behind it."""
    words: list[Any] = [*json.loads(last(stage, "ENTRYPOINT")), *json.loads(last(stage, "CMD"))]
    return [str(word) for word in words]
