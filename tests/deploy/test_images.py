"""The Dockerfile and compose.yaml, by their linters and by what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import corral
from corral.server.settings import ServerSettings
from tests.deploy.conftest import Deployed
from tests.deploy.dockerfile import entrypoint, environment, health_check, last, stages
from tests.deploy.tools import DEPLOY, ROOT, compose, read_yaml, tool
from tests.server.processes import free_port

IMAGES = ("cpu", "cuda")
USER = 10001


def test_hadolint_finds_nothing() -> None:
    tool("hadolint", ROOT / "Dockerfile")


def _check_health(url: str) -> int:
    words = health_check("cpu")
    env = {**os.environ, "CORRAL_HEALTH_URL": url, "http_proxy": "http://127.0.0.1:9"}  # a proxy is not asked
    return subprocess.run([sys.executable, *words[1:]], env=env, capture_output=True, timeout=30).returncode


def test_the_health_check_tells_a_server_from_none(deployed: Deployed) -> None:
    assert _check_health(f"{deployed.base_url}/health") == 0
    assert _check_health(f"http://127.0.0.1:{free_port()}/health") != 0


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_the_server_as_nobody_in_particular(image: str) -> None:
    assert entrypoint(image)[:2] == ["corral", "serve"]
    assert last(image, "USER") == f"{USER}:{USER}"
    assert last(image, "STOPSIGNAL") == "SIGTERM"
    assert last(image, "EXPOSE") == str(ServerSettings.port)
    assert environment(image)["CORRAL_HEALTH_URL"] == f"http://127.0.0.1:{ServerSettings.port}/health"
    cached = ["HOME", "CORRAL_CACHE", "HF_HOME", *(["TRITON_CACHE_DIR"] if image == "cuda" else [])]
    assert all(Path(environment(image)[name]).is_relative_to("/cache") for name in cached)


def test_every_base_image_has_an_exact_tag() -> None:
    for name, instructions in stages().items():
        if name:
            assert "${PYTHON}" in instructions[0][1]
    python = dict(word.split("=") for instruction, word in stages()[""] if instruction == "ARG")["PYTHON"]
    assert len(python.split(".")) == 3
    for path in (ROOT / "compose.yaml", DEPLOY / "kubernetes" / "base" / "kustomization.yaml"):
        assert "latest" not in path.read_text()


def test_versions_are_the_package_s() -> None:
    version = corral.__version__
    assert f'org.opencontainers.image.version="{version}"' in last("cpu", "LABEL")
    services = read_yaml((ROOT / "compose.yaml").read_text())["services"]
    assert services["corral"]["image"] == f"corral:{version}-cpu"
    assert services["corral-gpu"]["image"] == f"corral:{version}-cuda"
    for overlay, image in (("base", "cpu"), ("gpu", "cuda")):
        file = read_yaml((DEPLOY / "kubernetes" / overlay / "kustomization.yaml").read_text())
        assert file["images"][0]["newTag"] == f"{version}-{image}"


def _dependencies(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY / "dependencies.py"), str(ROOT / "pyproject.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_the_layer_of_packages_has_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = next(rest for word, rest in stages()["packages"] if word == "ARG" and rest.startswith("EXTRAS="))
    named = extras.partition("=")[2]
    done = _dependencies(named)
    assert done.returncode == 0, done.stderr
    optional = [line for extra in named.split(",") for line in project["optional-dependencies"][extra]]
    assert done.stdout.splitlines() == [*project["dependencies"], *optional]


def test_an_extra_that_is_none_is_named() -> None:
    done = _dependencies("otel,nonsense")
    assert done.returncode == 1
    assert "no extra 'nonsense'" in done.stderr


def test_docker_compose_reads_compose_yaml(tmp_path: Path) -> None:
    assert set(compose(tmp_path)["services"]) == {"corral"}
    assert set(compose(tmp_path, "monitoring")["services"]) == {"corral", "prometheus", "grafana"}
    assert "corral-gpu" in compose(tmp_path, "gpu")["services"]


def test_services_of_compose_yaml_are_locked_down(tmp_path: Path) -> None:
    for name, service in compose(tmp_path, "gpu", "monitoring")["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}, name
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or (volume["read_only"] and Path(volume["source"]).is_dir()), (
                name
            )


def test_compose_stops_a_server_after_its_grace_time(tmp_path: Path) -> None:
    for name in ("corral", "corral-gpu"):
        service = compose(tmp_path, "gpu")["services"][name]
        assert int(service["stop_grace_period"].removesuffix("s")) > ServerSettings.grace_seconds + 3
        assert "/cache" in {volume["target"] for volume in service["volumes"]}


def test_the_builder_sees_what_the_dockerfile_copies_and_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for instructions in stages().values()
        for word, rest in instructions
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)
