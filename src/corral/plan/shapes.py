"""Which tensors a Llama-architecture model has, and how large they are."""

from __future__ import annotations

from corral.model.config import LlamaConfig

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def linear_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """The (out, in) shapes of one layer's weight matrices, by their Hugging Face names."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (q_size, hidden),
        "k_proj": (kv_size, hidden),
        "v_proj": (kv_size, hidden),
        "o_proj": (hidden, q_size),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }


def layer_matrix_parameters(config: LlamaConfig) -> int:
    """Parameters in the matrices of one layer."""
    return sum(rows * columns for rows, columns in linear_shapes(config).values())


def embedding_parameters(config: LlamaConfig) -> int:
    """Parameters in the embedding and the head; counted once where the head is tied to the embedding."""
    return config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)


def vector_parameters(config: LlamaConfig) -> int:
    """Parameters in the norms and biases of the whole model: everything that is not a matrix."""
    matrices = config.num_hidden_layers * layer_matrix_parameters(config) + embedding_parameters(config)
    return config.num_parameters - matrices


def lora_parameters(config: LlamaConfig, rank: int, targets: tuple[str, ...]) -> int:
    """Parameters of LoRA adapters: A [rank, in] and B [out, rank] beside each target matrix of each layer."""
    shapes = linear_shapes(config)
    return config.num_hidden_layers * sum(rank * sum(shapes[target]) for target in targets)
