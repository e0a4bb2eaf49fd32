"""Damaged and contradictory checkpoints are refused in one sentence that names the file or the field."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.errors import CorralError
from tests.checkpoints.writers import write_gguf, write_hf, write_meta
from tests.random_models import SMALL, random_model

MODEL = random_model(SMALL)

Damage = Callable[[Path], object]


def edit_config(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def edit_params(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "params.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def truncate(name: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def point_index_elsewhere(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["lm_head.weight"] = index["weight_map"]["model.norm.weight"]
    file.write_text(json.dumps(index))


SINGLE: dict[str, tuple[Damage, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json does not exist"),
    "half a config": (truncate("config.json", 0.5), r"config\.json is not valid JSON"),
    "a config that is a list": (lambda d: (d / "config.json").write_text("[]"), "must hold a JSON object"),
    "a missing field": (edit_config(hidden_size=None), "hidden_size is missing"),
    "contradictory heads": (edit_config(num_key_value_heads=3), "num_key_value_heads"),
    "an unknown rope type": (edit_config(rope_scaling={"rope_type": "yarn", "factor": 4}), "yarn"),
    "a quantization that cannot be read": (
        edit_config(quantization_config={"quant_method": "hqq"}),
        "quant_method is 'hqq'",
    ),
    "a quantization that is no object": (edit_config(quantization_config="awq"), "is 'awq'"),
    "a chat template that is no text": (
        lambda d: (d / "tokenizer_config.json").write_text('{"chat_template": [{"x": 1}]}'),
        "chat_template must be text",
    ),
    "a chat template that is not UTF-8": (
        lambda d: (d / "chat_template.jinja").write_bytes(b"\xff\xfe"),
        r"chat_template\.jinja is not UTF-8",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    "empty weights": (truncate("model.safetensors", 0), r"model\.safetensors is truncated"),
    "half the weights": (truncate("model.safetensors", 0.5), r"model\.safetensors is truncated"),
    "all but the end of the weights": (truncate("model.safetensors", 0.999), "is truncated"),
    "a header that lies": (
        lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100),
        "is truncated or is not a safetensors file",
    ),
    "a missing tensor": (
        edit_tensors(lambda t: t.pop("model.norm.weight")),
        r"lacks 1 .*model\.norm\.weight",
    ),
    "an unknown tensor": (
        edit_tensors(lambda t: t.update({"model.vision.weight": torch.ones(1)})),
        r"model\.vision\.weight, which this model has no place for",
    ),
    "a tensor of the wrong shape": (
        edit_tensors(lambda t: t.update({"model.norm.weight": torch.ones(7)})),
        r"model\.norm\.weight has shape \[7\]; the configuration asks for \[64\]",
    ),
}

SHARDED: dict[str, tuple[Damage, str]] = {
    "a missing shard": (
        lambda d: (d / "model-00002-of-00003.safetensors").unlink(),
        r"model-00002-of-00003\.safetensors is missing",
    ),
    "half an index": (truncate("model.safetensors.index.json", 0.5), "index.json is not valid JSON"),
    "an empty index": (
        lambda d: (d / "model.safetensors.index.json").write_text("{}"),
        "has no weight_map",
    ),
    "an index that names the wrong shard": (point_index_elsewhere, r"does not hold lm_head\.weight"),
    "half a shard": (truncate("model-00002-of-00003.safetensors", 0.5), "00002.* is truncated"),
}


class Trap:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


META: dict[str, tuple[Damage, str]] = {
    "no params.json": (lambda d: (d / "params.json").unlink(), r"params\.json does not exist"),
    "a params.json without dim": (
        lambda d: (d / "params.json").write_text('{"n_layers": 2, "n_heads": 4, "vocab_size": 128}'),
        r"params\.json: dim is missing",
    ),
    "a params.json of no heads": (edit_params(n_heads=0), r"params\.json: .* makes no sense"),
    "a params.json without a base for rope": (edit_params(rope_theta=None), "rope_theta is missing"),
    "half a shard": (truncate("consolidated.01.pth", 0.5), r"consolidated\.01\.pth is truncated"),
    "an empty shard": (truncate("consolidated.01.pth", 0), r"consolidated\.01\.pth is truncated"),
    "a missing shard": (
        lambda d: (d / "consolidated.01.pth").unlink(),
        r"holds 1 consolidated\.\*\.pth files, but the model has 2",
    ),
    "a shard with code": (
        lambda d: (d / "consolidated.01.pth").write_bytes(pickle.dumps({"norm.weight": Trap()})),
        r"consolidated\.01\.pth",
    ),
    "a shard that is a list": (
        lambda d: torch.save([torch.ones(1)], d / "consolidated.01.pth"),
        "does not hold a table of tensors",
    ),
}

GGUF: dict[str, tuple[Damage, str]] = {
    "an empty file": (truncate("m.gguf", 0), r"m\.gguf cannot be read"),
    "a few bytes": (truncate("m.gguf", 0.0001), r"m\.gguf is truncated"),
    "half the metadata": (truncate("m.gguf", 0.002), r"m\.gguf is truncated"),
    "half the tensors": (truncate("m.gguf", 0.5), r"m\.gguf is truncated: .* is not whole"),
    "another kind of file": (lambda d: (d / "m.gguf").write_bytes(b"PK\x03\x04" * 99), "is not a GGUF file"),
    "a version from the future": (
        lambda d: (d / "m.gguf").write_bytes(b"GGUF\x09" + (d / "m.gguf").read_bytes()[5:]),
        "GGUF version 9",
    ),
}


def refused(path: Path, said: str) -> None:
    with pytest.raises(CorralError, match=said) as caught:
        load_model(open_checkpoint(path), torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SINGLE)
def test_a_hugging_face_folder_with(tmp_path: Path, name: str) -> None:
    write_hf(MODEL, tmp_path, 1)
    damage, said = SINGLE[name]
    damage(tmp_path)
    refused(tmp_path, said)


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_folder_with(tmp_path: Path, name: str) -> None:
    write_hf(MODEL, tmp_path, 3)
    damage, said = SHARDED[name]
    damage(tmp_path)
    refused(tmp_path, said)


@pytest.mark.parametrize("name", META)
def test_a_meta_folder_with(tmp_path: Path, name: str) -> None:
    write_meta(MODEL, tmp_path, 2)
    damage, said = META[name]
    damage(tmp_path)
    refused(tmp_path, said)


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_file_that_is(tmp_path: Path, name: str) -> None:
    write_gguf(MODEL, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F16)
    damage, said = GGUF[name]
    damage(tmp_path)
    refused(tmp_path / "m.gguf", said)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_byte_of_a_gguf_header_is_damaged_it_is_read_or_refused(
    tmp_path: Path, damage: list[tuple[float, int]]
) -> None:
    file = tmp_path / "m.gguf"
    if not file.exists():
        write_gguf(MODEL, file, gguf.GGMLQuantizationType.Q8_0)
    data = bytearray(file.read_bytes())
    header = data.index(b"output_norm") + 100
    for place, byte in damage:
        data[8 + int(place * header)] = byte
    (tmp_path / "damaged.gguf").write_bytes(data)
    with contextlib.suppress(CorralError):
        load_model(open_checkpoint(tmp_path / "damaged.gguf"), torch.float32)


@pytest.mark.parametrize(
    "field",
    [
        struct.pack("<IIQ", 9, 4, 2**60),  # an array longer than any file
        struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,  # arrays in arrays in arrays
    ],
)
def test_a_gguf_field_without_end_is_refused(tmp_path: Path, field: bytes) -> None:
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    (tmp_path / "m.gguf").write_bytes(header + field)
    refused(tmp_path / "m.gguf", "truncated or damaged")


def test_a_gguf_of_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma")
    writer.add_tensor("token_embd.weight", torch.ones(4, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "m.gguf", "'gemma' model")


def test_gguf_rope_factors_of_no_known_rule_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, value in (("block_count", 1), ("context_length", 64), ("embedding_length", 32)):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", torch.ones(8, 32).numpy())
    writer.add_tensor("blk.0.attn_q.weight", torch.ones(32, 32).numpy())
    writer.add_tensor("rope_freqs.weight", torch.tensor([1.0, 3.0, 2.0, 9, 1, 1, 1, 1]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "m.gguf", r"rope_freqs\.weight follows no rope scaling")


def test_what_is_no_checkpoint_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "is not a checkpoint")
    refused(tmp_path / "nowhere", "does not exist")
    for name in ("a.gguf", "b.gguf"):
        write_gguf(MODEL, tmp_path / name, gguf.GGMLQuantizationType.F16)
    refused(tmp_path, r"holds 2 GGUF files: name one of a\.gguf, b\.gguf")


def test_a_part_of_a_split_gguf_that_is_missing_is_named(tmp_path: Path) -> None:
    write_gguf(MODEL, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32, split_after=8)
    parts = sorted(tmp_path.glob("*.gguf"))
    parts[1].unlink()
    refused(parts[0], r"00002-of-.*\.gguf is missing")


def test_a_tied_configuration_needs_no_head_but_an_untied_one_does(tmp_path: Path) -> None:
    write_hf(random_model(replace(SMALL, tie_word_embeddings=True)), tmp_path, 1)
    load_model(open_checkpoint(tmp_path))
    edit_config(tie_word_embeddings=False)(tmp_path)
    refused(tmp_path, r"lacks 1 .*lm_head\.weight")
