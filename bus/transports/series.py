"""`/api/series`: how the bus's figures went, for charts; and the worker that keeps them (bus.series)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from flask import Blueprint, Response, request

from bus.errors import Malformed, Unavailable
from bus.events import BusStarted
from bus.identity.caller import Right
from bus.message import iso
from bus.metrics import Block
from bus.nodes.leases import try_exclusive
from bus.series import DAY_SECONDS, FIGURES, HOUR_SECONDS, MINUTE_SECONDS, SeriesFile, usual_step
from bus.transports.edge import json_answer
from bus.transports.openapi import Operation, Parameter, serve
from bus.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus
    from bus.transports.measures import Measures

log = logging.getLogger("bus.metrics")

INTERVAL_SECONDS = 1.0
LOOKS_EVERY = 5
"""Rows of which one looks for what the store has to count; the others say the same again."""

USUAL_SECONDS = 300
MAX_POINTS = 1440


class SeriesAnswer(msgspec.Struct):
    """For each series its points, oldest first: the first at `begins`, one each `step_seconds`. A point of a rate or a
    quantile is about the step that ends there; null where nothing is known."""

    begins: str
    step_seconds: int
    points: int
    series: dict[str, list[float | None]]


class Series:
    """The route and the worker of one process. One process of a machine adds the rows."""

    def __init__(self, bus: Bus, measures: Measures) -> None:
        self._bus = bus
        self._measures = measures
        self._file: SeriesFile | None = None
        self._lock: int | None = None  # held by the process that adds the rows; the kernel frees it
        self._rows = 0
        self._told: dict[str, float] = {}

    def register(self, app: Flask) -> None:
        """Serve, and add rows once the bus has started."""
        self._bus.on(BusStarted, self._begin)
        self._bus.add_worker(Worker("series", self._tick, interval_seconds=INTERVAL_SECONDS))
        serve(app, Blueprint("series", __name__), self._operations())

    def note(self, blocks: Iterable[Block]) -> None:
        """This worker left a sample."""
        if self._file is not None:
            self._file.note(blocks)

    def _begin(self, _: BusStarted) -> None:
        try:
            self._file = SeriesFile(self._bus.lock_folder / "series", self._bus.backplane.slot)
        except OSError as error:
            log.warning("There are no series: %s", error.strerror, extra={"action": "no_series"})

    def _tick(self) -> None:
        if self._file is None:
            return
        if self._lock is None:
            self._lock = try_exclusive(self._bus.lock_folder / "series.lock")
        if self._lock is not None:
            told = self._tell()
            self._file.add(time.time(), told)

    def _tell(self) -> dict[str, float]:
        """What is true of the server as a whole. Waits for the store."""
        bus = self._bus
        if self._rows % LOOKS_EVERY == 0:
            self._measures.look_at_store()
            stored = self._measures.stored
            self._told = {
                "waiting_inbox": stored.waiting["inbox"],
                "waiting_queue": stored.waiting["queue"],
                "leased": sum(stored.leased.values()),
                "dead_letters": stored.dead_letters,
            }
        self._rows += 1
        head = bus.read(lambda reader: reader.head())
        self._told.update(
            published=head.total,
            log_bytes=head.kept_bytes,
            errors=bus.counters.total("errors"),
            workers=bus.backplane.size,
        )
        return self._told

    # ---- the view

    def series(self) -> Response:
        seconds = _whole("last_seconds", USUAL_SECONDS, DAY_SECONDS)
        step = _whole("step_seconds", usual_step(seconds), DAY_SECONDS)
        if seconds > HOUR_SECONDS and step % MINUTE_SECONDS:
            raise Malformed(
                "Of more than an hour only minutes are kept: let `step_seconds` be a multiple of 60.",
                code="bad_field",
                field="step_seconds",
            )
        if not 0 < seconds // step <= MAX_POINTS:
            raise Malformed(
                f"That is {seconds // step} points, and an answer has 1 to {MAX_POINTS}: change `step_seconds` or"
                " `last_seconds`.",
                code="bad_field",
                field="step_seconds",
            )
        names = [name for name in request.args.get("names", "").split(",") if name] or list(FIGURES)
        for name in names:
            if name not in FIGURES:
                raise Malformed(
                    f"No series has this name; there are {', '.join(FIGURES)}.", code="bad_field", field="names"
                )
        if self._file is None:
            raise Unavailable("There was no room on the disk for series when this worker started.")
        found = self._file.excerpt(seconds, step, names, time.time())
        points = seconds // step
        return json_answer(SeriesAnswer(iso(found.begins * 1_000_000).decode(), step, points, found.series))

    def _operations(self) -> list[Operation]:
        return [
            Operation(
                "GET",
                "/api/series",
                self.series,
                "How the bus's figures went: the last hour by seconds, the last day by minutes.",
                SeriesAnswer,
                None,
                (
                    Parameter(
                        "last_seconds", f"how far back, 1 to {DAY_SECONDS}; {USUAL_SECONDS} if not given", "integer"
                    ),
                    Parameter(
                        "step_seconds",
                        "seconds from point to point; beyond an hour a multiple of 60. Not given: few enough points for a"
                        " chart",
                        "integer",
                    ),
                    Parameter("names", "names of series, parted by commas; all if not given"),
                ),
                (400,),
                right=Right.PRESENCE,
            )
        ]


def _whole(name: str, default: int, most: int) -> int:
    text = request.args.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise Malformed(f"`{name}` must be a whole number from 1 to {most}.", code="bad_field", field=name)
    return int(text)
