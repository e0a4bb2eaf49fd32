"""The bodies of TGI's routes."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import Field

from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.llm import LLM
from corral.server.wire import Body, Many, RepetitionPenalty

MAX_NEW_TOKENS = 100  # where the client does not say


class Grammar(Body):
    """A form that the answer is held to."""

    type: Literal["json", "regex", "json_schema"]
    value: Any

    def params(self) -> StructuredOutputsParams:
        """As the engine takes it.

        Raises:
            RequestError: the value has not the form that belongs to the type.
        """
        value = self.value
        if self.type == "regex":
            if not isinstance(value, str):
                raise RequestError("parameters.grammar.value: a regular expression is a text")
            return StructuredOutputsParams(regex=value)
        if self.type == "json_schema":
            value = value.get("schema") if isinstance(value, dict) else None
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise RequestError(f"parameters.grammar.value is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            wanted = "an object with a schema" if self.type == "json_schema" else "a JSON schema"
            raise RequestError(f"parameters.grammar.value: it must be {wanted}")
        return StructuredOutputsParams(json=value)


class GenerateParameters(Body):
    """How to go on from the prompt. Without any field that speaks of sampling, the best token is taken."""

    adapter_id: str | None = None
    best_of: Annotated[int | None, Field(ge=1)] = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    grammar: Grammar | None = None
    max_new_tokens: Annotated[int | None, Field(ge=1, description=f"{MAX_NEW_TOKENS} if not given.")] = None
    repetition_penalty: RepetitionPenalty | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: Many[str] | None = None
    temperature: Annotated[float | None, Field(gt=0)] = None
    top_k: Annotated[int | None, Field(gt=0)] = None
    top_n_tokens: Annotated[int | None, Field(ge=0, le=20)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    truncate: Annotated[int | None, Field(ge=1)] = None
    typical_p: Annotated[float | None, Field(gt=0, le=1)] = None
    watermark: Annotated[Literal[False] | None, Field(description="Texts are not watermarked here.")] = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: any field that is for sampling asks for it, whatever `do_sample` is."""
        spoken = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return bool(self.do_sample) or any(value is not None for value in spoken)

    def sampling(self, *, streams: bool) -> SamplingParams:
        """As the engine takes it.

        Raises:
            RequestError: a value is out of range, or two fields contradict each other.
        """
        best_of = self.best_of or 1
        self._check(best_of, streams)
        given: dict[str, Any] = {
            "top_k": self.top_k,
            "top_p": self.top_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": secrets.randbits(63) if self.seed is None and self.samples else self.seed,
            "stop": self.stop,
            "prompt_logprobs": 0 if self.decoder_input_details else None,
            "logprobs": self.top_n_tokens if self.top_n_tokens else 0,
            "structured_outputs": None if self.grammar is None else self.grammar.params(),
        }
        return SamplingParams(
            n=best_of,
            temperature=(self.temperature or 1.0) if self.samples else 0.0,
            max_tokens=self.max_new_tokens or MAX_NEW_TOKENS,
            include_stop_str_in_output=True,
            **{name: value for name, value in given.items() if value is not None},
        )

    def _check(self, best_of: int, streams: bool) -> None:
        if streams and best_of > 1:
            raise RequestError("best_of: a stream shows one text; leave best_of or the stream out")
        if streams and self.decoder_input_details:
            raise RequestError("decoder_input_details: a stream has none; leave it or the stream out")
        if best_of > 1 and not self.samples:
            raise RequestError("best_of: without sampling all texts are the same; set do_sample")
        if best_of > 1 and self.seed is not None:
            raise RequestError("best_of: with a seed there is one text only; leave one of them out")


class GenerateBody(Body):
    """A text to go on from."""

    inputs: str = Field(min_length=1)
    parameters: GenerateParameters | None = None
    add_special_tokens: bool | None = None

    @property
    def given(self) -> GenerateParameters:
        return self.parameters or GenerateParameters()

    def tokens(self, llm: LLM) -> list[int]:
        """The whole prompt is the client's, who writes its control tokens too, as chat templates do.

        The token that begins a text comes once, whether or not the text names it.
        """
        tokenizer = llm.tokenizer
        tokens = tokenizer.encode_prompt_text(self.inputs)
        starts = tokenizer.adds_bos and tokenizer.bos_id is not None and self.add_special_tokens is not False
        if starts and tokens[:1] != [tokenizer.bos_id]:
            tokens = [tokenizer.bos_id, *tokens]  # type: ignore[list-item]
        return tokens[-(self.given.truncate or len(tokens)) :]

    def request(self, llm: LLM, adapter: str | None, timeout: float | None, *, streams: bool) -> Request:
        """As the engine takes it.

        Raises:
            CorralError: it cannot be run.
        """
        most = llm.engine.config.max_num_seqs
        if (self.given.best_of or 1) > most:
            raise RequestError(f"best_of is {self.given.best_of}; this server makes {most} texts at once")
        params = self.given.sampling(streams=streams)
        return Request(
            self.tokens(llm), params, llm.stop_ids, continues=True, adapter=adapter, timeout=timeout
        )


class CompatGenerateBody(GenerateBody):
    """As `GenerateBody`, for the route that streams where it is asked to."""

    stream: bool | None = None
