"""Which modules of a Llama network a quantization is for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from corral.errors import ConfigError


def is_left_out(module: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern of `modules_to_not_convert` names a module.

    It does as the end of the name, or as a regular expression that matches it from its start up to a dot or
    to its end: as transformers reads such lists.
    """
    return any(module.endswith(p) or _matches(p, module, r"(?:(?<=\.)|(?=\.|$))") for p in patterns)


def names_module(pattern: str, module: str) -> bool:
    """Whether a pattern of compressed-tensors names a module: "re:" and a regular expression, or the name."""
    return _matches(pattern[3:], module) if pattern.startswith("re:") else pattern == module


def module_class(module: str) -> str:
    """The class of a module that has a matrix, as compressed-tensors' targets name it."""
    return "Embedding" if module.endswith("embed_tokens") else "Linear"


def _matches(pattern: str, module: str, end: str = "") -> bool:
    try:
        return re.match(f"(?:{pattern}){end}", module) is not None
    except re.error as error:
        raise ConfigError(f"quantization_config: {pattern!r} is no regular expression ({error})") from None
