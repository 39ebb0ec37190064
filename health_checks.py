"""Health: live, ready, started, and the whole status, for Kubernetes, proxies, scripts and people.

`HealthCheckManager` works alone on any Flask app, with checks of your own. Registered on a bus, it judges the bus: its event
loop, its store, its disk, its connections, its neighbours, and a canary that it sends through itself.

    health = HealthCheckManager(app)
    health.add_readiness_check(HealthCheck(name="database", check_func=CommonChecks.database_check(connection)))

Probes read what a background round found last; they do no I/O, and no check can hang one. Run this file to see it work.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Response, request
from msgspec import UNSET, UnsetType

from bus import __version__
from bus.auth import Headers
from bus.events import BusStarted
from bus.health import report
from bus.health.checks import Board, HealthCheck, Outcome, worst
from bus.health.common import CommonChecks, ConnectionsCheck
from bus.health.machine import Machine
from bus.health.report import Info, Probe, Status, System
from bus.identity.caller import Right
from bus.message import iso, now_us
from bus.protocol import encode
from bus.transports.health import INTERVAL_SECONDS, BusHealth, Sight
from bus.transports.openapi import Operation

if TYPE_CHECKING:
    from bus.bus import Bus

__all__ = ["CommonChecks", "HealthCheck", "HealthCheckManager"]

log = logging.getLogger("health_checks")

LIVENESS, READINESS, STARTUP = KINDS = ("liveness", "readiness", "startup")


class HealthCheckManager:
    """Checks by kind, and the answers made of them. Any thread, and any greenlet where gevent has patched `threading`.

    Alone, rounds begin with the first probe, in a thread; on a bus they belong to its workers.
    """

    def __init__(
        self, app: Flask | None = None, *, interval_seconds: float = INTERVAL_SECONDS, show_errors: bool = False
    ) -> None:
        """`interval_seconds`: between two rounds. `show_errors`: whether answers hold the texts of exceptions."""
        self.service = "" if app is None else app.name
        self.board = Board(interval_seconds, self._after_round, own_rounds=True)
        self.system: System | UnsetType = UNSET
        self._sight = Sight.ERRORS if show_errors else Sight.CHECKS
        self._began = time.monotonic()
        self._has_started = False
        self.last_status = "healthy"
        self._machine: Machine | None = None
        self._bus: BusHealth | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve the paths on an app."""
        self.service = app.name
        app.register_blueprint(create_health_blueprint(self))

    def judge(self, bus: BusHealth) -> None:
        """Have the bus make the rounds, and tell of itself, from now on."""
        self._bus = bus
        self.board.own_rounds = False

    # ---- the documented verbs

    def add_liveness_check(self, check: HealthCheck) -> None:
        """Restart the process when this fails. Raises ValueError when the name is taken, as the others do."""
        self._add(LIVENESS, check)

    def add_readiness_check(self, check: HealthCheck) -> None:
        """Send the process no more work while this fails."""
        self._add(READINESS, check)

    def add_startup_check(self, check: HealthCheck) -> None:
        """Wait with everything else until this has succeeded once."""
        self._add(STARTUP, check)

    def is_live(self) -> bool:
        """What `/health/live` says."""
        return self._status_of(LIVENESS, self.board.outcomes(LIVENESS)) != "unhealthy"

    def is_ready(self) -> bool:
        """What `/health/ready` says."""
        return self._status_of(READINESS, self.board.outcomes(READINESS)) != "unhealthy"

    def is_started(self) -> bool:
        """What `/health/startup` says."""
        return self._status_of(STARTUP, self.board.outcomes(STARTUP)) != "unhealthy"

    def get_status(self) -> dict[str, Any]:
        """What `/health/status` says to an insider."""
        decoded: dict[str, Any] = json.loads(encode(self.status(Sight.ERRORS)))
        return decoded

    def refresh(self) -> None:
        """Make a round now: every check is run once, for at most its timeout."""
        self.board.refresh()

    def stop(self) -> None:
        """Make no more rounds."""
        self.board.stop()

    # ---- answers

    def sight(self, headers: Headers) -> Sight:
        """What the caller of a request with these headers may see."""
        return self._sight if self._bus is None else self._bus.sight(headers)

    def probe(self, kind: str, sight: Sight) -> Probe:
        """The answer to a probe."""
        outcomes = self.board.outcomes(kind)
        status = self._status_of(kind, outcomes)
        if sight == Sight.STATUS:
            return Probe(status)
        return Probe(status, report.states(outcomes, errors=sight == Sight.ERRORS, brief=True))

    def status(self, sight: Sight) -> Status:
        """Everything that there is to say."""
        by_kind = {kind: self.board.outcomes(kind) for kind in KINDS}
        found = {kind: self._status_of(kind, outcomes) for kind, outcomes in by_kind.items()}
        outcomes = list({each.name: each for kind in KINDS for each in by_kind[kind]}.values())
        overall = next((status for status in ("unhealthy", "degraded") if status in found.values()), "healthy")
        if sight == Sight.STATUS:
            return Status(overall)
        told = Status(
            status=overall,
            overall_status=overall,
            timestamp=_now(),
            service=self.service,
            uptime_seconds=self._uptime(),
            checks=report.states(outcomes, errors=sight == Sight.ERRORS, brief=False),
            total_checks=len(outcomes),
            healthy_checks=sum(each.status == "healthy" for each in outcomes),
            critical_issues=report.issues(outcomes),
            liveness=found[LIVENESS],
            readiness=found[READINESS],
            startup=found[STARTUP],
            system=self.system,
        )
        if self._bus is not None:
            self._bus.tell(told)
        return told

    def info(self, sight: Sight) -> Info:
        """What runs here."""
        overall = self.status(Sight.STATUS).status
        if sight == Sight.STATUS:
            return Info(overall)
        version = UNSET if self._bus is None else __version__
        return Info(overall, self.service, version, platform.python_version(), self._uptime(), _now(), self.system)

    # ---- below

    def _add(self, kind: str, check: HealthCheck) -> None:
        function = check.check_func
        if self._bus is not None and isinstance(function, ConnectionsCheck) and function.count is None:
            function.count = self._bus.connections
        self.board.add(kind, check)

    def _status_of(self, kind: str, outcomes: list[Outcome]) -> str:
        if kind == LIVENESS:  # nobody is killed for what is not known yet
            return worst(each for each in outcomes if each.healthy is not None)
        if kind == STARTUP:
            if self._has_started:
                return "healthy"
            status = worst(outcomes)
            self._has_started = status != "unhealthy"
            return status
        return worst(outcomes)

    def _uptime(self) -> float:
        return round(time.monotonic() - self._began, 1)

    def _after_round(self) -> None:
        self._machine = self._machine or Machine()
        disk = _working_disk() if self._bus is None else self._bus.disk()
        loop = UNSET if self._bus is None else self._bus.event_loop()
        self.system = System(self._machine.cpu(), self._machine.memory(), disk, loop)
        status = self.status(Sight.STATUS).status
        if status != self.last_status:
            self.last_status = status
            say = log.info if status == "healthy" else log.warning
            results = {each.name: each.status for each in self.board.outcomes(*KINDS) if each.status != "healthy"}
            extra = {"action": "health", "overall_status": status, "check_results": results}
            say("Health is %s", status, extra=extra)


def _working_disk() -> report.Disk:
    """The disk of the working folder, for a manager without a bus: nothing is refused there."""
    used = shutil.disk_usage(".")
    return report.Disk(used.free, used.total, round(100 * (1 - used.free / used.total), 1), 0, alarm=False)


def _now() -> str:
    return iso(now_us()).decode()


# ---- the endpoints


class Views:
    """The paths of a manager: all four vocabularies are these five answers."""

    def __init__(self, manager: HealthCheckManager) -> None:
        self._manager = manager

    def plain(self) -> Response:
        return _answer(self._manager.probe(LIVENESS, Sight.STATUS))

    def live(self) -> Response:
        return self._probe(LIVENESS)

    def ready(self) -> Response:
        return self._probe(READINESS)

    def startup(self) -> Response:
        return self._probe(STARTUP)

    def status(self) -> Response:
        return _answer(self._manager.status(self._manager.sight(request.headers)))

    def info(self) -> Response:
        answer = _answer(self._manager.info(self._manager.sight(request.headers)))
        answer.status_code = 200
        return answer

    def _probe(self, kind: str) -> Response:
        return _answer(self._manager.probe(kind, self._manager.sight(request.headers)))

    def quick(self) -> dict[str, Callable[[Headers], tuple[int, bytes]]]:
        """The probes as plain functions, by their paths: the same answers without Flask."""

        def live(_: Headers) -> tuple[int, bytes]:
            return _told(self._manager.probe(LIVENESS, Sight.STATUS))

        def of(kind: str) -> Callable[[Headers], tuple[int, bytes]]:
            return lambda headers: _told(self._manager.probe(kind, self._manager.sight(headers)))

        kinds = {"live": LIVENESS, "ready": READINESS, "startup": STARTUP}
        probes = {f"/health/{name}": of(kind) for name, kind in kinds.items()}
        return probes | {"/health": live, "/ready": probes["/health/ready"]}


def _told(body: Probe) -> tuple[int, bytes]:
    return _code(body), encode(body)


def _code(body: Probe | Status | Info) -> int:
    return 503 if body.status == "unhealthy" else 200


def _answer(body: Probe | Status | Info) -> Response:
    """503 when it is unhealthy; in the form that the caller prefers."""
    status = _code(body)
    headers = {"Cache-Control": "no-store"}
    if request.accept_mimetypes.best_match(["application/json", report.MEDIA]) == report.MEDIA:
        return Response(encode(report.health_json(body)), status, headers, content_type=report.MEDIA)
    return Response(encode(body), status, headers, content_type="application/json")


def _operations(views: Views) -> list[Operation]:
    both = (200, 503)
    operation = partial(Operation, "GET", statuses=both, right=Right.OPEN)
    return [
        operation("/health/live", views.live, "Restart the process? 503: yes.", Probe),
        operation("/health/ready", views.ready, "Send it work? 503: no.", Probe),
        operation("/ready", views.ready, "The same as /health/ready.", Probe, name="plain_ready"),
        operation("/health/startup", views.startup, "Is it initialised? 503: not yet.", Probe),
        operation("/health/status", views.status, "Everything about its health.", Status),
        operation("/health/detailed", views.status, "The same as /health/status.", Status, name="detailed"),
        Operation("GET", "/health/info", views.info, "What runs here.", Info, right=Right.OPEN),
    ]


def create_health_blueprint(manager: HealthCheckManager, *, plain: bool = True) -> Blueprint:
    """The paths, for any Flask app; without `plain`, all but `/health`."""
    blueprint = Blueprint("health_checks", __name__)
    views = Views(manager)
    for each in _operations(views):
        blueprint.add_url_rule(each.path, each.name or each.view.__name__, each.view, methods=["GET"])
    if plain:
        blueprint.add_url_rule("/health", "plain", views.plain, methods=["GET"])
    return blueprint


def example() -> None:
    """Serve a manager on a free loopback port, with one check that hangs, and show what the probes say."""
    from threading import Event, Thread  # noqa: PLC0415  # for this example only

    from werkzeug.serving import make_server  # noqa: PLC0415

    app = Flask("example")
    health = HealthCheckManager(app, interval_seconds=1)
    health.add_liveness_check(HealthCheck("application_state", lambda: (True, "Application responsive")))
    health.add_readiness_check(HealthCheck("disk", CommonChecks.file_system_check(".", min_free_gb=0.001)))
    health.add_readiness_check(HealthCheck("hangs", lambda: (Event().wait(), ""), critical=False, timeout=0.2))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    for path in ("/health/live", "/health/ready", "/health/startup", "/health/status"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=10) as answer:  # nosec B310
                print(answer.status, path, json.dumps(json.load(answer), indent=2))
        except urllib.error.HTTPError as refused:
            print(refused.code, path, refused.read().decode())
    server.shutdown()
    health.stop()


def register(app: Flask, bus: Bus) -> None:
    """Judge the bus, and serve the paths. `/health` of REST becomes one of them."""
    manager = HealthCheckManager()
    health = BusHealth(bus, manager)
    manager.service = "multi-agent-bridge"
    manager.judge(health)
    health.watch()
    bus.on(BusStarted, health.begin, wait=True)
    for probe, passes in (("live", manager.is_live), ("ready", manager.is_ready), ("startup", manager.is_started)):
        bus.metrics.read("bus_health_check_up", passes, probe)
    for worker in health.workers():
        bus.add_worker(worker)
    views = Views(manager)
    app.config.setdefault("OPERATIONS", []).extend(_operations(views))
    app.config.setdefault("PROBES", {}).update(views.quick())
    plain = "rest.health" in app.view_functions
    if plain:
        app.view_functions["rest.health"] = views.plain
    app.register_blueprint(create_health_blueprint(manager, plain=not plain))
    app.extensions["health_checks"] = manager


if __name__ == "__main__":
    example()
