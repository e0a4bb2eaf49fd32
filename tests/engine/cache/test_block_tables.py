"""Blocks and prefixes under arbitrary use, against a model of what every slot must hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.engine.cache.block_pool import SCRATCH_BLOCK, BlockPool
from corral.engine.cache.block_table import BlockTable
from corral.engine.cache.prefix import prefix_salt
from corral.engine.cache.storage import KVStorage
from corral.model.config import LlamaConfig

TINY = LlamaConfig(
    vocab_size=8,
    hidden_size=4,
    intermediate_size=4,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=2,
)
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=9)  # two tokens only, so that prefixes are shared


@dataclass
class Live:
    """A sequence, and what each of its computed tokens left in the cache."""

    table: BlockTable
    salt: int
    tokens: list[int]
    contents: list[int] = field(default_factory=list)


class CacheMachine(RuleBasedStateMachine):
    """Several sequences share a small pool. What a token leaves in the cache is a number that stands for the
    weights, the salt and all tokens before it: it is written, copied and read by the real storage."""

    @initialize(
        num_blocks=st.integers(2, 14),
        block_size=st.integers(1, 4),
        caching=st.sampled_from([True, True, False]),
    )
    def start(self, num_blocks: int, block_size: int, caching: bool) -> None:
        self.pool = BlockPool(num_blocks, block_size, caching)
        self.storage = KVStorage(TINY, num_blocks, block_size, "float32", torch.float32)
        self.live: list[Live] = []
        self.weights = 0
        self.names: dict[tuple[int, int, int], int] = {}

    def content(self, before: int, token: int) -> int:
        """The number of a token after what the number `before` stands for."""
        return self.names.setdefault((before, token, self.weights), 1000 + len(self.names))

    @rule(tokens=TOKENS, salt=st.integers(0, 1))
    def arrive(self, tokens: list[int], salt: int) -> None:
        table = BlockTable(self.pool, prefix_salt(b"", str(salt)))
        found = table.adopt_prefix(tokens, len(tokens) - 1)
        assert found % self.pool.block_size == 0
        assert found < len(tokens)
        sequence = Live(table, salt, tokens)
        for token in tokens[:found]:
            before = sequence.contents[-1] if sequence.contents else salt
            sequence.contents.append(self.content(before, token))
        self.live.append(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(1, 6), drafts=st.integers(0, 3))
    def step(self, data: st.DataObject, count: int, drafts: int) -> None:
        """Plans work for some sequences, perhaps drops one while planning, and then computes the others."""
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.live))), unique=True, min_size=1))
        victim = data.draw(st.sampled_from([None, *chosen]))
        copies: list[tuple[int, int]] = []
        works: list[tuple[Live, int, int]] = []
        for index in chosen:
            sequence = self.live[index]
            start = len(sequence.contents)
            end = min(len(sequence.tokens), start + count)
            pairs = self.reserve(sequence, start, end + drafts)
            if pairs is not None:
                copies += pairs
                works.append((sequence, start, end))
            if index == victim:
                sequence.table.free()
                sequence.contents.clear()
                works = [work for work in works if work[0] is not sequence]
        self.storage.copy_blocks(copies)
        for sequence, start, end in works:
            self.compute(sequence, start, end, drafts)
        for sequence, _, end in works:
            sequence.table.commit(sequence.tokens, end)

    def reserve(self, sequence: Live, start: int, end: int) -> list[tuple[int, int]] | None:
        size, before = self.pool.block_size, list(sequence.table.blocks)
        written = before[start // size : -(-end // size)] if end > start else []
        held = [block for other in self.live for block in other.table.blocks]
        needed = sum(held.count(block) > 1 for block in written) + max(0, -(-end // size) - len(before))
        possible = needed <= self.pool.num_free
        pairs = sequence.table.reserve(start, end)
        assert (pairs is not None) == possible
        if pairs is None:
            assert sequence.table.blocks == before
        return pairs

    def compute(self, sequence: Live, start: int, end: int, drafts: int) -> None:
        for token in sequence.tokens[start:end]:
            before = sequence.contents[-1] if sequence.contents else sequence.salt
            sequence.contents.append(self.content(before, token))
        values = [*sequence.contents[start:end], *[-1] * drafts]  # guesses that will be rejected
        size = self.pool.block_size
        if not values:
            return
        slots = [
            sequence.table.blocks[p // size] * size + p % size for p in range(start, start + len(values))
        ]
        entry = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(-1, 1, 2)
        for layer in range(2):
            self.storage.write(layer, torch.tensor(slots), entry, -entry)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=TOKENS)
    def go_on(self, data: st.DataObject, tokens: list[int]) -> None:
        data.draw(st.sampled_from(self.live)).tokens.extend(tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), keep=st.integers(0, 8))
    def change_course(self, data: st.DataObject, keep: int) -> None:
        """Tokens that were computed are taken back, and others follow."""
        sequence = data.draw(st.sampled_from(self.live))
        sequence.tokens[keep:] = [1 - token for token in sequence.tokens[keep:]] or [0]
        del sequence.contents[keep:]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.live))
        self.live.append(Live(parent.table.fork(), parent.salt, [*parent.tokens], [*parent.contents]))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(range(len(self.live))))
        sequence = self.live.pop(index)
        sequence.table.free()
        sequence.table.free()
        assert sequence.table.blocks == []

    @rule()
    def change_weights(self) -> None:
        self.pool.reset_prefix_cache()
        self.weights += 1

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        tables = [sequence.table for sequence in self.live]
        self.pool.check_integrity(tables)
        used = {block for table in tables for block in table.blocks}
        assert self.pool.num_used == len(used)
        assert self.pool.num_free == self.pool.num_blocks - 1 - len(used)
        assert SCRATCH_BLOCK not in used

    @invariant()
    def every_sequence_finds_what_it_computed(self) -> None:
        for sequence in self.live:
            if sequence.contents:
                for layer in range(2):
                    k, v = self.storage.gather(layer, torch.tensor([sequence.table.blocks]))
                    assert k[0, : len(sequence.contents), 0, 0].tolist() == sequence.contents
                    assert torch.equal(v, -k)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def filled(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> BlockTable:
    """A table whose tokens are all computed and committed."""
    table = BlockTable(pool, salt)
    cached = table.adopt_prefix(tokens, len(tokens) - 1)
    assert table.reserve(cached, len(tokens)) == []
    table.commit(tokens, len(tokens))
    return table


def cached_tokens(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> int:
    """How many of the tokens are cached now; takes nothing."""
    table = BlockTable(pool, salt)
    found = table.adopt_prefix(tokens, len(tokens))
    table.free()
    return found


def test_a_prefix_is_found_in_whole_blocks_and_within_the_limit() -> None:
    pool, prompt = BlockPool(20, 4), list(range(16))
    filled(pool, prompt).free()
    assert cached_tokens(pool, prompt) == 16
    assert cached_tokens(pool, [*prompt, 5]) == 16
    assert cached_tokens(pool, [*prompt[:10], 99, 98]) == 8
    assert cached_tokens(pool, [99, *prompt]) == 0
    table = BlockTable(pool, b"")
    assert table.adopt_prefix(prompt, len(prompt) - 1) == 12


def test_prefixes_are_shared_only_under_the_same_adapter_and_tenant() -> None:
    salts = [prefix_salt(a, t) for a in (b"", b"a", b"ab") for t in ("", "b", "ab", "\udcff")]
    assert len(set(salts)) == len(salts)
    pool, prompt = BlockPool(200, 2), list(range(8))
    for salt in salts:
        assert cached_tokens(pool, prompt, salt) == 0
        filled(pool, prompt, salt)
        assert cached_tokens(pool, prompt, salt) == 8


def test_a_running_sequence_shares_its_prompt_at_once() -> None:
    pool, prompt = BlockPool(20, 4), list(range(12))
    first, second = filled(pool, prompt), filled(pool, [*prompt, 1])
    assert first.blocks == second.blocks[:3]
    assert pool.num_used == 4
    assert pool.usage == 4 / 19


def test_of_two_that_compute_the_same_block_at_once_the_second_stays_its_own() -> None:
    pool, prompt = BlockPool(20, 4), list(range(8))
    first, second = BlockTable(pool, b""), BlockTable(pool, b"")
    for table in (first, second):
        assert table.reserve(0, 8) == []
    for table in (first, second):
        table.commit(prompt, 8)
    assert pool.num_cached == 2
    pool.check_integrity([first, second])
    second.free()
    assert pool.num_free == 19 - 2
    assert cached_tokens(pool, prompt) == 8


def test_the_head_of_a_prefix_outlives_its_tail() -> None:
    pool, prompt = BlockPool(9, 2), list(range(16))
    filled(pool, prompt).free()
    pool.allocate(5)
    assert pool.num_evictions == 5
    assert cached_tokens(pool, prompt) == 6


def test_the_prefix_that_was_used_longest_ago_goes_first() -> None:
    pool, old, new = BlockPool(9, 2), [1, 1, 1, 1], [2, 2, 2, 2]
    for prompt in (old, new):
        filled(pool, prompt).free()
    filled(pool, [*old, 3]).free()
    assert pool.num_evictions == 0
    pool.allocate(pool.num_free - 3)
    assert cached_tokens(pool, old) == 4
    assert cached_tokens(pool, new) == 2


def test_empty_blocks_are_used_again_before_any_that_was_never_touched_and_those_before_cached_ones() -> None:
    pool = BlockPool(10, 2)
    filled(pool, [1, 1]).free()  # block 1 is cached
    table = BlockTable(pool, b"")
    assert table.reserve(0, 6) == []
    assert table.blocks == [2, 3, 4]
    table.free()
    assert pool.allocate(4) == [2, 3, 4, 5]
    assert pool.allocate(5) == [6, 7, 8, 9, 1]


def test_a_fork_copies_the_block_that_it_writes_and_no_other() -> None:
    pool, tokens = BlockPool(20, 4), list(range(10))
    parent = filled(pool, tokens)
    child = parent.fork()
    assert child.blocks == parent.blocks
    assert child.reserve(10, 11) == [(parent.blocks[2], child.blocks[2])]
    assert child.blocks[:2] == parent.blocks[:2]
    assert parent.reserve(10, 13) == []  # it is alone with its last block now
    assert len(parent.blocks) == 4
    pool.check_integrity([parent, child])


def test_every_shared_block_that_will_be_written_is_copied() -> None:
    pool = BlockPool(20, 4)
    parent = filled(pool, list(range(12)))
    child = parent.fork()
    pairs = child.reserve(5, 12)
    assert pairs == list(zip(parent.blocks, child.blocks, strict=True))[1:]
    assert child.blocks[0] == parent.blocks[0]
    assert not set(child.blocks[1:]) & set(parent.blocks)
    assert child.reserve(12, 12) == []
    pool.check_integrity([parent, child])


def test_nothing_changes_where_blocks_are_lacking_and_freeing_twice_is_harmless() -> None:
    pool = BlockPool(4, 2)
    table = filled(pool, [1, 2, 3])
    before = list(table.blocks)
    assert table.reserve(3, 7) is None
    assert table.blocks == before
    fork = table.fork()
    assert fork.reserve(3, 6) is None  # a copy and a new block, but one is free
    assert fork.reserve(3, 4) is not None
    for held in (table, fork, table):
        held.free()
    pool.check_integrity([])
    assert pool.num_free == 3


def test_a_block_that_is_written_again_is_no_longer_found() -> None:
    pool = BlockPool(9, 2)
    table = filled(pool, [1, 2, 3, 4])
    assert table.reserve(2, 4) == []
    assert cached_tokens(pool, [1, 2, 3, 4]) == 2
    table.commit([1, 2, 5, 6], 4)
    assert cached_tokens(pool, [1, 2, 5, 6]) == 4


def test_after_a_reset_nothing_computed_before_is_ever_found() -> None:
    pool, prompt = BlockPool(20, 2), [1, 2, 3, 4, 5, 6]
    running = filled(pool, prompt[:4])
    filled(pool, [7, 7]).free()
    pool.reset_prefix_cache()
    assert cached_tokens(pool, [7, 7]) == cached_tokens(pool, prompt) == 0
    fresh = filled(pool, prompt[:4])
    assert running.reserve(4, 6) == []
    running.commit(prompt, 6)  # its last block was computed after the old ones
    assert cached_tokens(pool, prompt) == 4
    running.free()
    filled(pool, [*prompt[:4], 9, 9, 8], b"").free()
    pool.check_integrity([fresh])


def test_without_prefix_caching_nothing_is_kept() -> None:
    pool = BlockPool(9, 2, enable_prefix_caching=False)
    filled(pool, [1, 2, 3, 4]).free()
    assert cached_tokens(pool, [1, 2, 3, 4]) == 0
    assert pool.num_cached == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool: pool._refs.__setitem__(2, 0),
        lambda pool: pool._refs.__setitem__(2, 2),
        lambda pool: pool._refs.__setitem__(SCRATCH_BLOCK, 1),
        lambda pool: pool._empty.append(pool._empty[0]),
        lambda pool: pool._empty.append(1),
        lambda pool: pool._empty.pop(),
        lambda pool: pool._evictable.popitem(),
        lambda pool: pool._digest_of.popitem(),
        lambda pool: pool._block_of.popitem(),
        lambda pool: pool._block_of.__setitem__(b"other", 1),
    ],
)
def test_the_check_finds_every_kind_of_damage(damage: object) -> None:
    pool = BlockPool(8, 2)
    filled(pool, [7, 7]).free()
    table = filled(pool, [1, 2, 3, 4])
    pool.check_integrity([table])
    assert callable(damage)
    damage(pool)
    with pytest.raises(AssertionError, match=r"block|digest|list"):
        pool.check_integrity([table])


def test_giving_a_block_back_twice_is_caught() -> None:
    pool = BlockPool(4, 2)
    (block,) = pool.allocate(1)
    pool.release(block)
    with pytest.raises(AssertionError, match="once too often"):
        pool.release(block)
