"""WebSocket at `/ws/<client_id>`: flask-sock routes and shakes hands, then the socket is ours.

After the handshake the descriptor is detached from gevent's socket and driven by the loop's callbacks
(bus.connection); the request's greenlet ends, so open sockets never starve requests. Every refusal happens in
`before_request`, because flask-sock answers 101 before the handler runs.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
import msgspec
from flask import Blueprint, Flask, g, request
from flask_sock import Sock

from bus import __version__, frames
from bus.connection import Connection, bound_unsent
from bus.errors import BusError, Malformed, RateLimited, Unauthenticated, Unavailable
from bus.events import Audited
from bus.identity import policy
from bus.identity.policy import Action
from bus.message import iso, now_us
from bus.protocol import (
    AROUND_MESSAGE,
    Frame,
    decode_frame,
    draft_of,
    encode,
    error_frame,
    message_frame,
    plain_draft,
    plain_frame,
    read,
)
from bus.resume import Place
from bus.topics import TopicSet, patterns_of
from bus.transports.edge import address
from bus.transports.pages import SUBPROTOCOL
from bus.transports.ws_sends import PlainSends
from bus.transports.ws_verbs import VERBS, Verbs, caller_of

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.identity.caller import Caller
    from bus.limits.limits import Seat
    from bus.message import Message
    from bus.receipts import Receipt

log = logging.getLogger("bus.ws")

AUTH_SECONDS = 10.0
AUTH_BYTES = 4096
"""Without a credential in the handshake, the first frame must be `auth`, within so many seconds and bytes."""

Sent = Callable[["Connection", "str | int | None", "Receipt | BusError"], None]
"""Hears what became of a send."""

_KEY = re.compile(r"[A-Za-z0-9+/]{22}==\Z")


class WebSocketEncoding:
    """Messages as text frames, built once for all. See `bus.connection.Encoding`."""

    name = "websocket"
    answers = takes_messages = keeps_place = True
    beat_seconds = math.inf

    def messages(self, messages: Sequence[Message], texts: Sequence[bytes]) -> list[bytes]:
        return frames.text_frames(texts, *AROUND_MESSAGE)

    def leased(self, rendered: bytes) -> bytes:
        return frames.text_frame(message_frame(rendered))

    def control(self, text: bytes) -> bytes:
        return frames.text_frame(text)

    def ping(self, seq: int) -> bytes:
        return frames.frame(frames.PING, b"%d" % seq)

    def close(self, code: int, reason: str) -> bytes:
        return frames.close_frame(code, reason)


class _NoThread:
    """Stands in for simple-websocket's reader thread, which must never start: the loop's callbacks read."""

    name = ""

    def __init__(self, target: object = None) -> None: ...

    def start(self) -> None: ...


class WebSocketTransport:
    """Frames to bus calls, on the event loop: nothing here waits."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._encoding = WebSocketEncoding()
        self._max_bytes = bus.settings.max_message_size
        self._verbs = Verbs(bus)
        self.sends = PlainSends(bus)

    # ---- the handshake, in the request's greenlet

    def refuse_early(self) -> None:
        """Whatever speaks against the connection, before the 101. Raises BusError."""
        bus = self._bus
        client = (request.view_args or {}).get("client_id", "")
        bus.names.check_client(client, "client_id")
        caller: Caller | None = g.caller
        if caller is not None:
            _check_caller(caller, client)
        if bus.draining:
            raise Unavailable("The server is about to stop; connect again in a moment.", retry_after_seconds=2)
        bus.limits.check_room(caller, address())
        if len(bus.hub.connections) >= bus.max_connections:
            raise Unavailable(
                "This process has all the connections it may have; try again later.", retry_after_seconds=30
            )
        on_gap = request.args.get("on_gap", "oldest")
        if on_gap not in ("oldest", "latest"):
            raise Malformed("`on_gap` must be oldest or latest.", code="bad_field", field="on_gap")
        g.ws_topics = patterns_of(request.args.get("topics", ""))
        if caller is not None:
            _check_topics(caller, g.ws_topics)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            _check_upgrade()
        g.ws_at_latest = on_gap == "latest"
        g.ws_since = request.args.get("since")
        if caller is not None:
            g.ws_place = bus.place(client, g.ws_since, at_gap_go_to_latest=g.ws_at_latest)
            bus.make_known(client)
        g.ws_seat = bus.limits.seat(caller, address())
        # permessage-deflate is declined: it costs 139 KB a connection, and 20 KB can inflate to 20 MB.
        request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)

    def give_up(self, _: BaseException | None) -> None:
        """The request is over: if it became no connection, its seat is free."""
        seat: Seat | None = g.pop("ws_seat", None)
        if seat is not None:
            seat.leave()

    def take_over(self, ws: Any, client_id: str) -> None:
        """The handshake is done: take the descriptor, and leave simple-websocket an object that sends nothing."""
        ws.connected = False
        bound_unsent(ws.sock)
        descriptor = ws.sock.detach()
        connection = Connection(descriptor, client_id, self._encoding, self._bus.hub, self._on_data)
        connection.caller = g.caller
        connection.topics = TopicSet(g.ws_topics) if g.ws_topics else None
        connection.seat, g.ws_seat = g.ws_seat, None
        connection.allowance = g.allowance if g.caller is not None else self._bus.limits.of_stranger(address())
        if len(self._bus.hub.connections) > self._bus.max_connections:
            # More shook hands at once than there was room for.
            connection.close(1013, "This process has all the connections it may have; come back later.")
        elif g.caller is not None:
            self._welcome(connection, g.ws_place)
        else:
            connection.on_data = partial(self._first_frame, g.ws_since, g.ws_at_latest)
            self._bus.hub.later(AUTH_SECONDS, partial(self._too_late, connection))

    def _welcome(self, connection: Connection, place: Place) -> None:
        bus = self._bus
        resumed: dict[str, object] = {
            "from": bus.epochs.cursor(place.seq),
            "to": bus.epochs.cursor(max(bus.hub.tail.delivered, place.seq)),
            "expired": place.expired,
        }
        if place.gap is not None:
            resumed["gap"] = place.gap
        hello = {
            "type": "connection_confirmed",
            "client_id": connection.client,
            "timestamp": iso(now_us()).decode(),
            "server": "multi-agent-bridge",
            "version": __version__,
            "epoch": bus.epochs.current,
            "cursor": bus.epochs.cursor(place.seq),
            "resumed": resumed,
        }
        connection.write(self._encoding.control(encode(hello)), 0)
        if connection.descriptor < 0:
            return  # it has gone already
        bus.hub.join(connection, place.seq)
        bus.connection_opened(connection)
        bus.metrics.count("bus_resume_total", "ok" if place.gap is None else "gap")

    # ---- authentication by first frame

    def _first_frame(self, since: str | None, at_latest: bool, connection: Connection, data: bytes) -> None:
        if connection.closing:
            connection.lose()  # it was turned away, and has answered
            return
        found, used, need, problem = frames.read_frames(data, AUTH_BYTES)
        if not found:
            if problem is None:
                connection.keep(data, need)
            else:
                self._turn_away(connection)
            return
        try:
            if found[0][0] != frames.WHOLE_TEXT:
                raise Unauthenticated("The first frame must be auth, in one text frame.")
            first = read(decode_frame, found[0][1], "frame")
            if first.type != "auth" or not first.token:
                raise Unauthenticated("The first frame must be auth, with a token.")
        except BusError:
            self._turn_away(connection)
            return
        connection.on_data = self._on_data
        connection.pause()  # until the store has said where it goes on
        rest = data[used:]
        gevent.spawn(self._admit, connection, first.token, since, at_latest, found[1:], rest)

    def _admit(
        self,
        connection: Connection,
        token: str,
        since: str | None,
        at_latest: bool,
        found: list[Any],
        rest: bytes,
    ) -> None:
        try:
            caller = self._bus.auth.check_anew(token)
            _check_caller(caller, connection.client)
            _check_topics(caller, connection.topics.patterns if connection.topics else ())
            if connection.descriptor < 0:
                return
            connection.caller = caller
            connection.allowance = self._bus.limits.of(caller, "")
            if connection.seat is not None:
                connection.seat.belongs_to(caller)
            place = self._bus.place(connection.client, since, at_gap_go_to_latest=at_latest)
            self._bus.make_known(connection.client)
        except Unauthenticated:
            self._turn_away(connection)
            return
        except BusError as refusal:
            connection.close(refusal.close_code, refusal.sentence)
            return
        if connection.descriptor < 0:
            return
        self._welcome(connection, place)
        connection.resume()
        self._handle_all(connection, found)
        if rest and connection.descriptor >= 0:
            self._on_data(connection, rest)

    def _turn_away(self, connection: Connection) -> None:
        self._bus.metrics.count("bus_auth_failures_total", "bad_credential")
        with suppress(RateLimited):
            if connection.allowance is not None:
                connection.allowance.take()
        self._tell_refused(connection, "auth", "bad_credential")
        connection.close(4401, "The first frame must be auth, with a valid token.")

    def _tell_refused(self, connection: Connection, action: str, code: str) -> None:
        actor = connection.caller.name if connection.caller is not None else "nobody"
        self._bus.emit(Audited(action, actor, f"/ws/{connection.client}", "refused", detail={"code": code}))

    def _too_late(self, connection: Connection) -> None:
        if connection.room is None and connection.descriptor >= 0 and not connection.closing:
            self._turn_away(connection)

    # ---- frames

    def _on_data(self, connection: Connection, data: bytes) -> None:
        found, used, need, problem = frames.read_frames(data, self._max_bytes)
        if used != len(data) and problem is None:
            connection.keep(data[used:], need)
        self._handle_all(connection, found)
        if problem is not None:
            connection.close(problem.close_code, problem.reason)
        elif self._bus.overloaded and connection.descriptor >= 0:
            self._bus.hold_back(connection)

    def _handle_all(self, connection: Connection, found: list[tuple[int, bytes]]) -> None:
        stamp_us = now_us()
        sends, at = self.sends, 0
        sent = sends.stopwatch.timed(stamp_us, sends.heard) if stamp_us >= sends.stopwatch.next_us else None
        while at < len(found):
            if connection.descriptor < 0:
                return
            try:
                refusal = None
                if len(found) > at + 1 and sent is None and connection.fragments is None and not connection.closing:
                    count, refusal = sends.take(connection, found[at:] if at else found, stamp_us)
                    at += count
                    if at == len(found):
                        return
                first, payload = found[at]
                at += 1
                if first != frames.WHOLE_TEXT or connection.fragments is not None:
                    self._handle_other(connection, first, payload, stamp_us)
                elif not connection.closing:
                    self._handle_text(connection, payload, stamp_us, sent, refusal)
                    sent = None
            except frames.FrameError as problem:
                connection.close(problem.close_code, problem.reason)
                return
            except Exception:
                log.exception("A frame could not be handled", extra={"action": "frame", "client": connection.client})
                connection.close(1011, "The server failed on a frame.")
                return

    def _handle_other(self, connection: Connection, first: int, payload: bytes, stamp_us: int) -> None:
        opcode = first & 0x0F
        if opcode == frames.PONG:
            if payload.isdigit() and len(payload) < 19:
                self._bus.hub.confirm(connection, int(payload))
        elif opcode == frames.PING:
            if not connection.closing:
                connection.write(frames.frame(frames.PONG, payload), 0)
        elif opcode == frames.CLOSE:
            self._closed_by_peer(connection, payload)
        elif not connection.closing:
            self._gather_fragments(connection, first, payload, stamp_us)

    def _closed_by_peer(self, connection: Connection, payload: bytes) -> None:
        if connection.closing:
            # It answered the close that we began: by then it has read all that went before.
            if connection.close_code == 1012:
                self._bus.cursors.confirm(connection.client, connection.position)
            connection.lose()
            return
        code = frames.read_close(payload)
        connection.finish(code, frames.close_frame(1000 if code == 1005 else code))

    def _gather_fragments(self, connection: Connection, first: int, payload: bytes, stamp_us: int) -> None:
        opcode, last = first & 0x0F, bool(first & 0x80)
        if opcode == frames.BINARY:
            raise frames.FrameError(1003, "This bus speaks text frames with JSON.")
        if opcode == frames.TEXT:
            if connection.fragments is not None:
                raise frames.FrameError(1002, "A new message began before the last fragment of the one before.")
            connection.fragments = bytearray(payload)
        else:
            if connection.fragments is None:
                raise frames.FrameError(1002, "A continuation without a beginning.")
            connection.fragments += payload
        if len(connection.fragments) > self._max_bytes:
            raise frames.FrameError(1009, f"A message may have at most {self._max_bytes} bytes.")
        if last:
            whole = bytes(connection.fragments)
            connection.fragments = None
            self._handle_text(connection, whole, stamp_us)

    def _handle_text(
        self,
        connection: Connection,
        text: bytes,
        stamp_us: int,
        sent: Sent | None = None,
        refusal: BusError | None = None,
    ) -> None:
        """Do what a frame asks for, unless there is a refusal already.

        `sent` hears what becomes of a send, also when nobody wants its receipt.
        """
        ref = None
        try:
            if refusal is not None:
                raise refusal
            if connection.allowance is not None:
                connection.allowance.take()
            plain, draft, on_behalf_of = plain_frame(text), None, None
            if plain is not None:
                ref = plain.ref
                draft = plain_draft(plain, connection.client, plain.msg_type, names=self._bus.names, stamp_us=stamp_us)
            if draft is None:
                frame = read(decode_frame, text, "frame")
                ref = frame.ref
                if frame.type != "send":
                    self._handle_verb(connection, frame)
                    return
                draft = draft_of(frame, connection.client, frame.msg_type, names=self._bus.names, stamp_us=stamp_us)
                on_behalf_of = frame.on_behalf_of
            caller = caller_of(connection)
            if not caller.admin:
                policy.authorise(caller, draft.message, on_behalf_of)
            self.sends.handed_over += 1
            heard = partial(sent or self.sends.heard, connection, ref)
            self._bus.sending.publish(draft, heard, receipt=ref is not None or sent is not None)
        except BusError as error:
            if error.code == "bad_utf8":
                raise frames.FrameError(1007, "A text frame must be UTF-8.") from None
            self._bus.counters.add("errors")
            if error.status == 403:
                self._tell_refused(connection, "frame", error.code)
            connection.reply(error_frame(error, ref if ref is not None else _ref_of(text)))

    def _handle_verb(self, connection: Connection, frame: Frame) -> None:
        verb = frame.type
        if verb == "ping":
            connection.reply(b'{"type":"pong","timestamp":"%b"}' % iso(now_us()))
        elif verb in VERBS:
            VERBS[verb](self._verbs, connection, frame)
        elif verb == "auth":
            raise Malformed("This connection is authenticated already.", code="already_authenticated", field="type")
        elif not verb:
            raise Malformed(
                "`type` is missing; say what the frame wants (send, ping, …).", code="missing_field", field="type"
            )
        else:
            raise Malformed(
                "`type` is unknown; this bus knows send, request, ack, nack, progress, release, reject, subscribe,"
                " unsubscribe and ping.",
                code="unknown_type",
                field="type",
            )


class _Ref(msgspec.Struct):
    ref: str | int | None = None


_decode_ref = msgspec.json.Decoder(_Ref).decode


def _ref_of(text: bytes) -> str | int | None:
    """The `ref` of a frame that is wrong elsewhere, so that the sender learns which one it was."""
    try:
        return _decode_ref(text).ref
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def _check_caller(caller: Caller, client: str) -> None:
    """Whether the caller may be this client, and read what it gets. Raises Forbidden."""
    policy.need(caller, Action.READ, client)


def _check_topics(caller: Caller, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        policy.need(caller, Action.SUBSCRIBE, pattern)


def _check_upgrade() -> None:
    """What simple-websocket would answer badly. Raises Malformed."""
    if request.headers.get("Sec-WebSocket-Version") != "13":
        raise Malformed("Sec-WebSocket-Version must be 13.", code="bad_handshake")
    if not _KEY.match(request.headers.get("Sec-WebSocket-Key", "")):
        raise Malformed("Sec-WebSocket-Key must be 16 bytes in base 64.", code="bad_handshake")
    if "upgrade" not in request.headers.get("Connection", "").lower():
        raise Malformed("Connection must say Upgrade.", code="bad_handshake")


def register(app: Flask, bus: Bus) -> None:
    """Serve `/ws/<client_id>`."""
    transport = WebSocketTransport(bus)
    app.config["SOCK_SERVER_OPTIONS"] = {"thread_class": _NoThread, "subprotocols": [SUBPROTOCOL]}
    blueprint = Blueprint("ws", __name__)
    sock = Sock()
    sock.route("/ws/<client_id>", bp=blueprint)(transport.take_over)
    blueprint.before_request(transport.refuse_early)
    blueprint.teardown_request(transport.give_up)
    app.register_blueprint(blueprint)
    app.extensions["ws"] = transport
