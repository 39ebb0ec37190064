"""The health of a bus: what is watched of its process and of its neighbours, and the figures that are told of it.

`health_checks` hosts it: there are the paths, the rounds and the verdicts. Each worker judges itself, says every few seconds
to its neighbours how it is, and misses those that say nothing.
"""

from __future__ import annotations

import contextlib
import time
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from bus import __version__
from bus.auth import Headers
from bus.backplane.nodes import NodesBackplane
from bus.errors import BusError, Unavailable
from bus.events import BusStarted, CanaryFlown
from bus.health import canary, report
from bus.health.canary import Canary
from bus.health.checks import Found, HealthCheck
from bus.worker import Worker

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.storage import Reader

INTERVAL_SECONDS = 5.0
"""Between two rounds of the checks."""

CHECK_SECONDS = 2.0
"""For an answer of the bus's own checks: they look at memory, so more means that the loop stands still."""

UNWRITTEN_SECONDS = 10.0
"""A store that committed nothing for so long can't: a row is written after 5 s of silence."""

SILENT_SECONDS = 15.0
"""A neighbour that said nothing of itself for so long is missed."""

FULL, HAS_ROOM = 0.95, 0.90
"""From this share of the connections on no more are asked for, until there are fewer than that."""


class Sight(IntEnum):
    """What a caller may see."""

    STATUS = 0
    CHECKS = 1
    ERRORS = 2


class Judge(Protocol):
    """Who keeps the checks, and makes the rounds."""

    @property
    def last_status(self) -> str:
        """What the last round found of all."""
        ...

    def add_liveness_check(self, check: HealthCheck) -> None: ...

    def add_readiness_check(self, check: HealthCheck) -> None: ...

    def add_startup_check(self, check: HealthCheck) -> None: ...

    def refresh(self) -> None: ...


class BusHealth:
    """What is watched of a bus, and told of it. Event loop only.

    `_heard`: by the neighbours' slots, what each said last of itself and when; `_missed` since when one is known that has
    said nothing. Both hold present neighbours only.
    """

    def __init__(self, bus: Bus, judge: Judge) -> None:
        self._bus = bus
        self._judge = judge
        self.canary = Canary(bus, lambda seconds: bus.emit(CanaryFlown(seconds)))
        bus.on(CanaryFlown, self._measure_flight)
        self._is_full = False
        self._schema: dict[str, int] = {}
        self._heard: dict[int, tuple[str, float]] = {}
        self._missed: dict[int, float] = {}

    def watch(self) -> None:
        """Add the bus's own checks."""
        own = partial(HealthCheck, timeout=CHECK_SECONDS)
        judge = self._judge
        judge.add_liveness_check(own("event_loop", self._event_loop_runs, instant=True))
        judge.add_startup_check(own("initialised", self._is_initialised, instant=True))
        judge.add_readiness_check(own("serving", self._serves, instant=True))
        judge.add_readiness_check(own("store", self._commits, rise=2))
        judge.add_readiness_check(own("disk", self._has_disk))
        judge.add_readiness_check(own("connections", self._has_room))
        judge.add_readiness_check(own("canary", self._canary_arrives, critical=False))
        judge.add_readiness_check(own("workers", self._neighbours_are_well, critical=False))
        if self._bus.settings.is_on_postgresql:
            judge.add_readiness_check(own("nodes", self._nodes_are_heard, critical=False))
            judge.add_readiness_check(own("limits", self._limits_are_shared, critical=False))

    def workers(self) -> list[Worker]:
        """What has to run for it."""
        return [
            Worker("health_beat", self.canary.beat, interval_seconds=canary.BEAT_SECONDS),
            Worker("canary", self.canary.tick, interval_seconds=canary.INTERVAL_SECONDS),
            Worker("health_checks", self.round, interval_seconds=INTERVAL_SECONDS),
        ]

    def begin(self, _: BusStarted) -> None:
        """The process serves: judge it for the first time."""
        bus = self._bus
        self.canary.begin(bus.backplane.number)
        bus.backplane.hear("health", self._noted)
        self.round()

    def round(self) -> None:
        """One round of the checks, and a word to the neighbours. Waits for the store, until that has told its schema."""
        if not self._schema:
            with contextlib.suppress(Unavailable):  # it is judged without, and the next round asks again
                self._schema = dict(self._bus.read(_schema))
        self._judge.refresh()
        self._bus.backplane.note(["health", self._judge.last_status])

    def _measure_flight(self, flown: CanaryFlown) -> None:
        if flown.seconds is not None:
            self._bus.metrics.set("bus_canary_latency_seconds", flown.seconds, "store")
            self._bus.metrics.set("bus_canary_last_success_timestamp_seconds", time.time(), "store")

    # ---- its checks

    def _event_loop_runs(self) -> Found:
        pulse = self._bus.vitals.pulse
        return pulse.is_alive, f"It ran {pulse.age_seconds:.1f} s ago."

    def _is_initialised(self) -> Found:
        return self._bus.running, "Settings, log, schema and leases are in order; it listens."

    def _serves(self) -> Found:
        bus = self._bus
        if bus.leaving or not bus.running:
            return False, "The process is about to stop."
        return True, "It serves."

    def _commits(self) -> Found:
        age = self._last_commit_seconds()
        return age <= UNWRITTEN_SECONDS, f"The last commit was {age:.1f} s ago."

    def _has_disk(self) -> Found:
        disk = self._bus.vitals.disk
        free, threshold = disk.free_bytes // 1_000_000, disk.threshold_bytes // 1_000_000
        return not disk.is_on, f"{free} MB are free; the alarm is set at {threshold} MB."

    def _has_room(self) -> Found:
        taken, most = self.connections(), self._bus.max_connections
        self._is_full = taken >= most * (HAS_ROOM if self._is_full else FULL)
        return not self._is_full, f"{taken} of {most} connections are open."

    def _canary_arrives(self) -> Found:
        age, problem = self.canary.age_seconds, self.canary.problem
        if age > canary.STALE_SECONDS:
            return False, f"The canary has not arrived for {age:.0f} s. {problem}".rstrip()
        took = self.canary.seconds
        return True, "It has not flown yet." if took is None else f"It took {1000 * took:.1f} ms."

    def _neighbours_are_well(self) -> Found:
        others = [each for each in self._workers() if not each.this]
        silent = [each.worker for each in others if each.age_seconds > SILENT_SECONDS]
        ill = [each.worker for each in others if each.status == "unhealthy"]
        if silent:
            return False, f"Worker {silent[0]} has said nothing of itself for {SILENT_SECONDS:.0f} s."
        if ill:
            return False, f"Worker {ill[0]} is unhealthy."
        return True, f"{len(others) + 1} serve."

    def _nodes_are_heard(self) -> Found:
        nodes = self._bus.backplane
        if not isinstance(nodes, NodesBackplane):
            return True, "There is one node."
        if nodes.deaf:
            problem = nodes.channel.problem or "nothing comes back"
            return False, f"Over {nodes.channel.name}: {problem}. What other nodes commit is found by polling the log."
        if not nodes.up:
            return True, f"It joins them over {nodes.channel.name}."
        return True, f"Over {nodes.channel.name}: {nodes.members} workers of {nodes.nodes - 1} other nodes."

    def _limits_are_shared(self) -> Found:
        limits = self._bus.limits
        if limits.tally is None:
            return True, "Each node counts requests by itself." if limits.on else "There are no limits."
        if not limits.tally.up:
            return False, "Redis does not answer; each node holds to the limits by itself until it does."
        return True, "Requests are counted over all nodes."

    # ---- its figures

    def connections(self) -> int:
        """Open WebSockets and streams of this process."""
        return len(self._bus.hub.connections)

    def disk(self) -> report.Disk:
        """The disk of the log."""
        disk = self._bus.vitals.disk
        used = 100 * (1 - disk.free_bytes / max(disk.total_bytes, 1))
        return report.Disk(disk.free_bytes, disk.total_bytes, round(used, 1), disk.threshold_bytes, disk.is_on)

    def event_loop(self) -> report.EventLoop:
        """The lateness of the loop."""
        last, most = self._bus.vitals.pulse.lateness()
        return report.EventLoop(round(1000 * last, 2), round(1000 * most, 2))

    def tell(self, told: report.Status) -> None:
        """Add to a status what only a bus has."""
        bus, mine = self._bus, self.canary
        latency = None if mine.seconds is None else round(1000 * mine.seconds, 2)
        told.version = __version__
        told.load = report.Load(
            self.connections(), bus.max_connections, bus.writer.waiting, round(self._last_commit_seconds(), 1)
        )
        told.durability = report.Durability(bus.settings.durability, bus.settings.store_name, bus.store.survives)
        told.canary = report.Canary(latency, round(mine.age_seconds, 1), mine.problem)
        told.schema = self._schema
        told.workers = self._workers()

    def sight(self, headers: Headers) -> Sight:
        """What a caller may see. With auth on, an administrator sees all, and other callers no exceptions' texts. With auth
        off, all but these are shown to whoever comes by a foreign Host: kubelet does, and so does DNS rebinding."""
        auth = self._bus.auth
        try:
            if auth.on:
                caller = auth.caller(headers)
                if caller is None:
                    return Sight.STATUS
                return Sight.ERRORS if caller.admin else Sight.CHECKS
            auth.check_host(headers.get("Host") or "")
        except BusError:
            return Sight.STATUS if auth.on else Sight.CHECKS
        return Sight.ERRORS

    # ---- below

    def _last_commit_seconds(self) -> float:
        return time.monotonic() - self._bus.writer.committed_at

    def _noted(self, slot: int, note: list[Any]) -> None:
        self._heard[slot] = (str(note[1]), time.monotonic())

    def _workers(self) -> list[report.WorkerState]:
        now, there = time.monotonic(), self._bus.backplane.neighbours()
        self._missed = {slot: self._missed.get(slot, now) for slot in there}
        self._heard = {slot: self._heard[slot] for slot in there if slot in self._heard}
        mine = report.WorkerState(self._bus.backplane.slot, self._judge.last_status, 0.0, this=True)
        others = [
            report.WorkerState(slot, status, round(now - at, 1), this=False)
            for slot, (status, at) in ((slot, self._heard.get(slot, ("unknown", self._missed[slot]))) for slot in there)
        ]
        return sorted([mine, *others], key=lambda each: each.worker)


def _schema(reader: Reader) -> list[tuple[Any, ...]]:
    """The last migration of each owner of tables."""
    return reader.execute("SELECT owner, max(number) FROM migrations GROUP BY owner")
