"""Perplexity, against transformers' network and the usual loop over windows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from corral.errors import RequestError
from corral.evals.errors import EvalError
from corral.evals.perplexity import perplexity
from corral.evals.scorer import ModelSetup, Scorer
from corral.evals.windows import WindowOptions
from tests.evals.models import TEXT, Oracle, ids_of, write_model
from tests.kernels.networks import needs_native

KERNELS = ["torch", pytest.param("native", marks=needs_native)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts begin with nothing."""
    return write_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts begin with <s>."""
    return write_model(tmp_path_factory.mktemp("bos"), with_bos=True)


def setup(folder: Path, kernels: str = "torch") -> ModelSetup:
    return ModelSetup(folder, dtype="float32", kernels=kernels)


def sliding(oracle: Oracle, ids: list[int], context: int, stride: int) -> list[torch.Tensor]:
    """The usual loop: each window predicts what the one before it had not reached. The first window predicts
    only what has `context - stride` tokens before it, as all others do."""
    losses, reached = [], context - stride
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        new = min(end - reached, end - begin - 1)  # nothing predicts the first of a window
        if new > 0:
            losses.append(oracle.losses(ids[begin:end], new))
        reached = end
        if end == len(ids):
            break
    return losses


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("context", "stride"), [(64, None), (64, 16), (50, 49), (33, 1), (1100, None), (900, 333)]
)
def test_windows_with_and_without_overlap_agree_with_transformers(
    plain: Path, kernels: str, context: int, stride: int | None
) -> None:
    text = TEXT * (3 if context > 512 else 1)  # longer windows than one step of the network takes
    tokens = 200 if stride == 1 else None
    got = perplexity(setup(plain, kernels), [text], WindowOptions(context, stride, tokens))
    losses = sliding(Oracle(plain), ids_of(plain, text)[:tokens], context, stride or context)
    every = torch.cat(losses)
    assert len(losses) > 1
    assert (got.loss.num_tokens, got.reading.windows) == (len(every), len(losses))
    assert got.loss.nll.mean == pytest.approx(every.mean().item(), abs=2e-5)
    assert got.loss.perplexity.mean == pytest.approx(every.mean().exp().item(), rel=2e-5)
    if stride is None and len(losses[-1]) != len(losses[0]):
        residuals = torch.stack([(one - every.mean()).sum() for one in losses])
        error = (residuals.square().sum() * len(losses) / (len(losses) - 1)).sqrt() / len(every)
        assert got.loss.nll.standard_error == pytest.approx(error.item(), rel=1e-3)


@pytest.mark.parametrize("kernels", KERNELS)
def test_texts_of_their_own_do_not_see_each_other(with_bos: Path, kernels: str) -> None:
    words = TEXT.split()
    texts = [" ".join(words[:count]) for count in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 1, 144)]
    done: list[tuple[int, int]] = []
    got = perplexity(
        setup(with_bos, kernels), texts, WindowOptions(64), progress=lambda *counts: done.append(counts)
    )
    oracle = Oracle(with_bos)
    losses = [
        oracle.losses([1, *ids[begin : begin + 63]], len(ids[begin : begin + 63]))
        for ids in (ids_of(with_bos, text) for text in texts)
        for begin in range(0, len(ids), 63)
    ]
    every = torch.cat(losses)
    assert len(losses) > 2 * len(done) > 2  # several windows ran together, and not all
    assert [total for _, total in done] == [len(every)] * len(done)
    assert done[-1][0] == len(every)
    assert got.loss.num_tokens == sum(len(ids_of(with_bos, text)) for text in texts) == len(every)
    assert got.loss.nll.mean == pytest.approx(every.mean().item(), abs=2e-5)
    # Every byte was predicted: the sum in bits over the length of the texts.
    num_bytes = sum(len(text.encode()) for text in texts)
    assert got.loss.num_bytes == num_bytes
    assert got.loss.bits_per_byte == pytest.approx(every.sum().item() / math.log(2) / num_bytes, rel=2e-5)


@needs_native
def test_company_and_chunks_do_not_change_a_bit(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [TEXT[:length] for length in (10, 400, 30, 900, 2500)]
    together = perplexity(setup(plain, "native"), texts, WindowOptions(600)).loss
    monkeypatch.setattr(Scorer, "batches", lambda _, windows: ([window] for window in windows))
    assert perplexity(setup(plain, "native"), texts, WindowOptions(600)).loss == together
    one_by_one = [perplexity(setup(plain, "native"), [text], WindowOptions(600)).loss for text in texts]
    sums = [loss.nll.mean * loss.num_tokens for loss in one_by_one]
    assert sum(sums) / together.num_tokens == pytest.approx(together.nll.mean, rel=1e-12)


def test_what_is_printed_says_how_it_was_measured(plain: Path) -> None:
    options = WindowOptions(32, 8, 100)
    got = perplexity(setup(plain), [TEXT], options).to_dict()
    assert got["windows"] == 10  # of 8 new tokens each; the last of 4
    assert got["tokens"] == 100 - 24
    assert got["run_tokens"] == 9 * 31 + 27
    assert (got["context"], got["stride"], got["kernels"], got["dtype"]) == (32, 8, "torch", "float32")
    assert got["tokens_per_second"] == pytest.approx(got["run_tokens"] / got["seconds"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernels": "fast"}, "kernels is 'fast'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"device": "tpu"}, "device 'tpu' is not available"),
        ({"threads": 0}, "threads is 0"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'"),
    ],
)
def test_a_setup_that_makes_no_sense_is_refused_before_any_model_is_looked_for(
    changes: dict[str, str], said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        ModelSetup("no/such-model", **changes)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_window_longer_than_the_models_context_is_refused(plain: Path) -> None:
    with pytest.raises(EvalError, match=r"context is 2,049, but .* has one of 2,048 tokens; ask for less"):
        perplexity(setup(plain), [TEXT], WindowOptions(2049))


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, noise=float("nan"))
    with pytest.raises(EvalError, match="gives scores that are not finite"):
        perplexity(setup(folder), [TEXT])
