"""What Corral writes, others read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from corral.checkpoints.checkpoint import GenerationConfig as Sampling
from corral.checkpoints.hf_writer import export_hf
from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.errors import CheckpointError, RenderError, TokenizerError
from corral.model.attention import PackedCausal
from corral.model.config import LlamaConfig, RopeScaling
from corral.text.families import FAMILIES
from corral.text.llama3 import Llama3Renderer
from corral.text.prompt_format import choose_renderer
from tests.checkpoints.writers import write_meta
from tests.random_models import random_model

SMALL_LLAMA_3_1 = LlamaConfig(
    vocab_size=128256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    dtype="float32",
)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
DIALOG: list[dict[str, Any]] = [
    {"role": "system", "content": " You are terse.\n"},
    {"role": "user", "content": "How is the weather?\n"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"celsius": 25}', "tool_call_id": "c1"},
    {"role": "assistant", "content": "25 °C."},
    {"role": "user", "content": "And tomorrow?"},
]


@pytest.fixture(scope="module")
def meta_folder(tmp_path_factory: pytest.TempPathFactory, llama_models_folder: Path) -> Path:
    """A small Llama 3.1 in Meta's own format, with Meta's own tokenizer."""
    folder = tmp_path_factory.mktemp("meta") / "small-llama-3.1-instruct"
    write_meta(random_model(SMALL_LLAMA_3_1), folder, 2)
    tokenizer = llama_models_folder / "llama3" / "tokenizer.model"
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return folder


@pytest.fixture(scope="module")
def exported(meta_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Hugging Face folder, in shards."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_hf(open_checkpoint(meta_folder), folder, max_shard_bytes=20_000_000)
    return folder


@pytest.fixture(scope="module")
def exported_tokenizer(exported: Path) -> Any:
    """Its tokenizer in transformers."""
    return AutoTokenizer.from_pretrained(exported)


def test_transformers_reads_an_exported_meta_checkpoint(
    meta_folder: Path, exported: Path, exported_tokenizer: Any
) -> None:
    checkpoint = open_checkpoint(meta_folder)
    assert (exported / "model.safetensors.index.json").is_file()
    oracle = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = exported_tokenizer
    ids = tokenizer("Hello there, how are you?").input_ids
    assert ids == [128000, *checkpoint.tokenizer().encode("Hello there, how are you?")]
    ours = load_model(checkpoint, torch.float32)
    tokens = torch.tensor(ids)
    hidden = ours(tokens, torch.arange(len(ids)), PackedCausal([0, len(ids)]))
    with torch.no_grad():
        expected = oracle(tokens[None]).logits[0]
    torch.testing.assert_close(ours.logits(hidden), expected, atol=2e-5, rtol=0)
    generation = GenerationConfig.from_pretrained(exported)
    assert generation.eos_token_id == [128001, 128008, 128009]


def test_transformers_chats_with_an_exported_meta_checkpoint(
    meta_folder: Path, exported: Path, exported_tokenizer: Any
) -> None:
    checkpoint, oracle = open_checkpoint(meta_folder), exported_tokenizer
    assert (checkpoint.chat_template, checkpoint.family) == (None, "llama-3.1")
    theirs = oracle.apply_chat_template(DIALOG, tools=[TOOL], add_generation_prompt=True).input_ids
    ours = Llama3Renderer(checkpoint.tokenizer(), "llama-3.1").render(DIALOG, [TOOL])
    assert tuple(theirs) == ours.tokens
    assert oracle.eos_token == "<|eot_id|>"
    again = open_checkpoint(exported)
    assert set(again.generation.eos_token_ids) == ours.stop_ids
    renderer = choose_renderer(again.tokenizer(), chat_template=again.chat_template, family=None)
    assert isinstance(renderer, Llama3Renderer)
    assert renderer.render(DIALOG, [TOOL]) == ours


def test_a_base_model_is_exported_without_a_template_unless_one_is_named(
    meta_folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(meta_folder)
    base.family, base.generation = None, Sampling(eos_token_ids=(128001,))
    export_hf(base, tmp_path / "plain")
    assert open_checkpoint(tmp_path / "plain").chat_template is None
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").eos_token == "<|end_of_text|>"
    assert open_checkpoint(tmp_path / "plain").generation.eos_token_ids == (128001,)
    for family, ends in (("llama-3.2", (128001, 128008, 128009)), ("llama-3", (128001, 128009))):
        export_hf(base, tmp_path / family, prompt_format=family)
        named = open_checkpoint(tmp_path / family)
        assert named.chat_template == FAMILIES[family].chat_template()
        assert named.generation.eos_token_ids == ends


def test_a_named_format_replaces_the_template_and_must_fit_the_tokenizer(
    meta_folder: Path, smollm2_path: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(meta_folder)
    checkpoint.chat_template = "{{ messages }}"
    export_hf(checkpoint, tmp_path / "own")
    assert open_checkpoint(tmp_path / "own").chat_template == "{{ messages }}"
    export_hf(checkpoint, tmp_path / "named", prompt_format="llama-3.3")
    assert open_checkpoint(tmp_path / "named").chat_template == FAMILIES["llama-3.3"].chat_template()
    with pytest.raises(TokenizerError, match="prompt format needs"):
        export_hf(open_checkpoint(smollm2_path), tmp_path / "out", prompt_format="llama-3.1")
    with pytest.raises(RenderError, match=r"is llama-3\.1-meta, which .* not as a chat template"):
        export_hf(checkpoint, tmp_path / "out", prompt_format="llama-3.1-meta")
    assert not (tmp_path / "out").exists()


def test_the_default_model_is_exported_with_its_template(smollm2_path: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    export_hf(checkpoint, tmp_path / "out", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    dialog = [{"role": "user", "content": "Hi, 2 + 2?"}]
    text = tokenizer.apply_chat_template(dialog, tokenize=False, add_generation_prompt=True)
    ours = checkpoint.tokenizer()
    assert tokenizer(text).input_ids == ours.encode_prompt_text(text)
    again = open_checkpoint(tmp_path / "out")
    assert again.chat_template == checkpoint.chat_template
    assert again.config == replace(checkpoint.config, dtype="float32")
    assert again.tokenizer().encode("Hi, 2 + 2?") == ours.encode("Hi, 2 + 2?")
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    state = load_model(checkpoint, torch.float32).state_dict()
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_an_export_survives_a_second_export_bit_for_bit(meta_folder: Path, tmp_path: Path) -> None:
    export_hf(open_checkpoint(meta_folder), tmp_path / "one")
    export_hf(open_checkpoint(tmp_path / "one"), tmp_path / "two")
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_a_folder_with_something_in_it_is_left_alone(meta_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        export_hf(open_checkpoint(meta_folder), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_export_leaves_nothing_behind(meta_folder: Path, tmp_path: Path) -> None:
    shard = meta_folder.with_name("damaged")
    shard.mkdir()
    for file in meta_folder.iterdir():
        (shard / file.name).write_bytes(file.read_bytes())
    checkpoint = open_checkpoint(shard)
    (shard / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        export_hf(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_explained_before_anything_is_written(
    meta_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(CheckpointError, match=r"0\.0 GB free, but the weights take 0\.1 GB"):
        export_hf(open_checkpoint(meta_folder), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_several_templates_are_written_and_read_by_name(smollm2_path: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    checkpoint.chat_template = {"default": "a", "tool_use": "b"}
    export_hf(checkpoint, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert fields["chat_template"][1] == {"name": "tool_use", "template": "b"}
    assert open_checkpoint(tmp_path / "out").chat_template == {"default": "a", "tool_use": "b"}


def test_the_gguf_package_agrees_on_the_default_models_metadata(smollm2_path: Path) -> None:
    from corral.checkpoints.gguf_file import GgufFile

    ours, theirs = GgufFile(smollm2_path), gguf.GGUFReader(smollm2_path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    assert {t.name: (t.data_offset, int(t.tensor_type)) for t in theirs.tensors} == {
        t.name: (t.offset, t.type) for t in ours.tensors.values()
    }
