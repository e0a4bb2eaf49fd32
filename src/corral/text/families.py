"""The prompt families of Llama 3 as data: what each format has a place for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from corral.errors import RenderError, TokenizerError
from corral.text.control_tokens import (
    BEGIN_OF_TEXT,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TEXT,
    END_OF_TURN,
    PYTHON_TAG,
    START_HEADER,
)
from corral.text.tokenizer import Tokenizer

BRAVE_SEARCH, WOLFRAM_ALPHA, CODE_INTERPRETER = "brave_search", "wolfram_alpha", "code_interpreter"
BUILTIN_TOOLS = (BRAVE_SEARCH, WOLFRAM_ALPHA, CODE_INTERPRETER)


@dataclass(frozen=True)
class Family:
    """One family's prompt format.

    Attributes:
        name, title: for options and for sentences.
        tools: whether the family was trained for tools at all.
        stop_tokens: what ends a message or a text.
        template_sha256: of the published chat template, stripped of white space at both ends.
        template_file: Corral's own template for the same prompts, in the folder `templates`.
        template_date: the date that the template falls back to; None for the day of rendering.
        template_builtin_tools: whether the template has a place for built-in tools.
        meta_builtin_tools: the built-in tools in Meta's prompt-format document.
        meta_tool_formats: the formats for custom tools in Meta's document, the default first.
    """

    name: str
    title: str
    tools: bool
    stop_tokens: tuple[str, ...]
    template_sha256: str
    template_file: str
    template_date: str | None = None
    template_builtin_tools: bool = False
    meta_builtin_tools: tuple[str, ...] = ()
    meta_tool_formats: tuple[str, ...] = ()

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """All control tokens that the family's prompts consist of."""
        return (*_FRAME, *self.stop_tokens, *((PYTHON_TAG,) if self.tools else ()))

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The ids of `stop_tokens` in a tokenizer.

        Raises:
            TokenizerError: the tokenizer lacks a control token of the family's prompts.
        """
        missing = next((token for token in self.control_tokens if token not in tokenizer.control), None)
        if missing is not None:
            raise TokenizerError(
                f"the {self.title} prompt format needs {missing}, which this model's tokenizer does not have"
            )
        return frozenset(tokenizer.control_id(token) for token in self.stop_tokens)

    def chat_template(self) -> str:
        """A chat template in Jinja, for a checkpoint that comes without one.

        It gives the same prompts as the published template. Where that fails, it is more lenient: null
        content, content in text parts, an empty list of calls and arguments as JSON text are understood.
        """
        return files("corral.text").joinpath("templates", self.template_file).read_text(encoding="utf-8")


_FRAME = (BEGIN_OF_TEXT, START_HEADER, END_HEADER)
_STOPS = (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)
_SHA_3_1 = "93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7"

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama-3": Family(
            name="llama-3",
            title="Llama 3",
            tools=False,
            stop_tokens=(END_OF_TEXT, END_OF_TURN),
            template_sha256="ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",
            template_file="llama-3.jinja",
        ),
        "llama-3.1": Family(
            name="llama-3.1",
            title="Llama 3.1",
            tools=True,
            stop_tokens=_STOPS,
            template_sha256=_SHA_3_1,
            template_file="llama-3.1.jinja",
            template_date="26 Jul 2024",
            template_builtin_tools=True,
            meta_builtin_tools=BUILTIN_TOOLS,
            meta_tool_formats=("json", "function_tag"),
        ),
        "llama-3.2": Family(
            name="llama-3.2",
            title="Llama 3.2",
            tools=True,
            stop_tokens=_STOPS,
            template_sha256="d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f",
            template_file="llama-3.2.jinja",
            meta_builtin_tools=(CODE_INTERPRETER,),
            meta_tool_formats=("pythonic", "pythonic_tagged"),
        ),
        "llama-3.3": Family(
            name="llama-3.3",
            title="Llama 3.3",
            tools=True,
            stop_tokens=_STOPS,
            template_sha256=_SHA_3_1,
            template_file="llama-3.1.jinja",
            template_date="26 Jul 2024",
            template_builtin_tools=True,
            meta_builtin_tools=BUILTIN_TOOLS,
            meta_tool_formats=("pythonic", "pythonic_tagged", "json", "function_tag"),
        ),
    }
)


def family_named(name: str) -> Family:
    """The family of a name such as "llama-3.1".

    Raises:
        RenderError: there is none of that name.
    """
    if name not in FAMILIES:
        raise RenderError(f"{name!r} is no prompt family; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
