"""What GGUF files of the llama architecture call their tensors, and Hugging Face's names for them."""

from __future__ import annotations

import re

ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3.1's rope scaling, a divisor for each frequency. Hugging Face keeps it in config.json."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IN_GGUF = {theirs: ours for ours, theirs in (_NAMES | _LAYER_NAMES).items()}
_GGUF_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_HF_LAYER = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")


def hf_name(name: str) -> str | None:
    """Hugging Face's name of the tensor that GGUF calls `name`; None for one that no Llama model has."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    match = _GGUF_LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        return None
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


def gguf_name(name: str) -> str:
    """GGUF's name of one of the tensors of a Llama model: the inverse of `hf_name`."""
    match = _HF_LAYER.fullmatch(name)
    if match is not None:
        return f"blk.{match[1]}.{_IN_GGUF[match[2]]}.{match[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{_IN_GGUF[stem]}.{kind}"
