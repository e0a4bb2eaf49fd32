"""Perplexity of the default model on the native kernels, beside its 4-bit weights in float32 on PyTorch.

    python benchmarks/native_accuracy.py [--tokens 60000]

The text is the documentation that Python carries. Both sides predict the same tokens, so that what
they differ by is far surer than the perplexities themselves; its standard error is given too.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.kernels.perplexity import negative_log_likelihoods

MODES: dict[str, dict[str, object]] = {
    "8-bit activations": {"kernels": "native"},
    "bfloat16 activations": {"kernels": "native", "exact_activations": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=60_000)
    tokens = parser.parse_args().tokens
    reference = negative_log_likelihoods(tokens, dtype="float32", kernels="torch")
    print(f"{len(reference)} tokens predicted\n\n| | perplexity | difference |\n| --- | ---: | ---: |")
    print(f"| float32 | {reference.mean().exp():.4f} | |", flush=True)
    for name, options in MODES.items():
        got = negative_log_likelihoods(tokens, **options)
        change = got - reference
        error = change.std() / math.sqrt(len(change))
        print(f"| {name} | {got.mean().exp():.4f} | {change.mean().expm1():+.3%} ± {error:.3%} |", flush=True)


if __name__ == "__main__":
    main()
