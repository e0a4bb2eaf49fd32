"""The model files that peers run, each made once, from the same weights, and kept in the cache."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf

from corral.checkpoints.cache import require_space
from corral.checkpoints.hf_writer import export_hf
from corral.checkpoints.resolve import resolve
from corral.checkpoints.snapshot import weights_in
from corral.checkpoints.source import open_model
from corral.devices import parse_dtype
from corral.model.presets import DEFAULT_MODEL

from .environment import Environment, SetupError, peers_folder
from .random_gguf import write_random

_GB = 10**9


@dataclass(frozen=True)
class Recipe:
    """How a model file or folder is made.

    Attributes:
        make: writes it at a path; `environment` is that of the peer named by `by`, where there is one.
        name: of the file or folder.
        by: the peer whose tools make it.
        size: bytes that it takes, roughly.
    """

    name: str
    make: Callable[[Path, Environment | None], None]
    by: str | None = None
    size: int = _GB


def default_gguf() -> Path:
    """The file of Corral's default model."""
    return weights_in(resolve(DEFAULT_MODEL))


def weights_read(path: Path) -> int:
    """Bytes of a GGUF file that a decoding step reads: all weights, but single rows of the embedding.

    An embedding that is also the head is read as the head.
    """
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def make(kind: str, environments: dict[str, Environment]) -> Path:
    """The model of a kind; made where it is missing. It appears whole or not at all.

    Raises:
        SetupError: it cannot be made here.
    """
    if kind == "gguf":
        return default_gguf()
    recipe = RECIPES[kind]
    path = peers_folder() / "models" / recipe.name
    if path.exists():
        return path
    if recipe.by is not None and recipe.by not in environments:
        raise SetupError(f"{kind} is made by {recipe.by}, which is not here")
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, recipe.size, kind)
    print(f"making {path}", flush=True)
    begun = time.perf_counter()
    partial = path.with_name(f"partial-{path.name}")
    _remove(partial)
    try:
        recipe.make(partial, environments[recipe.by] if recipe.by else None)
        partial.rename(path)
    finally:
        _remove(partial)
    print(f"made in {time.perf_counter() - begun:.0f} s", flush=True)
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _hf(out: Path, _: Environment | None) -> None:
    export_hf(open_model(DEFAULT_MODEL), out, parse_dtype("bfloat16"))


_QUANTIZE = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


def _q4_0(out: Path, environment: Environment | None) -> None:
    _run(environment, "-c", _QUANTIZE, str(default_gguf()), str(out))


def _openvino_int4(out: Path, environment: Environment | None) -> None:
    # 64 divides the model's 576 columns; 128, the usual group, does not.
    options = ["--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", "64"]
    hf = str(make("hf", {}))
    _run(
        environment, "-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", hf, *options, str(out)
    )


def _onnx_int4(out: Path, environment: Environment | None) -> None:
    hf = str(make("hf", {}))
    options = ["-p", "int4", "-e", "cpu", "-c", str(out) + ".cache"]
    extra = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
    _run(environment, "-m", "onnxruntime_genai.models.builder", "-i", hf, "-o", str(out), *options, *extra)


def _run(environment: Environment | None, *arguments: str) -> None:
    assert environment is not None
    done = subprocess.run([environment.python, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise SetupError(f"{environment.peer.name} does not make the model: {lines[-1][:200]}")


RECIPES = {
    "hf": Recipe("smollm2-135m-instruct-bf16", _hf),
    "gguf-q4_0": Recipe("SmolLM2-135M-Instruct.Q4_0.gguf", _q4_0, by="llama.cpp"),
    "openvino-int4": Recipe("smollm2-135m-instruct-openvino-int4", _openvino_int4, by="openvino"),
    "onnx-int4": Recipe("smollm2-135m-instruct-onnx-int4", _onnx_int4, by="onnxruntime"),
    "8b-q4_0": Recipe("random-llama-3.1-8b.Q4_0.gguf", lambda out, _: write_random(out), size=5 * _GB),
}
