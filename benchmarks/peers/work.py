"""What is run, the same for every peer. Imported inside their environments, too: standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Prompt

# Ids of ordinary tokens, so that no peer treats one as anything but text.
_ORDINARY = {"135M": range(100, 49_000), "8B": range(100, 128_000)}


@dataclass(frozen=True)
class Work:
    """`repeats` single requests one after the other, or `slots` requests at once.

    Attributes:
        shape: of the model, "135M" or "8B".
        weights: which kind of file each peer is given, a key of `Peer.models`: "same" is one file for all
            that read it, "best" is each peer's best format, "8b" random weights of that shape.
    """

    name: str
    shape: str
    weights: str
    prompt_tokens: int
    new_tokens: int
    slots: int = 1
    repeats: int = 3

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.new_tokens

    def prompts(self, seed: int, prompt_tokens: int | None = None) -> Iterator[Prompt]:
        """Endless random prompts that begin unalike, so that no peer's prefix cache is of use."""
        chance = random.Random(seed)
        while True:
            yield chance.sample(_ORDINARY[self.shape], prompt_tokens or self.prompt_tokens)


@dataclass(frozen=True)
class Row:
    """One figure of a piece of work: `prefill_tok_s` is the prompt's tokens over the time to the first new
    token, `decode_tok_s` is of the tokens after it, `output_tok_s` is new tokens over all the time."""

    name: str
    work: Work
    metric: str
    title: str


_SAME = Work("same", "135M", "same", prompt_tokens=512, new_tokens=128)
_BEST = Work("best", "135M", "best", prompt_tokens=512, new_tokens=128)
_LONG = Work("8k", "135M", "same", prompt_tokens=8064, new_tokens=128, repeats=1)
_MANY = Work("64", "135M", "best", prompt_tokens=256, new_tokens=128, slots=64)
_LARGE = Work("8b", "8B", "8b", prompt_tokens=128, new_tokens=64, repeats=1)

ROWS = {
    row.name: row
    for row in (
        Row("decode", _SAME, "decode_tok_s", "decode, 1 request, same file"),
        Row("decode-best", _BEST, "decode_tok_s", "decode, 1 request, best format"),
        Row("prefill", _BEST, "prefill_tok_s", "prefill, 512 tokens, best format"),
        Row("prefill-same", _SAME, "prefill_tok_s", "prefill, 512 tokens, same file"),
        Row("decode-8k", _LONG, "decode_tok_s", "decode at 8k context, same file"),
        Row("prefill-8k", _LONG, "prefill_tok_s", "prefill, 8k tokens, same file"),
        Row("requests-64", _MANY, "output_tok_s", "64 requests of 256 + 128 tokens, output"),
        Row("decode-8b", _LARGE, "decode_tok_s", "decode, 1 request, 8B shape, Q4_0"),
        Row("prefill-8b", _LARGE, "prefill_tok_s", "prefill, 128 tokens, 8B shape, Q4_0"),
    )
}
