"""The memory tables of the Llama 3.1 launch post, from first principles, and as docs/memory.md shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from corral.model.config import LlamaConfig
from corral.model.presets import PRESETS
from corral.plan import Training
from corral.plan.formats import (
    ideal_weight_bytes,
    kv_bytes_per_token,
    kv_format,
    weight_bytes,
    weight_format,
)

GB, GIB = 10**9, 2**30
DOCUMENT = Path(__file__).parents[2] / "docs" / "memory.md"
SHAPES = {size: PRESETS[f"llama-3.1-{size.lower()}"].config for size in ("8B", "70B", "405B")}
TOKENS = {"1k": 1024, "16k": 16_000, "128k": 128_000}

# As published, in what the post calls GB.
WEIGHTS = {
    "8B": {"float16": 16, "fp8": 8, "int4": 4},
    "70B": {"float16": 140, "fp8": 70, "int4": 35},
    "405B": {"float16": 810, "fp8": 405, "int4": 203},
}
KV_CACHE = {
    "8B": {"1k": 0.125, "16k": 1.95, "128k": 15.62},
    "70B": {"1k": 0.313, "16k": 4.88, "128k": 39.06},
    "405B": {"1k": 0.984, "16k": 15.38, "128k": 123.05},
}
TRAINING = {
    "8B": {"full": 60, "lora": 16, "qlora": 6},
    "70B": {"full": 500, "lora": 160, "qlora": 48},
    "405B": {"full": 3250, "lora": 950, "qlora": 250},
}
WEIGHT_CELLS = [(size, dtype) for size, row in WEIGHTS.items() for dtype in row]
KV_CELLS = [(size, tokens) for size, row in KV_CACHE.items() for tokens in row]


def kv_gib(config: LlamaConfig, tokens: str) -> float:
    return TOKENS[tokens] * kv_bytes_per_token(config, kv_format("float16")) / GIB


def with_kv_heads(config: LlamaConfig, heads: int) -> LlamaConfig:
    return replace(config, num_key_value_heads=heads)


def training_gb(size: str, method: str, states: str, *, activations: bool = False) -> float:
    """GB of weights, gradients and optimizer states; and of the activations of 2,048 tokens, if asked."""
    parts = Training(method=method, seq=2048, states=states).parts(SHAPES[size], devices=1)
    return sum(part.bytes for part in parts if activations or part.name != "activations") / GB


@pytest.mark.parametrize(("size", "dtype"), WEIGHT_CELLS)
def test_the_posts_weights_are_all_parameters_times_pure_bits_within_one_percent(
    size: str, dtype: str
) -> None:
    ours = ideal_weight_bytes(SHAPES[size], weight_format(dtype)) / GB
    assert ours == pytest.approx(WEIGHTS[size][dtype], rel=0.01)


@pytest.mark.parametrize(("size", "dtype"), WEIGHT_CELLS)
def test_the_posts_weights_are_the_nominal_sizes_to_the_last_digit(size: str, dtype: str) -> None:
    nominal = int(size.removesuffix("B")) * weight_format(dtype).bits / 8
    assert abs(nominal - WEIGHTS[size][dtype]) <= 0.5


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("dtype", ["fp8", "int4"])
def test_real_quantized_weights_are_larger_than_the_post_says(size: str, dtype: str) -> None:
    form = weight_format(dtype)
    assert weight_bytes(SHAPES[size], form).total > ideal_weight_bytes(SHAPES[size], form)


@pytest.mark.parametrize(("size", "tokens"), KV_CELLS)
def test_the_posts_kv_cache_is_in_gib_and_its_405b_has_16_kv_heads(size: str, tokens: str) -> None:
    config = with_kv_heads(SHAPES[size], 16 if size == "405B" else 8)
    half_a_unit = 0.0005 if tokens == "1k" else 0.005
    assert abs(kv_gib(config, tokens) - KV_CACHE[size][tokens]) <= half_a_unit + 1e-9


@pytest.mark.parametrize("tokens", TOKENS)
def test_the_405b_as_published_today_needs_half_the_kv_cache_of_the_post(tokens: str) -> None:
    assert SHAPES["405B"].num_key_value_heads == 8
    assert kv_gib(SHAPES["405B"], tokens) == pytest.approx(KV_CACHE["405B"][tokens] / 2, rel=1e-3)


def test_a_k_means_1024_tokens_only_in_the_posts_first_column() -> None:
    assert 16_384 * kv_gib(SHAPES["8B"], "1k") / 1024 == 2.0
    assert 1_000 * kv_gib(SHAPES["8B"], "1k") / 1024 == pytest.approx(0.122, abs=5e-4)


def test_full_training_is_8_bytes_for_each_parameter_in_two_rows_of_the_post() -> None:
    assert training_gb("8B", "full", "bf16") * GB / GIB == pytest.approx(60, rel=0.005)  # if GiB was meant
    assert training_gb("405B", "full", "bf16") == pytest.approx(3250, rel=0.002)


def test_the_posts_full_70b_row_is_no_multiple_of_its_other_rows() -> None:
    bytes_each = {size: row["full"] * GB / SHAPES[size].num_parameters for size, row in TRAINING.items()}
    assert training_gb("70B", "full", "bf16") == pytest.approx(564, abs=0.5)
    assert bytes_each["70B"] < bytes_each["8B"] < bytes_each["405B"]


def test_mixed_precision_takes_twice_what_the_post_says_of_full_training() -> None:
    for size in SHAPES:
        assert training_gb(size, "full", "mixed") == pytest.approx(2 * training_gb(size, "full", "bf16"))
        assert training_gb(size, "full", "mixed") > 1.98 * TRAINING[size]["full"]


@pytest.mark.parametrize(
    ("size", "method", "within"),
    [
        ("8B", "lora", 0.05),
        ("70B", "lora", 0.10),
        ("405B", "lora", 0.14),
        ("8B", "qlora", 0.07),
        ("70B", "qlora", 0.11),
        ("405B", "qlora", 0.11),
    ],
)
def test_the_posts_adapter_rows_are_near_the_states_of_rank_16(size: str, method: str, within: float) -> None:
    assert training_gb(size, method, "mixed") == pytest.approx(TRAINING[size][method], rel=within)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_posts_8b_adapter_rows_leave_no_room_for_activations(method: str) -> None:
    assert training_gb("8B", method, "mixed", activations=True) > 1.15 * TRAINING["8B"][method]


def markdown(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def weights_table() -> str:
    header = ("model", "format", "post (GB)", "all parameters, pure bits (GB)", "as stored (GB)")
    rows = []
    for size, dtype in WEIGHT_CELLS:
        config, form = SHAPES[size], weight_format(dtype)
        ideal, stored = ideal_weight_bytes(config, form), weight_bytes(config, form).total
        rows.append((size, dtype, str(WEIGHTS[size][dtype]), f"{ideal / GB:.2f}", f"{stored / GB:.2f}"))
    return markdown(header, rows)


def kv_table() -> str:
    header = ("model", "tokens", 'post ("GB")', "8 KV heads (GiB)", "16 KV heads (GiB)")
    rows = []
    for size, tokens in KV_CELLS:
        eight = f"{kv_gib(SHAPES[size], tokens):.4f}"
        sixteen = f"{kv_gib(with_kv_heads(SHAPES[size], 16), tokens):.4f}" if size == "405B" else ""
        rows.append((size, f"{TOKENS[tokens]:,}", str(KV_CACHE[size][tokens]), eight, sixteen))
    return markdown(header, rows)


def full_table() -> str:
    header = ("model", "post (GB)", "mixed (GB)", "bf16 (GB)", "bf16 (GiB)", "8bit (GB)")
    rows = []
    for size, row in TRAINING.items():
        mixed, pure, eight = (training_gb(size, "full", states) for states in ("mixed", "bf16", "8bit"))
        figures = (mixed, pure, pure * GB / GIB, eight)
        rows.append((size, f"{row['full']:,}", *(f"{figure:,.1f}" for figure in figures)))
    return markdown(header, rows)


def adapter_table() -> str:
    header = ("model", "method", "post (GB)", "states (GB)", "post less states", "with activations (GB)")
    rows = []
    for size in SHAPES:
        for method in ("lora", "qlora"):
            post, states = TRAINING[size][method], training_gb(size, method, "mixed")
            total = training_gb(size, method, "mixed", activations=True)
            rows.append(
                (size, method, str(post), f"{states:.1f}", f"{post / states - 1:+.0%}", f"{total:.1f}")
            )
    return markdown(header, rows)


@pytest.mark.parametrize("table", [weights_table, kv_table, full_table, adapter_table])
def test_the_document_shows_what_the_formulas_give(table: Callable[[], str]) -> None:
    assert table() in DOCUMENT.read_text()
