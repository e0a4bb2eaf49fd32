"""Whole checkpoints as GGUF files, and the command that writes them."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType

from corral.checkpoints.gguf_encode import TYPES
from corral.checkpoints.gguf_file import GgufFile
from corral.checkpoints.gguf_reader import GgufCheckpoint
from corral.checkpoints.gguf_writer import export_gguf
from corral.checkpoints.source import open_checkpoint
from corral.cli.export import GgufType
from corral.cli.main import run
from corral.errors import CheckpointError
from corral.model.config import RopeScaling
from corral.quant import Affine
from tests.checkpoints.gguf_files import expected, same_shape
from tests.checkpoints.quantized_folders import FORMATS, is_quantized, write_quantized
from tests.checkpoints.test_export import SMALL_LLAMA_3_1
from tests.checkpoints.writers import CHATML, write_chat_model, write_meta
from tests.random_models import random_model

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_chat_model(tmp_path / "model")
    return tmp_path / "model"


def test_a_sharded_folder_becomes_one_file_with_the_same_tensors(tmp_path: Path) -> None:
    write_chat_model(tmp_path / "model", shards=3)
    checkpoint = open_checkpoint(tmp_path / "model")
    export_gguf(checkpoint, tmp_path / "out.gguf", GgmlType.F32)
    again = open_checkpoint(tmp_path / "out.gguf")
    assert {name: tensor.tolist() for name, tensor in again.tensors()} == {
        name: tensor.tolist() for name, tensor in checkpoint.tensors()
    }
    assert again.chat_template == CHATML
    assert same_shape(checkpoint.config, again.config)


def test_metas_files_become_one_with_the_scaling_and_template_of_their_family(
    tmp_path: Path, llama_models_folder: Path
) -> None:
    config = replace(
        SMALL_LLAMA_3_1, hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1
    )
    folder = tmp_path / "small-llama-3.1-instruct"
    write_meta(random_model(config), folder, 1)
    model = llama_models_folder / "llama3" / "tokenizer.model"
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    checkpoint = open_checkpoint(folder)
    export_gguf(checkpoint, tmp_path / "out.gguf", GgmlType.Q8_0)
    again = GgufCheckpoint(tmp_path / "out.gguf")
    assert same_shape(
        replace(checkpoint.config, eos_token_ids=(128001, 128009, 128008), bos_token_id=128000), again.config
    )
    assert again.config.rope_scaling == RopeScaling("llama3", 8.0)
    assert isinstance(again.chat_template, str)
    assert "ipython" in again.chat_template
    assert again.metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert again.metadata["tokenizer.ggml.add_bos_token"] is True
    assert again.metadata["tokenizer.ggml.tokens"][128009] == "<|eot_id|>"
    read = dict(again.tensors())
    for name, tensor in checkpoint.tensors():
        assert torch.equal(
            read.pop(name), expected(tensor, GgmlType.F32 if tensor.dim() == 1 else GgmlType.Q8_0)
        )
    assert not read


def test_the_default_model_is_written_again_to_the_byte(smollm2_path: Path, tmp_path: Path) -> None:
    """Q4_1 codes, scales and Q8_0 embeddings are kept; the published file has the same ones."""
    checkpoint = open_checkpoint(smollm2_path)
    export_gguf(checkpoint, tmp_path / "out.gguf", GgmlType.Q4_1)
    theirs, ours = GgufFile(smollm2_path), GgufFile(tmp_path / "out.gguf")
    assert set(ours.tensors) == set(theirs.tensors)
    for name, place in ours.tensors.items():
        other = theirs.tensors[name]
        assert (place.shape, place.type) == (other.shape, other.type), name
        block, size = gguf.GGML_QUANT_SIZES[GgmlType(place.type)]
        count = int(np.prod(place.shape)) // block * size
        assert (
            ours.data[place.offset : place.offset + count] == theirs.data[other.offset : other.offset + count]
        )
    new = {"llama.attention.key_length", "llama.attention.value_length"}
    lost = {"general.organization", "general.finetune", "general.basename", "general.size_label"}
    lost |= {"general.license", "general.languages", "tokenizer.ggml.unknown_token_id"}
    assert set(ours.metadata) - set(theirs.metadata) == new
    assert set(theirs.metadata) - set(ours.metadata) == lost
    shared = (set(ours.metadata) & set(theirs.metadata)) - {"general.name"}
    assert {name: ours.metadata[name] for name in shared} == {name: theirs.metadata[name] for name in shared}
    again = open_checkpoint(tmp_path / "out.gguf")
    assert again.config == checkpoint.config
    assert (again.chat_template, again.generation) == (checkpoint.chat_template, checkpoint.generation)


def test_a_quantized_checkpoint_is_quantized_anew_where_the_type_does_not_hold_it(
    folder: Path, tmp_path: Path
) -> None:
    export_gguf(open_checkpoint(folder), tmp_path / "four.gguf", GgmlType.Q4_1)
    four = open_checkpoint(tmp_path / "four.gguf")
    export_gguf(four, tmp_path / "eight.gguf", GgmlType.Q8_0)
    export_gguf(four, tmp_path / "bf16.gguf", GgmlType.BF16)
    tensors = dict(four.tensors())
    for name, tensor in open_checkpoint(tmp_path / "eight.gguf").tensors():
        kind = GgmlType.F32 if tensor.dim() == 1 else GgmlType.Q8_0
        assert torch.equal(tensor, expected(tensors[name], kind)), name
    for name, tensor in open_checkpoint(tmp_path / "bf16.gguf").tensors():
        wanted = tensors[name] if tensor.dim() == 1 else tensors[name].bfloat16()
        assert torch.equal(tensor, wanted), name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("awq", "q4_1"),
        ("pack-quantized with zeros", "q4_1"),
        ("gptq 4 bits", "q4_0"),
        ("gptq 4 bits", "q4_1"),
        ("gptq 4 bits", "q8_0"),
        ("gptq 3 bits, version 2", "q4_0"),
        ("pack-quantized", "q4_0"),
        ("int-quantized", "q8_0"),
    ],
)
def test_a_quantized_folder_keeps_its_codes_in_a_type_that_holds_them(
    tmp_path: Path, name: str, kind: str
) -> None:
    model = write_quantized(tmp_path / "model", FORMATS[name])
    letters = {"type": "BPE", "vocab": {letter: i for i, letter in enumerate("abcd")}, "merges": []}
    source = {"version": "1.0", "model": letters, "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(source))
    export_gguf(open_checkpoint(tmp_path / "model"), tmp_path / "out.gguf", TYPES[kind])
    read = dict(GgufCheckpoint(tmp_path / "out.gguf").weights())
    for weight_name, tensor in model.state_dict().items():
        if is_quantized(weight_name):
            weight = read[weight_name]
            assert isinstance(weight, Affine)
            # Q4_1 rounds minus zero times scale to float16.
            step = weight.scale.float().abs().repeat_interleave(32, 1)
            near = 0.01 * step if "zeros" in name or name == "awq" else 0.0 * step
            assert bool(((weight.dequantize() - tensor).abs() <= near).all()), weight_name


def test_an_existing_file_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(CheckpointError, match="exists; choose another"):
        export_gguf(open_checkpoint(folder), out)
    assert run(["export", str(folder), "--to", "gguf", str(out)]) == 1
    assert "exists; choose another" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_a_full_disk_is_explained_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
        with pytest.raises(CheckpointError, match=r"0\.0 GB free, but the weights take 0\.0 GB"):
            export_gguf(open_checkpoint(folder), tmp_path / "out.gguf")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match=r"out\.gguf could not be written: No space left on device"):
            export_gguf(open_checkpoint(folder), tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_to_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"out\.gguf could not be written"):
        export_gguf(open_checkpoint(folder), tmp_path / "file" / "out.gguf")


def test_the_command_offers_the_types_that_can_be_written() -> None:
    assert {kind.value for kind in GgufType} == set(TYPES)


def test_the_command_writes_a_file_that_chats(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out.gguf"
    assert run(["export", str(folder), "--to", "gguf", "--type", "q8_0", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert open_checkpoint(out).storage == {"F32": 3, "Q8_0": 9}
    assert run(["generate", "hello", "--model", str(out), "--max-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("hello")
    assert run(["export", str(folder), "--to", "gguf", str(tmp_path / "plain.gguf")]) == 0
    assert open_checkpoint(tmp_path / "plain.gguf").storage == {"F32": 3, "BF16": 9}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "hf", "--type", "q8_0", "out"], "--type is for --to gguf"),
        (["--to", "gguf", "--dtype", "float16", "out.gguf"], "--dtype is for --to hf"),
        (["--to", "gguf", "out.bin"], "out.bin must end in .gguf"),
        (["out.gguf"], "give --to gguf"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "no-such-model", *options]) == 1
    assert said in capsys.readouterr().err
