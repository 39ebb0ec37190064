"""A real Prometheus that scrapes a real bus under a small load, and what the dashboards would ask it.

with (
    BusServer(workers=4, env=Traffic.ENV) as server,
    Prometheus("prometheus", server.port) as prometheus,
    Traffic(server),
):
    prometheus.ask("sum(bus_connections)")
"""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from bus.client import Calls, Client
from bus.client import Message as Received
from bus.testing import HOST, LOG_TAIL_CHARACTERS, BusServer, ServerFailed, eventually, free_port
from tests.rawws import RawWebSocket
from tests.sinks import Sink, Visit, answer

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "prometheus"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
JOB = "message-bus"

JOB_TYPE = "job"
"""What webhooks are about."""

TAKES, REFUSES = answer(200), answer(500)
PAUSE_SECONDS = 0.02
"""Between two messages of each part of the traffic."""

CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [{rules}/*.yml]
scrape_configs:
  - job_name: {job}
    static_configs: [{{targets: ["{host}:{port}"]}}]
"""


class Line(NamedTuple):
    """A series of an answer: its labels, and for each moment (seconds since 1970, value); NaN is left out."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


class Prometheus:
    """One Prometheus with the shipped rules, in a folder of its own. It scrapes each second."""

    def __init__(self, program: str, scraped_port: int) -> None:
        """`program`: its path. Nothing is opened before `with`."""
        self._program = program
        self._scraped_port = scraped_port
        self.port = free_port()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="prometheus-test-"))
        configuration = self._folder / "prometheus.yml"
        configuration.write_text(CONFIGURATION.format(rules=RULES, job=JOB, host=HOST, port=self._scraped_port))
        self._log = self._folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={HOST}:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(self._is_ready, within_seconds=20, what="Prometheus")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise ServerFailed(f"Prometheus does not start:\n{self._log.read_text()[-LOG_TAIL_CHARACTERS:]}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    # ---- questions

    def ask(self, expression: str) -> list[Line]:
        """What an expression is now. Raises HTTPError when it is none."""
        return [line for line in self._lines("query", {"query": expression}, "value") if line.points]

    def ask_range(self, expression: str, begin: float, end: float, step_seconds: float) -> list[Line]:
        """What it was from `begin` to `end`, in seconds since 1970."""
        asked = {"query": expression, "start": str(begin), "end": str(end), "step": str(step_seconds)}
        return list(self._lines("query_range", asked, "values"))

    def rules(self) -> list[dict[str, Any]]:
        """All rules, each with its `health`, `lastError` and, of an alert, `state`."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def _lines(self, path: str, asked: Mapping[str, str], key: str) -> Iterator[Line]:
        for found in self._get(path, asked)["result"]:
            points = [found[key]] if key == "value" else found[key]
            values = [(float(at), float(value)) for at, value in points]
            yield Line(found["metric"], [(at, value) for at, value in values if not math.isnan(value)])

    def _get(self, path: str, asked: Mapping[str, str]) -> dict[str, Any]:
        url = f"http://{HOST}:{self.port}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data


# ---- what the dashboards ask


class Query(NamedTuple):
    """One query of a panel."""

    dashboard: str
    panel: str
    legend: str
    expression: str


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard that show something."""
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Every query of every dashboard."""
    return [
        Query(file.stem, panel["title"], target["legendFormat"], target["expr"])
        for file in sorted(DASHBOARDS.glob("*.json"))
        for panel in panels(file)
        for target in panel["targets"]
    ]


def may_be_empty() -> set[tuple[str, str]]:
    """The list of docs/monitoring.md: dashboards and panels."""
    _, _, section = (ROOT / "docs" / "monitoring.md").read_text().partition("### Panels that may be empty")
    return set(re.findall(r"^\| (\w+) \| ([^|]+?) \|", section, re.MULTILINE)) - {("dashboard", "panel")}


def filled_in(expression: str, window: str) -> str:
    """An expression as Grafana would ask it, for all buses, with rates over `window`."""
    variables = {"$job": JOB, "$instance": ".+", "$__rate_interval": window}
    return re.sub(r"\$\w+", lambda match: variables[match[0]], expression)


# ---- a load


class Traffic:
    """A little of everything, about 100 messages a second, until the end of `with`.

    Sends by WebSocket and HTTP, ephemeral ones, reads, a stream, comings and goings, a socket that is not read, a queue
    some of whose items are rejected or given back, webhooks some of whose requests fail, messages that expire and are
    archived, and requests that are refused. `ENV` is what a server needs for that.
    """

    ENV: ClassVar = {"WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8"}

    def __init__(self, server: BusServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._failed: list[Exception] = []
        parts = (
            *(self._talk, self._post, self._queue, self._listen, self._come_and_go, self._err),
            *(self._call_back, self._expire, self._fall_behind),
        )
        self._threads = [threading.Thread(target=self._kept, args=(part,), daemon=True) for part in parts]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=30)
        if self._failed and error is None:
            raise self._failed[0]

    def _kept(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:  # noqa: BLE001  # shown by __exit__, on the thread that asked for the load
            self._failed.append(error)

    def _beats(self, seconds: float = PAUSE_SECONDS) -> Iterator[int]:
        """Numbers from 0, with a pause behind each, until the end."""
        beat = 0
        while not self._over.is_set():
            yield beat
            beat += 1
            self._over.wait(seconds)

    def _talk(self) -> None:
        with Client("talker", self._server.url) as talker, Client("hearer", self._server.url) as hearer:
            hearer.on(None, _nothing)
            talker.on(None, _nothing)
            for beat in self._beats():
                talker.send("hearer", {"beat": beat, "text": "x" * (beat % 50) * 20}, require_ack=beat % 5 == 0)

    def _post(self) -> None:
        for beat in self._beats():
            body = {"from": "poster", "to": "all" if beat % 2 else "hearer", "payload": {"beat": beat}}
            self._server.call("POST", "/api/send", {**body, "ephemeral": beat % 3 == 0})
            if beat % 25 == 0:
                self._server.call("GET", "/api/messages?to=reader&limit=10")

    def _queue(self) -> None:
        worker = Calls("worker", self._server.url)
        for beat in self._beats(0.05):
            self._server.call(
                "POST", "/api/send", {"from": "poster", "to": "queue:work", "type": JOB_TYPE, "payload": beat}
            )
            for item in worker.claim("work", limit=10):
                if beat % 10 == 3:
                    item.reject("no use")
                elif beat % 10 == 5:
                    item.nack(delay=1)
                elif beat % 10 != 7:  # those keep their lease
                    item.ack()

    def _listen(self) -> None:
        with socket.create_connection((HOST, self._server.port), timeout=0.2) as stream:
            stream.sendall(b"GET /stream/events?client_id=streamer HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not self._over.is_set():
                with suppress(TimeoutError):
                    stream.recv(65536)

    def _come_and_go(self) -> None:
        for beat in self._beats(0.2):
            with Client(f"visitor-{beat % 3}", self._server.url, since="latest"):
                pass

    def _err(self) -> None:
        for beat in self._beats(0.2):
            self._server.call("POST", "/api/send", {"from": "poster"})
            once = {"from": "poster", "to": "hearer", "idempotency_key": "once"}
            self._server.call("POST", "/api/send", {**once, "payload": beat})
            self._server.call("GET", "/no/such/path")
            self._server.call("GET", "/stream/events?client_id=all")

    def _call_back(self) -> None:
        with Sink(_moody) as sink, Sink() as chat:
            for url, kind in ((sink.url, "http"), (chat.url, "slack")):
                endpoint = {"url": url, "kind": kind, "events": ["message.sent"], "types": [JOB_TYPE]}
                made = self._server.call("POST", "/api/webhooks", endpoint)
                assert made.status == 200, made
            self._over.wait()

    def _expire(self) -> None:
        policy = {"ttl_seconds": 2, "archive_before_delete": True}
        assert self._server.call("PUT", "/api/ttl/policies/brief", policy).status == 200
        for beat in self._beats(0.1):
            self._server.call("POST", "/api/send", {"from": "poster", "to": "hearer", "type": "brief"})
            if beat % 20 == 0:
                self._server.call("POST", "/api/ttl/sweep")

    def _fall_behind(self) -> None:
        """Be closed for it, and come again."""
        flood = {"messages": [{"from": "poster", "to": "sluggard", "payload": "x" * 10_000}] * 400}
        for _ in self._beats(20):
            with RawWebSocket(self._server.port, "/ws/sluggard?since=latest", receive_buffer_bytes=4096) as socket:
                socket.read_json()
                self._server.call("POST", "/api/send/batch", flood)
                self._over.wait(5)


def _moody(visit: Visit) -> bool | None:
    """Take five of six."""
    return (REFUSES if len(visit.sink.hits) % 6 == 0 else TAKES)(visit)


def _nothing(_: Received) -> None:
    """Handled; it is acked with that."""
