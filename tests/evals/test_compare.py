"""Two models on one text, against transformers and torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corral.evals.compare import PERCENTILES, compare
from corral.evals.errors import EvalError
from corral.evals.perplexity import perplexity
from corral.evals.scorer import ModelSetup
from corral.evals.windows import WindowOptions
from tests.evals.models import TEXT, Oracle, ids_of, write_model
from tests.kernels.networks import needs_native

KERNELS = ["torch", pytest.param("native", marks=needs_native)]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, its weights a little off."""
    return write_model(tmp_path_factory.mktemp("near"), noise=0.1)


def setup(folder: Path, kernels: str = "torch", **changes: str) -> ModelSetup:
    return ModelSetup(folder, **{"dtype": "float32", "kernels": kernels, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", KERNELS)
def test_divergence_agreement_and_losses_agree_with_torch(right: Path, near: Path, kernels: str) -> None:
    context = 64
    got = compare(setup(right, kernels), setup(near, kernels), [TEXT], WindowOptions(context))
    ids, ours, theirs = ids_of(right, TEXT), Oracle(right), Oracle(near)
    windows = [ids[begin : begin + context] for begin in range(0, len(ids), context)]
    p = [ours.logprobs(window)[:-1] for window in windows]
    q = [theirs.logprobs(window)[:-1] for window in windows]
    kl = [
        torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(1)
        for a, b in zip(p, q, strict=True)
    ]
    every = torch.cat(kl)
    assert every.mean() > 1e-3  # the models do differ
    assert got.divergence.mean.mean == pytest.approx(every.mean().item(), rel=1e-4)
    assert got.divergence.maximum == pytest.approx(every.max().item(), rel=1e-3)
    for percent, value in got.divergence.percentiles.items():
        assert value == pytest.approx(every.quantile(percent / 100).item(), rel=1e-3)
    assert tuple(got.divergence.percentiles) == PERCENTILES
    agree = torch.cat(p).argmax(1) == torch.cat(q).argmax(1)
    assert 0.5 < agree.double().mean() < 1
    assert got.top1_agreement.mean == pytest.approx(agree.double().mean().item(), abs=1e-9)
    changes = [
        sum(float(a[i, token] - b[i, token]) for i, token in enumerate(window[1:]))
        for a, b, window in zip(p, q, windows, strict=True)
    ]
    counts = [len(window) - 1 for window in windows]
    mean = sum(changes) / sum(counts)
    residuals = sum((change - mean * count) ** 2 for change, count in zip(changes, counts, strict=True))
    error = (residuals * len(windows) / (len(windows) - 1)) ** 0.5 / sum(counts)
    assert got.nll_difference.mean == pytest.approx(mean, abs=2e-6)
    assert got.nll_difference.standard_error == pytest.approx(error, rel=1e-2)
    assert got.perplexity_ratio.mean == pytest.approx(
        got.candidate.perplexity.mean / got.reference.perplexity.mean, rel=1e-9
    )


def test_each_side_has_the_perplexity_that_it_has_alone(right: Path, near: Path) -> None:
    options = WindowOptions(40, 13)
    got = compare(setup(right), setup(near), [TEXT], options)
    assert got.reference == perplexity(setup(right), [TEXT], options).loss
    assert got.candidate == perplexity(setup(near), [TEXT], options).loss


@pytest.mark.parametrize(
    "changes",
    [
        {"kernels": "torch"},
        {"kernels": "torch", "dtype": "bfloat16"},
        {"kernels": "torch", "kv_cache_dtype": "int8"},
        pytest.param({"kernels": "native", "dtype": "bfloat16"}, marks=needs_native),
    ],
)
def test_a_model_differs_in_nothing_from_itself(right: Path, changes: dict[str, str]) -> None:
    one = setup(right, **changes)
    got = compare(one, one, [TEXT, "hello", TEXT[:300]], WindowOptions(600))
    assert got.divergence.maximum == 0
    assert got.divergence.mean.mean == got.nll_difference.mean == got.nll_difference.standard_error == 0
    assert got.top1_agreement.mean == got.perplexity_ratio.mean == 1
    assert got.reference == got.candidate


def test_what_a_type_costs_is_seen_for_one_model(right: Path) -> None:
    of_type, of_cache = (
        compare(setup(right), setup(right, **changes), [TEXT]).divergence
        for changes in ({"dtype": "bfloat16"}, {"kv_cache_dtype": "int8"})
    )
    for divergence in (of_type, of_cache):
        assert 1e-8 < divergence.mean.mean < 1e-2
        assert list(divergence.percentiles.values()) == sorted(divergence.percentiles.values())
        assert divergence.percentiles[99.9] <= divergence.maximum


def test_the_direction_matters(right: Path, near: Path) -> None:
    there = compare(setup(right), setup(near), [TEXT])
    back = compare(setup(near), setup(right), [TEXT])
    assert there.divergence.mean.mean != pytest.approx(back.divergence.mean.mean, rel=1e-6)
    assert there.nll_difference.mean == pytest.approx(-back.nll_difference.mean, rel=1e-9)
    assert there.reference == back.candidate


def test_models_of_vocabularies_that_differ_are_refused(right: Path, tmp_path: Path) -> None:
    larger = write_model(tmp_path / "larger", with_bos=True)
    with pytest.raises(EvalError) as caught:
        compare(setup(right), setup(larger), [TEXT])
    assert "the first scores 400 tokens and the second 500" in str(caught.value)
    assert "take the perplexity of each instead" in str(caught.value)
    other = write_model(tmp_path / "other")
    fields = json.loads((other / "tokenizer.json").read_text("utf-8"))
    ids = fields["model"]["vocab"]
    ids["x"], ids["y"] = ids["y"], ids["x"]
    (other / "tokenizer.json").write_text(json.dumps(fields), "utf-8")
    first = min(ids["x"], ids["y"])
    with pytest.raises(EvalError, match=f"token {first} is 'x' in the first and 'y' in the second"):
        compare(setup(right), setup(other), [TEXT])


def test_scores_that_are_no_numbers_are_refused_by_the_name_of_the_model(right: Path, tmp_path: Path) -> None:
    broken = write_model(tmp_path / "broken", noise=float("nan"))
    for reference, candidate in ((right, broken), (broken, right)):
        with pytest.raises(EvalError, match="broken gives scores that are not finite"):
            compare(setup(reference), setup(candidate), [TEXT])


@needs_native
def test_weights_that_are_quantized_while_they_are_read_are_compared_with_the_whole(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    whole = ModelSetup(str(folder), kernels="native", exact_activations=True)
    found = {
        scheme: compare(whole, replace(whole, quantize=scheme), [TEXT]).divergence.mean.mean
        for scheme in ("int8", "int4", "nf4")
    }
    assert 0 < found["int8"] < 0.1 * found["int4"]
    assert 0 < found["nf4"] < 1
