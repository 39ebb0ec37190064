"""A small kubelet: it probes a server by the numbers of a manifest, and says when it would restart it, or send it work.

Its seconds can be shorter than ours, but for the one that a probe may take.
"""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass
from typing import Self

from bus.testing import HOST


@dataclass(frozen=True)
class HttpGet:
    """A probe of a manifest, with Kubernetes' defaults."""

    path: str
    initial_delay_seconds: float = 0
    period_seconds: float = 10
    timeout_seconds: float = 1
    failure_threshold: int = 3
    success_threshold: int = 1


@dataclass(frozen=True)
class Manifest:
    """The probes of a container."""

    liveness: HttpGet
    readiness: HttpGet
    startup: HttpGet | None = None


class Kubelet:
    """Probes until it is closed. `restarts` counts how often it would have restarted the container, `is_ready` is what the
    endpoints are made of, `statuses` every answer of each probe, 0 for none."""

    def __init__(self, port: int, manifest: Manifest, *, second: float) -> None:
        """`second`: how many of our seconds one of the manifest's lasts."""
        self._port = port
        self._manifest = manifest
        self._second = second
        self._over = threading.Event()
        self.has_started = threading.Event()
        self.is_ready = False
        self.restarts = 0
        self.statuses: dict[str, list[int]] = {}
        self._threads = [
            threading.Thread(target=self._watch, args=("liveness", manifest.liveness), daemon=True),
            threading.Thread(target=self._watch, args=("readiness", manifest.readiness), daemon=True),
        ]
        if manifest.startup is None:
            self.has_started.set()
        else:
            self._threads.append(threading.Thread(target=self._watch, args=("startup", manifest.startup), daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.has_started.set()
        for thread in self._threads:
            thread.join(10)

    def _watch(self, kind: str, probe: HttpGet) -> None:
        answers = self.statuses[kind] = []
        if kind != "startup":
            self.has_started.wait()
        in_a_row = {True: 0, False: 0}
        self._over.wait(probe.initial_delay_seconds * self._second)
        while not self._over.is_set():
            began = time.monotonic()
            answers.append(self._ask(probe))
            good = 200 <= answers[-1] < 400
            in_a_row = {good: in_a_row[good] + 1, not good: 0}
            if good and in_a_row[True] >= probe.success_threshold:
                self._succeeded(kind)
            elif not good and in_a_row[False] >= probe.failure_threshold:
                self._failed(kind)
                in_a_row[False] = 0
            if kind == "startup" and self.has_started.is_set():
                return
            self._over.wait(max(began + probe.period_seconds * self._second - time.monotonic(), 0.0))

    def _succeeded(self, kind: str) -> None:
        if kind == "startup":
            self.has_started.set()
        elif kind == "readiness":
            self.is_ready = True

    def _failed(self, kind: str) -> None:
        if kind == "readiness":
            self.is_ready = False
        else:
            self.restarts += 1

    def _ask(self, probe: HttpGet) -> int:
        """The status; 0 when there is no answer in time."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=probe.timeout_seconds)
        try:
            connection.request(
                "GET", probe.path, headers={"Host": f"10.1.2.3:{self._port}", "User-Agent": "kube-probe"}
            )
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
