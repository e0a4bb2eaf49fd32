"""The default model on the native kernels, beside its 4-bit weights in float32 on PyTorch.

    python benchmarks/native_accuracy.py [--tokens 60000]

The text is the documentation that Python carries. Both sides predict the same tokens, so that what
they differ by is far surer than the perplexities themselves; its standard error is given too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from corral.evals.compare import compare
from corral.evals.scorer import ModelSetup
from corral.evals.windows import WindowOptions
from corral.model.presets import DEFAULT_MODEL
from tests.kernels.perplexity import TEXT, WINDOW


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=60_000)
    options = WindowOptions(WINDOW, tokens=parser.parse_args().tokens)
    reference = ModelSetup(DEFAULT_MODEL, dtype="float32", kernels="torch")
    print("| activations | perplexity | in float32 | difference | KL divergence | top-1 agreement |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for name, exact in (("8-bit", False), ("bfloat16", True)):
        native = ModelSetup(DEFAULT_MODEL, kernels="native", exact_activations=exact)
        found = compare(reference, native, [TEXT], options)
        ours, theirs = found.candidate.perplexity.mean, found.reference.perplexity.mean
        ratio, kl, same = found.perplexity_ratio, found.divergence.mean.mean, found.top1_agreement.mean
        change = f"{ratio.mean - 1:+.3%} ± {ratio.standard_error or 0:.3%}"
        print(f"| {name} | {ours:.4f} | {theirs:.4f} | {change} | {kl:.6f} | {same:.2%} |", flush=True)


if __name__ == "__main__":
    main()
