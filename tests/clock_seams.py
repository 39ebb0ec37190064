"""Sets the clocks of all workers, and notes what is announced. Loaded through BUS_EXTENSIONS.

`PUT /seams/clock?wall=SECONDS` is a step of the time of day; `?bus=SECONDS` lets time pass. `GET /seams/events` shows what
was heard in any worker, and what a callback got, if HEAR_EXPIRY is set.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gevent
from flask import Flask, Response, request

from bus.bus import Bus
from bus.events import ClockJumped, Event, MessageExpired, RetentionHeld
from bus.transports.edge import json_answer
from bus.worker import Worker
from message_ttl import MessageTTLManager, TTLConfig

POLL_SECONDS = 0.05


class ClockSeams:
    """The steps stand in a file, since the workers are processes; what is heard, too."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._steps: Path = bus.lock_folder / "clock-seams"
        self._heard: Path = bus.lock_folder / "heard-seams"
        self._wall = self._passed = 0.0
        self._time_ns = time.time_ns

    def set(self) -> Response:
        steps = {name: float(request.args.get(name, "0")) for name in ("wall", "bus")}
        self._steps.write_text(json.dumps(steps))
        self.look()
        gevent.sleep(2 * POLL_SECONDS)
        return json_answer({})

    def look(self) -> None:
        if self._steps.exists() and (text := self._steps.read_text()):
            steps = json.loads(text)
            self._bus.clock._offset_us += round((steps["bus"] - self._passed) * 1e6)
            self._wall, self._passed = steps["wall"], steps["bus"]

    def time_ns(self) -> int:
        return self._time_ns() + round((self._wall + self._passed) * 1e9)

    def hear(self, event: Event) -> None:
        with self._heard.open("a") as file:
            file.write(json.dumps(_told(event)) + "\n")

    def call_back(self, message: dict[str, Any]) -> None:
        with self._heard.open("a") as file:
            file.write(json.dumps(["on_expire", message["id"]]) + "\n")
        raise RuntimeError("a callback's own trouble")

    def events(self) -> Response:
        lines = self._heard.read_text().splitlines() if self._heard.exists() else []
        return json_answer({"heard": [json.loads(line) for line in lines]})


def _told(event: Event) -> list[Any]:
    if isinstance(event, MessageExpired):
        return ["message.expired", event.message.type, event.reason]
    return [type(event).__name__, *(getattr(event, name) for name in event.__struct_fields__)]


def register(app: Flask, bus: Bus) -> None:
    """Open the seams; with HEAR_EXPIRY, hear what is announced, and give the type `called` a policy with a callback."""
    seams = ClockSeams(bus)
    app.extensions["clock_seams"] = seams
    time.time_ns = seams.time_ns
    if "HEAR_EXPIRY" in os.environ:
        for kind in (MessageExpired, ClockJumped, RetentionHeld):
            bus.on(kind, seams.hear)
        manager: MessageTTLManager = app.extensions["message_ttl"]
        manager.register_policy(TTLConfig("called", ttl_seconds=1, on_expire=seams.call_back))
    app.add_url_rule("/seams/clock", view_func=seams.set, methods=["PUT"], endpoint="clock")
    app.add_url_rule("/seams/events", view_func=seams.events, endpoint="events_heard")
    bus.add_worker(Worker("clock_seams", seams.look, interval_seconds=POLL_SECONDS))
