"""LoRA adapters with random weights, made and saved by PEFT on transformers' network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig as OracleConfig
from transformers import LlamaForCausalLM

from corral.model.llama import Llama

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def write_adapter(model: Llama, folder: Path, seed: int = 0, **options: Any) -> Any:
    """Writes a random adapter as PEFT does, and gives PEFT's network with it; `options` are LoraConfig's.

    The network is read back from the folder: writing sorts the patterns, so that another may be the first to
    fit.
    """
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(transformers_llama(model), LoraConfig(**{**fields, **options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    adapted.save_pretrained(str(folder))
    return PeftModel.from_pretrained(transformers_llama(model), folder).eval()


def transformers_llama(model: Llama) -> Any:
    """transformers' network with the model's weights, in float32."""
    network = LlamaForCausalLM(OracleConfig(**model.config.to_hf(), attn_implementation="eager"))
    network.load_state_dict(model.state_dict(), strict=not model.config.tie_word_embeddings)
    return network.float().eval()
