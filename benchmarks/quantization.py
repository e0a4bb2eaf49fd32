"""What each way to quantize the default model costs, and what it gives: one text, one harness.

    python benchmarks/quantization.py [--folder DIR] [--samples 64] [--tokens 20000] [--rounds 3]

Half of the documentation that Python carries is for calibration, the other half for evaluation. Perplexity
and divergence are those of the weights: activations stay in bfloat16. Decoding has the usual 8-bit ones. What
is made is kept in DIR, and made once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from corral.bench.run import Setup, run_bench
from corral.bench.workload import Workload
from corral.checkpoints.cache import cache_folder
from corral.checkpoints.hf_writer import export_hf
from corral.checkpoints.source import open_model
from corral.devices import parse_dtype
from corral.evals.compare import ComparisonResult, compare
from corral.evals.scorer import ModelSetup
from corral.evals.windows import WindowOptions
from corral.model.presets import DEFAULT_MODEL

_CT = ["--format", "compressed-tensors"]
_GROUPS = ("32", "64")
ROWS: dict[str, list[str]] = {
    "FP8, a scale to each row": ["--method", "fp8"],
    "FP8, Meta's preset": ["--method", "fp8", "--preset", "meta", "--format", "fbgemm_fp8"],
    "int8 (W8A8)": ["--method", "rtn", "--bits", "8", "--int8-activations"],
    **{f"W4 g{g}, rtn": ["--method", "rtn", "--group-size", g] for g in _GROUPS},
    **{f"W4 g{g}, rtn, zero points": ["--method", "rtn", "--group-size", g, "--asymmetric"] for g in _GROUPS},
    **{f"W4 g{g}, awq, zero points": ["--method", "awq", "--group-size", g, *_CT] for g in _GROUPS},
    **{f"W4 g{g}, gptq": ["--method", "gptq", "--group-size", g, *_CT] for g in _GROUPS},
    "W4 g32, gptq, zero points": ["--method", "gptq", "--group-size", "32", "--asymmetric", *_CT],
    "NF4 g64 (bitsandbytes)": ["--method", "rtn", "--format", "bitsandbytes"],
    "GGUF Q4_0, gptq": ["--method", "gptq", "--format", "gguf"],
}
TEXT_NEEDED = ("awq", "gptq")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=cache_folder() / "quantized")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    models = make(chosen.folder, chosen.samples)
    evaluation = "\n\n".join(topics[name] for name in sorted(topics)[1::2])
    costs = {
        name: cost(models["bfloat16"], model, evaluation, chosen.tokens) for name, model in models.items()
    }
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(chosen.rounds):
        for name, model in models.items():
            speeds[name].append(decode_speed(model))
    print("| weights | size | perplexity | change | KL divergence | top-1 | decode |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, model in models.items():
        found = costs[name]
        ratio = found.perplexity_ratio
        change = f"{ratio.mean - 1:+.2%} ± {ratio.standard_error or 0:.2%}"
        kl, same = found.divergence.mean.mean, found.top1_agreement.mean
        print(
            f"| {name} | {size_of(model) / 1e6:.0f} MB | {found.candidate.perplexity.mean:.3f} | {change} "
            f"| {kl:.4f} | {same:.1%} | {statistics.median(speeds[name]):.0f} tok/s |"
        )


def make(folder: Path, samples: int) -> dict[str, Path]:
    """The models of all rows, by name."""
    plain = folder / "bfloat16"
    if not plain.exists():
        export_hf(open_model(DEFAULT_MODEL), plain, parse_dtype("bfloat16"))
    text = folder / "calibration.txt"
    text.write_text("\n\n".join(topics[name] for name in sorted(topics)[::2]), encoding="utf-8")
    models = {"bfloat16": plain}
    q8_0 = folder / "q8_0.gguf"
    if not q8_0.exists():
        _corral("export", str(plain), "--to", "gguf", "--type", "q8_0", str(q8_0))
    for name, options in ROWS.items():
        out = folder / "".join(c if c.isalnum() else "-" for c in name.lower())
        out = out.with_suffix(".gguf") if "gguf" in options else out
        models[name] = out
        if out.exists():
            continue
        more = ["--calibration", str(text), "--samples", str(samples)] if options[1] in TEXT_NEEDED else []
        _corral("quantize", str(plain), str(out), *options, *more)
    models["GGUF Q8_0"] = q8_0
    return models


def cost(reference: Path, model: Path, text: str, tokens: int) -> ComparisonResult:
    """What a model has lost."""
    setups = [ModelSetup(path, exact_activations=True) for path in (reference, model)]
    return compare(*setups, [text], WindowOptions(1024, tokens=tokens))


def decode_speed(model: Path) -> float:
    """Tokens per second of one request."""
    options: dict[str, Any] = {"max_num_seqs": 1}
    setup = Setup(str(model), "auto", "auto", False, "auto", options)
    return float(run_bench(setup, Workload(512, 128, 1, 1, 0)).to_dict()["decode_tok_s"])


def size_of(model: Path) -> int:
    """Bytes of the weights."""
    if model.is_file():
        return model.stat().st_size
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def _corral(*arguments: str) -> None:
    print(json.dumps(arguments), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "corral", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
