"""The network against Meta's reference network, from the package llama-models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from tests.checkpoints.writers import meta_state_dict
from tests.engine.reference_loop import KVCache


@pytest.fixture(scope="module")
def reference(llama31_model: Llama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Meta's network with the weights of the small Llama 3.1."""
    import fairscale.nn.model_parallel.initialize as parallel
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    rendezvous: Path = tmp_path_factory.mktemp("gloo") / "rendezvous"
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    parallel.initialize_model_parallel(1)
    config = llama31_model.config
    network = Transformer(
        ModelArgs(
            dim=config.hidden_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            vocab_size=config.vocab_size,
            multiple_of=config.intermediate_size,
            norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            use_scaled_rope=True,
            max_batch_size=1,
            max_seq_len=config.max_position_embeddings,
        )
    )
    network.load_state_dict(meta_state_dict(llama31_model))
    yield network.eval()
    parallel.destroy_model_parallel()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def cache(llama31_config: LlamaConfig) -> KVCache:
    """A cache as Meta's network has it: whole, and zero where nothing has been written."""
    return KVCache(llama31_config, llama31_config.max_position_embeddings, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("start", [0, 32, 8180, 50_000, 131_040])
def test_logits_equal_metas_network_up_to_the_last_position(
    llama31_model: Llama, reference: Any, cache: KVCache, start: int
) -> None:
    # The chunks share both caches, so the later ones attend to keys up to 131,071 positions away.
    tokens = torch.randint(0, 512, (32,), generator=torch.Generator().manual_seed(start))
    expected = reference(tokens[None], start)[0]
    cache.length = start
    hidden = llama31_model(tokens, torch.arange(start, start + 32), cache)
    torch.testing.assert_close(llama31_model.logits(hidden), expected, atol=2e-4, rtol=0)
    assert expected.abs().max() > 1
