"""The README tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from corral.cli.main import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(smollm2_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert smollm2_path.is_file()  # the default model is there, so that the example needs no network
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout  # greedy; what is sampled differs between machines


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
