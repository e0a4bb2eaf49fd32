"""The Llama network (Touvron et al., 2023, arXiv:2302.13971; Grattafiori et al., 2024, arXiv:2407.21783).

There is no batch dimension and no padding: the tokens of all sequences lie in one flat row of T, with a
position each, and `attend` decides which of them see each other. `project` applies the linear layers, so
that adapters are added from outside. Parameter names are those of Hugging Face's checkpoints.

Letters in shapes: T tokens, D hidden_size, H attention heads, K key-value heads, E head_dim, F
intermediate_size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corral.model.attention import Attend
from corral.model.config import LlamaConfig
from corral.model.project import Project, plain
from corral.model.rope import inverse_frequencies, rotate, rotation


def mm(left: Tensor, right: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
    """left [M, S] times right [S, N], written, or added, to `out` [M, N] if there is one; no autograd."""
    if out is None:
        return torch.mm(left, right)
    return out.addmm_(left, right) if add else torch.mm(left, right, out=out)


class Linear(nn.Linear):
    """A linear layer that leaves out its random start where there is no memory to fill.

    On the meta device that start would import a second of torch, for nothing.
    """

    mm = staticmethod(mm)  # for those who multiply by the weight themselves

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(nn.Embedding):
    """An embedding that, like `Linear`, leaves out its random start on the meta device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class RMSNorm(nn.Module):
    """Root-mean-square normalization (Zhang and Sennrich, 2019, arXiv:1910.07467), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention: each of K key-value heads serves H / K query heads."""

    rotate = staticmethod(rotate)  # faster kernels may take its place, from outside

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden_size, q_size, bias=bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, project: Project) -> Tensor:
        heads = (-1, self.head_dim)
        q = torch.unflatten(project(self.q_proj, x), -1, heads)  # [T, H, E]
        k = torch.unflatten(project(self.k_proj, x), -1, heads)  # [T, K, E]
        v = torch.unflatten(project(self.v_proj, x), -1, heads)  # [T, K, E]
        mixed = attend(self.layer, self.rotate(q, cos, sin), self.rotate(k, cos, sin), v)  # [T, H, E]
        return project(self.o_proj, mixed.flatten(1))  # [T, D]


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """What the gate lets through."""
    return F.silu(gate) * up


class MLP(nn.Module):
    """The gated feed-forward network (SwiGLU; Shazeer, 2020, arXiv:2002.05202)."""

    gated = staticmethod(gated)  # as for `Attention.rotate`

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor, project: Project) -> Tensor:
        inner = self.gated(project(self.gate_proj, x), project(self.up_proj, x))  # [T, F]
        return project(self.down_proj, inner)  # [T, D]


class Layer(nn.Module):
    """One transformer layer, with the normalization before each half."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, project: Project) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend, project)
        output: Tensor = x + self.mlp(self.post_attention_layernorm(x), project)
        return output


class Decoder(nn.Module):
    """Embedding, layers and final normalization; the `model.` of Hugging Face's weight names."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A Llama-architecture language model.

    `context_length` is the longest context it will be run with; only "dynamic" rope scaling depends on it.
    """

    def __init__(self, config: LlamaConfig, context_length: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        with torch.device("cpu"):  # real numbers even when the weights are on the meta device
            frequencies = inverse_frequencies(config, context_length)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)
        self.inverse_frequencies: Tensor

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, project: Project = plain) -> Tensor:
        """Hidden states [T, D], normalized for the head, of tokens [T] at positions [T]."""
        cos, sin = rotation(self.inverse_frequencies, positions)
        x: Tensor = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin, attend, project)
        hidden: Tensor = self.model.norm(x)
        return hidden

    def logits(self, hidden: Tensor, project: Project = plain) -> Tensor:
        """Scores of the next token [rows, vocab_size] for the hidden states [rows, D] that are needed."""
        return project(self.lm_head, hidden)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self.model.embed_tokens.weight.dtype

    @classmethod
    def on_meta(cls, config: LlamaConfig, context_length: int | None = None) -> Llama:
        """The network without weights: shapes only, no memory."""
        with torch.device("meta"):
            return cls(config, context_length)
