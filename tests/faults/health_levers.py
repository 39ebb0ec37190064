"""Breaks one thing of a bus at a time, and has its health look often. For tests; loaded through BUS_EXTENSIONS.

`PUT /levers/<name>` breaks it, `DELETE` mends it: `disk` has too little room, `fan_out` reaches nobody, `check` is one of
somebody's own that hangs, `crash` one that raises, `optional` one that fails and is not critical. `GET /levers` counts what
requests have asked of the store, and what all of the process did.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, has_request_context, request

from bus.bus import Bus
from bus.health import canary
from bus.health.checks import HealthCheck
from bus.transports import health
from bus.transports.edge import json_answer
from bus.worker import Worker

ROUND_SECONDS = 0.1
SOON = {"disk_alarm", "health_beat", "canary", "health_checks"}


class Levers:
    """What is broken, and what was asked."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.broken: set[str] = set()
        self.by_requests = self.by_all = 0
        self.freed = threading.Event()
        self.deliver = None

    def pull(self, name: str) -> Response:
        if request.method == "PUT":
            self.broken.add(name)
            self.freed.clear()
        else:
            self.broken.discard(name)
            self.freed.set()
        if name == "disk":
            self.bus.vitals.disk._least_bytes = 10**18 if name in self.broken else 0
        if name == "fan_out":
            deliver = type(self.bus.hub).deliver.__get__(self.bus.hub)
            self.bus.hub.deliver = (lambda messages: None) if name in self.broken else deliver  # type: ignore[method-assign]
        return json_answer({})

    def counts(self) -> Response:
        return json_answer({"by_requests": self.by_requests, "by_all": self.by_all, "total": self._messages()})

    def _messages(self) -> int:
        return int(self.bus.read(lambda reader: reader.head()).total)

    def counted(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any) -> Any:
            self.by_all += 1
            self.by_requests += has_request_context() and not request.path.startswith("/levers")
            return submit(*args)

        return count

    def begin(self, _: object) -> None:
        for pool in (self.bus.readers, self.bus.writer):
            pool.submit = self.counted(pool.submit)  # type: ignore[method-assign]

    # ---- checks of somebody's own

    def hangs(self) -> tuple[bool, str]:
        if "check" in self.broken:
            self.freed.wait()
        return True, "It does not hang."

    def crashes(self) -> tuple[bool, str]:
        if "crash" in self.broken:
            raise RuntimeError("a secret that no stranger may see")
        return True, "It does not crash."

    def optional(self) -> tuple[bool, str]:
        return "optional" not in self.broken, "Webhooks, say."

    def liveness(self) -> tuple[bool, str]:
        return "liveness" not in self.broken, "Somebody's own idea of life."


def register(app: Flask, bus: Bus) -> None:
    """Have levers at hand, and short rounds."""
    levers = Levers(bus)
    app.extensions["health_levers"] = levers
    app.add_url_rule("/levers/<name>", view_func=levers.pull, methods=["PUT", "DELETE"])
    app.add_url_rule("/levers", view_func=levers.counts)
    bus.on(health.BusStarted, levers.begin)
    manager = app.extensions["health_checks"]
    manager.add_readiness_check(HealthCheck("hangs", levers.hangs, timeout=0.2))
    manager.add_readiness_check(HealthCheck("crashes", levers.crashes))
    manager.add_readiness_check(HealthCheck("optional", levers.optional, critical=False))
    manager.add_liveness_check(HealthCheck("liveness", levers.liveness))
    manager.board.interval_seconds = ROUND_SECONDS
    for worker in bus.workers:
        if isinstance(worker, Worker) and worker.name in SOON:
            worker.interval_seconds = ROUND_SECONDS
    canary.QUIET_SECONDS, canary.DEADLINE_SECONDS, canary.STALE_SECONDS = 0.1, 0.5, 1.0
    health.UNWRITTEN_SECONDS, health.SILENT_SECONDS = 1.0, 1.0
