"""A Llama network whose weights are packed for the native kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.errors import CheckpointError
from corral.kernels import structures as c
from corral.kernels.library import Library
from corral.kernels.lower import lower_head, lower_layers, side_by_side
from corral.kernels.memory import Memory
from corral.kernels.packed import PackedMatrix, can_join, pack, pack_rows, quantized_head
from corral.kernels.program import Program
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.quant import Weight
from corral.quant.linear import named_weights

TABLE = "model.embed_tokens"
HEAD = "lm_head"


class PackedLlama:
    """The structure of a network, its packed matrices, and its vectors (norm weights and biases, float32).

    Attributes:
        network: the structure; its parameters are on the meta device.
        dtype: the type of the activations between the layers' matrices, which a KV cache holds by default.
        matrices: by the name of the linear layer; those that are packed as one have their names joined by
            "+".
    """

    def __init__(
        self,
        library: Library,
        network: Llama,
        dtype: torch.dtype,
        matrices: Mapping[str, PackedMatrix],
        vectors: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.library, self.network, self.dtype = library, network, dtype
        self.matrices, self.vectors = dict(matrices), dict(vectors)
        table = TABLE if TABLE in matrices else HEAD  # tied: the head is the table
        packed = [tuple(name.split("+")) for name in matrices]
        self._layers, self._head = lower_layers(network, packed, table), lower_head(network)

    @property
    def config(self) -> LlamaConfig:
        """The network's shape."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    def get_parameter(self, name: str) -> Tensor:
        """The embedding's or the head's weights [vocab_size, hidden_size]; all others are as in `network`."""
        module = name.removesuffix(".weight")
        if module == TABLE and module not in self.matrices:
            module = HEAD
        packed = self.matrices.get(module)
        return self.network.get_parameter(name) if packed is None else packed.dequantize()

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed matrices."""
        return sum(matrix.num_bytes for matrix in self.matrices.values())

    @property
    def layer_sites(self) -> tuple[str, ...]:
        """The linear layers of `layers_program` that take adapters."""
        return self._layers.sites

    @property
    def head_sites(self) -> tuple[str, ...]:
        """The linear layers of `head_program` that take adapters."""
        return self._head.sites

    def layers_program(self, cache: Sequence[c.CacheLayer], *, exact: bool = False) -> Program:
        """From tokens to hidden states, over a KV cache."""
        frequencies = self.network.inverse_frequencies.float().cpu().numpy()
        return Program(
            self.library,
            self._layers,
            self.matrices,
            self.vectors,
            self._heads(),
            cache,
            frequencies,
            exact=exact,
        )

    def head_program(self, *, exact: bool = False) -> Program:
        """From hidden states to logits."""
        return Program(self.library, self._head, self.matrices, self.vectors, self._heads(), exact=exact)

    def _heads(self) -> c.Heads:
        config = self.config
        return c.Heads(
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.head_dim**-0.5
        )


def pack_llama(library: Library, network: Llama, dtype: torch.dtype | None = None) -> PackedLlama:
    """Packs a network whose weights are loaded; its own weights are not needed afterwards."""
    skeleton = Llama.on_meta(network.config)
    skeleton.inverse_frequencies = network.inverse_frequencies
    return pack_weights(library, skeleton, named_weights(network), dtype or network.dtype)


def pack_weights(
    library: Library, network: Llama, weights: Iterable[tuple[str, Weight]], dtype: torch.dtype
) -> PackedLlama:
    """Packs weights as they come; `network` is the structure, `dtype` the type of the activations.

    A matrix is packed as soon as those that are packed with it are there, and is let go of then.
    """
    packer = _Packer(network)
    for name, weight in weights:
        packer.take(name, weight)
    return PackedLlama(library, network, dtype, *packer.finish())


class _Packer:
    def __init__(self, network: Llama) -> None:
        self._network = network
        self._groups = {name: names for names in side_by_side(network) for name in names}
        self._waiting: dict[str, Weight] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._memory = Memory()
        self._matrices: dict[str, PackedMatrix] = {}

    def take(self, name: str, weight: Weight) -> None:
        """Packs a weight now or, if others are to be packed with it, when they are there."""
        module, _, leaf = name.rpartition(".")
        if isinstance(weight, Tensor) and weight.dim() == 1:
            self._vectors[name] = np.ascontiguousarray(weight.float().cpu().numpy())
            return
        assert leaf == "weight", name
        self._waiting[module] = weight
        group = self._groups.get(module, ())
        if group and all(member in self._waiting for member in group):
            self._pack(group)

    def finish(self) -> tuple[dict[str, PackedMatrix], dict[str, NDArray[np.float32]]]:
        """All matrices and vectors. The table and the head are packed last, by what the others are."""
        table, head = self._waiting[TABLE], self._waiting.get(HEAD)
        if self._network.config.tie_word_embeddings:
            head = table
        assert head is not None
        quantized = any(matrix.is_quantized for matrix in self._matrices.values())
        try:
            packed_head = quantized_head(head) if quantized else head
        except ValueError as error:
            raise CheckpointError(f"the head cannot be quantized: {error}; the files are damaged") from None
        self._matrices[HEAD] = pack(packed_head, self._memory)
        if table is not packed_head:
            self._matrices[TABLE] = pack(table, self._memory)
        return self._matrices, self._joined_vectors()

    def _pack(self, group: Sequence[str]) -> None:
        weights = [self._waiting.pop(name) for name in group]
        if can_join(weights):
            self._matrices["+".join(group)] = pack_rows(weights, self._memory)
            return
        for name, weight in zip(group, weights, strict=True):
            self._matrices[name] = pack(weight, self._memory)

    def _joined_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Norm weights by their names; the biases of matrices that are packed as one, as one."""
        vectors = {n: v for n, v in self._vectors.items() if not n.endswith(".bias")}
        for joined in self._matrices:
            names = joined.split("+")
            if any(f"{name}.bias" in self._vectors for name in names):
                vectors[f"{joined}.bias"] = np.concatenate([self._bias(name) for name in names])
        return vectors

    def _bias(self, name: str) -> NDArray[np.float32]:
        size = self._network.get_submodule(name).out_features
        assert isinstance(size, int)
        return self._vectors.get(f"{name}.bias", np.zeros(size, np.float32))
