"""The same random model in every format gives the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint, read_config
from corral.model.attention import PackedCausal
from corral.model.config import LlamaConfig, RopeScaling
from corral.model.llama import Llama
from tests.checkpoints.writers import write_gguf, write_hf, write_meta
from tests.random_models import random_model

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=16,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    dtype="float32",
)


@pytest.fixture(scope="module")
def model() -> Llama:
    return random_model(CONFIG)


def logits(model: Llama) -> torch.Tensor:
    tokens = torch.arange(3, 40)
    return model.logits(model(tokens, torch.arange(37) + 9000, PackedCausal([0, 37])))


def loaded(path: Path) -> Llama:
    return load_model(open_checkpoint(path), torch.float32)


def test_hugging_face_folders_single_and_sharded(model: Llama, tmp_path: Path) -> None:
    for name, shards in (("one", 1), ("three", 3)):
        write_hf(model, tmp_path / name, shards)
        assert torch.equal(logits(loaded(tmp_path / name)), logits(model))


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_meta_folders_of_any_number_of_shards(model: Llama, tmp_path: Path, shards: int) -> None:
    write_meta(model, tmp_path, shards)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == replace(CONFIG, bos_token_id=128000, eos_token_ids=(128001, 128008, 128009))
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def test_meta_shards_that_hold_copies_of_key_value_heads(tmp_path: Path) -> None:
    model = random_model(replace(CONFIG, num_key_value_heads=2))
    write_meta(model, tmp_path, 8)  # four ranks share each head
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def test_meta_files_under_original_are_found(model: Llama, tmp_path: Path) -> None:
    write_meta(model, tmp_path / "original", 2)
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ("F32", 0.0),
        ("F16", 0.02),
        ("BF16", 0.15),
        ("Q8_0", 0.15),
        ("Q5_1", 0.8),
        ("Q4_1", 1.5),
        ("Q4_0", 2.0),
    ],
)
def test_gguf_within_the_error_of_its_type(model: Llama, tmp_path: Path, kind: str, tolerance: float) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(model, file, gguf.GGMLQuantizationType[kind])
    checkpoint = open_checkpoint(file)
    assert checkpoint.config.rope_scaling == CONFIG.rope_scaling
    assert checkpoint.storage[kind] == 2 * 7 + 2 + (5 if kind == "F32" else 0) + (kind == "F32")
    difference = (logits(loaded(file)) - logits(model)).abs().max()
    assert difference <= tolerance
    assert tolerance == 0 or difference > 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q5_0"])
def test_gguf_types_that_are_only_read_are_read_as_the_package_reads_them(tmp_path: Path, kind: str) -> None:
    config = replace(CONFIG, tie_word_embeddings=True, num_hidden_layers=1)
    file = tmp_path / "model.gguf"
    raw = write_gguf(random_model(config), file, gguf.GGMLQuantizationType[kind], random_blocks=True)
    read = dict(open_checkpoint(file).tensors())
    expected = gguf.quants.dequantize(raw["blk.0.ffn_up.weight"], gguf.GGMLQuantizationType[kind])
    torch.testing.assert_close(
        read["model.layers.0.mlp.up_proj.weight"], torch.from_numpy(expected), rtol=0, atol=0, equal_nan=True
    )


def test_a_split_gguf_is_read_from_its_first_part(model: Llama, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType.F32, split_after=5)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 1
    assert torch.equal(logits(loaded(parts[0])), logits(model))
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 4.0)])
def test_gguf_rope_scaling_from_its_metadata(tmp_path: Path, scaling: RopeScaling | None) -> None:
    model = random_model(replace(CONFIG, rope_scaling=scaling))
    write_gguf(model, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32)
    assert open_checkpoint(tmp_path / "m.gguf").config.rope_scaling == scaling


def test_biases_and_tied_heads_survive_every_format_that_has_them(tmp_path: Path) -> None:
    config = replace(CONFIG, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    model = random_model(config)
    write_hf(model, tmp_path / "hf", 1)
    write_gguf(model, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32)
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        again = loaded(path)
        assert again.lm_head.weight is again.model.embed_tokens.weight
        assert torch.equal(logits(again), logits(model))


def test_old_buffers_and_a_stored_tied_head_are_passed_over(tmp_path: Path) -> None:
    model = random_model(replace(CONFIG, tie_word_embeddings=True))
    write_hf(model, tmp_path, 1)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def test_the_shape_alone_is_read_without_weights(model: Llama, tmp_path: Path) -> None:
    write_hf(model, tmp_path / "hf", 1)
    write_meta(model, tmp_path / "meta", 1)
    write_gguf(model, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F16)
    for path in ("hf", "meta", "m.gguf"):
        assert read_config(str(tmp_path / path)).num_parameters == CONFIG.num_parameters


_MEASURE = """
import json, re, sys, threading, time
import torch
from pathlib import Path
from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.model.llama import Llama

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
Llama.on_meta(open_checkpoint(path).config)  # what is imported on the way is not the model's
before, peak, running = anonymous(), 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
model = load_model(open_checkpoint(path), dtype)
running = False; thread.join()
size = sum(p.nbytes for p in model.parameters())
print(json.dumps({"share": (peak - before) / size, "size": size}))
"""


LARGE = replace(CONFIG, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, vocab_size=4096,
                num_attention_heads=16, head_dim=64)  # fmt: skip


@pytest.fixture(scope="module", params=["safetensors", "meta", "gguf"])
def large_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 MB of weights in a format."""
    kind: str = request.param
    model = random_model(LARGE)
    writers: dict[str, Callable[[Path], object]] = {
        "safetensors": lambda path: write_hf(model, path, 1),
        "meta": lambda path: write_meta(model, path, 2),
        "gguf": lambda path: write_gguf(model, path, gguf.GGMLQuantizationType.Q8_0),
    }
    path = tmp_path_factory.mktemp(kind) / ("m.gguf" if kind == "gguf" else "m")
    writers[kind](path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_at_most_a_fifth_more_than_the_weights(large_checkpoint: Path, dtype: str) -> None:
    # Anonymous memory: mapped file pages are the kernel's to drop, whatever the format.
    output = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(large_checkpoint), dtype],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    measured = json.loads(output)
    assert measured["size"] == LARGE.num_parameters * (4 if dtype == "float32" else 2)
    assert measured["share"] <= 1.2
    if (large_checkpoint / "config.json").exists() and dtype == "float32":
        assert measured["share"] < 0.1  # nothing is copied
