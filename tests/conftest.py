"""Fixtures that several rooms share: real vocabularies, the default model, small random models."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

from corral.model.config import LlamaConfig, RopeScaling
from corral.model.llama import Llama
from corral.model.presets import DEFAULT_MODEL
from corral.text.tokenizer import Tokenizer
from tests.random_models import random_model

# A slow machine is not a failure; and where a failure stops others, it must not come and go.
settings.register_profile("corral", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("corral")

os.environ["CORRAL_PACKED_CACHE_GB"] = "0"  # the models of tests have no place in a person's cache


@pytest.fixture(scope="session")
def llama_models_folder() -> Path:
    """Where the package llama-models keeps Meta's tokenizer and prompt-format documents."""
    spec = importlib.util.find_spec("llama_models")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def llama3_tokenizer(llama_models_folder: Path) -> Tokenizer:
    """Meta's tokenizer, with the control tokens of Llama 3.1."""
    return Tokenizer.from_meta(llama_models_folder / "llama3" / "tokenizer.model", "llama-3.1")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file, fetched if the cache lacks it."""
    from corral.checkpoints.resolve import resolve

    return resolve(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def llama31_config() -> LlamaConfig:
    """A small Llama 3.1: llama3 rope scaling, four query heads per key-value head, an untied head."""
    return LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        bos_token_id=0,
        eos_token_ids=(1,),
        dtype="float32",
    )


@pytest.fixture(scope="session")
def llama31_model(llama31_config: LlamaConfig) -> Llama:
    """The small Llama 3.1 with random weights, in float32."""
    return random_model(llama31_config)
