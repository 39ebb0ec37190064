"""Server-Sent Events, the third transport: streams for browsers, and for whoever can read lines of HTTP.

`SSEManager` works alone on any Flask app: then its streams live in the memory of the process, and end with it. Registered
on a bus, it speaks through it: a stream is a connection like a WebSocket, what is broadcast is a message of the log, and
`Last-Event-ID` is a place in the log, good after a restart and on every worker.

    manager = SSEManager()
    app.register_blueprint(create_sse_blueprint(manager))
    manager.broadcast("notification", {"text": "hello"})

The wire format is in bus.event_stream. Run this file to see it work.
"""

from __future__ import annotations

import codecs
import json
import secrets
import threading
import urllib.request
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Flask, Response, current_app, request

from bus import event_stream
from bus.errors import BusError, Malformed, NotFound, TooLarge, Unavailable
from bus.event_stream import ALL, Wanted
from bus.identity import policy
from bus.identity.caller import Right
from bus.identity.policy import Action
from bus.local_streams import LocalStreams
from bus.message import Names, iso
from bus.protocol import encode, error_body, read
from bus.topics import patterns_of
from bus.transports import answers, parameters
from bus.transports.edge import address, body_of, json_answer, present_caller
from bus.transports.event_streams import (
    STRANGER,
    EventStreams,
    Opening,
    TakenOver,
    check_stranger,
    is_stranger,
    piped,
)
from bus.transports.openapi import Operation, Parameter

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.identity.caller import Caller

HEARTBEAT_SECONDS = 15.0
"""How often the server sends a heartbeat: below the 30 to 60 s after which proxies end a silent answer."""

MAX_BODY_BYTES = 1024 * 1024
"""What a body may hold where there is no bus with a MAX_MESSAGE_SIZE."""

MAX_FILTERS = 100
"""Names in one `subscribe` or `types`."""

MAX_EXCLUDED = 1000

HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
"""A proxy must neither keep a stream, nor pack it, nor wait for more of it."""


class Broadcast(msgspec.Struct):
    """An event for everybody but `exclude`. `data` is any JSON; strings are streamed as they are."""

    event: str
    data: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    exclude: list[str] = []
    sender: str | None = msgspec.field(default=None, name="from")


class Send(msgspec.Struct):
    """An event for one client."""

    client_id: str
    event: str
    data: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    sender: str | None = msgspec.field(default=None, name="from")


class Stats(msgspec.Struct):
    """Streams of all workers: how many are open, of how many clients; and what was counted since the start."""

    active_clients: int
    active_streams: int
    anonymous_streams: int
    total_connections: int
    total_events_sent: int
    total_broadcasts: int
    heartbeat_interval: float


class StreamingClient(msgspec.Struct):
    """A client with at least one stream. `connected_at` is when its oldest connection was opened."""

    client_id: str
    connected_at: str
    streams: int


class StreamingClients(msgspec.Struct):
    """The clients with streams, by name. `anonymous`: how many more streams there are that named no client."""

    clients: list[StreamingClient]
    count: int
    anonymous: int
    cursor: str
    more: bool


_decode_broadcast = msgspec.json.Decoder(Broadcast).decode
_decode_send = msgspec.json.Decoder(Send).decode


class SSEManager:
    """Streams of events, and what is sent to them.

    Alone it may be used from any thread, and from greenlets where gevent has patched `threading`; registered, from
    greenlets of the bus's process. Names of clients and events are checked everywhere: 1 to 128 characters out of
    A-Z a-z 0-9 . _ : @ -; a bad one raises bus.errors.Malformed. Data must be what JSON can hold: TypeError if not.
    """

    def __init__(self, max_queue_size: int = 100, heartbeat_interval: float = 30) -> None:
        """`max_queue_size`: events kept for each client, of which a slow one misses the oldest and is told (a bus keeps
        the log instead). `heartbeat_interval`: seconds between two heartbeats of a stream."""
        if max_queue_size < 1 or heartbeat_interval <= 0:
            raise ValueError("max_queue_size must be at least 1, and heartbeat_interval more than 0 seconds")
        self.max_queue_size = max_queue_size
        self.heartbeat_interval = heartbeat_interval
        self._names = Names()
        self._local = LocalStreams(max_queue_size, heartbeat_interval)
        self._bus: Bus | None = None
        self._streams: EventStreams | None = None

    def speak_through(self, bus: Bus) -> None:
        """Have streams and events go through a bus from now on."""
        self._bus = bus
        self._streams = EventStreams(bus)

    # ---- the documented verbs

    def register_client(self, client_id: str, subscriptions: Collection[str] | None = None) -> dict[str, Any]:
        """Remember a client, so that events wait for it; returns `get_client_info`. `subscriptions`: the names of the events
        that its streams get unless they ask for others; a bus leaves that to the streams."""
        self._check_client(client_id)
        if self._bus is not None:
            self._bus.make_known(client_id)
        else:
            self._local.register(client_id, None if subscriptions is None else self._wanted(subscriptions))
        return self.get_client_info(client_id) or {"client_id": client_id, "streams": 0}

    def unregister_client(self, client_id: str) -> None:
        """End a client's streams, of this process; alone, forget it. An unknown one is passed over."""
        if self._streams is not None:
            self._streams.close(client_id)
        else:
            self._local.unregister(client_id)

    def send_event(self, client_id: str, event: str, data: Any, event_id: str | None = None) -> bool:
        """Send an event to one client. False: alone, no such client is registered; a bus keeps it for whoever comes.

        `event_id` is yours: alone, the stream's `id:`; on a bus, a repeat with the same one is the same event for 24 h.
        """
        self._check_client(client_id)
        return self.send(self._names.check(event, "event"), _json(data), to=client_id, event_id=event_id) is not None

    def broadcast(self, event: str, data: Any, exclude: Collection[str] | None = None) -> None:
        """Send an event to every client, but for those named in `exclude`."""
        self.send(self._names.check(event, "event"), _json(data), exclude=list(exclude or ()))

    def stream_events(self, client_id: str, subscriptions: Collection[str] | None = None) -> Iterator[str]:
        """The text of one stream, block by block, until it is closed: the body of a `text/event-stream` answer."""
        self._check_client(client_id)
        wanted = None if subscriptions is None else self._wanted(subscriptions)
        decoder = codecs.getincrementaldecoder("utf-8")()
        return (decoder.decode(part) for part in self._parts(Opening(client_id, wanted or ALL), wanted))

    def get_stats(self) -> dict[str, Any]:
        """How many streams and clients there are, and totals since the start; on a bus, of all workers."""
        if self._streams is None:
            return {**self._local.totals(), "heartbeat_interval": self.heartbeat_interval}
        found = self._streams.streams()
        strangers = sum(map(is_stranger, found))
        stats = Stats(
            len(found) - strangers,
            sum(presence.transports["sse"] for presence in found.values()),
            strangers,
            **self._streams.totals(),
            heartbeat_interval=self.heartbeat_interval,
        )
        return msgspec.structs.asdict(stats)

    def get_client_info(self, client_id: str) -> dict[str, Any] | None:
        """What is known of a client: client_id, connected_at, streams, and more when alone. None: nothing."""
        if self._streams is None:
            return self._local.info(client_id)
        presence = self._streams.streams().get(client_id)
        if presence is None:
            return None
        since = iso(presence.since_us).decode()
        return {"client_id": client_id, "connected_at": since, "streams": presence.transports["sse"]}

    # ---- for the blueprint

    @property
    def max_body_bytes(self) -> int:
        """What a body may hold."""
        return self._bus.settings.max_message_size if self._bus is not None else MAX_BODY_BYTES

    def send(
        self,
        event: str,
        data: bytes,
        *,
        to: str | None = None,
        exclude: Collection[str] = (),
        sender: str | None = None,
        event_id: str | None = None,
        caller: Caller | None = None,
    ) -> bytes | None:
        """Send JSON text as an event of a checked name. Returns the answer's JSON; None: there is no such client.

        `caller` None: the process itself sends.
        """
        if len(data) > self.max_body_bytes:
            raise TooLarge(f"`data` may have at most {self.max_body_bytes} bytes as JSON; send less.")
        if len(exclude) > MAX_EXCLUDED:
            raise Malformed(f"`exclude` may name at most {MAX_EXCLUDED} clients.", code="bad_field", field="exclude")
        barred = tuple(dict.fromkeys(self._names.check_client(name, "exclude") for name in exclude))
        if self._streams is not None:
            receipt = self._streams.send(event, data, to=to, exclude=barred, sender=sender, key=event_id, caller=caller)
            return b'{"status":"sent","timestamp":"%b",%b}' % (iso(receipt.stamp_us), receipt.members())
        if event_id is not None:
            self._names.check(event_id, "event_id")
        if to is None:
            return encode({"status": "sent", "clients": self._local.broadcast(event, data, barred)})
        return b'{"status":"sent"}' if self._local.send(to, event, data, event_id) else None

    def respond(self, opening: Opening, headers: dict[str, str]) -> Response:
        """The answer that is a stream. Raises BusError before there is a head."""
        if self._streams is None:
            parts = self._parts(opening, None if opening.wanted == ALL else opening.wanted)
            return Response(parts, headers=headers, content_type="text/event-stream; charset=utf-8")
        take, place = self._streams.open(opening, self.heartbeat_interval)
        if place.gap is not None:
            headers["X-Resumed-From"] = place.gap.resumed_from
        return TakenOver(take, headers)

    def list_clients(self, after: str, limit: int) -> object:
        """The clients with streams, by name, behind `after`."""
        if self._streams is None:
            infos = [info for info in self._local.infos() if not is_stranger(str(info["client_id"]))]
            return {"clients": infos, "count": len(infos)}
        found = self._streams.streams()
        names = sorted(name for name in found if not is_stranger(name) and name > after)
        page = [
            StreamingClient(name, iso(found[name].since_us).decode(), found[name].transports["sse"])
            for name in names[:limit]
        ]
        cursor = page[-1].client_id if page else after
        strangers = sum(map(is_stranger, found))
        return StreamingClients(page, len(page), strangers, cursor, len(names) > limit)

    # ---- below

    def _parts(self, opening: Opening, wanted: Wanted | None) -> Iterator[bytes]:
        if self._streams is not None:
            take, _ = self._streams.open(opening, self.heartbeat_interval)
            return piped(take)
        client = opening.client or f"{STRANGER}{secrets.token_hex(8)}"
        return self._local.stream(client, wanted, opening.last_event_id, remembered=opening.client is not None)

    def _check_client(self, client_id: str) -> str:
        return self._names.check_client(client_id, "client_id")

    def _wanted(self, events: Collection[str]) -> Wanted:
        return Wanted(frozenset(self._names.check(event, "subscriptions") for event in events) or None)


def _json(data: Any) -> bytes:
    return msgspec.json.encode(data)


# ---- the endpoints


class Views:
    """The five endpoints of a manager."""

    def __init__(self, manager: SSEManager) -> None:
        self._manager = manager
        self._names = Names()

    def events(self) -> Response:
        manager, args = self._manager, request.args
        headers = dict(HEADERS)
        client = args.get("client_id")
        opening = Opening(
            None if client is None else check_stranger(self._names.check_client(client, "client_id")),
            Wanted(self._filter("subscribe"), self._filter("types")),
            patterns_of(args.get("topics", "")),
            request.headers.get("Last-Event-ID") or args.get("last_event_id") or args.get("lastEventId") or None,
            parameters.at_latest(),
            present_caller(),
            address(),
        )
        if opening.caller is not None:
            if opening.client is not None:
                policy.need(opening.caller, Action.READ, opening.client)
            parameters.need_topics(opening.topics)
        try:
            return manager.respond(opening, headers)
        except Unavailable:
            if "text/event-stream" not in request.headers.get("Accept", ""):
                raise
            # An EventSource would give up for good at any status but 200: it is told to come back.
            return Response(event_stream.retry(), headers=headers, content_type="text/event-stream; charset=utf-8")

    def broadcast(self) -> Response:
        body: Broadcast = read(_decode_broadcast, body_of(self._manager.max_body_bytes), "body")
        answer = self._manager.send(
            self._names.check(body.event, "event"),
            bytes(body.data),
            exclude=body.exclude,
            sender=self._sender(body.sender),
            event_id=request.headers.get("Idempotency-Key"),
            caller=present_caller(),
        )
        return json_answer(answer)

    def send(self) -> Response:
        body: Send = read(_decode_send, body_of(self._manager.max_body_bytes), "body")
        answer = self._manager.send(
            self._names.check(body.event, "event"),
            bytes(body.data),
            to=self._names.check_client(body.client_id, "client_id"),
            sender=self._sender(body.sender),
            event_id=request.headers.get("Idempotency-Key"),
            caller=present_caller(),
        )
        if answer is None:
            raise NotFound("No client of this name has a stream, or is registered.", code="unknown_client")
        return json_answer(answer)

    def stats(self) -> Response:
        return json_answer(self._manager.get_stats())

    def clients(self) -> Response:
        return json_answer(self._manager.list_clients(request.args.get("cursor", ""), parameters.limit(100)))

    def refused(self, error: BusError) -> Response:
        """A refusal as JSON, by the edge of the bus if there is one."""
        edge = current_app.extensions.get("edge")
        return edge.refused(error) if edge is not None else json_answer(error_body(error, ""), error.status)

    def _sender(self, claimed: str | None) -> str | None:
        me = present_caller()
        if claimed is None and (me is None or me.admin):
            return None
        return parameters.acting(self._names, claimed, "from") if me else self._names.check_client(claimed, "from")

    def _filter(self, field: str) -> frozenset[str] | None:
        """The names in a parameter, parted by commas; None when there are none. Raises Malformed."""
        names = [name.strip() for name in request.args.get(field, "").split(",")]
        if len(names) > MAX_FILTERS:
            raise Malformed(f"`{field}` may hold at most {MAX_FILTERS} names.", code="bad_field", field=field)
        return frozenset(self._names.check(name, field) for name in names if name) or None


def _operations(views: Views) -> list[Operation]:
    key = Parameter("Idempotency-Key", "with it, a repeat is the same event for 24 hours", place="header")
    stream = (
        Parameter("client_id", "whose inbox it is; without it, a stranger's stream, from now"),
        Parameter(
            "subscribe", "names of events (message_received: messages; message.expired: what went), parted by commas"
        ),
        Parameter("types", "only messages of these types, parted by commas"),
        Parameter("topics", "patterns, parted by commas: also what goes to the topics that they match (a.*,b.>)"),
        Parameter("last_event_id", "go on behind this id, or from `earliest`; the header wins"),
        Parameter("Last-Event-ID", "go on behind this id; a browser sends it by itself", place="header"),
        Parameter("on_gap", "oldest (default) or latest: where to go on when the id is gone"),
    )
    listing = (
        Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer"),
        Parameter("cursor", "the cursor of the page before"),
    )
    refusals = (400, 413, 415, 422, 429, 507)
    return [
        Operation(
            "GET",
            "/stream/events",
            views.events,
            "A stream of events.",
            str,
            None,
            stream,
            (400,),
            media="text/event-stream",
            right=Right.READ,
        ),
        Operation(
            "POST",
            "/stream/broadcast",
            views.broadcast,
            "Send an event to all.",
            answers.Sent,
            Broadcast,
            (key,),
            refusals,
            right=Right.SEND,
        ),
        Operation(
            "POST",
            "/stream/send",
            views.send,
            "Send an event to one client.",
            answers.Sent,
            Send,
            (key,),
            refusals,
            right=Right.SEND,
        ),
        Operation("GET", "/stream/stats", views.stats, "Streams and events, counted.", Stats, right=Right.PRESENCE),
        Operation(
            "GET",
            "/stream/clients",
            views.clients,
            "Who has streams.",
            StreamingClients,
            None,
            listing,
            (400,),
            right=Right.PRESENCE,
        ),
    ]


def create_sse_blueprint(manager: SSEManager) -> Blueprint:
    """The five endpoints under /stream, for any Flask app."""
    blueprint = Blueprint("streaming", __name__)
    views = Views(manager)
    for operation in _operations(views):
        blueprint.add_url_rule(operation.path, operation.view.__name__, operation.view, methods=[operation.method])
    blueprint.register_error_handler(BusError, views.refused)
    return blueprint


def example() -> None:
    """Serve a manager on a free loopback port, listen to it, and show what comes."""
    from werkzeug.serving import make_server  # noqa: PLC0415  # for this example only

    manager = SSEManager()
    app = Flask(__name__)
    app.register_blueprint(create_sse_blueprint(manager))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/stream/events?client_id=client-123"
    with urllib.request.urlopen(url, timeout=10) as stream:  # nosec B310
        while b"connected" not in (line := stream.readline()):
            print(line.decode(), end="")
        manager.broadcast("notification", {"type": "info", "message": "System maintenance in 10 minutes"})
        manager.send_event("client-123", "message_received", {"from": "code", "text": "Hello world"})
        while b"Hello" not in line:
            print(line.decode(), end="")
            line = stream.readline()
        print(line.decode())
    manager.unregister_client("client-123")
    server.shutdown()
    print(json.dumps(manager.get_stats(), indent=2))


def register(app: Flask, bus: Bus) -> None:
    """Serve the five endpoints through the bus."""
    manager = SSEManager(heartbeat_interval=HEARTBEAT_SECONDS)
    manager.speak_through(bus)
    app.config.setdefault("OPERATIONS", []).extend(_operations(Views(manager)))
    app.register_blueprint(create_sse_blueprint(manager))
    app.extensions["streaming"] = manager


if __name__ == "__main__":
    example()
