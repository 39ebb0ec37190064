"""The shipped proxy examples at work: streams at once and for long, sockets, a drain, what is kept from the public."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from bus.settings import ROOT
from bus.testing import HOST, BusServer, eventually
from tests.calls import call, inbox, payloads, send
from tests.event_source import Ended
from tests.integration.proxies import PROXIES, READ_TIMEOUT_SECONDS, Proxy, in_front_of

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def bus() -> Iterator[BusServer]:
    with BusServer(workers=2, env={"BUS_EXTENSIONS": "tests.faults.quick_streams"}) as running:
        yield running


@pytest.fixture(scope="module", params=list(PROXIES))
def proxy(bus: BusServer, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with in_front_of(bus, request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def nginx(bus: BusServer, tmp_path: Path) -> Iterator[Proxy]:
    with in_front_of(bus, "nginx", tmp_path) as running:
        yield running


def test_events_pass_at_once_and_silence_does_not_end_a_stream(bus: BusServer, proxy: Proxy) -> None:
    name = f"behind-{proxy.port}"
    with proxy.stream(f"client_id={name}") as source:
        for number in range(3):
            send(bus, name, number)
            assert source.read().payload == number
        for _ in range(2 * READ_TIMEOUT_SECONDS):
            assert source.read_comment() == "heartbeat"
        send(bus, name, "still there")
        assert source.read().payload == "still there"


def test_who_leaves_the_proxy_leaves_the_bus(bus: BusServer, proxy: Proxy) -> None:
    name = f"leaving-{proxy.port}"
    with proxy.stream(f"client_id={name}"):
        eventually(lambda: call(bus, "GET", f"/api/clients/{name}")["online"], what="the stream on the bus")
    eventually(lambda: not call(bus, "GET", f"/api/clients/{name}")["online"], what="its end")


def test_through_a_restart_behind_the_proxy_no_event_is_missed(bus: BusServer, proxy: Proxy) -> None:
    got, name = [], f"through-{proxy.port}"
    with proxy.stream(f"client_id={name}") as source:
        send(bus, name, 0)
        got.append(source.read().payload)
        bus.restart()
        with pytest.raises(Ended):
            source.read_until("never")
        last = source.id
    for number in (1, 2, 3):
        send(bus, name, number)
    with proxy.stream(f"client_id={name}", {"Last-Event-ID": last}) as source:
        got += source.payloads(3)
    assert got == [0, 1, 2, 3]


def test_a_socket_is_upgraded_and_speaks_both_ways(bus: BusServer, proxy: Proxy) -> None:
    name = f"socket-{proxy.port}"
    with proxy.socket(f"/ws/{name}") as socket:
        assert socket.is_open
        socket.read_until("connection_confirmed")
        send(bus, name, "in")
        assert socket.read_until("message")["message"]["payload"] == "in"
        socket.send_json({"type": "send", "to": f"{name}-out", "payload": "out", "ref": 1})
        socket.read_until("sent")
        assert payloads(inbox(bus, f"{name}-out")["messages"]) == ["out"]


def test_a_socket_is_told_of_a_restart_and_misses_nothing(bus: BusServer, proxy: Proxy) -> None:
    name = f"drained-{proxy.port}"
    with proxy.socket(f"/ws/{name}") as socket:
        epoch = socket.read_until("connection_confirmed")["epoch"]
        send(bus, name, 0)
        first = socket.read_until("message")["message"]
        bus.restart()
        socket.read_until("goaway")
        assert socket.read_close().close_code == 1012
    send(bus, name, 1)
    with proxy.socket(f"/ws/{name}?since={epoch}:{first['seq']}") as socket:
        assert socket.read_until("message")["message"]["payload"] == 1


def test_only_pages_of_the_own_host_may_open_sockets(proxy: Proxy) -> None:
    with proxy.socket("/ws/page", {"Origin": f"https://{HOST}:{proxy.port}"}) as socket:
        assert socket.is_open
    with proxy.socket("/ws/page", {"Origin": "https://elsewhere.example"}) as socket:
        assert socket.status == 403


def test_a_batch_as_large_as_the_bus_takes_passes_and_no_larger_one(bus: BusServer, proxy: Proxy) -> None:
    name = f"large-{proxy.port}"
    messages = [{"from": "giver", "to": name, "payload": "x" * 1_040_000} for _ in range(16)]
    answer = proxy.call("POST", "/api/send/batch", json.dumps({"messages": messages}).encode())
    assert answer.status == 200, answer
    assert len(inbox(bus, name, limit=1)["messages"]) == 1
    with suppress(OSError):  # the proxy may hang up before it has all
        assert proxy.call("POST", "/api/send/batch", b"x" * (17 << 20)).status == 413


def test_metrics_are_kept_from_the_public(proxy: Proxy) -> None:
    answer = proxy.call("GET", "/metrics")
    assert answer.status == 404
    assert "request_id" not in answer.body, "The bus was asked."


def test_plain_http_is_sent_to_tls(nginx: Proxy) -> None:
    connection = HTTPConnection(HOST, nginx.plain_port, timeout=10)
    connection.request("POST", "/api/send?x=1", headers={"Host": "bus.example.com"})
    answer = connection.getresponse()
    connection.close()
    assert (answer.status, answer.headers["Location"]) == (308, "https://bus.example.com/api/send?x=1")


def test_sockets_outlive_a_reload_of_nginx(bus: BusServer, nginx: Proxy) -> None:
    with nginx.socket("/ws/reloaded") as socket:
        socket.read_until("connection_confirmed")
        before = nginx.workers()
        nginx.reload()
        eventually(lambda: nginx.workers() - before, what="new processes")
        send(bus, "reloaded", "still there")
        assert socket.read_until("message")["message"]["payload"] == "still there"


@pytest.mark.parametrize("example", ["deploy/nginx/message-bus.conf", "deploy/caddy/Caddyfile"])
def test_the_proxy_lets_go_of_an_idle_connection_before_the_bus_does(example: str) -> None:
    (kept,) = re.findall(r"keepalive(?:_timeout)? (\d+)s", (ROOT / example).read_text())
    assert int(kept) < runpy.run_path(str(ROOT / "gunicorn.conf.py"))["keepalive"]
