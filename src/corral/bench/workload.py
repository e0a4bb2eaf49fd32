"""What a benchmark asks of an engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from corral.engine.request import Request
from corral.engine.sampling.checks import require_whole
from corral.engine.sampling.params import SamplingParams
from corral.errors import RequestError
from corral.model.config import LlamaConfig


@dataclass(frozen=True)
class Workload:
    """`requests` requests of `prompt_tokens` tokens, of which `concurrency` are in flight at any time.

    Each gives `new_tokens` tokens, whatever they are. `seed` chooses the prompts.

    Raises:
        RequestError: a number is out of range.
    """

    prompt_tokens: int = 512
    new_tokens: int = 128
    concurrency: int = 1
    requests: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "concurrency", "requests"):
            require_whole(name, getattr(self, name), low=1)
        require_whole("new_tokens", self.new_tokens, low=2)
        require_whole("seed", self.seed, low=0)

    @property
    def length(self) -> int:
        """Tokens of a whole sequence."""
        return self.prompt_tokens + self.new_tokens

    def check(self, config: LlamaConfig) -> None:
        """Raises RequestError where the model has no room for a sequence."""
        longest = config.max_position_embeddings
        if self.length > longest:
            raise RequestError(
                f"prompt_tokens and new_tokens come to {self.length}, but the model's context is {longest}"
            )

    def prompts(self, vocab_size: int) -> Iterator[tuple[int, ...]]:
        """Endless random prompts, no two of which begin alike: a prefix cache is of no use.

        The ids of one prompt differ from each other as far as the vocabulary goes.
        """
        chance = random.Random(self.seed)
        while True:
            times, rest = divmod(self.prompt_tokens, vocab_size)
            ids = [id for _ in range(times) for id in chance.sample(range(vocab_size), vocab_size)]
            yield (*ids, *chance.sample(range(vocab_size), rest))

    def request(self, prompt: tuple[int, ...], new_tokens: int | None = None) -> Request:
        """A request for so many greedy tokens."""
        return Request(
            prompt,
            SamplingParams(temperature=0.0, max_tokens=new_tokens or self.new_tokens, ignore_eos=True),
        )
