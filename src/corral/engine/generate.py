"""The reference generation loop: one request, one contiguous key-value cache."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence, Set

import torch
from torch import Tensor

from corral.engine.sampling import SamplingParams, sample
from corral.errors import RequestError
from corral.model.attention import causal_attention
from corral.model.config import LlamaConfig
from corral.model.llama import Llama

PREFILL_CHUNK = 2048  # tokens: bounds the memory of a long prompt's activations
_FIRST_ROOM = 256  # tokens


class KVCache:
    """Keys and values of one sequence; an `Attend` that remembers.

    `length` tokens are cached. A forward pass of T tokens attends to them and to itself; `advance(T)` then
    keeps them. The memory grows with the sequence, by doubling, up to `capacity` tokens.
    """

    def __init__(self, config: LlamaConfig, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = capacity
        self.length = 0
        shape = (config.num_hidden_layers, 0, config.num_key_value_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.length + k.shape[0]
        self.reserve(end)
        self.keys[layer, self.length : end] = k
        self.values[layer, self.length : end] = v
        return causal_attention(q, self.keys[layer, :end], self.values[layer, :end])

    def advance(self, num_tokens: int) -> None:
        """Keeps the tokens of the last forward pass."""
        self.length += num_tokens

    def reserve(self, num_tokens: int) -> None:
        """Makes room for so many tokens in all."""
        assert num_tokens <= self.capacity, "the caller keeps to the capacity"
        if num_tokens > self.keys.shape[1]:
            room = min(self.capacity, max(num_tokens, 2 * self.keys.shape[1], _FIRST_ROOM))
            self.keys, self.values = _grown(self.keys, room), _grown(self.values, room)


def generate(
    model: Llama,
    prompt: Sequence[int],
    params: SamplingParams,
    stop_ids: Set[int],
    context_length: int,
) -> Iterator[int]:
    """Generates token ids one by one; the last is a stop id unless `max_tokens` or the context ended first.

    Raises:
        RequestError: the prompt is empty, longer than the context, or holds an id outside the vocabulary.
    """
    check_prompt(prompt, model.config.vocab_size, context_length)
    room = context_length - len(prompt)
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    seed = secrets.randbits(64) if params.seed is None else params.seed
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else stop_ids)
    cache = KVCache(model.config, len(prompt) + max_tokens, model.dtype, model.device)
    tokens = list(prompt)
    with torch.inference_mode():
        logits = _prefill(model, cache, tokens)
    for _ in range(max_tokens):
        token = sample(logits, params, tokens, seed, len(tokens))
        tokens.append(token)
        yield token
        if token in stops or len(tokens) == len(prompt) + max_tokens:
            return
        with torch.inference_mode():
            logits = _forward(model, cache, [token])


def _grown(cached: Tensor, room: int) -> Tensor:
    larger = cached.new_zeros(cached.shape[0], room, *cached.shape[2:])
    larger[:, : cached.shape[1]] = cached
    return larger


def check_prompt(prompt: Sequence[int], vocab_size: int, context_length: int) -> None:
    """Refuses a prompt that cannot be run, before any work.

    Raises:
        RequestError: it is empty, leaves no room in the context, or holds an id outside the vocabulary.
    """
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token")
    if len(prompt) >= context_length:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and the context {context_length}; shorten the prompt"
        )
    outside = next((i for i in prompt if not 0 <= i < vocab_size), None)
    if outside is not None:
        raise RequestError(f"the prompt holds token id {outside}, outside the vocabulary of {vocab_size}")


def _prefill(model: Llama, cache: KVCache, tokens: Sequence[int]) -> Tensor:
    last = None
    for start in range(0, len(tokens), PREFILL_CHUNK):
        last = _forward(model, cache, tokens[start : start + PREFILL_CHUNK])
    assert last is not None, "the prompt has been checked not to be empty"
    return last


def _forward(model: Llama, cache: KVCache, tokens: Sequence[int]) -> Tensor:
    """Logits [vocab_size] after the last of some new tokens."""
    ids = torch.tensor(tokens, device=model.device)
    positions = torch.arange(cache.length, cache.length + len(tokens), device=model.device)
    hidden = model(ids, positions, cache)
    cache.advance(len(tokens))
    return model.logits(hidden[-1:])[0]
