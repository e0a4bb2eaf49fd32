"""What a generation gives, whole or piece by piece. Names are those of vLLM's offline interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from corral.engine.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    PromptScored,
    Started,
    Timings,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
    Usage,
)
from corral.engine.handle import Handle
from corral.errors import EngineError
from corral.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Logprob:
    """The log-probability of a token, its rank (1 is the most likely), and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


LogprobsByToken = dict[int, Logprob]
"""The token that stands at a place and the most likely ones there, by their ids; its own comes first."""


@dataclass(frozen=True)
class Delta:
    """The next piece of output `index`. `text` may be empty while a character is incomplete.

    The last piece of an output has a `finish_reason`: "stop" at a stop token or string, "length" at
    `max_tokens` or the end of the context, "cancelled" when its time was over.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: tuple[LogprobsByToken, ...] | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class CompletionOutput:
    """One generated text.

    `stop_reason` is the stop string or further stop id that ended it; None where the model's own end did.
    `cumulative_logprob` is the sum over the chosen tokens; it and `logprobs` are there if asked for. `error`
    says what went wrong, where the reason is "error" or "cancelled".
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: tuple[LogprobsByToken, ...] | None = None
    error: str | None = None
    usage: Usage | None = field(default=None, compare=False)
    timings: Timings | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RequestOutput:
    """The outputs for one prompt. `prompt_logprobs` has None for the first token, before which is nothing."""

    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    prompt: str | None = None
    prompt_logprobs: tuple[LogprobsByToken | None, ...] | None = None
    num_cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class ScoreOutput:
    """Log-probabilities of the tokens from `start` on, each given all tokens before it; and of tokens that
    could come next, as far as asked for, best first."""

    token_ids: tuple[int, ...]
    start: int
    logprobs: tuple[LogprobsByToken, ...]
    next_tokens: LogprobsByToken
    num_cached_tokens: int = field(default=0, compare=False)

    @property
    def token_logprobs(self) -> tuple[float, ...]:
        """The log-probability of each scored token."""
        scored = self.token_ids[self.start :]
        return tuple(at[token].logprob for token, at in zip(scored, self.logprobs, strict=True))

    @property
    def total(self) -> float:
        """The log-probability of all scored tokens together."""
        return sum(self.token_logprobs)


@dataclass
class _Output:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finished: Finished | None = None


class Collector:
    """Adds the events of a request up to its output."""

    def __init__(self, prompt: Sequence[int], tokenizer: Tokenizer | None) -> None:
        self._prompt, self._tokenizer = tuple(prompt), tokenizer
        self._outputs: dict[int, _Output] = {}
        self._started: Started | None = None
        self._scored: PromptScored | None = None

    def add(self, event: Event) -> None:
        """Takes the next event.

        Raises:
            CorralError: the request failed.
        """
        match event:
            case Started():
                self._started = event
            case PromptScored():
                self._scored = event
            case Tokens():
                output = self._outputs.setdefault(event.index, _Output())
                output.text += event.text
                output.token_ids += event.token_ids
                if event.logprobs is not None:
                    output.logprobs = output.logprobs or []
                    output.logprobs += event.logprobs
            case Finished():
                self._outputs.setdefault(event.index, _Output()).finished = event
            case Failed():
                raise event.error

    def result(self, prompt: str | None = None) -> RequestOutput:
        """The outputs, once the last event has been added; `prompt` is the text that was given."""
        scored = None
        if self._scored is not None:
            scored = (None, *(named(at, self._tokenizer) for at in self._scored.logprobs))
        return RequestOutput(
            prompt_token_ids=self._prompt,
            outputs=tuple(self._completion(i, self._outputs[i]) for i in sorted(self._outputs)),
            prompt=prompt,
            prompt_logprobs=scored,
            num_cached_tokens=self._cached_tokens,
        )

    def score(self) -> ScoreOutput:
        """The scores, once the last event has been added.

        Raises:
            EngineError: the request was cancelled before its end.
        """
        if self._scored is None:
            finished = self._outputs[0].finished
            raise EngineError(f"the scores were not computed: {finished and finished.message}")
        return ScoreOutput(
            token_ids=self._prompt,
            start=self._scored.start,
            logprobs=tuple(named(at, self._tokenizer) for at in self._scored.logprobs),
            next_tokens=_by_token(self._scored.next_tokens, self._tokenizer),
            num_cached_tokens=self._cached_tokens,
        )

    @property
    def _cached_tokens(self) -> int:
        return 0 if self._started is None else self._started.cached_tokens

    def _completion(self, index: int, output: _Output) -> CompletionOutput:
        end, logprobs = output.finished, output.logprobs
        assert end is not None, "the last event has been added"
        return CompletionOutput(
            index=index,
            text=output.text,
            token_ids=tuple(output.token_ids),
            finish_reason=end.reason,
            stop_reason=end.stop,
            cumulative_logprob=None if logprobs is None else sum(at.chosen.logprob for at in logprobs),
            logprobs=None if logprobs is None else tuple(named(at, self._tokenizer) for at in logprobs),
            error=end.message,
            usage=end.usage,
            timings=end.timings,
        )


def as_delta(event: Event, tokenizer: Tokenizer | None) -> Delta | None:
    """The piece that an event adds to an output, if it adds one.

    Raises:
        CorralError: the request, or this output, failed.
    """
    match event:
        case Tokens():
            at = event.logprobs
            logprobs = None if at is None else tuple(named(one, tokenizer) for one in at)
            return Delta(event.text, event.token_ids, index=event.index, logprobs=logprobs)
        case Finished():
            if event.reason == "error":
                raise EngineError(event.message or "the output could not be continued")
            return Delta("", (), event.reason, event.index, usage=event.usage)
        case Failed():
            raise event.error
    return None


class DeltaStream(Iterator[Delta]):
    """The pieces of a request's outputs. Whoever leaves before the end cancels the request.

    Raises:
        CorralError: the request, or one of its outputs, failed.
    """

    def __init__(self, handle: Handle, tokenizer: Tokenizer | None) -> None:
        self._handle, self._events, self._tokenizer = handle, iter(handle), tokenizer

    def __next__(self) -> Delta:
        while True:
            delta = as_delta(next(self._events), self._tokenizer)
            if delta is not None:
                return delta

    def close(self) -> None:
        """Cancels what is left of the request."""
        self._handle.cancel()


def named(at: TokenLogprobs, tokenizer: Tokenizer | None) -> LogprobsByToken:
    """Log-probabilities at a place, by token, with the tokens' texts."""
    return _by_token((at.chosen, *at.top), tokenizer)


def _by_token(tokens: Iterable[TokenLogprob], tokenizer: Tokenizer | None) -> LogprobsByToken:
    return {t.token_id: Logprob(t.logprob, t.rank, _text(t.token_id, tokenizer)) for t in tokens}


def _text(token_id: int, tokenizer: Tokenizer | None) -> str | None:
    """The text of a token; None for the rows by which an embedding is padded."""
    if tokenizer is None or token_id >= tokenizer.vocab_size:
        return None
    return tokenizer.decode([token_id])
