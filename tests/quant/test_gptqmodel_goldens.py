"""GPTQ and AWQ as GPTQModel packs and reads them: a file that goldens/make_gptqmodel.py makes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from corral.quant import Affine
from corral.quant.encodings import awq, gptq
from corral.quant.encodings.config import Quantization

FILE = Path(__file__).parent / "goldens" / "gptqmodel.safetensors"
MODULE = "model.layers.0.mlp.up_proj"


def _read() -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """The tensors of each case, and what config.json says of them."""
    with safe_open(FILE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        cases: dict[str, dict[str, Any]] = json.loads(file.metadata()["cases"])
    return {
        case: (
            {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{case}/")},
            config,
        )
        for case, config in cases.items()
    }


CASES = _read()


def decoded(case: str) -> tuple[Affine, dict[str, Tensor]]:
    """What Corral makes of a case, and the tensors of the case."""
    tensors, config = CASES[case]
    made = {name: t for name, t in tensors.items() if name != "weight"}
    weight = Quantization.read(config).decode(MODULE, made)
    assert isinstance(weight, Affine)
    return weight, made


def test_the_file_has_every_layout() -> None:
    assert len(CASES) == 4 * 4 + 3
    said = [config for _, config in CASES.values() if config["quant_method"] == "gptq"]
    found = {(c["bits"], c["checkpoint_format"], c["sym"], c["desc_act"]) for c in said}
    for bits in (2, 3, 4, 8):
        assert {(bits, "gptq", True, False), (bits, "gptq_v2", True, True)} <= found
        assert {(bits, "gptq", False, True), (bits, "gptq_v2", False, False)} <= found


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_gptqmodel_reads(case: str) -> None:
    weight, _ = decoded(case)
    expected = CASES[case][0]["weight"]
    assert expected.isinf().any()  # some scales are 65504
    assert torch.equal(weight.dequantize(torch.float16), expected)


@pytest.mark.parametrize("case", [case for case in CASES if "gptq" not in case or "symmetric" in case])
def test_tensors_are_those_that_gptqmodel_writes(case: str) -> None:
    weight, made = decoded(case)
    if case.startswith("awq"):
        written = awq.encode(weight)
    else:
        written = gptq.encode(weight, 2 if CASES[case][1]["checkpoint_format"] == "gptq_v2" else 1)
    assert written.keys() == made.keys()
    for name, tensor in made.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name


def test_the_file_tells_both_readings_of_version_1_apart() -> None:
    """GPTQModel's writer takes 1 from whole words: read field by field, other weights would come out."""
    for bits in (2, 4, 8):
        case = f"gptq-{bits}-zeros-activation-order"
        tensors, config = CASES[case]
        made = {name: t for name, t in tensors.items() if name != "weight"}
        other = Quantization.read({**config, "meta": {}}).decode(MODULE, made)
        assert not torch.equal(other.dequantize(torch.float16), tensors["weight"])
