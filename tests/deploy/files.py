"""The files that an operator starts, as data: what each says, and which settings it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from bus.settings import ROOT, Settings
from tests.deploy.dockerfile import stages

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SETTINGS = {name.upper() for name in Settings.__struct_fields__}
OTHERS = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
"""Environment variables that are not the bus's."""


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def document(path: str) -> dict[str, Any]:
    """The one YAML document of a file of the project."""
    (found,) = documents(ROOT / path)
    return found


def yaml_files() -> list[Path]:
    """Every YAML file that is shipped for operators."""
    return [
        *sorted(ROOT.glob("*.yml")),
        *sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".yml", ".yaml")),
    ]


def unit(path: Path = DEPLOY / "systemd" / "message-bus.service") -> dict[str, list[str]]:
    """A systemd unit: every value of each key, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def of_the_unit() -> dict[str, str]:
    """What the systemd unit sets in the environment."""
    return dict(pair.split("=", 1) for line in unit()["Environment"] for pair in shlex.split(line))


def of_compose() -> dict[str, str]:
    """What docker-compose.yml sets in the bus's environment."""
    return dict(document("docker-compose.yml")["services"]["message-bus"]["environment"])


def of_kubernetes(file: Path) -> dict[str, str]:
    """What a manifest sets in the bus's environment, secrets included."""
    found: dict[str, str] = {}
    for each in documents(file):
        found |= each.get("stringData", {})
        pod = each.get("spec", {}).get("template", {}).get("spec", {})
        found |= {
            variable["name"]: variable["value"] for c in pod.get("containers", ()) for variable in c.get("env", ())
        }
    return found


def environments() -> dict[str, dict[str, str]]:
    """What each file sets in the bus's environment, by file."""
    manifests = {str(file.relative_to(ROOT)): of_kubernetes(file) for file in sorted(KUBERNETES.rglob("*.yaml"))}
    return {
        "Dockerfile": stages()[-1].settings(),
        "docker-compose.yml": of_compose(),
        "deploy/systemd/message-bus.service": of_the_unit(),
    } | {name: found for name, found in manifests.items() if found}
