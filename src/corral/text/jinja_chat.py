"""Chat templates in Jinja, as transformers runs them: sandboxed, with the same filters and functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from corral.errors import RenderError

# No template can name a variable with a space.
_MARKS = "generation marks"

# What Python code raises when a template handles a value that it did not expect.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        source: the text of the template.
        variables: names that the template reads but does not define.
        has_generation: whether it has `{% generation %}` blocks, which tell what the assistant produced.
    """

    def __init__(self, source: str, name: str = "chat template") -> None:
        self.source, self._name = source, name
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise RenderError(f"the {name} cannot be compiled{line}: {error}") from None
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self.has_generation = any(map(_is_generation, tree.find_all(nodes.CallBlock)))

    def render(self, variables: Mapping[str, Any], marks: tuple[str, str] = ("", "")) -> str:
        """The text for some variables; `marks` are put around what generation blocks give.

        Raises:
            RenderError: the template refuses the dialog, or fails on it.
        """
        try:
            return self._template.render({**variables, _MARKS: marks})
        except _Refused as refusal:
            raise RenderError(f"the {self._name} refuses this dialog: {refusal}") from None
        except _TEMPLATE_FAULTS as error:
            raise RenderError(f"the {self._name} fails on this dialog: {error}") from None


class _Refused(jinja2.TemplateError):
    """What `raise_exception` in a template raises."""


class _GenerationBlocks(Extension):
    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, context: Context, caller: Callable[[], str]) -> str:
        start, end = context.resolve(_MARKS)
        return f"{start}{caller()}{end}"


def _is_generation(block: nodes.CallBlock) -> bool:
    method = block.call.node
    return isinstance(method, nodes.ExtensionAttribute) and method.name == "_marked"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
