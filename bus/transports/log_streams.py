"""`GET /api/log/stream`: the log as it grows, for people who watch it. An event stream that is nobody's inbox.

A stream gets summaries, at most one event in TICK_SECONDS with at most SHOWN messages, and is told how many went by, so
it costs the same at ten messages a second and at ten thousand, and publishing knows nothing of it: a tick reads a page of
the store, as any reader does. It is a stranger's stream of the hub, so that drains, slow readers, caps and revoked
credentials are what they are for every other one.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import gevent
import msgspec
from flask import Blueprint, Flask, Response, request

from bus import event_stream
from bus.connection import Connection
from bus.errors import Unavailable
from bus.event_stream import Wanted
from bus.identity.caller import Right
from bus.message import REQUIRES_ACK, Epochs, Message, audience_of
from bus.message import iso as iso_of
from bus.protocol import encode
from bus.resume import place_of
from bus.storage import Filter, Reader
from bus.topics import TopicSet, check_pattern
from bus.transports.edge import address, caller
from bus.transports.event_streams import EventStreams, Opening, TakenOver
from bus.transports.openapi import Operation, Parameter, serve
from bus.worker import Worker

if TYPE_CHECKING:
    from bus.bus import Bus

TICK_SECONDS = 0.25
SHOWN, SHOWN_BYTES = 50, 512 * 1024
"""Messages of one event, and the payload that is read for them: 200 a second, which is more than anybody reads."""

LOOKED_AT = 2500
"""Messages of one tick that a filter is put to: all of them, up to 10,000 a second."""

PREVIEW_BYTES = 400
LISTED = 5
"""Names of a list that are shown."""

BEAT_SECONDS = 15.0
HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
NOTHING = Wanted(frozenset(), frozenset())
"""No message comes to such a stream by itself."""


class Summary(msgspec.Struct, omit_defaults=True):
    """A message at a glance. `preview`: how its payload's text begins; `bytes`: how long that is. `more_names`: how many of
    a list are left out of `to`."""

    id: str
    seq: int
    from_: str = msgspec.field(name="from")
    to: str | list[str]
    type: str
    timestamp: str
    bytes: int
    preview: str
    requires_ack: bool = False
    more_names: int = 0


class Seen(msgspec.Struct, tag_field="type", tag="log"):
    """What came since the event before: `passed` messages in all, of which `messages` match and are shown. `left_out`: more
    may have matched. `cursor`: where the next event begins."""

    cursor: str
    passed: int
    left_out: bool
    messages: list[Summary]


class Watch(msgspec.Struct):
    """What a stream watches: everything behind `after` that fits; `client`: what it sent and what is addressed to it."""

    after: int
    only: Filter
    client: str | None = None

    @property
    def is_narrow(self) -> bool:
        return self.client is not None or self.only != Filter()


class LogStreams:
    """The streams of this process. Event loop only; `tick` in a greenlet.

    `_watches`: what each open stream watches; one that has ended goes with its connection. `_asked`: what the stream that
    is being opened will watch.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._streams = EventStreams(bus, self._enter)
        self._watches: WeakKeyDictionary[Connection, Watch] = WeakKeyDictionary()
        self._asked: Watch | None = None
        bus.add_worker(Worker("log_streams", self.tick, interval_seconds=TICK_SECONDS))

    def stream(self) -> Response:
        """The view."""
        args = request.args
        topic = args.get("topic")
        topics = TopicSet([check_pattern(topic, "topic")]) if topic else None
        only = Filter(args.get("type") or None, args.get("from") or None, args.get("to") or None, topics=topics)
        since = request.headers.get("Last-Event-ID") or args.get("since")
        watch = Watch(self._start(since, narrow=only != Filter()), only, args.get("client") or None)
        try:
            take, _ = self._streams.open(Opening(wanted=NOTHING, caller=caller(), address=address()), BEAT_SECONDS)
        except Unavailable:
            if "text/event-stream" not in request.headers.get("Accept", ""):
                raise
            # An EventSource gives up for good at any status but 200: it is told to come back.
            return Response(event_stream.retry(), headers=HEADERS, content_type="text/event-stream; charset=utf-8")

        def take_and_watch(descriptor: int, head: bytes) -> None:
            self._asked = watch
            take(descriptor, head)
            self._asked = None

        return TakenOver(take_and_watch, dict(HEADERS))

    def tick(self) -> None:
        """Tell each stream what came since the last time. One that has not taken what it got waits, and misses none of the
        count."""
        upto = self._bus.hub.tail.delivered
        for connection, watch in list(self._watches.items()):
            if connection.descriptor < 0 or connection.closing:
                self._watches.pop(connection, None)
            elif connection.held is None and upto > watch.after:
                self._tell(connection, watch, upto)
                gevent.sleep(0)

    # ---- below

    def _enter(self, connection: Connection, _: Wanted) -> None:
        if self._asked is not None:
            self._watches[connection] = self._asked

    def _start(self, since: str | None, *, narrow: bool) -> int:
        """Where a stream begins: behind a cursor, else before the newest that fit into one event."""

        def look(reader: Reader) -> int:
            if since is None:
                return max(0, reader.head().seq - (LOOKED_AT if narrow else SHOWN))
            return place_of(reader, self._bus.epochs, since, 0, at_gap_go_to_latest=True).seq

        return int(self._bus.read(look))

    def _tell(self, connection: Connection, watch: Watch, upto: int) -> None:
        after, watch.after = watch.after, upto
        epochs = self._bus.epochs
        found, left_out = self._bus.read(reading(watch, after, upto))
        seen = Seen(epochs.cursor(upto), upto - after, left_out, [summary(message, epochs) for message in found])
        if connection.descriptor >= 0 and not connection.closing:
            connection.reply(encode(seen))


def reading(watch: Watch, after: int, upto: int) -> Callable[[Reader], tuple[list[Message], bool]]:
    """A job that reads the newest that fit of after…upto, and says whether more may have."""

    def job(reader: Reader) -> tuple[list[Message], bool]:
        start = max(after, upto - (LOOKED_AT if watch.is_narrow else SHOWN))
        if watch.client is None:
            page = reader.log(start, upto, SHOWN, SHOWN_BYTES, watch.only)
            return page.messages, page.more or start > after
        either = [msgspec.structs.replace(watch.only, **{field: watch.client}) for field in ("sender", "to")]
        pages = [reader.log(start, upto, SHOWN, SHOWN_BYTES, only) for only in either]
        both = merge(*(page.messages for page in pages), key=lambda message: message.seq)
        found = list({message.seq: message for message in both}.values())
        return found[-SHOWN:], start > after or len(found) > SHOWN or any(page.more for page in pages)

    return job


def summary(message: Message, epochs: Epochs) -> Summary:
    """A message at a glance."""
    text = bytes(message.payload)
    names = message.names
    return Summary(
        message.own_id or epochs.id_of(message.seq).decode(),
        message.seq,
        message.sender,
        list(names[:LISTED]) if len(names) > 1 else names[0] if names else audience_of(message),
        message.type,
        iso_of(message.stamp_us).decode(),
        len(text),
        text[:PREVIEW_BYTES].decode(errors="ignore"),
        bool(message.flags & REQUIRES_ACK),
        max(0, len(names) - LISTED),
    )


def _operations(streams: LogStreams) -> list[Operation]:
    narrow = (
        Parameter("since", "go on behind this cursor; without it, from the newest that fit into one event"),
        Parameter("Last-Event-ID", "the same; a browser sends it by itself", place="header"),
        Parameter("type", "only this type"),
        Parameter("from", "only this sender"),
        Parameter("to", "only what is addressed to this client"),
        Parameter("client", "only what this client sent, or what is addressed to it"),
        Parameter("topic", "only what went to topics that match this pattern (builds.*, builds.>)"),
    )
    return [
        Operation(
            "GET", "/api/log/stream", streams.stream, "Watch the log grow: summaries, sampled when it is fast.", str, None,
            narrow, (400,), media="text/event-stream", name="log_stream", right=Right.READ_ALL,
        )
    ]  # fmt: skip


def register(app: Flask, bus: Bus) -> None:
    """Serve the log as it grows, under /api and /api/v1."""
    streams = LogStreams(bus)
    serve(app, Blueprint("log_streams", __name__), _operations(streams))
    app.extensions["log_streams"] = streams
