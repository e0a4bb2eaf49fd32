"""A draft model that is the target itself: all that it guesses must come true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corral.engine.cache.block_pool import BlockPool
from corral.engine.cache.block_table import BlockTable
from corral.engine.cache.storage import KVStorage
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.runner import Runner, TorchRunner
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.sampler import Row, sample_rows
from corral.engine.speculation.draft_model import DraftModel, check_draft
from corral.errors import RequestError
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from tests.engine.speculation.cached_texts import (
    BLOCK_SIZE,
    GREEDY,
    VOCABULARY,
    PrefixRunner,
    Text,
    continuation,
    extended,
)
from tests.random_models import SMALL_CHAT, random_model


class LivesOfTexts:
    """Texts that come, fork, grow with and without guesses, are preempted and end, at random."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.pool = BlockPool(16, BLOCK_SIZE)
        self.draft = DraftModel(PrefixRunner(), BLOCK_SIZE)
        self.texts: list[Text] = []

    def step(self) -> None:
        actions = [
            self.begin,
            self.fork,
            self.guess,
            self.guess,
            self.guess,
            self.go_on,
            self.preempt,
            self.end,
        ]
        self.random.choice(actions)()

    def begin(self) -> None:
        shared = [1, 2, 3, 4, 5, 6, 7, 0, 1]
        tokens = shared[: self.random.randrange(1, 10)] + self.tokens(self.random.randrange(3))
        self.keep(Text(tokens, BlockTable(self.pool, b"")), 0)

    def fork(self) -> None:
        if self.texts:
            self.keep(self.random.choice(self.texts).fork(), 0)

    def guess(self) -> None:
        """A step of some of the texts, with guesses of different lengths."""
        limits = {text: self.random.randrange(5) for text in self.some()}
        asked = [text for text, limit in limits.items() if self.keep(text, limit)]
        drafts = self.draft.propose([text.request(limits[text]) for text in asked])
        for text, draft in zip(asked, drafts, strict=True):
            assert draft == continuation(text.tokens, limits[text])
            text.append(draft[: self.random.randrange(len(draft) + 1)] + self.tokens(1))

    def go_on(self) -> None:
        """A step without guesses."""
        for text in self.some():
            if self.keep(text, 0):
                text.append(self.tokens(1))

    def preempt(self) -> None:
        for text in self.some()[:1]:
            text.table.free()
            self.texts.remove(text)
            self.keep(Text(text.tokens, BlockTable(self.pool, b"")), 0)

    def end(self) -> None:
        for text in self.some()[:1]:
            text.table.free()
            self.texts.remove(text)

    def keep(self, text: Text, limit: int) -> bool:
        """Makes room for a text, or ends it where there is none."""
        fits = text.reserve(self.draft, limit)
        if fits and text not in self.texts:
            self.texts.append(text)
        elif not fits:
            text.table.free()
            self.texts = [other for other in self.texts if other is not text]
        return fits

    def some(self) -> list[Text]:
        return self.random.sample(self.texts, self.random.randint(0, len(self.texts)))

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(VOCABULARY) for _ in range(count)]


@given(st.integers(0, 2**32), st.integers(1, 60))
@settings(max_examples=150)
def test_whatever_becomes_of_blocks_a_draft_reads_only_its_own_text(seed: int, steps: int) -> None:
    lives = LivesOfTexts(Random(seed))
    for _ in range(steps):
        lives.step()
    lives.pool.check_integrity([text.table for text in lives.texts])


def new_text(draft: DraftModel, pool: BlockPool, tokens: Sequence[int], limit: int = 4) -> Text:
    text = Text(list(tokens), BlockTable(pool, b""))
    assert text.reserve(draft, limit)
    return text


def test_only_what_is_missing_is_computed() -> None:
    runner, pool = PrefixRunner(), BlockPool(64, BLOCK_SIZE)
    draft = DraftModel(runner, BLOCK_SIZE)
    text = new_text(draft, pool, range(8), limit=3)
    (guesses,) = draft.propose([text.request(3)])
    assert runner.num_tokens == 8 + 2, "the last guess need not be run"
    text.append([*guesses, 1])
    assert text.reserve(draft, 3)
    draft.propose([text.request(1)])
    assert runner.num_tokens == 10 + 2, "the last guess, which came true, and the next token"
    text.append([0, 0])
    assert text.reserve(draft, 3)
    draft.propose([text.request(2)])
    assert runner.num_tokens == 12 + 2 + 1, "nothing was known of two new tokens"
    text.append([0])
    assert text.reserve(draft, 3)
    draft.propose([text.request(1)])
    assert runner.num_tokens == 15 + 1, "the guess that was run was wrong: the token in its place is missing"
    other = new_text(draft, pool, [*range(8), 5, 5], limit=1)
    draft.propose([other.request(1)])
    assert runner.num_tokens == 16 + 2, "the prefix is shared"


def test_forks_compute_what_they_share_once() -> None:
    runner = PrefixRunner()
    draft = DraftModel(runner, BLOCK_SIZE)
    text = new_text(draft, BlockPool(64, BLOCK_SIZE), [1] * 16, limit=1)
    text.append([2])
    twins = [text.fork() for _ in range(4)]
    for twin in twins:
        assert twin.reserve(draft, 1)
    guesses = draft.propose([twin.request(1) for twin in twins])
    assert guesses == [continuation(text.tokens, 1)] * 4
    assert runner.num_tokens == 16 + 4


def test_a_copy_on_write_is_not_computed_again() -> None:
    runner = PrefixRunner()
    draft = DraftModel(runner, BLOCK_SIZE)
    text = new_text(draft, BlockPool(64, BLOCK_SIZE), [1] * 14, limit=1)
    draft.propose([text.request(0)])
    twin = text.fork()
    text.append([2])
    twin.append([3])
    for one in (text, twin):
        assert one.reserve(draft, 1)
    assert text.table.blocks[-1] != twin.table.blocks[-1]
    guesses = draft.propose([text.request(1), twin.request(1)])
    assert guesses == [continuation(text.tokens, 1), continuation(twin.tokens, 1)]
    assert runner.num_tokens == 14 + 2


def test_prompts_share_the_tokens_that_one_call_may_compute() -> None:
    runner, pool = PrefixRunner(), BlockPool(64, BLOCK_SIZE)
    draft = DraftModel(runner, BLOCK_SIZE, catch_up=10)
    texts = [new_text(draft, pool, [first] * 8) for first in range(3)]
    for total in (10, 20, 24, 24):
        draft.propose([text.request(0) for text in texts])
        assert runner.num_tokens == total


def test_a_long_prompt_is_computed_piece_by_piece_and_delays_no_other() -> None:
    draft, pool = DraftModel(PrefixRunner(), BLOCK_SIZE, catch_up=10), BlockPool(64, BLOCK_SIZE)
    long = new_text(draft, pool, [i % 7 for i in range(25)])
    short = new_text(draft, pool, [3, 1])
    for expected in ([], [], continuation(long.tokens, 2), continuation(long.tokens, 2)):
        assert draft.propose([long.request(2), short.request(2)]) == [expected, continuation(short.tokens, 2)]


def test_a_request_for_no_guesses_only_computes_what_it_lacks() -> None:
    runner = PrefixRunner()
    draft = DraftModel(runner, BLOCK_SIZE)
    text = new_text(draft, BlockPool(64, BLOCK_SIZE), range(6))
    assert draft.propose([text.request(0)]) == [[]]
    assert runner.num_tokens == 6
    assert draft.propose([text.request(1)]) == [continuation(text.tokens, 1)]
    assert runner.num_tokens == 7
    assert draft.propose([]) == []


def test_cleared_blocks_are_computed_again() -> None:
    runner = PrefixRunner()
    draft = DraftModel(runner, BLOCK_SIZE)
    text = new_text(draft, BlockPool(64, BLOCK_SIZE), range(6))
    draft.propose([text.request(0)])
    draft.clear_blocks(text.table.blocks)
    assert draft.propose([text.request(2)]) == [continuation(text.tokens, 2)]


def test_nothing_is_guessed_after_a_stop() -> None:
    draft = DraftModel(PrefixRunner(), BLOCK_SIZE)
    text = new_text(draft, BlockPool(64, BLOCK_SIZE), range(6), limit=8)
    expected = continuation(text.tokens, 8)
    stop = expected[3]
    request = replace(text.request(8), stops=frozenset([stop]))
    assert draft.propose([request]) == [expected[: expected.index(stop) + 1]]


def test_a_stop_that_may_not_come_yet_is_not_guessed() -> None:
    draft = DraftModel(PrefixRunner(), BLOCK_SIZE)
    text = new_text(draft, BlockPool(64, BLOCK_SIZE), range(6), limit=8)
    stop = continuation(text.tokens, 1)[0]
    request = replace(text.request(3), stops=frozenset([stop]), min_length=8)
    (guesses,) = draft.propose([request])
    assert stop not in guesses[:2]


class BrokenRunner(PrefixRunner):
    """A runner whose logits are not numbers for texts that begin with token 6."""

    def logits(self, hidden: Tensor, adapters: Sequence[str | None]) -> Tensor:
        scores = super().logits(hidden, adapters)
        scores[hidden == extended(0, 6, 0)] = torch.nan
        return scores


def test_a_draft_that_is_not_finite_is_no_guess() -> None:
    draft, pool = DraftModel(BrokenRunner(), BLOCK_SIZE), BlockPool(64, BLOCK_SIZE)
    broken, sound = new_text(draft, pool, [6]), new_text(draft, pool, [5])
    assert draft.propose([broken.request(2), sound.request(2)]) == [[], continuation([5], 2)]


def test_a_draft_model_of_another_vocabulary_is_refused_by_name() -> None:
    check_draft(SMALL_CHAT, replace(SMALL_CHAT, num_hidden_layers=7))
    with pytest.raises(RequestError, match=r"^speculative_config\.model has a vocabulary of 401 .* of 400; "):
        check_draft(SMALL_CHAT, replace(SMALL_CHAT, vocab_size=401))


# The network itself, with every way of choosing tokens that is not the same for all.

SAMPLED = [
    GREEDY,
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=50),
    SamplingParams(temperature=1.3, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.5),
    SamplingParams(temperature=0.0, presence_penalty=2.0, logit_bias={7: 3.0}),
]


@pytest.fixture(scope="module")
def model() -> Llama:
    return random_model(replace(SMALL_CHAT, num_hidden_layers=2, max_position_embeddings=256))


def torch_runner(model: Llama, num_blocks: int) -> Runner:
    storage = KVStorage(model.config, num_blocks, BLOCK_SIZE, "auto", model.dtype, model.device)
    return TorchRunner(model, storage, AdapterSet(model))


@torch.inference_mode()
def next_token(model: Llama, text: Text) -> int:
    """What the target chooses, with nothing cached and nothing else in the batch."""
    count = len(text.tokens)
    hidden = model(torch.tensor(text.tokens), torch.arange(count), PackedCausal([0, count]))
    row = Row(text.params, text.history, (), text.key, count)
    return sample_rows(model.logits(hidden[-1:]), [row])[0].token_id


def test_what_the_target_itself_guesses_is_what_it_then_samples(model: Llama) -> None:
    """Over rounds in which some, all or none of the guesses are kept, and texts come and go."""
    random = Random(5)
    pool = BlockPool(200, BLOCK_SIZE)
    draft = DraftModel(torch_runner(model, 200), BLOCK_SIZE)
    lengths = [1, 3, 4, 13, 30]
    texts = []
    for number, (length, params) in enumerate(zip(lengths, SAMPLED, strict=True)):
        tokens = [random.randrange(400) for _ in range(length)]
        texts.append(Text(tokens, BlockTable(pool, b""), params, key=number))
    for _ in range(6):
        asked = random.sample(texts, 4)
        for text in asked:
            assert text.reserve(draft, 4)
        for text, guesses in zip(asked, draft.propose([text.request(4) for text in asked]), strict=True):
            assert len(guesses) == 4
            kept = random.randrange(5)
            for guess in guesses[:kept]:
                assert guess == next_token(model, text)
                text.append([guess])
            text.append([random.randrange(400) if kept < 4 else next_token(model, text)])
