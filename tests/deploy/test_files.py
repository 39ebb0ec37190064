"""Image, compose and monitoring files: well-formed by their schemas, of one mind, and true about the settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bus.settings import ROOT, load
from bus.testing import BusServer, free_port
from tests.conftest import require
from tests.deploy.dockerfile import context, stages
from tests.deploy.files import DEPLOY, OTHERS, SETTINGS, document, environments, yaml_files

COMPOSE = document("docker-compose.yml")
SERVICES = COMPOSE["services"]
FINAL = stages()[-1]
NO_SETTINGS = {
    *("AF_INET", "AF_INET6", "AF_UNIX", "MSG_PEEK", "HTTP_PROXY", "SSL_CERT_DIR", "SSL_CERT_FILE"),
    *("MESSAGE_BUS_URL", "MESSAGE_BUS_API_KEY"),  # of the client and the command line
    *("UPGRADE_GUIDE", "UPGRADE_GUIDE_V1"),  # names of pages
    *("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_HOST_AUTH_METHOD"),  # of PostgreSQL's image
    *("BUS_ATTEMPT", "BUS_CORRELATION_ID", "BUS_FROM", "BUS_MESSAGE_ID", "BUS_QUEUE", "BUS_REDELIVERED"),  # for jobs
    *("BUS_THREAD_ID", "BUS_TIMESTAMP", "BUS_TYPE", "BUS_URL", "NO_COLOR"),
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "GF_ANALYTICS_REPORTING_ENABLED"),
}
"""What pages name in capitals and belongs to somebody else."""


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_can_be_read_and_says_nothing_twice(path: Path) -> None:
    class Strict(yaml.SafeLoader):
        """Refuses a key that stands in a mapping twice, of which the plain one takes the last."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        assert len(keys) == len(set(keys)), f"{path} has a key twice in {keys}."
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert any(each for each in yaml.load_all(path.read_text(), Strict))


# ---- settings


@pytest.mark.parametrize(("path", "given"), environments().items(), ids=list(environments()))
def test_every_variable_is_a_setting_and_its_value_is_good(path: str, given: dict[str, str]) -> None:
    settings = {name: value for name, value in given.items() if name not in OTHERS}
    assert settings.keys() <= SETTINGS, f"{path} sets what is no setting: {settings.keys() - SETTINGS}."
    load({"ENABLE_AUTH": "true", **settings}, env_file=None)  # raises StartRefused


def test_pages_and_comments_name_no_setting_that_is_none() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.yml"), ROOT / "Dockerfile"]
    files += [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix not in (".json", ".py", ".pyc")]
    for path in files:
        named = set(re.findall(r"(?<![\w$.{-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w-])", path.read_text()))
        assert named <= SETTINGS | OTHERS | NO_SETTINGS, (
            f"{path.relative_to(ROOT)} names {named - SETTINGS - OTHERS - NO_SETTINGS}."
        )


def test_what_listens_beyond_this_machine_asks_for_a_key() -> None:
    listening = {path: given for path, given in environments().items() if given.get("MESSAGE_BUS_HOST") == "0.0.0.0"}
    assert len(listening) == 3, listening.keys()
    for path, given in listening.items():
        assert load(given, env_file=None).auth_on, f"{path} opens the bus to the network without a key."


# ---- the image


def test_the_image_is_built_from_hashes_and_runs_without_rights() -> None:
    (install,) = [step.text for stage in stages() for step in stage.steps if " pip " in step.text]
    assert "--require-hashes" in install
    assert "--only-binary :all:" in install
    assert {stage.base for stage in stages()} == {"python:3.11-slim"}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", FINAL.last("USER").text), "A number, so that runAsNonRoot can be checked."
    assert FINAL.last("VOLUME").words == [FINAL.settings()["DATA_DIR"]]
    assert FINAL.last("EXPOSE").text == str(load({}, env_file=None).message_bus_port)


def test_the_builder_is_given_code_and_no_secrets() -> None:
    good = [
        "server_ws.py",
        "bus/bus.py",
        "bus/storage/migrations/0001.sql",
        "extensions/log_cap.py",
        "requirements.txt",
    ]
    bad = [".env", ".git/config", "data/bus.db", "tests/calls.py", "bus/__pycache__/bus.cpython-311.pyc", "bus/testing.py",
           ".venv/bin/python", "docs/make_settings.py", "requirements-dev.txt", "deploy/kubernetes/secret.yaml"]  # fmt: skip
    assert context(good + bad) == good


def test_the_health_check_asks_the_server(server: BusServer) -> None:
    (*_, command) = FINAL.last("HEALTHCHECK").command
    command = command.replace("python", sys.executable, 1)

    def ask(port: int) -> int:
        shell = ["/bin/sh", "-c", command]
        return subprocess.run(shell, cwd=ROOT, env={"MESSAGE_BUS_PORT": str(port)}, capture_output=True).returncode

    assert ask(server.port) == 0
    assert ask(free_port()) != 0


def test_the_health_check_has_the_documented_numbers_and_no_program_that_the_image_lacks() -> None:
    check = FINAL.last("HEALTHCHECK")
    assert check.options == {"interval": "30s", "timeout": "3s", "start-period": "5s", "retries": "3"}
    assert "curl" not in (ROOT / "Dockerfile").read_text() + (ROOT / "docker-compose.yml").read_text()


# ---- compose


def test_compose_keeps_its_schema() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_has_the_documented_services_on_the_documented_ports() -> None:
    published = {name: port.rsplit(":", 2)[-2:] for name, service in SERVICES.items() for port in service["ports"]}
    assert published == {"message-bus": ["5001"] * 2, "prometheus": ["9090"] * 2, "grafana": ["3000"] * 2}
    beyond = [name for name, service in SERVICES.items() if not service["ports"][0].startswith("127.0.0.1:")]
    assert beyond == ["message-bus"], "Only what asks for a key is reached from beyond this machine."


def test_compose_mounts_what_exists_and_declares_its_volumes() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service["volumes"]]
    for source, *_ in mounts:
        if source.startswith("./"):
            assert (ROOT / source).exists(), f"docker-compose.yml mounts {source}, which is missing."
        else:
            assert source in COMPOSE["volumes"]


def test_compose_runs_the_bus_on_a_root_that_is_read_only() -> None:
    bus = SERVICES["message-bus"]
    assert bus["read_only"] is True
    assert bus["cap_drop"] == ["ALL"]
    assert [mount.split(":")[0] for mount in bus["tmpfs"]] == ["/tmp"]
    assert [mount.split(":")[1] for mount in bus["volumes"]] == FINAL.last("VOLUME").words


def test_images_are_of_a_named_version() -> None:
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), (
                f"{name} runs whatever {service['image']} is today."
            )


# ---- monitoring


def test_prometheus_scrapes_the_bus_of_compose() -> None:
    (job,) = document("prometheus.yml")["scrape_configs"]
    ((target,),) = [each["targets"] for each in job["static_configs"]]
    name, port = target.split(":")
    assert SERVICES[name]["environment"]["MESSAGE_BUS_PORT"] == port
    assert job["metrics_path"] == "/metrics"


def test_prometheus_finds_its_rules_where_compose_mounts_them() -> None:
    (pattern,) = document("prometheus.yml")["rule_files"]
    folder = pattern.rpartition("/")[0]
    assert f"./{folder}:/etc/prometheus/{folder}:ro" in SERVICES["prometheus"]["volumes"]


@pytest.mark.full
def test_promtool_takes_the_configuration() -> None:
    check = [require("promtool"), "check", "config", "prometheus.yml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    (source,) = document("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    name, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = document("deploy/grafana/provisioning/dashboards/message-bus.yml")["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    dashboards = [path.read_text() for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")]
    named = {uid for text in dashboards for uid in re.findall(r'"type": ?"prometheus",\s*"uid": ?"([^"]*)"', text)}
    assert named <= {source["uid"], "${datasource}"}


# ---- the page


def test_the_page_names_files_that_exist_and_leaves_none_out() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    named = set(re.findall(r"\bdeploy/[\w/.-]*\w", page))
    for name in named:
        assert (ROOT / name).exists(), f"docs/deployment.md names {name}, which is missing."
    for folder in DEPLOY.iterdir():
        assert any(name.startswith(f"deploy/{folder.name}") for name in named), (
            f"docs/deployment.md is silent on {folder}."
        )
