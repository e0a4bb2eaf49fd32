"""The body of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from corral.engine.request import Request, Score
from corral.engine.sampling.params import MAX_LOGPROBS, SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.llm import LLM
from corral.server.openai.chat_body import ResponseFormat
from corral.server.openai.refusals import refused
from corral.server.openai.sampling_fields import SamplingFields, only_form
from corral.server.wire import Many
from corral.text.prompt_format import render_text
from corral.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16  # as OpenAI's

TextPrompt = str | Many[int]


def _of_one_kind(prompt: Any) -> Any:
    """Refuses, in one sentence, what is no prompt; and a list of a hundred thousand ids is looked at once."""
    kinds = set(map(type, prompt)) if isinstance(prompt, list) else {type(prompt)}
    if kinds == {list}:
        kinds = {type(entry) for ids in prompt for entry in ids}
        right = kinds <= {int}
    else:
        right = kinds in ({str}, {int} if isinstance(prompt, list) else {str}, set())
    if not right:
        raise ValueError("it must be a text, a list of texts, a list of token ids, or a list of such lists")
    return prompt


def text_tokens(tokenizer: Tokenizer, text: str, add_special_tokens: bool | None) -> Sequence[int]:
    """A text as tokens, after the token that begins one unless that is not wanted.

    Control tokens in it are text.
    """
    if add_special_tokens is False:
        return tokenizer.encode(text, first=True)
    return render_text(tokenizer, text).tokens


class CompletionBody(SamplingFields):
    """Texts to go on from.

    `prompt` is one text or several, or one list of token ids or several. With `echo`, each answer begins with
    its prompt; with `logprobs` too, the prompt's log-probabilities are told; `max_tokens` may be 0 then, so
    that nothing else is done. Offsets of `logprobs` are characters of the answer's `text`.
    """

    prompt: Annotated[str | Many[int] | Many[Many[int]] | Many[str], BeforeValidator(_of_one_kind)]
    suffix: Annotated[None, refused("the model cannot fill in what stands before a text; leave it out")] = (
        None
    )
    echo: bool | None = None
    best_of: int | None = Field(None, description="As many as n: every answer is given.")
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    prompt_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    response_format: ResponseFormat | None = None
    add_special_tokens: bool | None = Field(
        None, description="Whether a text gets the token that begins one."
    )

    @property
    def prompts(self) -> Sequence[TextPrompt]:
        """All of them.

        Raises:
            RequestError: there are none.
        """
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if not given:
            raise RequestError("prompt: it is empty; give a text, or token ids")
        return [given] if isinstance(given[0], int) else given

    @property
    def outputs(self) -> int:
        """Answers for each prompt."""
        return self.n or 1

    @property
    def only_scores(self) -> bool:
        """Whether nothing is to be generated."""
        return self.max_tokens == 0

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """How tokens are chosen, the same for all prompts.

        Raises:
            CorralError: two fields contradict each other, or a value is out of range.
        """
        self.check_stream()
        if self.best_of not in (None, self.outputs):
            raise RequestError("best_of: all answers are given here; leave it out, and set n")
        if self.only_scores:
            if not self.echo:
                raise RequestError("max_tokens: 0 goes with echo only; set echo, or ask for a token at least")
            if self.outputs > 1:
                raise RequestError(
                    "n: with max_tokens 0 there is nothing in which answers differ; leave it out"
                )
        scored = self._scored()
        return self.sampling(
            defaults,
            max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens or 1,
            logprobs=self.logprobs,
            prompt_logprobs=scored,
        )

    def request(
        self, llm: LLM, prompt: TextPrompt, params: SamplingParams, adapter: str | None, timeout: float | None
    ) -> Request:
        """As the engine takes it."""
        tokens = self.tokens(llm.tokenizer, prompt)
        return Request(
            tokens,
            params,
            llm.stop_ids,
            continues=True,
            score=self._score(len(tokens)) if self.only_scores else None,
            adapter=adapter,
            cache_salt=self.cache_salt or "",
            priority=self.priority or 0,
            timeout=timeout,
        )

    def tokens(self, tokenizer: Tokenizer, prompt: TextPrompt) -> Sequence[int]:
        """A prompt as tokens."""
        return text_tokens(tokenizer, prompt, self.add_special_tokens) if isinstance(prompt, str) else prompt

    def _scored(self) -> int | None:
        """How many of the most likely tokens are wanted at each place of the prompt, if any are."""
        wanted = [
            top for top in (self.prompt_logprobs, self.logprobs if self.echo else None) if top is not None
        ]
        return max(wanted) if wanted else None

    def _score(self, num_tokens: int) -> Score:
        # A prompt of one token has nothing to score but what could come next.
        return Score(top=self._scored() or 0, next_top=1 if num_tokens == 1 else 0)

    def _structure(self) -> StructuredOutputsParams | None:
        wanted = None if self.response_format is None else self.response_format.params()
        return only_form(super()._structure(), wanted, "response_format")
