"""Event streams through nginx as it comes: at once, kept open by heartbeats, ended at both ends, resumed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.testing import BusServer, eventually, free_port
from tests.calls import call, send
from tests.conftest import require
from tests.event_source import Ended, EventSource

pytestmark = pytest.mark.full

READ_TIMEOUT_SECONDS = 3
"""How long the proxy bears a silent answer: three heartbeats of tests.faults.quick_streams."""

CONFIGURATION = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{bus_port};
            proxy_read_timeout {timeout}s;
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""


class Proxied:
    """What `EventSource` and `call` want to know of a server: here, of the proxy in front of it."""

    def __init__(self, port: int) -> None:
        self.port = port


@pytest.fixture
def bus() -> Iterator[BusServer]:
    with BusServer(workers=2, env={"BUS_EXTENSIONS": "tests.faults.quick_streams"}) as running:
        yield running


@pytest.fixture
def proxy(bus: BusServer, tmp_path: Path) -> Iterator[Proxied]:
    nginx = require("nginx")
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    user = "user root;" if os.getuid() == 0 else ""
    configuration.write_text(
        CONFIGURATION.format(user=user, folder=tmp_path, port=port, bus_port=bus.port, timeout=READ_TIMEOUT_SECONDS)
    )
    process = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: answers(port), what="nginx")
        yield Proxied(port)
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    try:
        EventSource(Proxied(port), path="/health").close()  # type: ignore[arg-type]
    except OSError:
        return False
    return True


def opened(proxy: Proxied, query: str, headers: dict[str, str] | None = None) -> EventSource:
    source = EventSource(proxy, query, headers, version="1.0")  # type: ignore[arg-type]  # 1.0: the proxy sends no chunks
    assert source.status == 200
    source.read_until("connected")
    return source


def test_events_pass_at_once_and_silence_does_not_end_a_stream(bus: BusServer, proxy: Proxied) -> None:
    with opened(proxy, "client_id=behind") as source:
        for number in range(3):
            send(bus, "behind", number)
            assert source.read().payload == number
        for _ in range(2 * READ_TIMEOUT_SECONDS):
            assert source.read_comment() == "heartbeat"
        send(bus, "behind", "still there")
        assert source.read().payload == "still there"


def test_who_leaves_the_proxy_leaves_the_bus(bus: BusServer, proxy: Proxied) -> None:
    with opened(proxy, "client_id=leaving"):
        eventually(lambda: call(bus, "GET", "/api/clients/leaving")["online"], what="the stream on the bus")
    eventually(lambda: not call(bus, "GET", "/api/clients/leaving")["online"], what="its end")


def test_through_a_restart_behind_the_proxy_nothing_is_missed(bus: BusServer, proxy: Proxied) -> None:
    got = []
    with opened(proxy, "client_id=through") as source:
        send(bus, "through", 0)
        got.append(source.read().payload)
        bus.restart()
        with pytest.raises(Ended):
            source.read_until("never")
        last = source.id
    for number in (1, 2, 3):
        send(bus, "through", number)
    with opened(proxy, "client_id=through", {"Last-Event-ID": last}) as source:
        got += source.payloads(3)
    assert got == [0, 1, 2, 3]
