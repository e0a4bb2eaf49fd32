"""How much memory `corral quantize` takes, beside a model's size in bfloat16.

    python benchmarks/quantize_memory.py [--method gptq] [--layers 16] [--samples 128] [--length 512]

The model has the shape of Llama 3.2 1B and random weights. The peak is that of the whole process, with
PyTorch itself, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.model.presets import PRESETS
from tests.checkpoints.writers import CHATML
from tests.text.vocabularies import chatml_tokenizer_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    chosen = parser.parse_args()
    whole = PRESETS["llama-3.2-1b"].config
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        write_random(source, replace(whole, num_hidden_layers=chosen.layers))
        text = Path(folder) / "text.txt"
        text.write_text("".join(f"{i} hello world; {i * i}. " for i in range(chosen.samples * 200)))
        command = [sys.executable, "-m", "corral", "quantize", str(source), f"{folder}/out"]
        command += ["--method", chosen.method]
        if chosen.method in ("awq", "gptq"):
            command += ["--calibration", str(text), "--samples", str(chosen.samples)]
            command += ["--length", str(chosen.length)]
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begun
        written = sum(file.stat().st_size for file in Path(folder, "out").iterdir())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = 2 * whole.num_parameters
    print("| method | layers | windows | bfloat16, 16 layers | peak | ratio | written | time |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    windows = f"{chosen.samples} x {chosen.length}" if chosen.method in ("awq", "gptq") else "none"
    print(
        f"| {chosen.method} | {chosen.layers} | {windows} | {size / 1e9:.2f} GB | {peak / 1e9:.2f} GB "
        f"| {peak / size:.2f} | {written / 1e9:.2f} GB | {seconds:,.0f} s |"
    )


def write_random(folder: Path, config: LlamaConfig) -> None:
    """A folder of a model with random weights in bfloat16, a file for each layer, with a tokenizer."""
    folder.mkdir()
    fields = {**config.to_hf(), "bos_token_id": None, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer.json").write_text(_tokenizer(config.vocab_size), encoding="utf-8")
    side = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(side))
    shapes = {name: tensor.shape for name, tensor in Llama.on_meta(config).state_dict().items()}
    shapes.pop("lm_head.weight", None)
    generator = torch.Generator().manual_seed(0)
    files: dict[str, list[str]] = {}
    for name in shapes:
        files.setdefault(".".join(name.split(".")[:3]), []).append(name)
    weight_map = {}
    for part, names in files.items():
        tensors = {}
        for name in names:
            noise = torch.empty(shapes[name], dtype=torch.bfloat16).normal_(generator=generator)
            tensors[name] = 1 + 0.1 * noise if "norm" in name else noise * shapes[name][-1] ** -0.5
        save_file(tensors, folder / f"{part}.safetensors", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, f"{part}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _tokenizer(size: int) -> str:
    """A small tokenizer with as many tokens as the embedding has rows; no text leads to those added."""
    fields = json.loads(chatml_tokenizer_json())
    vocabulary = fields["model"]["vocab"]
    first = 1 + max(*vocabulary.values(), *(token["id"] for token in fields["added_tokens"]))
    vocabulary.update({f"unused token {i}": i for i in range(first, size)})
    return json.dumps(fields)


if __name__ == "__main__":
    main()
