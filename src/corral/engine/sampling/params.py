"""What a request says about its tokens: how they are chosen, and when they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from corral.engine.sampling.checks import require_flag, require_number, require_whole
from corral.errors import RequestError

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024


@dataclass(frozen=True)
class StructuredOutputsParams:
    """A form that the output is held to; exactly one field is given. Names are those of vLLM.

    Attributes:
        json: a JSON schema, as a dictionary or as text.
        json_object: any JSON object.
        regex: a regular expression that the whole output matches.
        choice: one of these texts.
        grammar: a context-free grammar in llguidance's dialect of Lark.

    Raises:
        RequestError: none or several are given.
    """

    json: Mapping[str, Any] | bool | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.choice, Sequence) and not isinstance(self.choice, str):
            object.__setattr__(self, "choice", tuple(self.choice))
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False)]
        if self.json is False:
            given.append("json")
        if len(given) != 1:
            what = f"gives {' and '.join(given)}" if given else "is empty"
            names = ", ".join(f.name for f in fields(self))
            raise RequestError(f"structured_outputs {what}; give exactly one of {names}")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and when to stop. Names and meanings are those of vLLM's offline interface.

    Attributes:
        n: how many outputs to give; they share the prompt's work.
        temperature: 0 takes the best token (greedy); otherwise logits are divided by it.
        top_k: keep the k best tokens; 0 or -1 keeps all.
        top_p: keep the fewest best tokens whose probabilities reach this sum.
        min_p: keep tokens with at least this share of the best token's probability.
        typical_p: keep the tokens whose information is nearest to the expected one, until their
            probabilities reach this sum (Meister et al., 2023, arXiv:2202.00666); 1 keeps all.
        repetition_penalty: divide positive and multiply negative logits of tokens that the prompt or the
            output already holds (Keskar et al., 2019, arXiv:1909.05858); 1 changes nothing.
        frequency_penalty: subtracted from a token's logit once for each time that the output holds it.
        presence_penalty: subtracted from the logit of each token that the output holds.
        logit_bias: added to the logits of these token ids.
        seed: the same seed gives the same tokens, in whatever company; None takes a fresh one.
        max_tokens: how many tokens to generate at most; None goes on to the end of the context.
        min_tokens: no stop token or stop string ends the output before so many tokens.
        stop: texts that end the output; the output is cut before the first of them.
        include_stop_str_in_output: keep that text.
        stop_token_ids: further ids that end the output.
        ignore_eos: do not stop at the model's own stop ids.
        skip_special_tokens: leave control tokens out of the text.
        logprobs: give the log-probability of each chosen token and of so many best ones (0 to 20); they are
            those of the model, before penalties, temperature and filters.
        prompt_logprobs: the same for the tokens of the prompt.
        structured_outputs: a form that the output is held to.

    Raises:
        RequestError: a value is out of range, or two contradict each other; the message names the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        self._replace("stop", () if stop is None else _tuple("stop", stop))
        ids = () if self.stop_token_ids is None else self.stop_token_ids
        self._replace("stop_token_ids", _tuple("stop_token_ids", ids))
        self._replace("logit_bias", {} if self.logit_bias is None else self.logit_bias)
        self._replace("top_k", 0 if self.top_k == -1 else self.top_k)
        self._check_choice_of_tokens()
        self._check_ends()
        self._check_contradictions()

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken each time."""
        return self.temperature == 0.0

    def _replace(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_choice_of_tokens(self) -> None:
        require_whole("n", self.n, low=1, high=MAX_CHOICES)
        require_number("temperature", self.temperature, low=0.0)
        require_whole("top_k", self.top_k, low=0)
        require_number("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        require_number("min_p", self.min_p, low=0.0, high=1.0)
        require_number("typical_p", self.typical_p, low=0.0, high=1.0, low_open=True)
        require_number("repetition_penalty", self.repetition_penalty, low=0.0, low_open=True)
        require_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        require_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        if self.seed is not None:
            require_whole("seed", self.seed, low=0, high=2**64 - 1)
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers")
        for token_id, bias in self.logit_bias.items():
            require_whole("logit_bias: a token id", token_id, low=0)
            require_number(f"logit_bias[{token_id}]", bias, low=-1000.0, high=1000.0)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), low=0, high=MAX_LOGPROBS)

    def _check_ends(self) -> None:
        if self.max_tokens is not None:
            require_whole("max_tokens", self.max_tokens, low=1)
        require_whole("min_tokens", self.min_tokens, low=0)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"stop has {len(self.stop)} texts; it may have {MAX_STOP_STRINGS}")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop holds {text!r}; it must hold texts that are not empty")
            if len(text) > MAX_STOP_LENGTH:
                raise RequestError(f"stop holds a text of {len(text)} characters; {MAX_STOP_LENGTH} may be")
        for token_id in self.stop_token_ids:
            require_whole("stop_token_ids", token_id, low=0)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            require_flag(name, getattr(self, name))

    def _check_contradictions(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}")
        if self.n > 1 and self.greedy:
            raise RequestError(
                f"n is {self.n} with temperature 0, which gives {self.n} equal outputs; set n to 1"
            )
        if self.structured_outputs is None:
            return
        if not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise RequestError("structured_outputs must be a StructuredOutputsParams")
        for name in ("min_tokens", "ignore_eos"):
            if getattr(self, name):
                raise RequestError(f"{name} contradicts structured_outputs, which says where the output ends")


def _tuple(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RequestError(f"{name} is {values!r}; it must be a list")
    return tuple(values)
