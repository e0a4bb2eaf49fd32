"""The Kubernetes manifests, by kubectl, by Kubernetes' own schemas, and by what the server has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from corral.server.settings import ServerSettings
from tests.deploy.conftest import KEY, Deployed, container
from tests.deploy.dockerfile import environment
from tests.deploy.test_images import USER
from tests.deploy.tools import DEPLOY, compose, kustomized, tool

OVERLAYS = ("base", "gpu")
RELEASES = ("1.30", "1.33", "1.37")
TO_SAY_SO = 3  # seconds after the grace time


def _pod(overlay: str) -> dict[str, Any]:
    spec: dict[str, Any] = kustomized(overlay)["StatefulSet"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("release", RELEASES)
def test_manifests_follow_the_schemas_of_kubernetes(overlay: str, release: str, tmp_path: Path) -> None:
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(tool("kubectl", "kustomize", DEPLOY / "kubernetes" / overlay))
    said = tool("kubernetes-validate", "--strict", "--kubernetes-version", release, rendered)
    assert said.count("passed") == len(kustomized(overlay))


def test_every_probe_and_port_exists(deployed: Deployed) -> None:
    server = container()
    (port,) = server["ports"]
    assert port == {"name": "http", "containerPort": ServerSettings.port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked: Any = server[probe]
        assert asked["httpGet"]["port"] == "http"
        assert httpx.get(deployed.base_url + asked["httpGet"]["path"]).status_code == 200
    target = kustomized("base")["Service"]["spec"]["ports"][0]["targetPort"]
    assert target == "http"


def test_the_server_takes_its_arguments_from_the_manifest(deployed: Deployed) -> None:
    models = f"{deployed.base_url}/v1/models"
    assert httpx.get(models).status_code == 401  # the file with keys was read
    assert httpx.get(models, headers={"x-api-key": KEY}).status_code == 200
    assert httpx.get(f"{deployed.base_url}/metrics").status_code == 200  # and metrics are open


def test_what_is_scraped_is_where_the_annotations_say(deployed: Deployed) -> None:
    annotations = kustomized("base")["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ServerSettings.port)
    assert "corral_ready" in httpx.get(deployed.base_url + annotations["prometheus.io/path"]).text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_the_time_that_running_requests_may_take(overlay: str) -> None:
    pod = _pod(overlay)
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert "--grace-seconds" not in " ".join(pod["containers"][0]["args"])
    assert pod["terminationGracePeriodSeconds"] > before + ServerSettings.grace_seconds + TO_SAY_SO


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_allowed_where_the_restricted_standard_holds(overlay: str) -> None:
    pod = _pod(overlay)
    (server,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == USER
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "emptyDir", "secret"}
    assert not any(word in pod for word in ("hostNetwork", "hostPID", "hostIPC"))
    mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
    assert {environment("cpu")["HOME"], "/tmp"} <= mounts  # what is written to


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_parts_of_a_manifest_find_each_other(overlay: str) -> None:
    objects = kustomized(overlay)
    labels = objects["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        objects["Service"]["spec"]["selector"],
        objects["StatefulSet"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert objects["StatefulSet"]["spec"]["serviceName"] == objects["Service"]["metadata"]["name"]
    claims = {claim["metadata"]["name"] for claim in objects["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    pod = _pod(overlay)
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == claims | {volume["name"] for volume in pod["volumes"]}


def test_the_overlay_for_gpus_changes_what_it_must_and_nothing_else() -> None:
    plain, gpu = _pod("base"), _pod("gpu")
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["containers"][0]["args"][1:] == plain["containers"][0]["args"][1:]
    changed = {
        name for name in gpu["containers"][0] if gpu["containers"][0][name] != plain["containers"][0][name]
    }
    assert changed == {"args", "image", "resources"}


def test_compose_and_kubernetes_start_the_same_server(tmp_path: Path) -> None:
    flags = {argument.partition("=")[0] for argument in container()["args"] if argument.startswith("-")}
    command = compose(tmp_path)["services"]["corral"]["command"]
    assert {argument for argument in command if argument.startswith("-")} == flags - {"--log-format"}
