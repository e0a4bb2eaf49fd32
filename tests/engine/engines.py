"""Engines for tests: small pools, a real network, or a device that checks what it is given."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from corral.engine.batches import run_each
from corral.engine.cache.block_pool import BlockPool
from corral.engine.cache.storage import KVStorage
from corral.engine.config import SchedulerConfig
from corral.engine.engine import Engine
from corral.engine.networks import Network, Runners
from corral.engine.options import EngineOptions
from corral.engine.outputs import RequestOutput
from corral.engine.request import Request
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.runner import Runner
from corral.engine.speculation.control import DraftControl
from corral.engine.speculation.draft_model import DraftModel
from corral.engine.speculation.speculation import DraftModelProposer, LookupProposer, Proposer, Speculation
from corral.engine.speculation.speculator import Speculator
from corral.model.llama import Llama
from corral.text.tokenizer import Tokenizer
from tests.engine.slot_cache import SlotCache

BLOCK_SIZE = 4


@contextmanager
def running_engine(
    model: Network,
    *,
    tokenizer: Tokenizer | None = None,
    num_blocks: int = 400,
    block_size: int = BLOCK_SIZE,
    kv_dtype: str = "auto",
    config: SchedulerConfig | None = None,
    prefix_caching: bool = True,
    speculate: str | Llama | Speculator | None = None,
    max_model_len: int | None = None,
    runner: Runner | None = None,
) -> Iterator[Engine]:
    """An engine with a pool of a given size, on the kernels that users get: the native ones where they are
    built, torch with CORRAL_ISA=none. At the end nothing may be left in use.

    `speculate` is "prompt_lookup", a draft model, or what guesses.
    """
    runners = Runners(EngineOptions(), model.device)
    network = model if runner else runners.prepare(model)
    storage = KVStorage(model.config, num_blocks, block_size, kv_dtype, model.dtype)
    adapters = AdapterSet(network)
    engine = Engine(
        runner or runners.runner(network, storage, adapters),
        BlockPool(num_blocks, block_size, prefix_caching),
        adapters,
        vocab_size=model.config.vocab_size,
        max_model_len=max_model_len
        or min((num_blocks - 1) * block_size, model.config.max_position_embeddings),
        tokenizer=tokenizer,
        config=config or SchedulerConfig(),
        speculator=_speculator(speculate, num_blocks, block_size, runners),
    )
    try:
        yield engine
        check_idle(engine)
    finally:
        engine.close()


def check_idle(engine: Engine) -> None:
    """Asserts that no sequence runs or waits, and that no block is in use."""
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


def wait_until(condition: Callable[[], object]) -> None:
    """Waits for something that happens in another thread."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def run(
    engine: Engine, requests: Sequence[Request], tokenizer: Tokenizer | None = None
) -> list[RequestOutput]:
    """The outputs of requests that run together."""
    return [collector.result() for collector in run_each(engine, requests, tokenizer)]


def _speculator(
    speculate: str | Llama | Speculator | None, num_blocks: int, block_size: int, runners: Runners
) -> Speculator | None:
    if not isinstance(speculate, str | Llama):
        return speculate
    proposer: Proposer = LookupProposer()
    if isinstance(speculate, Llama):
        draft = runners.prepare(speculate)
        storage = KVStorage(draft.config, num_blocks, block_size, "auto", draft.dtype)
        runner = runners.runner(draft, storage, AdapterSet(draft))
        proposer = DraftModelProposer(DraftModel(runner, block_size))
    return Speculation(EagerControl(), proposer)


class EagerControl(DraftControl):
    """Guesses in every step, whatever it costs: so that tests see guesses."""

    def draft_length(self, state: object, num_tokens: int, num_decodes: int) -> int:
        return 1 + num_tokens % 5


class CheckingRunner(SlotCache):
    """A device whose cache holds tokens instead of numbers, and that checks them.

    Each slot remembers the token that was written there and all tokens before it, as a digest. Whoever reads
    a slot with another content than its own sequence's fails. The "hidden state" of a token is that digest,
    so that the next token is a function of all tokens up to it.
    """

    VOCAB = 12
    POISON = 11

    def run(self, spans: Sequence[Span]) -> Tensor:
        wanted: list[int] = []
        for span in spans:
            if self.POISON in span.tokens:
                raise RuntimeError("a poisonous token")
        for span in spans:
            digests = [self.slots[slot] for slot in self._slots_of(span, 0, span.start)]
            digest = digests[-1] if digests else 0
            for token in span.tokens:
                digest = zlib.crc32(bytes([token]), digest)
                digests.append(digest)
            written = self._slots_of(span, span.start, span.end)
            self.slots.update(zip(written, digests[span.start :], strict=True))
            assert all(0 <= offset < len(span.tokens) for offset in span.wanted)
            wanted += [digests[span.start + offset] for offset in span.wanted]
        for span in spans:  # after all writes: nobody has written over what another reads
            self._check(span)
        return torch.tensor(wanted, dtype=torch.float64)[:, None]

    def logits(self, hidden: Tensor, adapters: Sequence[str | None]) -> Tensor:
        return torch.stack([logits_after(int(row)) for row in hidden[:, 0]])

    def _check(self, span: Span) -> None:
        digests = [self.slots[slot] for slot in self._slots_of(span, 0, span.end)]
        digest = digests[span.start - 1] if span.start else 0
        for token, found in zip(span.tokens, digests[span.start :], strict=True):
            digest = zlib.crc32(bytes([token]), digest)
            assert found == digest, "a slot holds another sequence's token"

    def _slots_of(self, span: Span, start: int, end: int) -> list[int]:
        return [self.slot(span.blocks, position) for position in range(start, end)]


def digest_of(tokens: Sequence[int]) -> int:
    """The digest that `CheckingRunner` has for a text."""
    return zlib.crc32(bytes(tokens))


def logits_after(digest: int) -> Tensor:
    """Logits that are a function of the text; the poisonous token never comes."""
    logits = np.random.Generator(np.random.Philox(key=digest)).normal(size=CheckingRunner.VOCAB)
    logits[CheckingRunner.POISON] = -1e9
    return torch.from_numpy(logits * 2).float()
