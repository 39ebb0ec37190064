"""The Dockerfile, carried out: its server has no rights and a read-only root, is healthy, and keeps what it was sent."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.testing import eventually
from tests.deploy.image import Builder, Container, Image

pytestmark = pytest.mark.full

MAX_IMAGE_BYTES = 90_000_000
"""What the image adds to its base: 83 MB with PostgreSQL's driver and its libraries, which are 14 MB of it."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with Builder(tmp_path_factory.mktemp("image")) as builder:
        yield builder.build()


@pytest.fixture
def start(image: Image, tmp_path: Path) -> Iterator[Callable[..., Container]]:
    volume = image.volume(tmp_path / "volume")
    started = []

    def run(**env: str) -> Container:
        container = Container(image, volume, tmp_path / "log", env)
        started.append(container)
        return container

    yield run
    for container in started:
        container.close()
    print((tmp_path / "log").read_text()[-4000:])


def test_a_container_serves_stops_and_goes_on_where_it_was(start: Callable[..., Container], tmp_path: Path) -> None:
    first = start()
    eventually(first.is_healthy, within_seconds=30, what="the health check")
    keys = re.findall(r"admin key of this bus, shown this once: (\S+)", (tmp_path / "log").read_text())
    assert len(keys) == 1
    key = {"API_KEY": keys[0]}
    sent = first.call("python", "-m", "bus", "send", "--to", "browser", "kept", env=key)
    assert sent.returncode == 0, sent
    assert first.call("python", "-m", "bus", "send", "--to", "browser", "nobody's").returncode != 0
    assert first.call("mkdir", "--parents", "/data/copies").returncode == 0
    copied = first.call("python", "-m", "bus", "backup", "/data/copies", "--keep", "2")
    assert copied.returncode == 0, copied
    assert first.stop(signal.SIGTERM) == 0

    second = start()
    eventually(second.is_healthy, within_seconds=30, what="the health check")
    log = second.call("python", "-m", "bus", "log", "--json", env=key)
    assert [json.loads(line)["payload"] for line in log.stdout.splitlines()] == ["kept"]
    assert (tmp_path / "log").read_text().count("shown this once") == 1


def test_it_has_no_rights_and_writes_nowhere_but_to_the_volume_and_tmp(start: Callable[..., Container]) -> None:
    container = start(WEB_CONCURRENCY="2")
    eventually(container.is_healthy, within_seconds=30, what="the health check")
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE), "The server is not process 1, whom a stop is told."
    assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)
    assert re.search(r"^Cap(Prm|Eff|Bnd):\t0+$", status, re.MULTILINE)
    assert container.call("touch", "/data/it", "/tmp/it").returncode == 0
    for place in ("/app/it", "/opt/bus/it", "/etc/it", "/usr/local/bin/it"):
        assert "Read-only file system" in container.call("touch", place).stderr


def test_the_health_check_tells_when_nothing_serves(start: Callable[..., Container]) -> None:
    container = start(MESSAGE_BUS_PORT="5002")
    eventually(container.is_healthy, within_seconds=30, what="the health check, which follows the port")
    command = container.image.stage.last("HEALTHCHECK").command
    assert container.call(*command, env={"MESSAGE_BUS_PORT": "5001"}).returncode != 0


def test_it_holds_what_the_server_needs_and_little_more(image: Image) -> None:
    size = int(image.builder.do("du", "--summarize", "--bytes", image.written).split()[0])
    assert size < MAX_IMAGE_BYTES, f"The image adds {size} bytes to its base."
    files = image.builder.do("find", image.written, "-type", "f").decode()
    assert "/app/server_ws.py" in files
    for left_out in ("/app/tests/", "/.env", "/.git", "/pip/", "/requirements.txt", "/data/"):
        assert left_out not in files
    assert "opentelemetry" not in files
    owners = image.builder.do("find", image.written, "-type", "f", "!", "-user", "root").decode()
    assert owners == "", "Its user could change its code."


def test_an_argument_of_the_build_adds_what_tracing_needs(tmp_path: Path) -> None:
    with Builder(tmp_path) as builder:
        image = builder.build(TRACING="yes")
        imported = image.command("python", "-c", "import opentelemetry.sdk, opentelemetry.exporter.otlp.proto.http")
        builder.do("chroot", image.root, *imported)
