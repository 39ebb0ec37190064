"""`POST /api/profile`: times the stages that messages pass, in all workers at once, for some seconds.

`POINTS` is the one place that knows the names of what is timed. The worker that is asked tells its neighbours by a note
over the mesh; each measures for the same time, ends by itself, and sends back what it saw. Nothing is timed otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
import msgspec
from flask import Blueprint, Flask, Response, request
from gevent.event import Event

import bus.backplane.local
import bus.bus
import bus.connection
import bus.frames
import bus.storage.log_writer
import bus.transports.sends
import bus.transports.ws
from bus.connection import Connection
from bus.errors import Conflict, Malformed
from bus.events import BusStarted, BusStopping
from bus.profile import MAX_SECONDS, Measured, Missing, Profile, Ways, table_of
from bus.storage import Burst, Item
from bus.storage.log_reader import LogReader
from bus.storage.work import Work
from bus.tracing import LOOP, Point, Trace
from bus.transports.edge import json_answer
from bus.transports.lane_connection import LaneConnection
from bus.transports.openapi import Operation, Parameter, serve
from bus.transports.sends import Sends

if TYPE_CHECKING:
    from bus.bus import Bus

ANSWER_SECONDS = 3.0
"""How long a neighbour's measurements may take after the time for which it was asked to measure."""

NOTE = "profile"
WRITER, READERS = "writer", "readers"

Count = Callable[[Ways, Sequence[Any], Any], int]
Before = Callable[[Ways, Sequence[Any]], None]


def _one(_: Ways, __: Sequence[Any], result: object) -> int:
    return int(result is not None)


def _count(items: Sequence[Item]) -> int:
    return sum(len(item.messages) if isinstance(item, Burst) else 1 for item in items)


class Row(msgspec.Struct, frozen=True):
    """A row of `POINTS`. `owner`: a class, a module, or a way to an object that begins at the app, the bus, or what
    `app.extensions` has; where that is not registered, there is nothing to time."""

    owner: object
    attribute: str
    stage: str
    count: Count | None = None
    before: Before | None = None
    thread: str = LOOP


POINTS = (
    Row(bus.connection, "os.read", "read"),
    Row(LaneConnection, "_look", "read"),
    Row(LaneConnection, "_read_body", "read"),
    Row("lane", "visit", "http"),
    Row("app", "wsgi_app", "http"),
    Row(bus.frames, "read_frames", "frames", lambda ways, given, parsed: len(parsed[0])),
    Row(bus.transports.ws, "plain_frame", "validate"),
    Row(bus.transports.ws, "plain_draft", "validate", _one),
    Row("ws.sends", "_gather", "validate", lambda ways, given, _: len(given[0].messages)),
    Row(bus.transports.ws, "read", "validate"),
    Row(bus.transports.ws, "draft_of", "validate", _one),
    Row(bus.transports.sends, "plain_post", "validate"),
    Row(bus.transports.sends, "plain_batch", "validate"),
    Row(bus.transports.sends, "plain_draft", "validate", _one),
    Row(bus.transports.sends, "read", "validate"),
    Row(Sends, "_draft", "validate", _one),
    Row(Sends, "_alike", "validate", lambda ways, given, alike: len(alike.messages) if alike is not None else 0),
    Row("ws", "_handle_all", "accept"),
    Row(LaneConnection, "_serve", "accept"),
    Row(Sends, "publish", "accept"),
    Row("bus", "publish_all", "accept"),
    Row("bus.sending", "_accept", "accept", Ways.accepted),
    Row("bus.sending", "publish_burst", "accept", Ways.accepted_burst),
    Row("bus.sending", "_publish_ephemeral", "accept", Ways.sent_unstored),
    Row("bus", "turn_ended", "queue"),
    Row("bus.writer", "submit", "queue", lambda ways, given, _: _count(given[0])),
    Row(bus.storage.log_writer, "_together", "gather", thread=WRITER),
    Row("bus.store.writer_type", "commit", "lock", Ways.stored, Ways.taken, thread=WRITER),
    Row(Work, "take", "admit", lambda ways, given, _: _count(given[1]), thread=WRITER),
    Row(Work, "_write_all", "insert", thread=WRITER),
    Row("bus.store.writer_type", "_commit_locked", "commit", lambda ways, given, done: len(done[1]), thread=WRITER),
    Row("bus.writer", "_on_block", "share", lambda ways, given, _: len(given[1])),
    Row("bus.backplane", "share", "share"),
    Row(bus.backplane.local, "decode", "mesh"),
    Row(bus.backplane.local, "unpack", "mesh", _one),
    Row("bus", "block", "mesh"),
    Row("bus.hub.tail", "offer", "tail"),
    Row("bus.hub", "deliver", "tail", lambda ways, given, _: len(given[0])),
    Row("bus.writer", "_committed", "answer", lambda ways, given, _: len(given[2]), Ways.came_back),
    Row("ws", "_handle_verb", "deliveries"),
    Row("bus.courier", "arrived", "deliveries"),
    Row("bus.courier", "turn_ended", "deliveries"),
    Row("bus.hub", "push_to", "deliveries", lambda ways, given, pushed: pushed),
    Row(bus.bus, "texts_of", "encode"),
    Row("bus.hub", "_chunks", "encode", lambda ways, given, _: len(given[1])),
    Row("bus.hub", "flush", "fan-out", Ways.flushed),
    Row("bus.hub", "feed", "fan-out"),
    Row("bus.hub", "_fed", "fan-out"),
    Row("bus.hub", "_write_one", "write", lambda ways, given, _: len(given[0]) * given[1][1]),
    Row("bus.hub", "_write_many", "write"),
    Row(Connection, "write", "write", lambda ways, given, _: given[2]),
    Row(LaneConnection, "_answer", "write"),
    Row(bus.connection, "os.writev", "write"),
    Row(LogReader, "inbox", "pages", lambda ways, given, page: len(page.messages), thread=READERS),
    Row(LogReader, "log", "pages", lambda ways, given, page: len(page.messages), thread=READERS),
    Row(LogReader, "open_deliveries", "pages", lambda ways, given, leases: len(leases), thread=READERS),
)
"""What is timed. The order of the stages is the order of the table."""


class Run:
    """One profile of this process, from its start to `end`. Event loop only."""

    def __init__(self, app: Flask, then: Callable[[Measured], None]) -> None:
        """`then(measured)` is called once, when it has ended."""
        self._bus = app.extensions["bus"]
        self._then = then
        self._ways = Ways(lambda: self._bus.hub.tail.delivered)
        self._trace = Trace(list(points(app, self._ways)))
        self._trace.start()
        self.ended = False

    def end(self) -> None:
        """Time nothing any more. Idempotent."""
        if self.ended:
            return
        self.ended = True
        stages, ways = self._trace.stop(), self._ways
        self._then(
            Measured(
                self._bus.backplane.number,
                self._trace.seconds,
                self._trace.loop_cpu_seconds,
                sum(size * times for size, times in ways.commits.items()) + ways.ephemeral,
                stages,
                ways.kept,
                ways.stride,
                dict(ways.commits),
            )
        )


def points(app: Flask, ways: Ways) -> Iterator[Point]:
    """The points of a process. Raises AttributeError when a way leads nowhere."""
    roots = {"app": app, **app.extensions}
    for row in POINTS:
        owner = row.owner
        if isinstance(owner, str):
            first, *rest = owner.split(".")
            if first not in roots:
                continue
            owner = roots[first]
            for name in rest:
                owner = getattr(owner, name)
        count = partial(row.count, ways) if row.count is not None else None
        before = partial(row.before, ways) if row.before is not None else None
        yield Point(owner, row.attribute, row.stage, row.thread, count, before)


class Profiler:
    """Profiles of all workers, one at a time. Event loop only.

    `_run`: the present one of this process. `_gathering`: one was asked for here; `_number` is its, and `_answers` what
    neighbours sent back for it, by slot.
    """

    def __init__(self, app: Flask, bus: Bus) -> None:
        self._app = app
        self._bus = bus
        self._run: Run | None = None
        self._gathering = False
        self._number = 0
        self._answers: dict[int, Measured | Missing] = {}
        self._came = Event()

    def view(self) -> Response:
        """`POST /api/profile`."""
        return json_answer(self.profile(_seconds()))

    def profile(self, seconds: float) -> Profile:
        """Measure for some seconds, in all workers; waits for it in the calling greenlet. Raises Conflict."""
        if self._gathering:
            raise _running()
        self._gathering = True
        try:
            return self._profile(seconds)
        finally:
            self._gathering = False

    def _profile(self, seconds: float) -> Profile:
        bus, mine = self._bus, []
        ended = Event()

        def then(measured: Measured) -> None:
            mine.append(measured)
            ended.set()

        self._begin(seconds, then)
        self._number += 1
        self._answers.clear()
        number, neighbours = bus.backplane.number, bus.backplane.neighbours()
        bus.backplane.note([NOTE, "begin", number, self._number, seconds])
        ended.wait()
        answers = self._await_answers(neighbours)
        measured = mine + [answer for answer in answers if isinstance(answer, Measured)]
        measured.sort(key=lambda each: each.worker)
        return Profile(
            table_of(measured, None),
            [table_of([each], each.worker) for each in measured],
            [answer for answer in answers if isinstance(answer, Missing)],
        )

    def _await_answers(self, neighbours: Sequence[int]) -> list[Measured | Missing]:
        answers = self._answers
        with gevent.Timeout(ANSWER_SECONDS, False):  # type: ignore[arg-type]  # the stubs know no False
            while not all(slot in answers for slot in neighbours):
                self._came.clear()
                self._came.wait()
        self._number += 1  # whatever comes now is too late
        return [answers.get(slot) or Missing(slot, "It did not answer in time.") for slot in neighbours]

    def _begin(self, seconds: float, then: Callable[[Measured], None]) -> None:
        if self._run is not None:
            raise _running()

        def ended(measured: Measured) -> None:
            self._run = None
            then(measured)

        run = self._run = Run(self._app, ended)
        self._bus.hub.later(seconds, run.end)

    def stop(self, _: object = None) -> None:
        """End the present profile: the bus is about to stop."""
        if self._run is not None:
            self._run.end()

    # ---- over the mesh

    def noted(self, slot: int, note: list[Any]) -> None:
        """A neighbour wants this process to measure, or sends what it measured."""
        _, what, asker, number, *rest = note
        if what == "begin":
            try:
                self._begin(rest[0], lambda measured: self._tell("measured", asker, number, measured))
            except Conflict:
                self._tell("busy", asker, number)
        elif asker == self._bus.backplane.number and number == self._number:
            busy = Missing(slot, "Another profile is being taken there.")
            self._answers[slot] = msgspec.convert(rest[0], Measured) if what == "measured" else busy
            self._came.set()

    def _tell(self, what: str, *more: object) -> None:
        self._bus.backplane.note([NOTE, what, *more])


def _running() -> Conflict:
    return Conflict("A profile is being taken; ask again when it has ended.", code="profile_running")


def _seconds() -> float:
    try:
        seconds = float(request.args.get("seconds", "5"))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_SECONDS:
        raise Malformed(
            f"`seconds` must be a number above 0, and at most {MAX_SECONDS:.0f}.", code="bad_field", field="seconds"
        )
    return seconds


def register(app: Flask, bus: Bus) -> None:
    """Serve `POST /api/profile`, and take part in what neighbours ask for."""
    profiler = Profiler(app, bus)
    seconds = Parameter("seconds", f"how long to measure, at most {MAX_SECONDS:.0f}; 5 if not given", "number")
    operation = Operation(
        "POST",
        "/api/profile",
        profiler.view,
        "Measure where the time of messages goes, in all workers.",
        Profile,
        None,
        (seconds,),
        (400, 409),
        name="profile",
    )
    serve(app, Blueprint("profile", __name__), [operation])
    bus.on(BusStarted, lambda _: bus.backplane.hear(NOTE, profiler.noted))
    bus.on(BusStopping, profiler.stop)
    app.extensions["profile"] = profiler
