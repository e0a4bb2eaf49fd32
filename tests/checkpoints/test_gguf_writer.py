"""GGUF files that Corral writes: as the `gguf` package makes them, and read by it and by Corral."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType

from corral.checkpoints.checkpoint import GenerationConfig
from corral.checkpoints.gguf_encode import TYPES
from corral.checkpoints.gguf_metadata import end_fields
from corral.checkpoints.gguf_reader import GgufCheckpoint
from corral.checkpoints.gguf_writer import tensor_types, write_gguf
from corral.checkpoints.hf_writer import SideFiles
from corral.errors import CheckpointError, TokenizerError
from corral.model.config import LlamaConfig, RopeScaling
from corral.quant import NF4, Affine, Codebook, Weight
from corral.text.tokenizer import Tokenizer, first_difference
from tests.checkpoints.conftest import Recorder
from tests.checkpoints.gguf_files import expected, same_shape, side_files, tensors_of
from tests.checkpoints.writers import CHATML
from tests.random_models import SMALL_CHAT
from tests.text.vocabularies import chatml_tokenizer_json


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(chatml_tokenizer_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return Tokenizer.from_hf(folder)


def write(
    out: Path, config: LlamaConfig, tokenizer: Tokenizer, kind: str = "f32", **others: Any
) -> GgufCheckpoint:
    kinds = tensor_types(config, TYPES[kind])
    write_gguf(out, side_files(config, tokenizer, **others), kinds, tensors_of(config).items())
    return GgufCheckpoint(out)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_values_that_a_type_cannot_hold_are_refused_by_the_tensors_name(
    tokenizer: Tokenizer, tmp_path: Path, kind: str, value: float
) -> None:
    tensors = tensors_of(SMALL_CHAT)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    kinds = tensor_types(SMALL_CHAT, TYPES[kind])
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight cannot .*too large"):
        write_gguf(tmp_path / "out.gguf", side_files(SMALL_CHAT, tokenizer), kinds, tensors.items())
    assert list(tmp_path.iterdir()) == []


BIASED = replace(
    SMALL_CHAT,
    attention_bias=True,
    mlp_bias=True,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
LINEAR = replace(
    SMALL_CHAT, rope_scaling=RopeScaling("linear", 4.0), tie_word_embeddings=True, rope_theta=500000.0
)
LLAMA_3_1 = replace(
    SMALL_CHAT,
    rope_scaling=RopeScaling("llama3", 32.0),
    head_dim=32,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    pad_token_id=2,
    max_position_embeddings=131072,
)


@pytest.mark.parametrize(
    "config", [SMALL_CHAT, BIASED, LINEAR, LLAMA_3_1], ids=["plain", "biased", "linear", "llama3"]
)
@pytest.mark.parametrize("kind", TYPES)
def test_a_model_is_read_as_it_was_written(
    tokenizer: Tokenizer, tmp_path: Path, config: LlamaConfig, kind: str
) -> None:
    again = write(tmp_path / "out.gguf", config, tokenizer, kind, chat_template=CHATML)
    assert same_shape(config, again.config)
    assert again.config.dtype == {"f32": "float32", "f16": "float16"}.get(kind, "bfloat16")
    assert again.chat_template == CHATML
    assert again.generation.eos_token_ids == (2,)
    assert first_difference(again.tokenizer(), tokenizer) is None
    assert again.tokenizer().control == tokenizer.control
    kinds = tensor_types(config, TYPES[kind])
    read = dict(again.tensors())
    for name, tensor in tensors_of(config).items():
        assert torch.equal(read.pop(name).float(), expected(tensor, kinds[name])), name
    assert not read


def test_the_gguf_package_reads_what_is_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(LLAMA_3_1, num_hidden_layers=2)
    ours = write(tmp_path / "out.gguf", config, tokenizer, "q4_1", chat_template=CHATML)
    theirs = gguf.GGUFReader(tmp_path / "out.gguf")
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert fields == ours.metadata
    assert fields["general.architecture"] == "llama"
    assert fields["general.name"] == "out"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_1
    assert fields["general.quantization_version"] == 2
    order = [tensor.name for tensor in theirs.tensors]
    assert order[:2] == ["rope_freqs.weight", "token_embd.weight"]
    assert order[-2:] == ["output_norm.weight", "output.weight"]
    found = {t.name: (tuple(int(n) for n in reversed(t.shape)), t.tensor_type) for t in theirs.tensors}
    assert found["blk.1.attn_k.weight"] == ((32, 32), GgmlType.Q4_1)
    assert found["token_embd.weight"] == found["output.weight"] == ((400, 32), GgmlType.Q8_0)
    assert found["blk.0.attn_norm.weight"] == ((32,), GgmlType.F32)
    raw = tensors_of(config)["model.layers.1.mlp.down_proj.weight"].numpy()
    data = next(tensor.data for tensor in theirs.tensors if tensor.name == "blk.1.ffn_down.weight")
    assert np.array_equal(data, gguf.quants.quantize(raw, GgmlType.Q4_1))


def test_columns_that_are_no_multiple_of_a_block_are_float16(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(SMALL_CHAT, intermediate_size=80)
    again = write(tmp_path / "out.gguf", config, tokenizer, "q4_0")
    assert again.storage == {"F32": 3, "Q8_0": 2, "Q4_0": 6, "F16": 1}
    tensors = dict(again.tensors())
    down = tensors_of(config)["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(tensors["model.layers.0.mlp.down_proj.weight"], down.half())


def test_weights_may_come_in_any_order_and_quantized_ones_keep_their_codes(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    kinds = tensor_types(SMALL_CHAT, GgmlType.Q4_0)
    weights: dict[str, Weight] = dict(tensors_of(SMALL_CHAT))
    made = {n: Affine.quantize(t, 4, 32) for n, t in tensors_of(SMALL_CHAT).items() if "proj" in n}
    weights.update(made)
    beside = side_files(SMALL_CHAT, tokenizer)
    write_gguf(tmp_path / "one.gguf", beside, kinds, weights.items(), name="one")
    write_gguf(tmp_path / "two.gguf", beside, kinds, reversed(list(weights.items())), name="one")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    for name, weight in GgufCheckpoint(tmp_path / "one.gguf").weights():
        if name in made:
            assert isinstance(weight, Affine)
            assert torch.equal(weight.codes, made[name].codes), name
            assert torch.equal(weight.dequantize(), made[name].dequantize()), name


Change = tuple[dict[str, Weight | None], str]
BAD: dict[str, Change] = {
    "a tensor is missing": (
        {"model.norm.weight": None},
        r"1 of the model's tensors are missing, .*model\.norm",
    ),
    "a tensor is unknown": (
        {"model.extra.weight": torch.zeros(2)},
        r"model\.extra\.weight is given twice, or",
    ),
    "a shape is wrong": ({"model.norm.weight": torch.zeros(31)}, r"model\.norm\.weight has shape \[31\]"),
    "codes in a float type": (
        {
            "model.embed_tokens.weight": Affine(
                4, 32, torch.zeros(400, 32, dtype=torch.uint8), torch.ones(400, 1)
            )
        },
        r"model\.embed_tokens\.weight cannot be written as BF16: the weight is quantized; dequantize it",
    ),
    "a codebook": (
        {
            "lm_head.weight": Codebook(
                torch.tensor(NF4), 32, torch.zeros(400, 32, dtype=torch.uint8), torch.ones(400, 1)
            )
        },
        r"lm_head\.weight cannot be written as BF16: a Codebook",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_left(
    tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    change, said = BAD[name]
    weights = {n: w for n, w in {**tensors_of(SMALL_CHAT), **change}.items() if w is not None}
    kinds = tensor_types(SMALL_CHAT, GgmlType.BF16)
    with pytest.raises(CheckpointError, match=said):
        write_gguf(tmp_path / "out.gguf", side_files(SMALL_CHAT, tokenizer), kinds, weights.items())
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_breaks_off_leaves_nothing_behind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    kinds = tensor_types(SMALL_CHAT, GgmlType.BF16)
    seen: list[list[Path]] = []

    def source() -> Iterator[tuple[str, Weight]]:
        yield from list(tensors_of(SMALL_CHAT).items())[:4]
        seen.append(list(tmp_path.iterdir()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "out.gguf", side_files(SMALL_CHAT, tokenizer), kinds, source())
    assert [path.suffix for path in seen[0]] == [".partial"]
    assert list(tmp_path.iterdir()) == []


def test_a_type_for_each_tensor_is_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    beside, weights = side_files(SMALL_CHAT, tokenizer), tensors_of(SMALL_CHAT).items()
    kinds = tensor_types(SMALL_CHAT, GgmlType.BF16)
    del kinds["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has .* a place but no type"):
        write_gguf(tmp_path / "out.gguf", beside, kinds, weights)
    kinds["model.norm.weight"] = GgmlType.Q6_K
    with pytest.raises(
        CheckpointError, match=r"output_norm\.weight of shape \[32\] cannot be written as Q6_K"
    ):
        write_gguf(tmp_path / "out.gguf", beside, kinds, weights)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (RopeScaling("dynamic", 2.0), "rope_scaling is dynamic, for which GGUF has no field"),
        (
            RopeScaling("llama3", 8.0, 1.0, 4.0, 4096),
            "rope_scaling is .*4096.* but GGUF files hold Llama 3.1's",
        ),
    ],
)
def test_a_rope_scaling_that_gguf_cannot_say_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, scaling: RopeScaling, said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        write(tmp_path / "out.gguf", replace(LLAMA_3_1, rope_scaling=scaling), tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_several_templates_and_the_sampling_are_read_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    templates = {"default": "a", "tool_use": "b", "rag": "c"}
    sampling = GenerationConfig(0.5, 40, 0.75, 0.125, 1.25, do_sample=True, eos_token_ids=(0, 2))
    beside = SideFiles(SMALL_CHAT, sampling, tokenizer, templates)
    kinds = tensor_types(SMALL_CHAT, GgmlType.F16)
    write_gguf(tmp_path / "out.gguf", beside, kinds, tensors_of(SMALL_CHAT).items())
    again = GgufCheckpoint(tmp_path / "out.gguf")
    assert again.chat_template == templates
    assert again.metadata["tokenizer.chat_template"] == "a"
    assert again.metadata["tokenizer.chat_templates"] == ["tool_use", "rag"]
    assert again.generation == sampling
    greedy = replace(sampling, do_sample=False)
    write_gguf(
        tmp_path / "greedy.gguf", replace(beside, generation=greedy), kinds, tensors_of(SMALL_CHAT).items()
    )
    assert GgufCheckpoint(tmp_path / "greedy.gguf").generation == GenerationConfig(eos_token_ids=(0, 2))


@pytest.mark.parametrize(
    ("stops", "fields"),
    [
        ((128001, 128008, 128009), {"eos": 128001, "eot": 128009, "eom": 128008}),
        ((128009, 128001), {"eos": 128001, "eot": 128009}),
        ((128009,), {"eos": 128009}),
        ((128008, 128009), {"eot": 128009, "eos": 128008}),
        ((), {"eos": 128001}),
        ((128001, 128008, 128009, 128004, 128005), {"eos": 128001, "eot": 128009, "eom": 128008}),
    ],
)
def test_ids_that_end_a_message_get_the_fields_of_their_names(
    llama3_tokenizer: Tokenizer, stops: tuple[int, ...], fields: dict[str, int]
) -> None:
    found, left = end_fields(stops, llama3_tokenizer)
    assert found == {f"tokenizer.ggml.{kind}_token_id": token_id for kind, token_id in fields.items()}
    assert set(left) == set(stops) - set(fields.values())


def test_what_gguf_has_no_place_for_is_said(tokenizer: Tokenizer, tmp_path: Path, recorder: Recorder) -> None:
    beside = replace(
        side_files(SMALL_CHAT, tokenizer), generation=GenerationConfig(eos_token_ids=(2, 1, 0, 7))
    )
    kinds = tensor_types(SMALL_CHAT, GgmlType.Q8_0)
    write_gguf(tmp_path / "out.gguf", beside, kinds, tensors_of(SMALL_CHAT).items(), report=recorder)
    assert [text.split(": ")[1] for text in recorder.notices] == [
        "GGUF has no place for token 7 as one that ends a message"
    ]
    assert recorder.steps[-1][1] == recorder.steps[-1][2]
    assert GgufCheckpoint(tmp_path / "out.gguf").config.eos_token_ids == (1, 2, 0)


def test_a_tokenizer_of_another_model_is_refused(llama3_tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="belong to different models"):
        write(tmp_path / "out.gguf", SMALL_CHAT, llama3_tokenizer)
    assert list(tmp_path.iterdir()) == []
