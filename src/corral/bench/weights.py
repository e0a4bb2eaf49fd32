"""A network with random weights, made where it is to run: a benchmark needs no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corral.errors import RequestError
from corral.kernels.layout import LANES, Codes, Layout, Scales
from corral.kernels.library import Library
from corral.kernels.lower import side_by_side
from corral.kernels.memory import Memory
from corral.kernels.packed import PackedMatrix
from corral.kernels.packed_llama import HEAD, TABLE, PackedLlama
from corral.model.config import LlamaConfig
from corral.model.llama import Llama

_POOL = 1_000_003  # prime, so that no two rows of a matrix are alike
_GROUP = 32

WEIGHTS: Mapping[str, Codes] = {"q4_0": Codes.U4, "q8_0": Codes.U8}
"""Packed forms of the layers' matrices, by the names of GGUF's formats with the same bits: groups of 32 with
a float16 scale. The head has 8 bits."""


def random_weights(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Random weights by their names, one at a time, in the range in which activations keep their size.

    The same random numbers are used over and over: to make a new one for each weight of a large model would
    take minutes.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(_POOL, generator=generator).to(device)
    for name, parameter in Llama.on_meta(config).named_parameters():
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        if values.dim() == 1:
            values.fill_(0.0 if name.endswith(".bias") else 1.0)
        else:
            _fill(values, pool / parameter.shape[-1] ** 0.5)
        yield name, values


def random_llama(config: LlamaConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Llama:
    """A network of random weights."""
    model = Llama.on_meta(config)
    for name, values in random_weights(config, dtype, device, seed):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.inverse_frequencies = model.inverse_frequencies.to(device)
    return model.requires_grad_(False).eval()


def random_packed(
    library: Library, config: LlamaConfig, codes: Codes, dtype: torch.dtype, seed: int = 0
) -> PackedLlama:
    """A network of random quantized weights, packed for the native kernels as they are made.

    It takes no memory besides that of the packed weights. `dtype` is the type of the activations.

    Raises:
        RequestError: the model's matrices do not divide into groups.
    """
    network = Llama.on_meta(config)
    pool = np.random.default_rng(seed).integers(0, 256, _POOL, np.uint8)
    memory = Memory()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    def made(names: tuple[str, ...], kind: Codes) -> PackedMatrix:
        rows = sum(shapes[f"{name}.weight"][0] for name in names)
        return _random_matrix(rows, shapes[f"{names[0]}.weight"][1], kind, pool, memory)

    matrices = {"+".join(names): made(names, codes) for names in side_by_side(network)}
    matrices[HEAD] = made((HEAD,), Codes.U8)
    if not config.tie_word_embeddings:
        matrices[TABLE] = made((TABLE,), codes)
    vectors = {n: np.ones(shape, np.float32) for n, shape in shapes.items() if n.endswith("norm.weight")}
    for joined in matrices:
        biases = [shapes.get(f"{name}.bias", (0,))[0] for name in joined.split("+")]
        if any(biases):
            vectors[f"{joined}.bias"] = np.zeros(matrices[joined].shape[0], np.float32)
    return PackedLlama(library, network, dtype, matrices, vectors)


def _random_matrix(
    rows: int, columns: int, codes: Codes, pool: NDArray[np.uint8], memory: Memory
) -> PackedMatrix:
    """Random bytes as codes, and one scale for all, by which the rows of weights have about the length 1."""
    if columns % _GROUP:
        raise RequestError(f"a matrix has {columns} columns, which groups of {_GROUP} do not divide")
    largest = 15 if codes is Codes.U4 else 255
    zero = (largest + 1) // 2
    layout = Layout(rows, columns, codes, Scales.F16, False, _GROUP, zero)
    data = memory.take(layout.num_bytes)
    for start in range(0, len(data), len(pool)):
        piece = data[start : start + len(pool)]
        piece[:] = pool[: len(piece)]
    scales = data.reshape(layout.blocks, layout.block_bytes)[:, layout.scales_at :].view(np.float16)
    scales[:, : layout.groups * LANES] = (12 / columns) ** 0.5 / largest  # 12: of a uniform distribution
    return PackedMatrix(layout, data)


def _fill(values: Tensor, pool: Tensor) -> None:
    """Copies the pool again and again."""
    flat = values.view(-1)
    for start in range(0, len(flat), len(pool)):
        piece = flat[start : start + len(pool)]
        piece.copy_(pool[: len(piece)])
