"""Quantized modules that GPTQModel packs and dequantizes, for the tests; and its reading of Corral's.

    python tests/quant/goldens/make_gptqmodel.py make tests/quant/goldens/gptqmodel.safetensors
    python -m tests.quant.goldens.write_for_gptqmodel written.safetensors    # in Corral's environment
    python tests/quant/goldens/make_gptqmodel.py check written.safetensors

The golden file was made with gptqmodel 7.7.0 on torch 2.13.0 and transformers 5.23.0, on a CPU. GPTQModel
asks for torch >= 2.14.1, but its packers and readers run on 2.13. An environment of its own:

    pip install "torch==2.13.*" "transformers>=5.20.2,<6" numpy safetensors threadpoolctl packaging \
        device-smi logbar pypcre requests jinja2 pillow protobuf dill pyarrow
    pip install --no-deps tokenicer defuser accelerate datasets psutil multiprocess xxhash pandas \
        python-dateutil six pytz tzdata
    pip install --no-deps --no-build-isolation gptqmodel==7.7.0

A file holds tensors "<case>/<name>", and under "cases" of its metadata what config.json says of each case.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"  # the packer in Python, which needs no compiler

import gptqmodel
import torch
from gptqmodel.nn_modules.qlinear import BaseQuantLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization import AWQConfig, QuantizeConfig
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ROWS, COLUMNS, GROUP = 32, 64, 32
EXTREME_SCALES = torch.tensor([0.0, 65504.0, -65504.0, 2**-14, 2**-24]).half()

Case = tuple[dict[str, Tensor], dict[str, Any]]


@torch.inference_mode()
def make(path: str) -> None:
    """Writes the golden file."""
    cases: dict[str, Case] = {}
    for bits in (2, 3, 4, 8):
        cases[f"gptq-{bits}-symmetric"] = gptq(bits, symmetric=True)
        cases[f"gptq-{bits}-symmetric-version-2-activation-order"] = gptq(bits, True, version=2, order=True)
        cases[f"gptq-{bits}-zeros-activation-order"] = gptq(bits, order=True)
        cases[f"gptq-{bits}-zeros-version-2"] = gptq(bits, version=2)
    cases["gptq-4-symmetric-one-group"] = gptq(4, symmetric=True, group_size=-1)
    cases["awq"] = awq(GROUP)
    cases["awq-one-group"] = awq(-1)
    tensors = {f"{case}/{name}": t for case, (made, _) in cases.items() for name, t in made.items()}
    about = {"gptqmodel": gptqmodel.__version__, "torch": torch.__version__}
    settings = json.dumps({case: config for case, (_, config) in cases.items()})
    save_file(tensors, path, metadata={**about, "cases": settings})


def gptq(
    bits: int, symmetric: bool = False, *, version: int = 1, order: bool = False, group_size: int = GROUP
) -> Case:
    """A module of GPTQ: what GPTQModel would save of it, and the weights [rows, columns] that it reads."""
    name = "gptq" if version == 1 else "gptq_v2"
    config = QuantizeConfig(
        bits=bits, group_size=group_size, sym=symmetric, desc_act=order, format=name, offload_to_disk=False
    )
    group = COLUMNS if group_size == -1 else group_size
    generator = torch.Generator().manual_seed(100 * bits + 10 * symmetric + 2 * version + order)
    codes, zeros, scales = random_parts(generator, bits, group)
    if symmetric:
        zeros.fill_(1 << (bits - 1))
    groups = torch.arange(COLUMNS) // group
    if order:
        groups = groups[torch.randperm(COLUMNS, generator=generator)]
    module = gptq_module(bits, group_size, symmetric, order)
    weight = (codes - zeros[:, groups]) * scales[:, groups]
    module.pack_block(linear(weight), scales, zeros.float(), groups.int())
    module.scales.view(-1)[: len(EXTREME_SCALES)] = EXTREME_SCALES
    if version == 1:
        convert_gptq_v2_to_v1_format_module(module, config)
    saved = saved_of(module, "qweight", "qzeros", "scales", "g_idx")
    return {**saved, "weight": read_gptq(saved, config.to_dict())}, stated(config)


def awq(group_size: int) -> Case:
    """A module of AWQ's gemm layout."""
    config = AWQConfig(bits=4, group_size=group_size, sym=False, offload_to_disk=False)
    group = COLUMNS if group_size == -1 else group_size
    codes, zeros, scales = random_parts(torch.Generator().manual_seed(group), 4, group)
    weight = (codes - zeros.repeat_interleave(group, 1)) * scales.repeat_interleave(group, 1)
    module = AwqTorchLinear(**common(4, group_size, False))
    module.pack(linear(weight), scales, zeros.float())
    module.scales.view(-1)[: len(EXTREME_SCALES)] = EXTREME_SCALES
    saved = saved_of(module, "qweight", "qzeros", "scales")
    return {**saved, "weight": read_awq(saved, config.to_dict())}, stated(config)


def random_parts(generator: torch.Generator, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [rows, columns], zero points and scales [rows, groups]; the smallest and largest are there."""
    codes = torch.randint(0, 1 << bits, (ROWS, COLUMNS), generator=generator)
    zeros = torch.randint(0, 1 << bits, (ROWS, COLUMNS // group), generator=generator)
    for part in (codes, zeros):
        part.view(-1)[0], part.view(-1)[-1] = 0, (1 << bits) - 1
    scales = torch.randn(ROWS, COLUMNS // group, generator=generator).half().float()
    return codes, zeros, torch.where(scales == 0, 1.0, scales)


def read_gptq(tensors: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """The weights [rows, columns] that GPTQModel multiplies by, in float16."""
    bits = config["bits"]
    module = gptq_module(bits, config["group_size"], config["sym"], config["desc_act"], tensors)
    if config["checkpoint_format"] == "gptq":
        convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    module.post_init()
    weight: Tensor = module.dequantize_weight().t().contiguous()
    return weight


def read_awq(tensors: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """The same for AWQ."""
    columns = len(tensors["qweight"])
    group = columns if config["group_size"] == -1 else config["group_size"]
    read = dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"], 4, group)
    weight: Tensor = read.t().contiguous()
    return weight


@torch.inference_mode()
def check(path: str) -> None:
    """Says of each module of a file whether GPTQModel reads the weights that the file says it has."""
    with safe_open(path, "pt") as file:
        cases, names = json.loads(file.metadata()["cases"]), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    wrong = 0
    for case, config in cases.items():
        module = {
            name.removeprefix(f"{case}/"): t for name, t in tensors.items() if name.startswith(f"{case}/")
        }
        weight = module.pop("weight")
        read = read_gptq if config["quant_method"] == "gptq" else read_awq
        same = torch.equal(read(module, config), weight)
        sys.stdout.write(f"{'same ' if same else 'OTHER'} {case}\n")
        wrong += not same
    sys.exit(f"{wrong} of {len(cases)} differ" if wrong else 0)


def gptq_module(
    bits: int, group_size: int, symmetric: bool, order: bool, tensors: dict[str, Tensor] | None = None
) -> TorchLinear:
    """A module, with the tensors of a file if they are given."""
    rows, columns = (
        (ROWS, COLUMNS) if tensors is None else (tensors["qweight"].shape[1], len(tensors["g_idx"]))
    )
    fields = {**common(bits, group_size, symmetric), "in_features": columns, "out_features": rows}
    module = TorchLinear(**{**fields, "desc_act": order})
    module.load_state_dict({name: t.clone() for name, t in (tensors or module.state_dict()).items()})
    return module


def common(bits: int, group_size: int, symmetric: bool) -> dict[str, Any]:
    """Arguments of modules of the golden size."""
    size = {"in_features": COLUMNS, "out_features": ROWS, "bias": False, "pack_dtype": torch.int32}
    how = {"bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": False}
    return {**size, **how, "register_buffers": True}


def linear(weight: Tensor) -> torch.nn.Linear:
    """The floats that a packer finds the codes of."""
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight
    return module


def saved_of(module: BaseQuantLinear, *names: str) -> dict[str, Tensor]:
    """Tensors of a module as they are saved."""
    return {name: getattr(module, name).clone().contiguous() for name in names}


def stated(config: QuantizeConfig) -> dict[str, Any]:
    """What GPTQModel writes into config.json."""
    config.meta_set_versionable(key="quantizer", value=[f"gptqmodel:{gptqmodel.__version__}"])
    fields: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return fields


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](sys.argv[2])
