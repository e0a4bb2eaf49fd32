"""The README tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from corral.cli.main import run

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8000"
README = (ROOT / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LIBRARY = [code for code in EXAMPLES if ADDRESS not in code]


def test_the_python_example_runs(smollm2_path: Path) -> None:
    (code,) = LIBRARY
    assert smollm2_path.is_file()  # the default model is there, so that the example needs no network
    # This part is greedy; what is sampled differs between machines.
    assert "Paris" in output_of([sys.executable, "-c", code])


def output_of(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"corral ([a-z]+)", README)) - {"import"}))
def test_every_verb_that_is_named_exists(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out


def test_every_file_and_folder_that_is_named_exists() -> None:
    (tree,) = re.findall(r"```\n(src/corral/.*?)```", README, re.DOTALL)
    inside = [line.split()[0] for line in tree.splitlines() if line.startswith("  ")]
    outside = [line.split()[0] for line in tree.splitlines() if not line.startswith(" ")]
    for name in [*(f"src/corral/{name}" for name in inside), *outside]:
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z]+)", README))))
def test_every_make_target_that_is_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
