"""What training keeps for the backward pass.

Assumes attention that never writes out its score matrix (FlashAttention, or torch's memory-efficient kernel),
an RMSNorm that computes in float32 without a fused kernel, as Corral and transformers do, and dropout off.
"""

from __future__ import annotations

from corral.model.config import LlamaConfig
from corral.plan.shapes import linear_shapes


def saved_by_layer(config: LlamaConfig, tokens: int, width: int) -> int:
    """Bytes that one layer keeps for its backward pass, without checkpointing.

    The two norms; q and the attention's output, k and v, and the MLP's gate, silu(gate), up and product, each
    in `width` bytes; and the attention's log-sum-exp of each head in float32.
    """
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    elements = 2 * q_size + 2 * kv_size + 4 * config.intermediate_size
    attention_and_mlp = tokens * (elements * width + 4 * config.num_attention_heads)
    return attention_and_mlp + 2 * saved_by_norm(config, tokens, width)


def saved_by_norm(config: LlamaConfig, tokens: int, width: int) -> int:
    """Bytes that an RMSNorm keeps: its input in float32 and its scale, the scaled input, the output.

    The output is what the matrices after it keep as their input.
    """
    return tokens * (config.hidden_size * (4 + 2 * width) + 4)


def backward_workspace(config: LlamaConfig, tokens: int, width: int) -> int:
    """Bytes of the gradients in flight at the widest place of a layer: gate, up, product, residual."""
    return tokens * (3 * config.intermediate_size + config.hidden_size) * width


def logits_bytes(config: LlamaConfig, rows: int, width: int) -> int:
    """Bytes of the loss over `rows` tokens: logits; log-probabilities and their gradient in float32."""
    return rows * config.vocab_size * (width + 4 + 4)


def training_bytes(
    config: LlamaConfig, tokens: int, width: int, *, checkpointing: bool, loss_chunk: int | None = None
) -> int:
    """The peak of activations and their gradients in one forward and backward pass over `tokens` tokens.

    With `checkpointing` each layer keeps only its input and is computed again in the backward pass. With
    `loss_chunk` the head and the loss take so many tokens at a time, as chunked and fused cross entropies do.
    """
    stream = tokens * config.hidden_size * width
    logits = logits_bytes(config, min(tokens, loss_chunk or tokens), width)
    layer = saved_by_layer(config, tokens, width)
    workspace = backward_workspace(config, tokens, width)
    after_layers = saved_by_norm(config, tokens, width)
    if checkpointing:
        inputs = config.num_hidden_layers * stream
        return inputs + after_layers + max(logits, layer + workspace)
    return config.num_hidden_layers * layer + after_layers + max(logits, workspace)


def dequantized_workspace(config: LlamaConfig) -> int:
    """Bytes of the largest matrix in bfloat16: a quantized base is expanded one matrix at a time."""
    return 2 * max(rows * columns for rows, columns in linear_shapes(config).values())
