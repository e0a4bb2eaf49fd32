"""The fields by which OpenAI's interfaces, and the usual extensions, say how tokens are chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.server.wire import Body, Many, RepetitionPenalty

Schema = dict[str, Any] | bool


class StreamOptions(Body):
    """What a stream tells besides."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="Usage in every chunk.")


class StructuredOutputs(Body):
    """A form that the answer is held to; exactly one field."""

    json_: Annotated[Schema | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Many[str] | None = None
    grammar: str | None = None

    def params(self) -> StructuredOutputsParams:
        return StructuredOutputsParams(
            json=self.json_,
            json_object=bool(self.json_object),
            regex=self.regex,
            choice=None if self.choice is None else tuple(self.choice),
            grammar=self.grammar,
        )


def _first_wrong(biases: Any) -> Any:
    """The first bias that is no number, alone: to describe 100,000 of them takes seconds."""
    items = biases.items() if isinstance(biases, dict) else ()
    first = next((item for item in items if type(item[1]) not in (int, float)), None)
    return biases if first is None else dict([first])


class SamplingFields(Body):
    """Fields that chat and text completions have in common."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | Many[str] | None = None
    seed: int | None = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_first_wrong)] = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    # Beyond OpenAI's, with vLLM's names.
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: int | None = None
    stop_token_ids: Many[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Many[str] | None = None
    guided_grammar: str | None = None
    priority: int | None = None
    cache_salt: str | None = None

    # Fields of OpenAI's own services, as far as they mean something here.
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    def check_stream(self) -> None:
        """Raises RequestError where an option of streams comes without a stream."""
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options: it goes with stream only; set stream, or leave it out")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs: a stream does not hold them; leave stream or this field out")

    def sampling(self, defaults: SamplingParams, **changes: Any) -> SamplingParams:
        """As the engine takes it: the model's defaults where nothing is said.

        Raises:
            RequestError: a value is out of range, or two fields contradict each other.
        """
        if self.n is not None and self.n > 1 and self.temperature is None and defaults.greedy:
            changes = {"temperature": 1.0, **changes}  # several outputs are meant to differ
        given = {name: getattr(self, name) for name in _AS_THEY_ARE}
        given["structured_outputs"] = self._structure()
        given["logit_bias"] = None if self.logit_bias is None else _biases(self.logit_bias)
        merged = {**given, **changes}
        return replace(defaults, **{name: value for name, value in merged.items() if value is not None})

    def _structure(self) -> StructuredOutputsParams | None:
        guided = {
            name.removeprefix("guided_"): getattr(self, name)
            for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
            if getattr(self, name) is not None
        }
        if guided and (self.structured_outputs is not None or len(guided) > 1):
            first = next(iter(guided))
            raise RequestError(f"guided_{first}: only one form can be asked for; leave the others out")
        if guided:
            return StructuredOutputsParams(**guided)
        return None if self.structured_outputs is None else self.structured_outputs.params()


def only_form(
    given: StructuredOutputsParams | None, wanted: StructuredOutputsParams | None, field: str
) -> StructuredOutputsParams | None:
    """The form that was asked for, by `field` (which says `wanted`) or by others.

    Raises:
        RequestError: it was asked for by both.
    """
    if given is not None and wanted is not None:
        raise RequestError(f"{field}: only one form can be asked for; leave the others out")
    return given or wanted


_AS_THEY_ARE = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "prompt_logprobs",
)


def _biases(given: dict[str, float]) -> dict[int, float]:
    biases = {}
    for token, bias in given.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise RequestError(f"logit_bias: {token[:40]!r} is no token id; its names are token ids")
        if not -100 <= bias <= 100:
            raise RequestError(
                f"logit_bias: the bias of token {token} is {bias:g}; it must be from -100 to 100"
            )
        biases[int(token)] = bias
    return biases
