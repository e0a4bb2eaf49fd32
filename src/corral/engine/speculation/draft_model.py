"""Guesses by a smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from corral.engine.run.batch import Span
from corral.engine.run.runner import Runner
from corral.engine.sampling.history import History
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.sampler import Row, sample_rows
from corral.engine.speculation.block_contents import BlockContents
from corral.errors import RequestError
from corral.model.config import LlamaConfig
from corral.text.tokenizer import Tokenizer, first_difference

CATCH_UP = 512  # tokens of prompts that one proposal computes at most
_NOTHING: frozenset[int] = frozenset()


def check_draft(target: LlamaConfig, draft: LlamaConfig) -> None:
    """Refuses a draft model whose guesses could not be the target's tokens.

    Raises:
        RequestError: the vocabularies differ in size.
    """
    if draft.vocab_size != target.vocab_size:
        raise RequestError(
            f"speculative_config.model has a vocabulary of {draft.vocab_size} tokens and the model one of "
            f"{target.vocab_size}; give a draft model with the same tokenizer"
        )


def check_draft_tokens(target: Tokenizer, draft: Tokenizer) -> None:
    """Refuses a draft model whose tokens are others than the target's: it would guess nonsense.

    Raises:
        RequestError: an id stands for different texts.
    """
    differs = first_difference(target, draft)
    if differs is not None:
        raise RequestError(
            f"speculative_config.model has another tokenizer: token {differs} is "
            f"{draft.decode([differs])!r} and not {target.decode([differs])!r}; give a draft model with the "
            "same tokenizer"
        )


@dataclass(frozen=True)
class DraftRequest:
    """A sequence that wants guesses.

    Attributes:
        tokens: all of its tokens, prompt and output.
        blocks: its blocks, with room for `len(tokens) + limit` tokens; those from the last token on are held
            by no other sequence.
        params, history, key: what its own tokens are sampled with.
        limit: the most guesses that it wants; with 0 the draft model only computes what it lacks.
        stops: token ids that end the output: nothing is guessed after one.
        min_length: the number of tokens before which none of them may come.
    """

    tokens: Sequence[int]
    blocks: Sequence[int]
    params: SamplingParams
    history: History
    key: int
    limit: int
    stops: frozenset[int] = _NOTHING
    min_length: int = 0


class DraftModel:
    """Guesses tokens with a smaller model, one by one, for all sequences of a batch together.

    The draft model's cache has as many blocks as the target's, of as many tokens, and is used through the
    target's block tables: so the prefix cache, forks and copies on write serve it too. Each guess is drawn
    as the target will draw the token at that position, with the same parameters, history, key and position,
    so that the two agree as often as the models do. Grammars and adapters are left out of account.

    Guesses are only guesses: whatever the draft's cache holds, it never changes the output. Blocks that the
    target finds in its prefix cache may lack the draft's part, where no guesses were made when they were
    filled; it is computed then, like all that is missing, at most `catch_up` tokens at a time. A sequence
    has no guesses until it has caught up.

    Called by the engine's thread alone.
    """

    def __init__(self, runner: Runner, block_size: int, catch_up: int = CATCH_UP) -> None:
        self._runner = runner
        self._contents = BlockContents(block_size)
        self._catch_up = catch_up

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """At most `limit` guesses for each request."""
        drafts: list[list[int]] = [[] for _ in requests]
        spans = self._plan(requests)
        active = [i for i, span in spans.items() if span.wanted]
        while spans:
            logits = self._forward(list(spans.values()))
            active = self._sample(logits, active, requests, drafts)
            spans = {i: self._next_span(requests[i], drafts[i]) for i in active}
        return drafts

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies cached blocks (source, target), as the target does."""
        self._runner.copy_blocks(pairs)
        self._contents.copy(pairs)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Sets cached blocks to zero, as the target does."""
        self._runner.clear_blocks(blocks)
        self._contents.forget(blocks)

    def _plan(self, requests: Sequence[DraftRequest]) -> dict[int, Span]:
        """What each request lacks, as far as the budget goes: those that lack least come first.

        What one writes another may share: it is noted at once, and computed for the first of them only. All
        of a batch's keys and values are written before they are read.
        """
        lacking = [self._missing(request) for request in requests]
        budget = self._catch_up
        spans: dict[int, Span] = {}
        for i in sorted(range(len(requests)), key=lacking.__getitem__):
            request = requests[i]
            missing = self._missing(request) if lacking[i] > 2 else lacking[i]  # 2: all guesses came true
            start = len(request.tokens) - missing
            tokens = request.tokens[start : start + budget]
            if tokens:
                ready = len(tokens) == missing and request.limit > 0
                spans[i] = self._span(request, tokens, start, ready)
                budget -= len(tokens)
        return spans

    def _missing(self, request: DraftRequest) -> int:
        """Tokens to compute before the first guess, the last always among them: its logits are wanted."""
        missing = len(request.tokens) - self._contents.count(request.tokens, request.blocks)
        return max(missing, 1 if request.limit else 0)

    def _next_span(self, request: DraftRequest, drafts: list[int]) -> Span:
        return self._span(request, drafts[-1:], len(request.tokens) + len(drafts) - 1, ready=True)

    def _span(self, request: DraftRequest, tokens: Sequence[int], start: int, ready: bool) -> Span:
        self._contents.write(tokens, start, request.blocks)
        return Span(tokens, start, request.blocks, wanted=[len(tokens) - 1] if ready else [])

    def _forward(self, spans: Sequence[Span]) -> Tensor | None:
        """Logits after each span where they are wanted [rows, vocab_size]."""
        hidden = self._runner.run(spans)
        return self._runner.logits(hidden, [None] * len(hidden)) if len(hidden) else None

    def _sample(
        self,
        logits: Tensor | None,
        active: Sequence[int],
        requests: Sequence[DraftRequest],
        drafts: list[list[int]],
    ) -> list[int]:
        """Adds a guess to each active request; gives those that want another."""
        if logits is None:
            return []
        further = []
        sampled = sample_rows(logits, [_row(requests[i], drafts[i]) for i in active])
        for i, token in zip(active, sampled, strict=True):
            if token.error is not None:
                continue
            drafts[i].append(token.token_id)
            if len(drafts[i]) < requests[i].limit and token.token_id not in requests[i].stops:
                further.append(i)
        return further


def _row(request: DraftRequest, drafts: Sequence[int]) -> Row:
    position = len(request.tokens) + len(drafts)
    return Row(
        params=request.params,
        history=request.history,
        drafts=tuple(drafts),
        key=request.key,
        position=position,
        banned=request.stops if position < request.min_length else _NOTHING,
    )
