"""Restarts that nobody notices: two servers of one log behind nginx, restarted in turn, and a reload of one."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from bus.testing import BusServer, eventually, free_port
from tests.conftest import require
from tests.follower import Returner

pytestmark = [pytest.mark.full, pytest.mark.one_node("two servers of one folder")]

NOTICE = {"DRAIN_NOTICE_SECONDS": "2", "DRAIN_SPREAD_SECONDS": "1"}
CONFIGURATION = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
worker_shutdown_timeout 5s;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream bus {{ {servers} keepalive 16; }}
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://bus;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


class Balancer:
    """nginx before several servers: it sends work to those that are ready, as a controller of Kubernetes' would have it."""

    def __init__(self, folder: Path, servers: list[BusServer]) -> None:
        self.port = free_port()
        self._folder = folder
        self._servers = servers
        self._ports = [server.port for server in servers]
        self._over = threading.Event()
        self._write(self._ports)

    @contextmanager
    def running(self) -> Iterator[None]:
        command = [require("nginx"), "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        watcher = threading.Thread(target=self._watch, args=(process.pid,))
        try:
            eventually(lambda: answers(self.port), what="nginx")
            watcher.start()
            yield
        finally:
            self._over.set()
            if watcher.ident is not None:
                watcher.join()
            process.terminate()
            process.wait(10)

    def _watch(self, pid: int) -> None:
        known = self._ports
        while not self._over.wait(0.05):
            ready = [port for port in self._ports if answers(port, "/health/ready")]
            if ready and ready != known:
                known = ready
                self._write(ready)
                os.kill(pid, signal.SIGHUP)

    def _write(self, ports: list[int]) -> None:
        servers = " ".join(f"server 127.0.0.1:{port};" for port in ports)
        user = "user root;" if os.getuid() == 0 else ""
        text = CONFIGURATION.format(user=user, folder=self._folder, port=self.port, servers=servers)
        (self._folder / "nginx.conf").write_text(text)


def answers(port: int, path: str = "/health") -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


class Producers:
    """Threads that send one message after the other. `failed` is what was not answered with 200.

    Each brings its own connection: one that is kept may be closed by nginx, when it reads its configuration anew, in the
    very moment in which it is used.
    """

    def __init__(self, port: int) -> None:
        self.sent: dict[str, list[int]] = {}
        self.failed: list[object] = []
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._produce, args=(f"producer-{n}",)) for n in range(4)]

    def __enter__(self) -> Producers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def count(self) -> int:
        return sum(map(len, self.sent.values()))

    def _produce(self, name: str) -> None:
        mine = self.sent.setdefault(name, [])
        while not self._over.wait(0.002):
            number = len(mine)
            body = f'{{"from": "{name}", "to": "all", "payload": {number}}}'
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.request("POST", "/api/send", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                continue
            finally:
                connection.close()
            if answer.status != 200:
                self.failed.append((answer.status, text))
            else:
                mine.append(number)


def went_on(producers: Producers) -> None:
    """Some more messages were taken."""
    before = producers.count()
    eventually(lambda: producers.count() > before + 100, what="a hundred more messages")


def check_all_came(followers: list[Returner], producers: Producers) -> None:
    for follower in followers:
        for name, numbers in producers.sent.items():

            def got(follower: Returner = follower, name: str = name) -> list[int]:
                return [m["payload"] for m in follower.first_deliveries() if m["from"] == name]

            eventually(
                lambda got=got, numbers=numbers: len(got()) >= len(numbers), what=f"{follower.client} to catch up"
            )
            assert got() == numbers


@pytest.mark.parametrize("workers", [1, 4])
def test_servers_of_one_log_restart_in_turn_behind_a_proxy_and_nothing_fails_or_is_lost(
    fresh_server: Callable[..., BusServer], tmp_path: Path, workers: int
) -> None:
    data = tmp_path / "data"
    first = fresh_server(data_dir=data, env=NOTICE, workers=workers)
    second = fresh_server(data_dir=data, env=NOTICE)
    balancer = Balancer(tmp_path, [first, second])
    with balancer.running(), ExitStack() as clients:
        followers = [clients.enter_context(Returner(balancer.port, f"client-{n}")) for n in range(6)]
        for follower in followers:
            follower.wait_for_life()
        with Producers(balancer.port) as producers:
            for server in (first, second):
                went_on(producers)
                assert server.terminate() == 0
                went_on(producers)
                server.workers = 1  # the others of the log count, too
                server.start()
                eventually(lambda server=server: answers(server.port, "/health/ready"), what="readiness")
            went_on(producers)
        assert producers.failed == []
        check_all_came(followers, producers)
        assert any(len(follower.lives) > 1 for follower in followers)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_reload_fails_no_send(fresh_server: Callable[..., BusServer], workers: int) -> None:
    server = fresh_server(env=NOTICE, workers=workers)
    old = set(server.worker_pids())
    with Returner(server.port, "client") as follower:
        follower.wait_for_life()
        with Producers(server.port) as producers:
            went_on(producers)
            os.kill(server.pid, signal.SIGHUP)
            eventually(lambda: not old & set(server.worker_pids()), within_seconds=20, what="new workers")
            went_on(producers)
        assert producers.failed == []
        check_all_came([follower], producers)
    assert "Worker graceful timeout" not in server.log
