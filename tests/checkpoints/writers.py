"""Writes models as others write them, for the readers to read."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.model.rope import inverse_frequencies
from tests.random_models import SMALL_CHAT, random_model
from tests.text.vocabularies import chatml_tokenizer_json

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_META = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.layers": "layers",
    "model.norm": "norm",
    "lm_head": "output",
}
_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.layers": "blk",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def _renamed(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(model: Llama) -> dict[str, torch.Tensor]:
    """The weights with rotary pairs (2i, 2i + 1), as Meta's files and GGUF have them."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    state = {}
    for name, tensor in model.state_dict().items():
        count = heads.get(name.split(".")[-2])
        if count:
            halves = tensor.reshape(count, 2, -1, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            state[name] = tensor
    return state


def meta_state_dict(model: Llama) -> dict[str, torch.Tensor]:
    """The weights under Meta's names and in Meta's order of rotary dimensions."""
    return {_renamed(name, _META): tensor for name, tensor in interleaved(model).items()}


def write_hf(model: Llama, folder: Path, shards: int) -> None:
    """A Hugging Face folder with its weights in a number of shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_hf()))
    state = {n: t.clone() for n, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        part = dict(list(state.items())[i::shards])
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_chat_model(folder: Path, shards: int = 1, config: LlamaConfig = SMALL_CHAT) -> None:
    """A Hugging Face folder of a small model with random weights that chats in ChatML."""
    write_hf(random_model(config), folder, shards)
    (folder / "tokenizer.json").write_text(chatml_tokenizer_json(), encoding="utf-8")
    side = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(side))


def write_meta(model: Llama, folder: Path, shards: int) -> None:
    """params.json and one consolidated file per rank, cut as fairscale cuts its parallel layers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": config.intermediate_size,
        "ffn_dim_multiplier": config.intermediate_size / (8 * config.hidden_size / 3),
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }
    (folder / "params.json").write_text(json.dumps(params))
    whole = meta_state_dict(model)
    for rank in range(shards):
        part = {
            name: _rank_part(name, tensor, rank, shards, config.head_dim) for name, tensor in whole.items()
        }
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")


def _rank_part(name: str, tensor: torch.Tensor, rank: int, ranks: int, head_dim: int) -> torch.Tensor:
    if tensor.ndim == 1:
        return tensor.clone()
    heads = tensor.shape[0] // head_dim
    if (".wk." in name or ".wv." in name) and heads < ranks:
        return tensor.reshape(heads, head_dim, -1)[rank * heads // ranks].clone()
    dim = 1 if ".wo." in name or ".w2." in name else 0
    return tensor.chunk(ranks, dim)[rank].clone()


def write_gguf(
    model: Llama,
    file: Path,
    kind: gguf.GGMLQuantizationType,
    *,
    random_blocks: bool = False,
    split_after: int = 0,
) -> dict[str, np.ndarray]:
    """A GGUF file with matrices of one type, written by the `gguf` package; gives the raw blocks.

    With `random_blocks` the blocks are random bytes, for types that the package cannot quantize to.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, "llama", split_max_tensors=split_after)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling is not None:
        plain = inverse_frequencies(type(config)(**{**vars(config), "rope_scaling": None}))
        writer.add_tensor("rope_freqs.weight", (plain / inverse_frequencies(config)).numpy())
    raw = {}
    random = np.random.default_rng(0)
    for name, tensor in interleaved(model).items():
        values, stored = tensor.numpy(), gguf.GGMLQuantizationType.F32
        if tensor.ndim == 2 and random_blocks:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            shape = (tensor.shape[0], tensor.shape[1] // block * size)
            values, stored = random.integers(0, 256, shape, dtype=np.uint8), kind
        elif tensor.ndim == 2:
            values, stored = gguf.quants.quantize(values, kind), kind
        raw[_renamed(name, _GGUF)] = values
        writer.add_tensor(_renamed(name, _GGUF), values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return raw
