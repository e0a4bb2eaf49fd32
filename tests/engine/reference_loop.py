"""The plain way to generate: one request, one contiguous key-value cache, token by token.

The engine is held to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import torch
from torch import Tensor

from corral.engine.sampling.params import SamplingParams
from corral.model.attention import causal_attention
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from tests.engine.reference_sampling import sample

PREFILL_CHUNK = 2048  # tokens: bounds the memory of a long prompt's activations


class KVCache:
    """Keys and values of one sequence of at most `capacity` tokens; an `Attend` that remembers.

    `length` tokens are cached. A forward pass of T tokens attends to them and to itself; `advance(T)` then
    keeps them.
    """

    def __init__(self, config: LlamaConfig, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.length = 0
        shape = (config.num_hidden_layers, capacity, config.num_key_value_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.length + k.shape[0]
        self.keys[layer, self.length : end] = k
        self.values[layer, self.length : end] = v
        return causal_attention(q, self.keys[layer, :end], self.values[layer, :end])

    def advance(self, num_tokens: int) -> None:
        """Keeps the tokens of the last forward pass."""
        self.length += num_tokens


def generate(
    model: Llama,
    prompt: Sequence[int],
    params: SamplingParams,
    stop_ids: Set[int],
    context_length: int,
) -> Iterator[int]:
    """Generates token ids; the last is a stop id unless `max_tokens` or the context ended first."""
    room = context_length - len(prompt)
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else stop_ids)
    cache = KVCache(model.config, len(prompt) + max_tokens, model.dtype, model.device)
    output: list[int] = []
    logits = _prefill(model, cache, prompt)
    while True:
        position = len(prompt) + len(output)
        token = sample(logits, params, prompt, output, params.seed or 0, position)
        output.append(token)
        yield token
        if token in stops or len(output) == max_tokens:
            return
        logits = _forward(model, cache, [token])


def _prefill(model: Llama, cache: KVCache, tokens: Sequence[int]) -> Tensor:
    chunks = [tokens[start : start + PREFILL_CHUNK] for start in range(0, len(tokens), PREFILL_CHUNK)]
    return [_forward(model, cache, chunk) for chunk in chunks][-1]


@torch.inference_mode()
def _forward(model: Llama, cache: KVCache, tokens: Sequence[int]) -> Tensor:
    """Logits [vocab_size] after the last of some new tokens."""
    ids = torch.tensor(tokens, device=model.device)
    positions = torch.arange(cache.length, cache.length + len(tokens), device=model.device)
    hidden = model(ids, positions, cache)
    cache.advance(len(tokens))
    return model.logits(hidden[-1:])[0]
