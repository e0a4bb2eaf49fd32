"""Every quantized GGUF type against the `gguf` package, which defines it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from corral.checkpoints.gguf_blocks import LOSSLESS, read_blocks
from corral.checkpoints.gguf_file import GgufFile
from corral.checkpoints.gguf_reader import GgufCheckpoint
from corral.errors import CheckpointError
from corral.kernels.packed import pack
from corral.quant import Affine
from tests.checkpoints.writers import write_gguf
from tests.random_models import SMALL_CHAT, random_model

Bytes = NDArray[np.uint8]

# Where the float16 of a block lie: any other byte may be anything.
_HALVES = {
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_0: (0,),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.Q2_K: (80, 82),
    GgmlType.Q3_K: (108,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
    GgmlType.IQ4_NL: (0,),
    GgmlType.IQ4_XS: (0,),
    GgmlType.TQ1_0: (52,),
    GgmlType.TQ2_0: (64,),
    GgmlType.IQ2_XXS: (0,),
    GgmlType.IQ3_S: (0,),
}
_HALF = np.array([0.0, -0.0, 6e-8, 6.1e-5, 0.013, -0.5, 1.0, 65504.0, -65504.0], np.float16)


def random_blocks(kind: GgmlType, seed: int, rows: int = 3, blocks: int = 3) -> Bytes:
    """Blocks with every bit pattern, and scales from zero to the largest there are."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * blocks, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in _HALVES[kind]:
        raw[:, at : at + 2] = rng.choice(_HALF, (len(raw), 1)).view(np.uint8)
    return raw.reshape(rows, -1)


def same_bits(a: torch.Tensor, b: NDArray[np.float32]) -> bool:
    return np.array_equal(a.numpy().view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("kind", sorted(LOSSLESS), ids=lambda kind: kind.name)
@given(seed=st.integers(0, 2**31), shape=st.tuples(st.integers(1, 20), st.integers(1, 4)))
def test_each_type_is_read_bit_for_bit(kind: GgmlType, seed: int, shape: tuple[int, int]) -> None:
    raw = random_blocks(kind, seed, *shape)
    expected = gguf.quants.dequantize(raw, kind)
    weight = read_blocks(raw, kind)
    assert same_bits(weight.dequantize(), expected)
    if isinstance(weight, Affine):
        assert int(weight.codes.max()) < 1 << weight.bits


@pytest.mark.parametrize("kind", sorted(LOSSLESS), ids=lambda kind: kind.name)
def test_each_type_is_packed_without_loss(kind: GgmlType) -> None:
    raw = random_blocks(kind, 7, rows=19)
    packed = pack(read_blocks(raw, kind))
    assert packed.is_quantized
    assert torch.equal(packed.dequantize(), torch.from_numpy(gguf.quants.dequantize(raw, kind)))


def test_a_matrix_larger_than_what_is_read_at_once_is_whole() -> None:
    raw = random_blocks(GgmlType.Q4_1, 0, rows=700, blocks=50)
    assert same_bits(read_blocks(raw, GgmlType.Q4_1).dequantize(), gguf.quants.dequantize(raw, GgmlType.Q4_1))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_gguf_package_quantizes_is_read_as_it_reads_it(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((40, 96), dtype=np.float32)
    raw = gguf.quants.quantize(values, GgmlType[name])
    read = read_blocks(raw, GgmlType[name]).dequantize()
    assert same_bits(read, gguf.quants.dequantize(raw, GgmlType[name]))
    assert (read - torch.from_numpy(values)).norm() < 0.1 * np.linalg.norm(values)


def test_a_block_by_hand() -> None:
    """Q4_K: one block whose groups have the scales 1 .. 8 and the minima 8 .. 1."""
    scales, minima = list(range(33, 41)), list(range(8, 0, -1))
    twelve = bytearray(12)
    for i in range(4):
        twelve[i] = scales[i] | scales[i + 4] >> 4 << 6
        twelve[i + 4] = minima[i] | minima[i + 4] >> 4 << 6
        twelve[i + 8] = scales[i + 4] & 15 | (minima[i + 4] & 15) << 4
    nibbles = bytes(range(16)) * 8
    block = np.array([0.5, 2.0], np.float16).tobytes() + bytes(twelve) + nibbles
    weight = read_blocks(np.frombuffer(block, np.uint8)[None], GgmlType.Q4_K)
    assert isinstance(weight, Affine)
    assert weight.offset is not None
    assert weight.scale.tolist() == [[0.5 * s for s in scales]]
    assert weight.offset.tolist() == [[-2.0 * m for m in minima]]
    assert weight.codes.view(4, 2, 32).tolist() == [[list(range(16)) * 2, [0] * 32]] * 4


def test_types_that_no_family_holds_are_rounded_to_8_bits() -> None:
    for kind in set(_HALVES) - LOSSLESS:
        raw = random_blocks(kind, 3)
        raw[:, : raw.shape[1]].reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])[:, _HALVES[kind][0] + 1] = 0x2C
        expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
        weight = read_blocks(raw, kind)
        assert isinstance(weight, Affine)
        assert (weight.bits, weight.group_size, weight.zero) == (8, 32, 128)
        largest = expected.view(3, -1, 32).abs().amax(2).repeat_interleave(32, 1)
        assert bool(((weight.dequantize() - expected).abs() <= largest / 254 * 1.2 + 1e-6).all())


@pytest.mark.parametrize("kind", sorted(LOSSLESS), ids=lambda kind: kind.name)
def test_scales_that_are_not_finite_are_refused(kind: GgmlType) -> None:
    for at in _HALVES[kind]:
        raw = random_blocks(kind, 1, rows=1)
        raw[0, at : at + 2] = np.array([np.inf], np.float16).view(np.uint8)
        with pytest.raises(ValueError, match="not finite"):
            read_blocks(raw, kind)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "F16"])
def test_weights_of_a_checkpoint_are_its_tensors(tmp_path: Path, name: str) -> None:
    write_gguf(random_model(SMALL_CHAT), tmp_path / "model.gguf", GgmlType[name])
    checkpoint = GgufCheckpoint(tmp_path / "model.gguf")
    tensors = dict(checkpoint.tensors())
    quantized = 0
    for weight_name, weight in checkpoint.weights():
        if not isinstance(weight, torch.Tensor):
            quantized += 1
            weight = weight.dequantize()
        assert torch.equal(weight, tensors.pop(weight_name)), weight_name
    assert not tensors
    assert bool(quantized) == (name != "F16")


def test_a_damaged_scale_is_refused_with_the_name_of_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(random_model(SMALL_CHAT), path, GgmlType.Q8_0)
    data = bytearray(path.read_bytes())
    at = GgufFile(path).tensors["blk.0.ffn_up.weight"].offset
    data[at : at + 2] = np.array([np.nan], np.float16).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.weight .*not finite"):
        dict(GgufCheckpoint(path).weights())
