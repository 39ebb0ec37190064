"""The manifests: valid by Kubernetes' own schemas, alone and as kustomize puts them together, with the documented probes."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bus import __version__
from bus.settings import ROOT, load
from tests.deploy.dockerfile import stages
from tests.deploy.files import KUBERNETES, documents

VERSIONS = ["1.27", "1.34"]
"""What the manifests are valid for: an old one, and one that is served now."""
OVERLAYS = sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))
MANIFESTS = [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name != "kustomization.yaml"]
PATCHES = {
    folder / patch["path"]
    for folder in OVERLAYS
    for patch in documents(folder / "kustomization.yaml")[0].get("patches", ())
}


def only(kind: str, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """The one manifest of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


BASE = [manifest for path in sorted((KUBERNETES / "base").glob("*.yaml")) for manifest in documents(path)]
POD = only("Deployment", BASE)["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def rendered(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder. Debian's kubectl is older than what the files need, so none may be installed."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: what kustomize makes of the manifests is not looked at.")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def validate(manifest: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)  # raises ValidationError


@pytest.mark.parametrize(
    "path", [p for p in MANIFESTS if p not in PATCHES], ids=lambda p: str(p.relative_to(KUBERNETES))
)
def test_a_manifest_is_valid(path: Path) -> None:
    for manifest in documents(path):
        validate(manifest)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_what_kustomize_puts_together_is_valid(folder: Path) -> None:
    made = rendered(folder)
    for manifest in made:
        validate(manifest)
    spec = only("Deployment", made)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == f"multi-agent-bridge:{__version__}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    claims = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
    made_claims = [manifest["metadata"]["name"] for manifest in made if manifest["kind"] == "PersistentVolumeClaim"]
    assert [claim["claimName"] for claim in claims] == made_claims
    load({variable["name"]: variable["value"] for variable in container["env"]}, env_file=None)  # raises StartRefused


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_each_file_is_part_of_something(folder: Path) -> None:
    (kustomization,) = documents(folder / "kustomization.yaml")
    named = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", ()))}
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {name for name in named if not name.startswith("..")}


def test_the_base_names_this_version() -> None:
    ((image,),) = [each["images"] for each in documents(KUBERNETES / "base" / "kustomization.yaml")]
    assert image == {"name": "multi-agent-bridge", "newTag": __version__}


@pytest.mark.parametrize(
    ("probe", "path", "numbers"),
    [
        ("livenessProbe", "/health/live", {"initialDelaySeconds": 10, "periodSeconds": 30}),
        ("readinessProbe", "/health/ready", {"initialDelaySeconds": 5, "periodSeconds": 10}),
        ("startupProbe", "/health/startup", {"failureThreshold": 30, "periodSeconds": 10}),
    ],
)
def test_the_probes_have_the_documented_numbers(probe: str, path: str, numbers: dict[str, int]) -> None:
    given = CONTAINER[probe]
    assert given["httpGet"] == {"path": path, "port": "http"}
    assert given.items() >= numbers.items()
    assert given["timeoutSeconds"] < given["periodSeconds"]


def test_one_pod_owns_the_log_and_is_replaced() -> None:
    spec = only("Deployment", BASE)["spec"]
    assert spec["replicas"] == 1, "Pods of several nodes can't share the log."
    assert spec["strategy"] == {"type": "Recreate"}, "A rolled one would wait for the disk that the old one holds."
    assert only("PersistentVolumeClaim", BASE)["spec"]["accessModes"] == ["ReadWriteOnce"]
    budget = only("PodDisruptionBudget", BASE)["spec"]
    assert budget["maxUnavailable"] == 1, "Less, with one pod, would keep every node from being drained."


def test_a_pod_that_leaves_has_the_time_to_do_so() -> None:
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    patience = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["graceful_timeout"]
    assert POD["terminationGracePeriodSeconds"] >= pause + patience + 5


def test_the_pod_is_as_restricted_as_the_image_allows() -> None:
    user, group = stages()[-1].last("USER").text.split(":")
    assert (
        POD["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": int(user), "fsGroup": int(group)}.items()
    )
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in CONTAINER["volumeMounts"]} == {"/data", "/tmp"}
    assert POD["automountServiceAccountToken"] is False


def test_the_service_does_not_shadow_the_port_setting() -> None:
    """A Service `message-bus` puts MESSAGE_BUS_PORT=tcp://10.0.0.7:5001 into each pod that doesn't refuse it."""
    assert only("Service", BASE)["metadata"]["name"] == "message-bus"
    assert POD["enableServiceLinks"] is False


def test_what_selects_the_pod_finds_it() -> None:
    labels = only("Deployment", BASE)["spec"]["template"]["metadata"]["labels"].items()
    assert labels >= only("Service", BASE)["spec"]["selector"].items()
    assert labels >= only("PodDisruptionBudget", BASE)["spec"]["selector"]["matchLabels"].items()
    assert labels >= only("NetworkPolicy", BASE)["spec"]["podSelector"]["matchLabels"].items()
    ports = {port["name"] for port in CONTAINER["ports"]}
    assert {port["targetPort"] for port in only("Service", BASE)["spec"]["ports"]} == ports
    assert {port["port"] for rule in only("NetworkPolicy", BASE)["spec"]["ingress"] for port in rule["ports"]} == ports
