"""Models are quantized by every method into every format, and what is written is what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from corral.checkpoints.source import open_checkpoint
from corral.errors import CheckpointError, CorralError
from corral.quant import Affine, Float8
from corral.quant.algorithms.grid import round_to_nearest
from corral.quantizer.errors import QuantizeError
from corral.quantizer.recipe import Recipe
from corral.quantizer.run import QuantizeOptions, quantize
from corral.quantizer.texts import TextSources
from tests.quantizer.models import (
    MODEL,
    SOURCES,
    TEXT,
    logits,
    run,
    salient_model,
    text_of,
    weights_of,
    write_source,
)

RECIPES = {
    "rtn": Recipe.of("rtn", group_size=32),
    "rtn, 3 bits": Recipe.of("rtn", bits=3, group_size=16, symmetric=False, search=True),
    "W8A8": Recipe.of("rtn", bits=8, int8_activations=True),
    "rtn for gptq": Recipe.of("rtn", format="gptq", group_size=32),
    "nf4": Recipe.of("rtn", format="bitsandbytes", group_size=32),
    "gptq": Recipe.of("gptq", group_size=32),
    "gptq, with zeros": Recipe.of("gptq", group_size=32, symmetric=False, format="compressed-tensors"),
    "gptq, W8A8": Recipe.of("gptq", bits=8, int8_activations=True, format="compressed-tensors"),
    "awq": Recipe.of("awq", group_size=32),
    "awq, symmetric": Recipe.of("awq", group_size=32, symmetric=True, format="compressed-tensors"),
    "fp8": Recipe.of("fp8"),
    "fp8, static": Recipe.of("fp8", preset="static"),
    "fp8, block": Recipe.of("fp8", preset="block"),
    "fp8, Meta's": Recipe.of("fp8", preset="meta", format="fbgemm_fp8"),
    "gguf, Q4_0": Recipe.of("gptq", format="gguf"),
    "gguf, Q4_1": Recipe.of("awq", format="gguf"),
}
TOKENS = torch.arange(3, 67)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "model")


def result_of(folder: Path, recipe: Recipe) -> Path:
    return folder / "out.gguf" if recipe.format == "gguf" else folder / "out"


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_is_near_to_the_weights_and_says_how_it_was_made(
    source: Path, tmp_path: Path, name: str
) -> None:
    recipe = RECIPES[name]
    out = result_of(tmp_path, recipe)
    result = run(source, out, recipe)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]
    checkpoint = open_checkpoint(out)
    before = weights_of(source)
    for full, tensor in checkpoint.tensors():
        if recipe.method in ("rtn", "fp8"):  # the others trade the weights' errors for those of outputs
            off = float((tensor - before[full]).pow(2).sum() / before[full].pow(2).sum())
            assert off < (0.05 if recipe.bits == 3 else 0.02), full
    assert result.perplexities is not None
    assert result.perplexities.before != result.perplexities.after
    assert 0 < result.mean_error < 0.1
    taken = {name for name, weight in checkpoint.weights() if not isinstance(weight, torch.Tensor)}
    if recipe.format != "gguf":
        kept = json.loads((out / "quantization_report.json").read_text())
        assert kept == json.loads(json.dumps(result.to_dict()))
        assert f"quantized by Corral {result.version}" in (out / "README.md").read_text()
        assert len(taken) == (3 if recipe.preset == "meta" else 21)
        assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o644}


@pytest.mark.parametrize("name", RECIPES)
def test_perplexity_after_is_that_of_the_weights_that_are_read_back(
    source: Path, tmp_path: Path, name: str
) -> None:
    recipe = RECIPES[name]
    out = result_of(tmp_path, recipe)
    result = run(source, out, recipe)
    assert result.perplexities is not None
    windows = held_out(source)
    for path, expected in ((source, result.perplexities.before), (out, result.perplexities.after)):
        scores = [logits(open_checkpoint(path), window) for window in windows]
        losses = [
            torch.nn.functional.cross_entropy(score[:-1].double(), window[1:])
            for score, window in zip(scores, windows, strict=True)
        ]
        # A GGUF file has its embedding and head in 8 bits, which is not counted.
        within = 0.02 if path.suffix == ".gguf" else 1e-4
        assert float(torch.stack(losses).mean().exp()) == pytest.approx(expected, rel=within)


def held_out(source: Path) -> list[torch.Tensor]:
    from corral.quantizer.calibration import calibration_windows, held_out_windows

    tokenizer = open_checkpoint(source).tokenizer()
    taken = calibration_windows([TEXT], tokenizer, SOURCES)
    return [torch.tensor(w) for w in held_out_windows([TEXT], tokenizer, SOURCES, 4, taken=taken)]


def test_rounding_to_nearest_is_just_that(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", RECIPES["rtn"], text=False)
    assert (result.perplexities, result.measured_on) == (None, "weights")
    before = weights_of(source)
    for name, weight in open_checkpoint(tmp_path / "out").weights():
        if isinstance(weight, Affine):
            expected = round_to_nearest(before[name], 4, 32, scale_dtype=torch.bfloat16)
            assert torch.equal(weight.codes, expected.codes)
            assert torch.equal(weight.scale, expected.scale)
        else:
            assert isinstance(weight, torch.Tensor)
            assert torch.equal(weight, before[name])


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("bits", [3, 4])
def test_awq_and_gptq_lose_less_than_rounding(source: Path, tmp_path: Path, method: str, bits: int) -> None:
    recipe = Recipe.of(method, bits=bits, group_size=32, format="compressed-tensors", symmetric=False)
    result = run(source, tmp_path / "out", recipe)
    plain = run(source, tmp_path / "rtn", replace(recipe, method="rtn"))
    for layer, nearest in zip(result.layers, plain.layers, strict=True):
        assert layer.error is not None
        assert nearest.error is not None
        assert layer.error < nearest.error
        if method == "gptq":
            assert all(m.rtn_error is not None and m.error < m.rtn_error for m in layer.matrices)
        else:
            assert all(search.error < search.rtn_error for search in layer.searches)
    first = plain.layers[0].matrices[0].error
    assert result.layers[0].matrices[0].rtn_error == pytest.approx(first, rel=1e-3)


def test_fp8_keeps_what_is_meant_for_activations(source: Path, tmp_path: Path) -> None:
    for name, activations, block in (
        ("fp8", "token", (1, 64)),
        ("fp8, static", "static", (64, 64)),
        ("fp8, block", "group", (128, 128)),
        ("fp8, Meta's", "token", (1, 64)),
    ):
        run(source, tmp_path / name, RECIPES[name])
        weights = dict(open_checkpoint(tmp_path / name).weights())
        layer = (
            "model.layers.1.mlp.up_proj.weight"
            if "Meta" in name
            else "model.layers.0.self_attn.q_proj.weight"
        )
        weight = weights[layer]
        assert isinstance(weight, Float8)
        assert weight.activations == activations
        assert weight.block in (block, (96, 64)), name
        if name == "fp8, static":
            assert weight.activation_scale is not None
            assert weight.activation_scale > 0
        if "Meta" in name:
            assert weight.activation_bound == 1200
            assert isinstance(weights["model.layers.0.mlp.up_proj.weight"], torch.Tensor)


def test_patterns_leave_modules_as_they_are(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", replace(RECIPES["rtn"], ignore=("down_proj", "model.layers.1")), text=False)
    weights = dict(open_checkpoint(tmp_path / "out").weights())
    plain = {
        name for name, weight in weights.items() if isinstance(weight, torch.Tensor) and weight.dim() == 2
    }
    assert len([name for name in plain if ".layers." in name]) == 2 + 7
    before = weights_of(source)
    for name in plain:
        assert torch.equal(weights[name], before[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rtn", "gptq, with zeros", "awq, symmetric", "nf4"])
def test_transformers_loads_the_folder_and_gives_the_same_logits(
    source: Path, tmp_path: Path, name: str
) -> None:
    run(source, tmp_path / "out", RECIPES[name])
    options = {}
    if name == "gptq, with zeros":  # whose zero points it cannot keep packed: it makes them of a wrong shape
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, **options
    )
    with torch.no_grad():
        theirs = model(TOKENS[None]).logits[0].float()
    ours = logits(open_checkpoint(tmp_path / "out"), TOKENS)
    off = float((theirs - ours).norm() / ours.norm())
    # bitsandbytes computes in bfloat16, as the folder says, and that is what weights are dequantized to.
    assert off < (0.06 if name == "nf4" or options else 1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("hello world") == open_checkpoint(source).tokenizer().encode("hello world")


def test_a_model_without_text_writes_its_own(source: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(threads=1)
    result = run(source, tmp_path / "out", RECIPES["gptq"], text=False, options=options)
    assert result.texts["calibration"] == "the model's own samples"
    assert result.perplexities is not None
    again = run(source, tmp_path / "again", RECIPES["gptq"], text=False, options=options)
    assert again == replace(result, layers=again.layers)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]


def test_trouble_is_named_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        run(source, tmp_path / "there", RECIPES["rtn"])
    with pytest.raises(
        QuantizeError, match="is the name of a file, but format compressed-tensors is a folder"
    ):
        run(source, tmp_path / "out.gguf", RECIPES["rtn"])
    with pytest.raises(CorralError, match=r"gguf"):
        run(source, tmp_path / "no-suffix", RECIPES["gguf, Q4_0"])
    with pytest.raises(
        QuantizeError, match="group_size is 128, which does not divide the 64 columns of model"
    ):
        run(source, tmp_path / "out", Recipe.of("rtn"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["there"]
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["notes.txt"]


def test_text_that_is_too_short_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = write_source(tmp_path / "source" / "model")
    text_of(folder).write_text("Short.")
    with pytest.raises(
        QuantizeError, match="the calibration text is too short: it gives 0 windows of 64 tokens"
    ):
        run(folder, tmp_path / "out", RECIPES["gptq"])
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["rtn", "gptq", "awq", "fp8, block", "nf4"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, name: str) -> None:
    model = salient_model()
    model.state_dict()["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.nan
    folder = write_source(tmp_path / "source" / "model", MODEL, model)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight holds values that"):
        run(folder, tmp_path / "out", RECIPES[name])
    assert not (tmp_path / "out").exists()


def test_a_text_for_evaluation_that_is_too_short_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Short.")
    sources = TextSources(None, str(tmp_path / "short.txt"), SOURCES, 4)
    with pytest.raises(
        QuantizeError, match="the evaluation text is too short: it gives no window of 64 tokens"
    ):
        quantize(str(source), tmp_path / "out", RECIPES["rtn"], sources)
    assert [file.name for file in tmp_path.iterdir()] == ["short.txt"]


def test_what_is_quantized_already_is_said(source: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    report = SimpleNamespace(notice=notices.append, progress=lambda *_: None)
    run(source, tmp_path / "once", RECIPES["rtn"], text=False, report=report)
    assert notices == []
    run(tmp_path / "once", tmp_path / "twice", RECIPES["rtn"], text=False, report=report)
    assert len(notices) == 1
    assert "once is quantized already (I32, I64): what that has lost stays lost" in notices[0]
