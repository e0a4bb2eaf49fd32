"""Modules that Corral encodes, for GPTQModel to read: see make_gptqmodel.py, whose `check` reads them."""

from __future__ import annotations

import json
import sys
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from corral.quant import Affine
from corral.quant.encodings import awq, gptq
from corral.quant.encodings.awq import AwqSettings
from corral.quant.encodings.gptq import GptqSettings, Zeros
from tests.quant.layouts import adversarial_scales, random_codes

VERSIONS: tuple[Literal[1], Literal[2]] = (1, 2)


def write(path: str, rows: int = 64, columns: int = 256) -> None:
    """Every layout that Corral writes of GPTQ and AWQ, with the weights in float16 that it stands for."""
    tensors: dict[str, Tensor] = {}
    cases: dict[str, dict[str, object]] = {}

    def add(case: str, made: dict[str, Tensor], weight: Affine, config: dict[str, object]) -> None:
        cases[case] = config
        tensors.update({f"{case}/{name}": t for name, t in made.items()})
        tensors[f"{case}/weight"] = weight.dequantize(torch.float16)

    for seed, group_size in enumerate((32, 128, None)):
        for bits in (2, 3, 4, 8):
            for version in VERSIONS:
                for order in (False, True):
                    weight = symmetric(seed, bits, rows, columns, group_size or columns, order)
                    zeros: Zeros = "as they are" if version == 2 else "less one"
                    settings = GptqSettings(bits, group_size, order, zeros)
                    case = f"gptq, {bits} bits, group {group_size}, version {version}, order {order}"
                    add(case, gptq.encode(weight, version), weight, settings.to_hf())
        weight = with_zeros(seed, rows, columns, group_size or columns)
        add(f"awq, group {group_size}", awq.encode(weight), weight, AwqSettings(group_size).to_hf())
    save_file(tensors, path, metadata={"cases": json.dumps(cases)})


def symmetric(seed: int, bits: int, rows: int, columns: int, group_size: int, order: bool) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    codes = random_codes(generator, bits, rows, columns)
    scales = adversarial_scales(generator, rows, columns // group_size)
    permuted = torch.randperm(columns, generator=generator) if order else None
    return Affine(bits, group_size, codes, scales, 1 << (bits - 1), order=permuted)


def with_zeros(seed: int, rows: int, columns: int, group_size: int) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    shape = rows, columns // group_size
    codes, zeros = random_codes(generator, 4, rows, columns), random_codes(generator, 4, *shape)
    return Affine(4, group_size, codes, adversarial_scales(generator, *shape), zeros)


if __name__ == "__main__":
    write(sys.argv[1])
