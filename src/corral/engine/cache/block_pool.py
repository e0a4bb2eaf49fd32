"""Blocks of the KV cache: who uses them, which are free, and which hold a prefix that may be used again."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

SCRATCH_BLOCK = 0
"""Never given out. Padding rows of fixed-size batches write there, and padded tables point there."""


class HoldsBlocks(Protocol):
    """Anything that holds references to blocks, one for each entry."""

    @property
    def blocks(self) -> Sequence[int]: ...


class BlockPool:
    """Reference counts and the prefix cache of `num_blocks` blocks of `block_size` tokens.

    Block 0 is scratch (see SCRATCH_BLOCK), so `num_blocks - 1` can be allocated. A block is in one of three
    states: in use (referenced); free and empty; or free and cached: its content can still be found by its
    digest, until the block is needed. Empty blocks are given out first, the last freed before those that were
    never used, so that memory which was never touched stays so; then cached ones, least recently used first.
    Every operation on a block takes constant time.

    Attributes:
        num_evictions: how often a cached block's content was given up for another.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        assert num_blocks >= 2, "a pool needs a block beside the scratch block"
        assert block_size >= 1, "a block holds at least one token"
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_evictions = 0
        self.epoch = 0
        self._refs = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))  # taken from the end
        self._evictable: OrderedDict[int, None] = OrderedDict()  # cached, least recently used first
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, cached ones included."""
        return len(self._empty) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks that are referenced."""
        return self.num_blocks - 1 - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by their digest, in use or not."""
        return len(self._block_of)

    @property
    def usage(self) -> float:
        """The share of blocks that are referenced, 0 to 1."""
        return self.num_used / (self.num_blocks - 1)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks, each with one reference. There must be so many free."""
        assert count <= self.num_free, "more blocks asked for than are free"
        return [self._take() for _ in range(count)]

    def retain(self, block: int) -> None:
        """Adds a reference to a block that is in use or cached."""
        if self._refs[block] == 0:
            assert block in self._evictable, "a free block without content was retained"
            del self._evictable[block]
        self._refs[block] += 1

    def release(self, block: int) -> None:
        """Gives back one reference. With the last the block is free, but its content can still be found."""
        assert self._refs[block] > 0, f"block {block} was released once too often"
        self._refs[block] -= 1
        if self._refs[block] == 0:
            if block in self._digest_of:
                self._evictable[block] = None
            else:
                self._empty.append(block)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holds the block: it must be copied before it is written."""
        return self._refs[block] > 1

    def register(self, block: int, digest: bytes) -> None:
        """Makes a full block findable. Where another block has the same content already, that one stays."""
        assert self._refs[block] > 0, "a free block was registered"
        if self.enable_prefix_caching and digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def unregister(self, block: int) -> None:
        """Makes a block that is in use no longer findable, because it is about to be written again."""
        assert self._refs[block] > 0, "a free block was unregistered"
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]

    def lookup(self, digest: bytes) -> int | None:
        """The block with this content, which `retain` takes; None where there is none."""
        return self._block_of.get(digest)

    def reset_prefix_cache(self) -> None:
        """Forgets all content, as after a change of weights.

        Blocks in use stay in use. Tables that are alive now register nothing more: what they hold is of the
        old weights.
        """
        self.epoch += 1
        self._block_of.clear()
        self._digest_of.clear()
        self._empty.extend(self._evictable)
        self._evictable.clear()

    def check_integrity(self, tables: Iterable[HoldsBlocks] | None = None) -> None:
        """Asserts every invariant. `tables`, where given, must be all that hold blocks of this pool."""
        empty, evictable = set(self._empty), set(self._evictable)
        assert len(empty) == len(self._empty), "a block is in the free list twice"
        assert not empty & evictable, "a block is both empty and cached"
        unused = {block for block in range(1, self.num_blocks) if self._refs[block] == 0}
        assert empty | evictable == unused, "the free lists are not the blocks without references"
        assert self._refs[SCRATCH_BLOCK] == 0, "the scratch block is in use"
        assert min(self._refs) >= 0, "a reference count is negative"
        mirrored = {block: digest for digest, block in self._block_of.items()}
        assert mirrored == self._digest_of, "the digests of blocks and the blocks of digests differ"
        assert len(mirrored) == len(self._block_of), "a block has two digests"
        assert evictable == unused & mirrored.keys(), "a free block is in the wrong list"
        assert self.enable_prefix_caching or not mirrored, "a block is cached though caching is off"
        if tables is not None:
            held = Counter(block for table in tables for block in table.blocks)
            for block, refs in enumerate(self._refs):
                assert refs == held[block], f"block {block} has {refs} references but {held[block]} holders"

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
            self.num_evictions += 1
        self._refs[block] = 1
        return block
