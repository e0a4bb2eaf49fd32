"""Merged models equal what was trained, and what PEFT merges; which base is meant has to be said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.errors import CheckpointError, CorralError
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.quant.linear import QuantizedLinear
from corral.quantizer.recipe import Recipe
from corral.tune.errors import TuneError
from corral.tune.merge import Merging, Requantizing, merge
from corral.tune.parameters.folder import load_adapters, save_adapter
from tests.checkpoints.writers import write_chat_model
from tests.quantizer.models import run as quantize
from tests.quantizer.models import write_source
from tests.random_models import SMALL_CHAT, random_model
from tests.tune.parameters.training import batch_of, our_logits, peft_folder, their_network

PLAIN = replace(SMALL_CHAT, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)
BIASED = replace(PLAIN, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
EXACT = Merging(dtype="float32")
VARIANTS: dict[str, tuple[LlamaConfig, dict[str, Any]]] = {
    "lora": (PLAIN, {"target_modules": "all-linear"}),
    "rank-stabilized with patterns": (PLAIN, {"use_rslora": True, "rank_pattern": {"q_proj": 3}}),
    "the head": (PLAIN, {"target_modules": ["q_proj", "lm_head"]}),
    "dora": (PLAIN, {"use_dora": True, "target_modules": "all-linear"}),
    "biases": (BIASED, {"bias": "all", "target_modules": ["q_proj"]}),
    "dora and biases": (BIASED, {"bias": "lora_only", "use_dora": True}),
}


def written(folder: Path, config: LlamaConfig = PLAIN) -> Llama:
    """Writes a model, and gives it."""
    write_chat_model(folder, config=config)
    return random_model(config)


def logits(folder: Path, seed: int = 0) -> Tensor:
    """Of what lies in a folder, in float32."""
    model = load_model(open_checkpoint(folder), torch.float32)
    return our_logits(model, None, batch_of(model, seed))


def adapted_logits(model: Llama, folder: Path, seed: int = 0) -> Tensor:
    """Of a model with the adapter of a folder beside it."""
    with torch.no_grad():
        return our_logits(model, load_adapters(folder, model), batch_of(model, seed))


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_weights_are_pefts_and_merged_logits_those_that_were_trained(
    tmp_path: Path, name: str
) -> None:
    config, options = VARIANTS[name]
    model = written(tmp_path / "model", config)
    adapter = peft_folder(model, tmp_path / "adapter", **options)
    assert merge(str(tmp_path / "model"), [adapter], tmp_path / "out", EXACT) is None
    torch.testing.assert_close(logits(tmp_path / "out"), adapted_logits(model, adapter), atol=3e-5, rtol=0)
    theirs = their_network(model, adapter).merge_and_unload().state_dict()
    ours = dict(open_checkpoint(tmp_path / "out").tensors())
    changed = 0
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], atol=1e-6, rtol=1e-5)
        changed += not torch.equal(tensor, model.get_parameter(key))
    assert changed >= len(load_adapters(adapter, model).weights().layers)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.chat_template == open_checkpoint(tmp_path / "model").chat_template
    assert checkpoint.tokenizer().encode("hello") == open_checkpoint(tmp_path / "model").tokenizer().encode(
        "hello"
    )


def test_an_adapted_head_is_no_longer_the_embedding(tmp_path: Path) -> None:
    config = replace(PLAIN, tie_word_embeddings=True)
    model = written(tmp_path / "model", config)
    adapter = peft_folder(model, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    merge(str(tmp_path / "model"), [adapter], tmp_path / "out", EXACT)
    merged = open_checkpoint(tmp_path / "out")
    assert not merged.config.tie_word_embeddings
    tensors = dict(merged.tensors())
    assert torch.equal(tensors["model.embed_tokens.weight"], model.model.embed_tokens.weight)
    torch.testing.assert_close(logits(tmp_path / "out"), adapted_logits(model, adapter), atol=3e-5, rtol=0)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_bfloat16_is_one_rounding_of_the_exact_merge(tmp_path: Path, method: str) -> None:
    model = written(tmp_path / "model")
    adapter = peft_folder(model, tmp_path / "adapter", use_dora=method == "dora")
    merge(str(tmp_path / "model"), [adapter], tmp_path / "exact", EXACT)
    merge(str(tmp_path / "model"), [adapter], tmp_path / "small", Merging(dtype="bfloat16"))
    exact, small = (dict(open_checkpoint(tmp_path / name).tensors()) for name in ("exact", "small"))
    assert exact.keys() == small.keys()
    assert all(torch.equal(small[name], exact[name].bfloat16()) for name in exact)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("scheme", ["nf4", "int4", "int8"])
def test_dequantized_is_the_model_that_was_trained_and_original_another(
    tmp_path: Path, scheme: str, method: str
) -> None:
    dense = written(tmp_path / "model")
    source = str(tmp_path / "model")
    adapter = peft_folder(dense, tmp_path / "peft", target_modules="all-linear", use_dora=method == "dora")
    model = load_model(open_checkpoint(tmp_path / "model"), torch.float32, quantize=scheme)
    save_adapter(tmp_path / "adapter", load_adapters(adapter, model), "small", scheme)
    with pytest.raises(TuneError, match=rf"adapter was trained over {scheme} weights, so say which base"):
        merge(source, [tmp_path / "adapter"], tmp_path / "out", EXACT)
    assert not (tmp_path / "out").exists()
    for base in ("dequantized", "original"):
        merge(source, [tmp_path / "adapter"], tmp_path / base, replace(EXACT, base=base))
    trained, on_original = adapted_logits(model, adapter), adapted_logits(dense, adapter)
    torch.testing.assert_close(logits(tmp_path / "dequantized"), trained, atol=3e-5, rtol=0)
    torch.testing.assert_close(logits(tmp_path / "original"), on_original, atol=3e-5, rtol=0)
    assert (trained - on_original).abs().max() > 1e-3
    # An adapter from elsewhere does not say what it was trained over, but its owner may know.
    merge(source, [adapter], tmp_path / "known", replace(EXACT, base=scheme))
    assert torch.equal(logits(tmp_path / "known"), logits(tmp_path / "dequantized"))


def test_a_quantized_checkpoint_is_merged_onto_as_it_is_only_when_asked(tmp_path: Path) -> None:
    source = write_source(tmp_path / "model")
    recipe = Recipe.of("rtn", group_size=32)
    quantize(source, tmp_path / "small", recipe, text=False)
    model = load_model(open_checkpoint(tmp_path / "small"), torch.float32, as_stored=True)
    adapter = peft_folder(random_model(model.config), tmp_path / "adapter", target_modules="all-linear")
    with pytest.raises(TuneError, match=r"small is quantized \(.*\), so say which base"):
        merge(str(tmp_path / "small"), [adapter], tmp_path / "out", EXACT)
    with pytest.raises(TuneError, match=r"base is 'original', but .*small is quantized"):
        merge(str(tmp_path / "small"), [adapter], tmp_path / "out", replace(EXACT, base="original"))
    merge(str(tmp_path / "small"), [adapter], tmp_path / "out", replace(EXACT, base="dequantized"))
    torch.testing.assert_close(logits(tmp_path / "out"), adapted_logits(model, adapter), atol=2e-4, rtol=1e-4)
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    save_adapter(tmp_path / "noted", load_adapters(adapter, model), "small", "as stored")
    with pytest.raises(TuneError, match=r"model is not quantized; name the quantized model that"):
        merge(str(source), [tmp_path / "noted"], tmp_path / "o", replace(EXACT, base="dequantized"))
    with pytest.raises(TuneError, match="noted was trained over quantized weights, so say which base"):
        merge(str(source), [tmp_path / "noted"], tmp_path / "o", EXACT)


def test_several_adapters_are_added_by_their_weights(tmp_path: Path) -> None:
    model = written(tmp_path / "model", BIASED)
    first = peft_folder(model, tmp_path / "first", bias="all")
    second = peft_folder(model, tmp_path / "second", seed=1, r=2, target_modules=["q_proj", "up_proj"])
    how = replace(EXACT, weights=(0.25, 2.0))
    merge(str(tmp_path / "model"), [first, second], tmp_path / "out", how)
    changes = []
    for folder in (first, second):
        merge(str(tmp_path / "model"), [folder], tmp_path / f"{folder.name}-alone", EXACT)
        alone = dict(open_checkpoint(tmp_path / f"{folder.name}-alone").tensors())
        changes.append({name: tensor - model.get_parameter(name) for name, tensor in alone.items()})
    for name, tensor in open_checkpoint(tmp_path / "out").tensors():
        expected = model.get_parameter(name) + 0.25 * changes[0][name] + 2 * changes[1][name]
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)


def test_the_merged_model_is_quantized_if_asked(tmp_path: Path) -> None:
    source = write_source(tmp_path / "model")
    model = load_model(open_checkpoint(source), torch.float32)
    adapter = peft_folder(model, tmp_path / "adapter", target_modules="all-linear")
    merge(str(source), [adapter], tmp_path / "merged")
    recipe = Recipe.of("rtn", group_size=32)
    result = merge(str(source), [adapter], tmp_path / "out", requantizing=Requantizing(recipe))
    assert result is not None
    assert result.recipe == recipe
    quantize(tmp_path / "merged", tmp_path / "expected", recipe, text=False)
    ours, expected = (
        load_model(open_checkpoint(tmp_path / name), torch.float32, as_stored=True)
        for name in ("out", "expected")
    )
    assert isinstance(ours.get_submodule("model.layers.0.mlp.up_proj"), QuantizedLinear)
    for (name, tensor), (_, other) in zip(
        ours.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_card_says_what_was_merged_without_anybodys_paths(tmp_path: Path) -> None:
    model = written(tmp_path / "model")
    adapter = peft_folder(model, tmp_path / "style", use_dora=True)
    merge(str(tmp_path / "model"), [adapter], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`model` with DoRA `style` merged into its weights" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("options", "how", "sentence"),
    [
        ({}, {"base": "dequantised"}, "base is 'dequantised'; it must be original, dequantized, or one of"),
        ({}, {"base": "dequantized"}, "quantized; leave it out, or give int8, int4, nf4, fp8 if that was"),
        ({}, {"weights": (1.0, 2.0)}, "weights has 2 numbers for 1 adapters; give one to each"),
        ({}, {"weights": (float("nan"),)}, "is nan; it must be a number"),
        ({}, {"dtype": "int8"}, "dtype is 'int8'"),
        ({}, {"prompt_format": "llama-9"}, "llama-9"),
        (
            {"use_dora": True},
            {"weights": (0.5,)},
            "is a DoRA adapter, which is no sum that others",
        ),
        (
            {"lora_alpha": 10**9},
            {"dtype": "float16"},
            "merged numbers that float16 does not hold",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], how: dict[str, Any], sentence: str
) -> None:
    model = written(tmp_path / "model")
    adapter = peft_folder(model, tmp_path / "adapter", **options)
    with pytest.raises(CorralError) as refusal:
        merge(str(tmp_path / "model"), [adapter], tmp_path / "out", Merging(**how))
    assert sentence in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_other_refusals(tmp_path: Path) -> None:
    model = written(tmp_path / "model")
    adapter = peft_folder(model, tmp_path / "adapter")
    for scheme in ("nf4", "int8"):
        save_adapter(tmp_path / scheme, load_adapters(adapter, model), None, scheme)
    source, out = str(tmp_path / "model"), tmp_path / "out"
    with pytest.raises(TuneError, match="trained over different weights: "):
        merge(source, [tmp_path / "nf4", tmp_path / "int8"], out, Merging(base="dequantized"))
    with pytest.raises(TuneError, match=r"base is 'int4', but .*nf4 was trained over weights in nf4"):
        merge(source, [tmp_path / "nf4"], out, Merging(base="int4"))
    with pytest.raises(TuneError, match="no adapter is given"):
        merge(source, [], out)
    with pytest.raises(TuneError, match=r"ends in \.gguf, but a folder is written"):
        merge(source, [adapter], tmp_path / "out.gguf")
    with pytest.raises(CheckpointError, match="is not an empty folder; choose another"):
        merge(source, [adapter], tmp_path / "model")
    wider = peft_folder(random_model(replace(PLAIN, hidden_size=128)), tmp_path / "wider")
    with pytest.raises(CheckpointError, match="the adapter was made for another model"):
        merge(source, [wider], out)
    (tmp_path / "nf4" / "corral.json").write_text('{"base_weights": 4}')
    with pytest.raises(CheckpointError, match="base_weights is 4; it must be a text"):
        merge(source, [tmp_path / "nf4"], out)
    assert not out.exists()
