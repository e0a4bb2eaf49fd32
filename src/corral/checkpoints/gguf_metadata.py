"""What the metadata of a GGUF file says beside the tokenizer: shape, templates, sampling, ends of messages.

The fields are those of the GGUF specification and of llama.cpp's converter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from corral.checkpoints.checkpoint import ChatTemplate, GenerationConfig
from corral.errors import CheckpointError
from corral.model.config import LlamaConfig, RopeScaling
from corral.model.rope import inverse_frequencies
from corral.text.control_tokens import END_OF_MESSAGE, END_OF_TURN
from corral.text.prompt_format import Templates
from corral.text.tokenizer import Tokenizer

TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"
_ENDS = ("eos", "eot", "eom")
_NAMED_ENDS = {
    "eot": (END_OF_TURN, "<|im_end|>", "<|end|>", "<end_of_turn>"),
    "eom": (END_OF_MESSAGE,),
}
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def shape_fields(config: LlamaConfig) -> dict[str, Any]:
    """The `llama.*` fields.

    Raises:
        CheckpointError: GGUF has no place for the rope scaling.
    """
    fields: dict[str, Any] = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
        "llama.vocab_size": config.vocab_size,
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        fields["llama.rope.scaling.type"] = "linear"
        fields["llama.rope.scaling.factor"] = float(scaling.factor)
    elif scaling is not None and scaling.kind != "llama3":
        raise CheckpointError(
            f"the model's rope_scaling is {scaling.kind}, for which GGUF has no field; "
            "take rope_scaling out of config.json to write the model for its trained context"
        )
    return fields


def rope_factors(config: LlamaConfig) -> Tensor | None:
    """Llama 3.1's scaling as GGUF keeps it: what each frequency is divided by, float32 [head_dim / 2].

    None for a model without it.

    Raises:
        CheckpointError: the scaling cannot be told from its divisors.
    """
    if config.rope_scaling is None or config.rope_scaling.kind != "llama3":
        return None
    factors = _unscaled(config) / inverse_frequencies(config)
    if llama3_scaling(config, factors) != config.rope_scaling:
        raise CheckpointError(
            f"the model's rope_scaling is {config.rope_scaling.to_hf()}, but GGUF files hold Llama 3.1's: "
            f"{RopeScaling('llama3', config.rope_scaling.factor).to_hf()}"
        )
    return factors


def llama3_scaling(config: LlamaConfig, factors: Tensor) -> RopeScaling | None:
    """The scaling that has these divisors: Llama 3.1's rule with some factor, or None if it is another."""
    scaling = RopeScaling("llama3", float(f"{float(factors.max()):.6g}"))
    plain = _unscaled(config)
    scaled = inverse_frequencies(LlamaConfig(**{**vars(config), "rope_scaling": scaling}))
    if factors.shape != plain.shape or not torch.allclose(plain / scaled, factors, rtol=1e-4):
        return None
    return scaling


def _unscaled(config: LlamaConfig) -> Tensor:
    return inverse_frequencies(LlamaConfig(**{**vars(config), "rope_scaling": None}))


def end_fields(stop_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[dict[str, int], list[int]]:
    """The fields for the ids that end a text, a turn and a message; and the ids that are left over.

    Readers stop at each of the three. An id gets the field that its name belongs to, else one that is free.
    That for the end of a text is never missing: llama.cpp would take some ordinary token.
    """
    names = {token_id: text for text, token_id in tokenizer.control.items()}
    left = list(dict.fromkeys(stop_ids)) or [i for i in (tokenizer.eos_id,) if i is not None]
    left.sort(key=lambda i: i != tokenizer.eos_id)
    found: dict[str, int] = {}
    for kind, known in _NAMED_ENDS.items():
        named = [i for i in left if names.get(i) in known]
        if named and len(left) > 1:
            found[kind] = named[0]
            left.remove(named[0])
    for kind in _ENDS:
        if kind not in found and left:
            found[kind] = left.pop(0)
    return {f"tokenizer.ggml.{kind}_token_id": token_id for kind, token_id in found.items()}, left


def read_ends(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a message."""
    ids = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in _ENDS]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def sampling_fields(generation: GenerationConfig) -> dict[str, Any]:
    """The sampling that is recommended; nothing for a model that is to be decoded greedily."""
    if not generation.do_sample:
        return {}
    values = {name: getattr(generation, name) for name in _SAMPLING}
    return {
        _SAMPLING[name]: int(value) if name == "top_k" else float(value)
        for name, value in values.items()
        if value is not None
    }


def read_generation(metadata: Mapping[str, Any]) -> GenerationConfig:
    """The sampling that a file recommends, and the ids that end a message."""
    found = {name: metadata[field] for name, field in _SAMPLING.items() if field in metadata}
    return GenerationConfig(**found, do_sample=bool(found), eos_token_ids=read_ends(metadata))


def template_fields(templates: Templates | None) -> dict[str, Any]:
    """The chat template, or several by name. In a field's name, other characters than letters, digits and
    underscores become underscores."""
    if not templates or isinstance(templates, str):
        return {TEMPLATE: templates} if templates else {}
    named = {re.sub(r"\W", "_", name, flags=re.ASCII): text for name, text in templates.items()}
    fields: dict[str, Any] = {TEMPLATE: named.pop("default")} if "default" in named else {}
    fields.update({f"{TEMPLATE}.{name}": text for name, text in named.items()})
    return {**fields, TEMPLATES: list(named)} if named else fields


def read_templates(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template, or several by name."""
    default: str | None = metadata.get(TEMPLATE)
    names = [name for name in metadata.get(TEMPLATES, ()) if f"{TEMPLATE}.{name}" in metadata]
    if not names:
        return default
    others = {name: metadata[f"{TEMPLATE}.{name}"] for name in names}
    return others if default is None else {"default": default, **others}
