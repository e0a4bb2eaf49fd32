"""The cache of a device that does not compute: numbers in slots, which stand for keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from corral.engine.run.runner import Runner


class SlotCache(Runner):
    """What the cache part of a `Runner` does, with one number for each token in place of its vectors."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[int, int] = {}

    def slot(self, blocks: Sequence[int], position: int) -> int:
        """Where the token at a position lies."""
        return blocks[position // self.block_size] * self.block_size + position % self.block_size

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.clear_blocks([target])
            for offset in range(self.block_size):
                if source * self.block_size + offset in self.slots:
                    value = self.slots[source * self.block_size + offset]
                    self.slots[target * self.block_size + offset] = value

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            for offset in range(self.block_size):
                self.slots.pop(block * self.block_size + offset, None)
