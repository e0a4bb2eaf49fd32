"""The blocks of one sequence, in the order of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from corral.engine.cache.block_pool import BlockPool
from corral.engine.cache.prefix import block_digest, root_digest


class BlockTable:
    """Token `i` of the sequence lies in `blocks[i // block_size]`.

    Sequences with the same `salt` (see `prefix_salt`) share the blocks of equal prefixes. After `free` the
    table is as new and can be used again.
    """

    def __init__(self, pool: BlockPool, salt: bytes) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self._root = root_digest(salt)
        self._digests: list[bytes] = []  # of the full blocks that are committed, in order
        self._epoch = pool.epoch

    def adopt_prefix(self, tokens: Sequence[int], limit: int) -> int:
        """Takes the cached blocks with which `tokens` begins; gives how many tokens they hold.

        Whole blocks only, and at most `limit` tokens. The table must be empty.
        """
        assert not self.blocks, "a table that has blocks adopts no prefix"
        self._epoch = self.pool.epoch
        if not self.pool.enable_prefix_caching:
            return 0
        size = self.pool.block_size
        limit = min(limit, len(tokens))
        parent = self._root
        for end in range(size, limit + 1, size):
            parent = block_digest(parent, tokens[end - size : end])
            block = self.pool.lookup(parent)
            if block is None:
                break
            self.pool.retain(block)
            self.blocks.append(block)
            self._digests.append(parent)
        return len(self.blocks) * size

    def reserve(self, start: int, end: int) -> list[tuple[int, int]] | None:
        """Makes room for the tokens up to `end`, of which those from `start` on will be written.

        Blocks there that others hold too are replaced by copies: gives the (source, target) pairs, which must
        be copied, in order, before the next step writes anything. Gives None, and changes nothing, where the
        pool lacks blocks.
        """
        size = self.pool.block_size
        needed = -(-end // size)
        first = min(start // size if start < end else needed, len(self.blocks))
        written = range(first, min(needed, len(self.blocks)))
        shared = [index for index in written if self.pool.is_shared(self.blocks[index])]
        missing = max(0, needed - len(self.blocks))
        if not written and not missing:
            return []
        if len(shared) + missing > self.pool.num_free:
            return None
        for index in written:
            if not self.pool.is_shared(self.blocks[index]):
                self.pool.unregister(self.blocks[index])
        del self._digests[first:]
        pairs = [self._replace(index) for index in shared]
        self.blocks += self.pool.allocate(missing)
        return pairs

    def commit(self, tokens: Sequence[int], num_computed: int) -> None:
        """Makes the full blocks of the first `num_computed` tokens findable. Rejected drafts never count."""
        size = self.pool.block_size
        if not self.pool.enable_prefix_caching or self._epoch != self.pool.epoch:
            return
        while (end := (len(self._digests) + 1) * size) <= num_computed:
            parent = self._digests[-1] if self._digests else self._root
            digest = block_digest(parent, tokens[end - size : end])
            self.pool.register(self.blocks[len(self._digests)], digest)
            self._digests.append(digest)

    def fork(self) -> BlockTable:
        """Another table with the same blocks; whoever writes first gets copies."""
        twin = BlockTable.__new__(BlockTable)
        twin.pool, twin._root, twin._epoch = self.pool, self._root, self._epoch
        twin.blocks, twin._digests = list(self.blocks), list(self._digests)
        for block in self.blocks:
            self.pool.retain(block)
        return twin

    def free(self) -> None:
        """Gives all blocks back, the last first, so that a prefix's head outlives its tail in the cache."""
        for block in reversed(self.blocks):
            self.pool.release(block)
        self.blocks, self._digests = [], []
        self._epoch = self.pool.epoch

    def discard(self) -> list[int]:
        """Gives all blocks back, and their content no longer counts; gives those that nobody else holds.

        For a sequence that went wrong: what lies in these blocks may not be numbers, and is to be cleared.
        """
        own = [block for block in self.blocks if not self.pool.is_shared(block)]
        for block in own:
            self.pool.unregister(block)
        self.free()
        return own

    def _replace(self, index: int) -> tuple[int, int]:
        source, target = self.blocks[index], self.pool.allocate(1)[0]
        self.pool.release(source)
        self.blocks[index] = target
        return source, target
