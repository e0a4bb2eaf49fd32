"""Attention over blocks equals plain causal attention of each sequence alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corral.engine.cache.block_pool import SCRATCH_BLOCK
from corral.engine.cache.storage import KVStorage
from corral.engine.run import paged_attention
from corral.engine.run.batch import Span
from corral.engine.run.paged_attention import PagedAttention
from corral.model.attention import causal_attention
from corral.model.config import LlamaConfig

SHAPE = LlamaConfig(
    vocab_size=8,
    hidden_size=48,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
)


@dataclass
class Text:
    """A sequence: its queries, keys and values of one layer, and where it lies in the cache."""

    q: Tensor
    k: Tensor
    v: Tensor
    blocks: list[int]
    done: int = 0


def texts(lengths: Sequence[int], block_size: int, seed: int, config: LlamaConfig = SHAPE) -> list[Text]:
    """Random sequences over shuffled blocks, with a block to spare for each."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // block_size) + 1 for length in lengths]
    free = list(range(1, sum(counts) + 1))
    random.Random(seed).shuffle(free)
    made = []
    for length, count in zip(lengths, counts, strict=True):
        q = torch.randn(length, config.num_attention_heads, config.head_dim, generator=generator)
        k, v = torch.randn(2, length, config.num_key_value_heads, config.head_dim, generator=generator)
        made.append(Text(q, k, v, [free.pop() for _ in range(count)]))
    return made


def step(storage: KVStorage, work: Sequence[tuple[Text, int]], layer: int = 1) -> list[Tensor]:
    """Runs the next tokens of each sequence in one batch; gives what attention gave for each."""
    spans = [Span([0] * count, text.done, text.blocks, ()) for text, count in work]
    rows = [slice(text.done, text.done + count) for text, count in work]
    attend = PagedAttention(storage, spans)
    q, k, v = (
        torch.cat([getattr(text, name)[new] for (text, _), new in zip(work, rows, strict=True)])
        for name in "qkv"
    )
    output = attend(layer, q.to(storage.dtype), k.to(storage.dtype), v.to(storage.dtype))
    assert output.shape == q.shape
    for text, count in work:
        text.done += count
    return list(torch.split(output, [count for _, count in work]))


def run_all(storage: KVStorage, sequences: Sequence[Text], seed: int, sizes: Sequence[int]) -> list[Tensor]:
    """Runs all sequences to their ends, in random company, with spans of these sizes."""
    choose = random.Random(seed)
    outputs: list[list[Tensor]] = [[] for _ in sequences]
    while any(text.done < len(text.q) for text in sequences):
        here = [i for i, text in enumerate(sequences) if text.done < len(text.q) and choose.random() < 0.8]
        work = [
            (sequences[i], min(choose.choice(sizes), len(sequences[i].q) - sequences[i].done)) for i in here
        ]
        for i, rows in zip(here, step(storage, work) if work else [], strict=True):
            outputs[i].append(rows)
    return [torch.cat(rows) for rows in outputs]


def storage_for(sequences: Sequence[Text], block_size: int, kv_dtype: str = "auto") -> KVStorage:
    blocks = 1 + sum(len(text.blocks) for text in sequences)
    return KVStorage(SHAPE, blocks, block_size, kv_dtype, torch.float32)


@pytest.fixture(params=["as it is", "small limits"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small limits, short sequences take the ways of long ones too."""
    if request.param == "small limits":
        monkeypatch.setattr(paged_attention, "_FEW_KEYS", 8)
        monkeypatch.setattr(paged_attention, "_SCORE_ELEMENTS", 600)
        monkeypatch.setattr(paged_attention, "_MASK_ELEMENTS", 200)
        monkeypatch.setattr(paged_attention, "_MOST_ROWS_AT_ONCE", 6)
        monkeypatch.setattr(paged_attention, "_FEWEST_ROWS_AT_ONCE", 2)
        monkeypatch.setattr(paged_attention, "_GROUP_BYTES", {"cpu": 2**13, "cuda": 2**13})


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("sizes", [(1,), (7,), (512,), (1, 1, 2, 3, 5), (1, 1, 1, 4, 12, 40)])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_any_mix_of_spans_equals_causal_attention(block_size: int, sizes: tuple[int, ...]) -> None:
    sequences = texts([1, 70, 33, 16, 17, 5, 64, 48], block_size, seed=block_size)
    found = run_all(storage_for(sequences, block_size), sequences, 3, sizes)
    for text, rows in zip(sequences, found, strict=True):
        torch.testing.assert_close(rows, causal_attention(text.q, text.k, text.v), atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 1), (6, 2)]),
    block_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_any_shape_and_chunking_equals_causal_attention(
    lengths: list[int], sizes: list[int], heads: tuple[int, int], block_size: int, seed: int
) -> None:
    config = replace(SHAPE, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    sequences = texts(lengths, block_size, seed, config)
    blocks = 1 + sum(len(text.blocks) for text in sequences)
    storage = KVStorage(config, blocks, block_size, "auto", torch.float32)
    found = run_all(storage, sequences, seed, sizes)
    for text, rows in zip(sequences, found, strict=True):
        torch.testing.assert_close(rows, causal_attention(text.q, text.k, text.v), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
def test_a_smaller_cache_gives_the_same_in_any_chunks_and_stays_near_the_exact(kv_dtype: str) -> None:
    results = []
    for sizes in ((512,), (1,), (3, 11), (1, 2, 30)):
        sequences = texts([50, 9, 26], 4, seed=5)
        results.append(run_all(storage_for(sequences, 4, kv_dtype), sequences, 1, sizes))
    for others in results[1:]:
        for found, once in zip(others, results[0], strict=True):
            torch.testing.assert_close(found, once, atol=1e-5, rtol=0)
    for text, rows in zip(sequences, results[0], strict=True):
        exact = causal_attention(text.q, text.k, text.v)
        assert (rows - exact).pow(2).mean().sqrt() < 0.01 * exact.pow(2).mean().sqrt()


@pytest.mark.parametrize("lengths", [[300], [40] * 8, list(range(8, 200, 3))])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_in_bfloat16_scores_are_as_exact_as_in_torchs_own_attention(lengths: list[int], count: int) -> None:
    """Large scores, where products that are rounded to bfloat16 would be off by several percent."""
    lengths = [length + count for length in lengths]
    sequences = texts(lengths, 16, seed=2)
    for text in sequences:
        text.q, text.k = (2 * text.q).bfloat16().float(), (4 * text.k).bfloat16().float()
        text.v = text.v.bfloat16().float()
    blocks = 1 + sum(len(text.blocks) for text in sequences)
    storage = KVStorage(SHAPE, blocks, 16, "auto", torch.bfloat16)
    step(storage, [(text, len(text.q) - count) for text in sequences])
    ours, torchs, size = 0.0, 0.0, 0.0
    for text, rows in zip(sequences, step(storage, [(text, count) for text in sequences]), strict=True):
        exact = causal_attention(text.q[-count:], text.k, text.v)
        own = causal_attention(text.q[-count:].bfloat16(), text.k.bfloat16(), text.v.bfloat16())
        ours += float((rows.float() - exact).pow(2).sum())
        torchs += float((own.float() - exact).pow(2).sum())
        size += float(exact.pow(2).sum())
    assert ours < 2 * torchs
    assert ours**0.5 < 0.004 * size**0.5


@pytest.mark.usefixtures("limits")
def test_what_other_sequences_left_behind_is_never_seen() -> None:
    sequences = texts([21, 34, 13], 4, seed=8)
    poisoned = {block for text in sequences[1:] for block in text.blocks}
    storage = storage_for(sequences, 4)
    slots = torch.tensor([block * 4 + i for block in poisoned for i in range(4)])
    bad = torch.full((len(slots), 2, 8), float("nan"))
    storage.write(1, slots, bad, bad)
    storage.write(
        1, torch.arange(4 * sequences[0].blocks[-1], 4 * sequences[0].blocks[-1] + 4), bad[:4], bad[:4]
    )
    for count in (10, 1, 3, 7):
        start = sequences[0].done
        (rows,) = step(storage, [(sequences[0], count)])
        exact = causal_attention(*(getattr(sequences[0], name)[: start + count] for name in "qkv"))[start:]
        torch.testing.assert_close(rows, exact, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_a_decode_step_over_padded_buffers_equals_the_same_step_without(kv_dtype: str) -> None:
    sequences = texts([5, 40, 17, 32, 33], 4, seed=4)
    storage = storage_for(sequences, 4, kv_dtype)
    for text in sequences:
        step(storage, [(text, len(text.q) - 1)])
    tables = torch.full((8, 16), SCRATCH_BLOCK)
    slots, lengths = torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)
    for i, text in enumerate(sequences):
        tables[i, : len(text.blocks)] = torch.tensor(text.blocks)
        slots[i] = text.blocks[text.done // 4] * 4 + text.done % 4
        lengths[i] = text.done + 1
    q, k, v = (
        torch.cat([*[getattr(text, name)[-1:] for text in sequences], getattr(sequences[0], name)[:3]])
        for name in "qkv"
    )
    with torch.inference_mode():
        padded = PagedAttention.decode(storage, slots, tables, lengths)(1, q, k, v)
    assert padded.isfinite().all()
    plain = step(storage, [(text, 1) for text in sequences])
    torch.testing.assert_close(padded[:5], torch.cat(plain), atol=1e-5, rtol=0)


def test_a_step_may_be_run_again_and_layers_do_not_mix() -> None:
    sequences = texts([30, 12], 4, seed=6)
    storage = storage_for(sequences, 4)
    run_all(storage, sequences, 0, (9,))
    before = [[each.clone() for each in storage.gather(0, torch.tensor([text.blocks]))] for text in sequences]
    assert not any(each.any() for both in before for each in both)  # all was written to layer 1
    once: list[Tensor] = []
    again: list[Tensor] = []
    for results in (once, again):
        for text in sequences:
            text.done = 7
        results += step(storage, [(text, 5) for text in sequences])
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_spans_in_any_order_give_their_rows_in_that_order() -> None:
    sequences = texts([20, 60, 21, 61, 20, 30], 4, seed=7)
    storage = storage_for(sequences, 4)
    for text in sequences:
        step(storage, [(text, len(text.q) - 12)])
    counts = [1, 1, 12, 1, 3, 1]
    starts = [text.done for text in sequences]
    found = step(storage, list(zip(sequences, counts, strict=True)))
    for text, start, count, rows in zip(sequences, starts, counts, found, strict=True):
        end = start + count
        exact = causal_attention(text.q[start:end], text.k[:end], text.v[:end])
        torch.testing.assert_close(rows, exact, atol=1e-5, rtol=0)
