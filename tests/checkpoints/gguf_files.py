"""What the tests of GGUF files compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType

from corral.checkpoints.checkpoint import GenerationConfig
from corral.checkpoints.gguf_encode import FLOATS
from corral.checkpoints.hf_writer import SideFiles
from corral.model.config import LlamaConfig
from corral.text.tokenizer import Tokenizer
from tests.random_models import random_model


def side_files(config: LlamaConfig, tokenizer: Tokenizer, **others: Any) -> SideFiles:
    return SideFiles(config, GenerationConfig(eos_token_ids=config.eos_token_ids), tokenizer, **others)


def tensors_of(config: LlamaConfig) -> dict[str, torch.Tensor]:
    state = dict(random_model(config).state_dict())
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def expected(tensor: torch.Tensor, kind: GgmlType) -> torch.Tensor:
    """A tensor rounded to a type, by the `gguf` package for the quantized ones."""
    if kind in FLOATS:
        return tensor.to(FLOATS[kind]).float()
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind))


def same_shape(one: LlamaConfig, other: LlamaConfig) -> bool:
    """Whether configurations are equal, but for the type and for numbers rounded to float32."""
    pairs = ((one.rms_norm_eps, other.rms_norm_eps), (one.rope_theta, other.rope_theta))
    rounded = {name: getattr(other, name) for name in ("rms_norm_eps", "rope_theta", "dtype")}
    return replace(one, **rounded) == other and all(np.float32(a) == np.float32(b) for a, b in pairs)
