"""Event streams over a bus: requests to taken-over connections, and events to messages of the log.

The head is written by us, then the descriptor is detached from gevent's socket and is a connection of the hub like any
WebSocket's (bus.connection): the request's greenlet ends, and an idle stream costs nothing but its memory. Under a WSGI
server that does not hand out its socket, the hub gets one end of a socket pair, and the other is read by the request.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import gevent.socket
import msgspec
from flask import Response

from bus import event_stream
from bus.connection import Connection, bound_unsent
from bus.errors import BusError, Malformed, RateLimited, Unavailable
from bus.event_stream import ALL, EventStreamEncoding, Wanted
from bus.identity import policy
from bus.message import EVENT, Kind, Message, check_depth, excluding, is_cursor, iso, now_us
from bus.protocol import MAX_KEY_LENGTH, Draft, encode
from bus.resume import Place
from bus.topics import TopicSet
from bus.transports.expiry_streams import ExpiryStreams

if TYPE_CHECKING:
    from bus.backplane import Presence
    from bus.bus import Bus
    from bus.identity.caller import Caller
    from bus.receipts import Receipt

NOBODY = "$stream"
"""Who an event is from when nobody is named."""

STRANGER = "anon-"
"""What the names of streams without a client begin with."""

PIPE_BYTES = 65536

Take = Callable[[int, bytes], object]
"""Takes a descriptor, and what has to be written to it first."""

Enter = Callable[[Connection, Wanted], None]
"""Hears of each stream that was opened, and of what it asked for."""


class TakenOver(Response):
    """An answer whose socket goes to `take`, with the head that it has to write first."""

    automatically_set_content_length = False

    def __init__(self, take: Take, headers: dict[str, str]) -> None:
        super().__init__(None, 200, headers, content_type="text/event-stream; charset=utf-8")
        self._take = take

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Raises StopIteration, by which gunicorn knows that the socket is no longer its own."""
        self.headers["Connection"] = "close"
        if environ["REQUEST_METHOD"] == "HEAD":
            return super().__call__(environ, start_response)
        sock = environ.get("gunicorn.socket")
        if sock is None:
            del self.headers["Connection"]  # a header from hop to hop is the server's business
            start_response(self.status, self.get_wsgi_headers(environ).to_wsgi_list())
            return piped(self._take)
        self.headers.setdefault("Date", formatdate(usegmt=True))
        lines = [f"{name}: {value}\r\n" for name, value in self.get_wsgi_headers(environ).to_wsgi_list()]
        head = f"HTTP/1.1 {self.status}\r\n{''.join(lines)}\r\n".encode("latin-1")
        bound_unsent(sock)
        self._take(sock.detach(), head)
        raise StopIteration


def piped(take: Take) -> Iterator[bytes]:
    """What is written to a connection, for a server that wants to write it itself."""
    ours, theirs = gevent.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    take(ours.detach(), b"")
    with theirs:
        while data := theirs.recv(PIPE_BYTES):
            yield data


class Opening(msgspec.Struct):
    """What a stream is asked for. `client` None: a stranger's. `last_event_id` None: from the kept cursor."""

    client: str | None = None
    wanted: Wanted = ALL
    topics: frozenset[str] = frozenset()
    last_event_id: str | None = None
    at_gap_go_to_latest: bool = False
    caller: Caller | None = None
    address: str = ""


class EventStreams:
    """The streams of this process, and what all workers know of theirs. In greenlets of the event loop's thread.

    `_encodings`: by what the streams want, for as long as one of them is open.
    """

    def __init__(self, bus: Bus, enter: Enter | None = None) -> None:
        """`enter` None: streams may ask for what has gone (bus.transports.expiry_streams)."""
        self._bus = bus
        self._encodings: WeakValueDictionary[tuple[Wanted, bool, float], EventStreamEncoding] = WeakValueDictionary()
        self._enter = enter or ExpiryStreams(bus).enter

    # ---- opening

    def open(self, opening: Opening, beat_seconds: float) -> tuple[Take, Place]:
        """Find where a stream begins. What is returned takes its socket. Raises Unavailable, RateLimited."""
        bus = self._bus
        if bus.draining:
            raise Unavailable("The server is about to stop; connect again in a moment.", retry_after_seconds=2)
        if len(bus.hub.connections) >= bus.max_connections:
            raise Unavailable(
                "This process has all the connections it may have; try again later.", retry_after_seconds=30
            )
        bus.limits.check_room(opening.caller, opening.address)
        place = self._place(opening)
        if opening.client is not None:
            bus.make_known(opening.client)
        return partial(self._take, opening, beat_seconds, place), place

    def _place(self, opening: Opening) -> Place:
        """A browser can't be told that its id is no good, since it would give up: what is no cursor is an unknown one."""
        bus, given = self._bus, opening.last_event_id
        client = opening.client or NOBODY
        if given is None:
            return bus.place(client, None if opening.client else "latest")
        if given == "earliest" or is_cursor(given):
            return bus.place(client, given, at_gap_go_to_latest=opening.at_gap_go_to_latest)
        place = bus.place(client, "000000000000:0", at_gap_go_to_latest=opening.at_gap_go_to_latest)
        assert place.gap is not None
        return msgspec.structs.replace(
            place, gap=msgspec.structs.replace(place.gap, requested=given[:128], reason="unknown")
        )

    def _take(self, opening: Opening, beat_seconds: float, place: Place, descriptor: int, head: bytes) -> None:
        bus = self._bus
        client = opening.client or f"{STRANGER}{secrets.token_hex(8)}"
        encoding = self._encoding(opening.wanted, opening.client is not None, beat_seconds)
        connection = Connection(descriptor, client, encoding, bus.hub, _ignore)
        connection.caller = opening.caller
        try:
            connection.seat = bus.limits.seat(opening.caller, opening.address)
        except RateLimited:  # more came at once than there was room for
            connection.lose()
            return
        connection.topics = TopicSet(opening.topics) if opening.topics else None
        cursor = bus.epochs.cursor(place.seq)
        hello = {"client_id": client, "timestamp": iso(now_us()).decode(), "cursor": cursor}
        at = event_stream.id_line(cursor)
        blocks = [head, event_stream.retry()]
        if place.gap is not None:
            blocks.append(event_stream.block("gap", encode(place.gap), at))
        blocks.append(event_stream.block("connected", encode(hello), at))
        connection.write(b"".join(blocks), 0)
        if connection.descriptor < 0:
            return  # it has gone already
        bus.counters.add("streams_opened")
        bus.hub.join(connection, place.seq)
        bus.connection_opened(connection)
        self._enter(connection, opening.wanted)
        bus.metrics.count("bus_resume_total", "ok" if place.gap is None else "gap")

    def _encoding(self, wanted: Wanted, named: bool, beat_seconds: float) -> EventStreamEncoding:
        key = (wanted, named, beat_seconds)
        encoding = self._encodings.get(key)
        if encoding is None:
            encoding = EventStreamEncoding(self._bus.epochs, wanted, named=named, beat_seconds=beat_seconds)
            self._encodings[key] = encoding
        return encoding

    def close(self, client: str) -> int:
        """End a client's streams on this process. Returns how many."""
        room = self._bus.hub.rooms.get(client)
        mine = [c for c in room.connections() if c.encoding.name == "sse"] if room is not None else []
        for connection in mine:
            connection.close(1000, "unregistered")
        return len(mine)

    # ---- sending

    def send(
        self,
        event: str,
        data: bytes,
        *,
        to: str | None = None,
        exclude: Sequence[str] = (),
        sender: str | None = None,
        key: str | None = None,
        caller: Caller | None = None,
    ) -> Receipt:
        """Put an event into the log, for a client, or for all but whom it excludes. Returns after the commit.

        Names are checked; `data` is JSON text; with `key`, a repeat is the same event. `caller` None: the process itself.
        Raises BusError.
        """
        check_depth(data, "data")
        if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
            raise Malformed(
                f"The idempotency key must be 1 to {MAX_KEY_LENGTH} characters.",
                code="bad_field",
                field="idempotency_key",
            )
        message = Message(
            Kind.ALL if to is None else Kind.CLIENT,
            to or "",
            () if to is None else (to,),
            sender or NOBODY,
            event,
            data,
            now_us(),
            EVENT,
            extras=excluding(exclude),
            excluded=tuple(exclude),
        )
        if caller is not None:
            policy.authorise(caller, message)
        self._bus.metrics.count("bus_sends_total", "http")
        (answer,) = self._bus.send([Draft(message, key=key)])
        if isinstance(answer, BusError):
            try:
                raise answer
            finally:
                del answer  # it holds this frame, and the frame would hold it
        self._bus.counters.add("stream_broadcasts" if to is None else "stream_events")
        return answer

    # ---- looking

    def streams(self) -> dict[str, Presence]:
        """Who has streams, on any worker."""
        return {name: found for name, found in self._bus.online().items() if found.transports.get("sse")}

    def totals(self) -> dict[str, int]:
        """What all workers counted since the server started."""
        total = self._bus.counters.total
        broadcasts = total("stream_broadcasts")
        return {
            "total_connections": total("streams_opened"),
            "total_events_sent": total("stream_events") + broadcasts,
            "total_broadcasts": broadcasts,
        }


def _ignore(connection: Connection, data: bytes) -> None:
    """What a peer says on a stream means nothing."""


def is_stranger(name: str) -> bool:
    """True for the name of a stream without a client."""
    return name.startswith(STRANGER)


def check_stranger(client: str) -> str:
    """Refuse a client name that a stranger's stream may get. Raises Malformed."""
    if is_stranger(client):
        raise Malformed(
            f"`client_id` can't begin with {STRANGER}, as the names of streams without one do; choose another.",
            code="reserved_name",
            field="client_id",
        )
    return client
