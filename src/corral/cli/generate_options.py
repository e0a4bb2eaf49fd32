"""Options of `corral generate` alone: ends, penalties, log-probabilities, and the form of the output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.errors import RequestError

if TYPE_CHECKING:
    from corral.engine.sampling.params import StructuredOutputsParams

_SAMPLING, _FORM = "Sampling", "Form of the output"


def _sampling(text: str) -> Any:
    return typer.Option(help=text, show_default=False, rich_help_panel=_SAMPLING)


def _form(text: str) -> Any:
    return typer.Option(help=text, show_default=False, rich_help_panel=_FORM)


@dataclass(frozen=True)
class Further:
    """How tokens are chosen and where the text ends, beyond what `options.Choosing` has."""

    n: Annotated[int | None, _sampling("How many outputs to give for a prompt.")] = None
    typical_p: Annotated[float | None, _sampling("Locally typical sampling.")] = None
    frequency_penalty: Annotated[float | None, _sampling("Subtracted for each time a token came.")] = None
    presence_penalty: Annotated[float | None, _sampling("Subtracted from tokens that came.")] = None
    stop: Annotated[list[str] | None, _sampling("A text to end before. May be given several times.")] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the model's end.", rich_help_panel=_SAMPLING)
    ] = False
    logprobs: Annotated[
        int | None, _sampling("Log-probability of each token and of so many best ones, 0 to 20.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields of `SamplingParams` that were given."""
        found = {name: value for name, value in vars(self).items() if value not in (None, False)}
        return found | ({} if self.stop is None else {"stop": tuple(self.stop)})


@dataclass(frozen=True)
class Form:
    """A form that the output is held to."""

    json_schema: Annotated[str | None, _form("A JSON schema, as a file or as text.")] = None
    regex: Annotated[str | None, _form("A regular expression for the whole output.")] = None
    choice: Annotated[list[str] | None, _form("A text to choose. May be given several times.")] = None
    grammar: Annotated[Path | None, _form("A file with a Lark grammar, as llguidance reads it.")] = None

    def given(self) -> dict[str, StructuredOutputsParams]:
        """The field of `SamplingParams`, where one was given.

        Raises:
            RequestError: several were given, or a file cannot be read.
        """
        from corral.engine.sampling.params import StructuredOutputsParams

        fields: dict[str, Any] = {
            "json": None if self.json_schema is None else _schema(self.json_schema),
            "regex": self.regex,
            "choice": None if self.choice is None else tuple(self.choice),
            "grammar": None if self.grammar is None else _read("--grammar", self.grammar),
        }
        given = {name: value for name, value in fields.items() if value is not None}
        if len(given) > 1:
            flags = {"json": "json-schema"}
            names = " and ".join(f"--{flags.get(name, name)}" for name in given)
            raise RequestError(f"{names} contradict each other; give one of them")
        return {"structured_outputs": StructuredOutputsParams(**given)} if given else {}


def _schema(text: str) -> Any:
    """A schema that is written out, or lies in a file."""
    written = text.lstrip().startswith("{") or text.strip() in ("true", "false")
    source = text if written else _read("--json-schema", Path(text))
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        where = "--json-schema" if written else f"--json-schema: {text}"
        raise RequestError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise RequestError(f"--json-schema is {str(schema)[:40]!r}; a JSON schema is an object")
    return schema


def _read(flag: str, path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{flag}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{flag}: {path} is not UTF-8 text at byte {error.start}") from None
