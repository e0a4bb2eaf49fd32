"""Corral: one library for the whole life of a Llama 3 family model."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corral.engine.sampling.params import SamplingParams
    from corral.llm import LLM
    from corral.text.messages import Message, ToolCall

__all__ = ["LLM", "Message", "SamplingParams", "ToolCall"]
__version__ = version("corral")

_HOMES = {
    "LLM": "corral.llm",
    "Message": "corral.text.messages",
    "SamplingParams": "corral.engine.sampling.params",
    "ToolCall": "corral.text.messages",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `import corral` stays fast."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'corral' has no attribute {name!r}")
