"""What is told of health: the bodies of the answers, in the form of the manual and as `application/health+json`.

The second is the form of draft-inadarei-api-health-check: pass, warn, fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from bus.health.checks import Outcome
from bus.health.machine import Cpu, Memory
from bus.message import iso

WORDS = {"healthy": "pass", "degraded": "warn", "unhealthy": "fail"}
MEDIA = "application/health+json"


class CheckState(msgspec.Struct):
    """A check: healthy, degraded (it is not critical) or unhealthy. `error`, an exception's text, is for insiders."""

    status: str
    message: str
    response_time_ms: float
    critical: bool | UnsetType = UNSET
    timestamp: str | UnsetType = UNSET
    error: str | UnsetType = UNSET


class Probe(msgspec.Struct):
    """The answer to a probe. Strangers get the status alone."""

    status: str
    checks: dict[str, CheckState] | UnsetType = UNSET


class Disk(msgspec.Struct, frozen=True):
    """The disk of the log. Below `alarm_below_bytes` free, sends are refused: then `alarm` is true."""

    free_bytes: int
    total_bytes: int
    used_percent: float
    alarm_below_bytes: int
    alarm: bool


class EventLoop(msgspec.Struct, frozen=True):
    """How late the loop's timer was, last and at most in the last minute."""

    lag_ms: float
    max_lag_ms: float


class System(msgspec.Struct, frozen=True):
    """Figures for people and alerts: no probe looks at them."""

    cpu: Cpu
    memory: Memory
    disk: Disk
    event_loop: EventLoop | UnsetType = UNSET


class Canary(msgspec.Struct, frozen=True):
    """The message that the process sends through itself: how long it took, and how long ago it arrived."""

    latency_ms: float | None
    age_seconds: float
    problem: str


class WorkerState(msgspec.Struct, frozen=True):
    """A worker process by its slot: what it said last of itself, and how long ago. `this`: the one that answers."""

    worker: int
    status: str
    age_seconds: float
    this: bool


class Load(msgspec.Struct, frozen=True):
    """Connections of this worker and how many it may have; messages that wait for their commit; seconds since the last."""

    connections: int
    max_connections: int
    uncommitted: int
    last_commit_seconds: float


class Durability(msgspec.Struct, frozen=True):
    """What an acknowledged send survives."""

    setting: str
    store: str
    survives: str


class Process(msgspec.Struct, frozen=True):
    """What a bus tells of itself beyond its checks. `schema`: the last migration, by owner."""

    load: Load
    durability: Durability
    canary: Canary
    schema: dict[str, int]
    workers: list[WorkerState]


class Status(msgspec.Struct):
    """Everything. `status` is `overall_status`; `load`, `canary` and the figures are of the worker that answers."""

    status: str
    overall_status: str | UnsetType = UNSET
    timestamp: str | UnsetType = UNSET
    service: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    uptime_seconds: float | UnsetType = UNSET
    checks: dict[str, CheckState] | UnsetType = UNSET
    total_checks: int | UnsetType = UNSET
    healthy_checks: int | UnsetType = UNSET
    critical_issues: list[str] | UnsetType = UNSET
    liveness: str | UnsetType = UNSET
    readiness: str | UnsetType = UNSET
    startup: str | UnsetType = UNSET
    system: System | UnsetType = UNSET
    load: Load | UnsetType = UNSET
    durability: Durability | UnsetType = UNSET
    canary: Canary | UnsetType = UNSET
    schema: dict[str, int] | UnsetType = UNSET
    workers: list[WorkerState] | UnsetType = UNSET


class Info(msgspec.Struct):
    """What runs here."""

    status: str
    service: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    python: str | UnsetType = UNSET
    uptime_seconds: float | UnsetType = UNSET
    timestamp: str | UnsetType = UNSET
    system: System | UnsetType = UNSET


def states(outcomes: Sequence[Outcome], *, errors: bool, brief: bool) -> dict[str, CheckState]:
    """Outcomes by name; `brief` leaves out what a probe need not carry, `errors` shows exceptions' texts."""
    return {
        each.name: CheckState(
            each.status,
            each.message,
            round(each.seconds * 1000, 2),
            UNSET if brief else each.critical,
            UNSET if brief else iso(each.at_us).decode(),
            each.error if errors and each.error is not None else UNSET,
        )
        for each in outcomes
    }


def issues(outcomes: Sequence[Outcome]) -> list[str]:
    """What makes the whole unhealthy."""
    return [f"{each.name}: {each.message}" for each in outcomes if each.status == "unhealthy"]


def health_json(body: Probe | Status | Info) -> dict[str, Any]:
    """A body in the form of the draft."""
    told: dict[str, Any] = {"status": WORDS[body.status]}
    if not isinstance(body, Probe) and body.service is not UNSET:
        told |= {"version": "1", "serviceId": body.service, "description": f"health of {body.service}"}
        told |= {} if body.version is UNSET else {"releaseId": body.version}
    checks: dict[str, list[dict[str, Any]]] = {}
    if not isinstance(body, Info) and body.checks is not UNSET:
        checks = {name: [_check(state)] for name, state in body.checks.items()}
    if isinstance(body, Status):
        checks |= _figures(body)
        if body.durability is not UNSET:
            told["notes"] = [f"durability {body.durability.setting}: survives {body.durability.survives}"]
    return told | ({"checks": checks} if checks else {})


def _check(state: CheckState) -> dict[str, Any]:
    told: dict[str, Any] = {
        "status": WORDS[state.status],
        "componentType": "component",
        "observedValue": state.response_time_ms,
        "observedUnit": "ms",
    }
    if state.timestamp is not UNSET:
        told["time"] = state.timestamp
    if state.status != "healthy":
        told["output"] = state.message if state.error is UNSET else f"{state.message} {state.error}"
    return told


def _figures(body: Status) -> dict[str, list[dict[str, Any]]]:
    found: list[tuple[str, object, str]] = []
    if (system := body.system) is not UNSET:
        found += [
            ("cpu:utilization", system.cpu.machine_percent, "percent"),
            ("memory:utilization", system.memory.percent, "percent"),
            ("disk:free", system.disk.free_bytes, "bytes"),
        ]
        if system.event_loop is not UNSET:
            found.append(("event_loop:lag", system.event_loop.lag_ms, "ms"))
    if body.load is not UNSET:
        found.append(("connections:open", body.load.connections, "connections"))
    if body.canary is not UNSET:
        found.append(("canary:latency", body.canary.latency_ms, "ms"))
    if body.uptime_seconds is not UNSET:
        found.append(("uptime", body.uptime_seconds, "s"))
    return {
        name: [{"componentType": "system", "observedValue": value, "observedUnit": unit, "time": body.timestamp}]
        for name, value, unit in found
    }
