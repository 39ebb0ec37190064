"""The lane: sends and probes over HTTP without a greenlet and without Flask, which alone would cost 250 µs a request.

gunicorn's listeners are served by a `LaneServer`, whatever command started gunicorn. A connection's descriptor is watched
by the event loop. If what comes begins with the plain head of a send (bus.transports.heads), head and body are read and
published in callbacks, and the answer is written when the commit has settled (bus.transports.lane_connection). The plain
head of a probe is answered in its callback, by what stands for its path in `PROBES` of the app's configuration: it must
look at memory only. Anything else is given to gunicorn untouched, in a greenlet of its pool, as if the lane were not there;
when it has answered, the connection comes back, and the next request is decided afresh.

What is refused for its head (too large, no credential, …) is refused by Flask, for there it costs no more than it did.
What a body asks for, and its answer, is `bus.transports.sends`, for both.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from flask import Flask
from gevent.pool import Pool, PoolFull
from gevent.server import StreamServer
from gunicorn.http.body import LengthReader
from gunicorn.util import http_date

from bus.errors import BusError
from bus.identity import policy
from bus.identity.caller import ANYBODY, Right
from bus.transports.heads import Head, Heads
from bus.transports.lane_connection import LaneConnection
from bus.transports.sends import Sends

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.identity.caller import Caller
    from bus.limits.limits import Allowance

log = logging.getLogger("bus.lane")

HURRIED_SECONDS = 1.0
"""How long a connection may take until its next head is whole when the server is about to stop: it may be on its way."""

LOOK_SECONDS = 1.0
"""How often deadlines are looked at."""


class Lane:
    """The lane of one process. Event loop only, but for building it.

    `connections` are those between requests or in one of the lane's; `_visits` those that gunicorn has, by its greenlet.
    `is_leaving`: the worker is about to stop, so each answer is a connection's last. `idle_seconds`: how long a connection
    may take until its next head is whole.
    """

    def __init__(self, app: Flask, bus: Bus) -> None:
        self.bus = bus
        self.sends = Sends(bus)
        self.connections: set[LaneConnection] = set()
        self.is_leaving = False
        self.idle_seconds = 0.0
        self._app = app
        self._visits: dict[Any, _Visit] = {}
        self.answered: Counter[tuple[str, int]] | None = None  # by path and status, for who wants it
        self._second = 0
        self._date = b""

    def open(self, worker: Any) -> None:
        """Serve the listeners of a gunicorn worker that has not begun to run; or say why Flask serves all of it."""
        if hindrance := _hindrance(self._app, worker.cfg):
            log.info("Flask serves every send, more slowly: %s", hindrance, extra={"action": "no_lane"})
            return
        cfg = worker.cfg
        self.worker = worker
        self.idle_seconds = float(cfg.keepalive)
        self.heads = Heads(
            self.sends,
            self.bus.auth,
            max_fields=cfg.limit_request_fields,
            max_bytes=cfg.limit_request_field_size,
            probes=self._app.config.get("PROBES"),
        )
        worker.server_class = partial(LaneServer, self)
        worker.handle_request = partial(self._handle_request, worker.handle_request)
        worker.timeout_ctx = partial(self._timeout_ctx, worker.timeout_ctx)
        self._timer = gevent.get_hub().loop.timer(LOOK_SECONDS, LOOK_SECONDS)
        self._timer.start(self._look_at_deadlines)

    # ---- what a connection asks

    def caller(self, head: Head) -> Caller | None:
        """Who calls, if the bus runs and the credential is good for a send, or none is needed; else Flask tells what is
        wrong."""
        if not self.bus.running or head.probe is not None:
            return ANYBODY if self.bus.running else None
        auth, known = self.bus.auth, head.caller
        if not auth.on:
            return ANYBODY
        if known is not None and auth.uses(known):
            return known
        try:
            caller = auth.caller(head)
            if caller is not None:
                policy.need_right(caller, Right.SEND)
        except BusError:
            return None
        head.caller = caller
        return caller

    def allowance(self, caller: Caller, peer: Any, head: Head) -> Allowance | None:
        """What the caller's requests take from; `peer` is its socket's address. None: from nothing."""
        limits = self.bus.limits
        if caller.credential:
            return limits.of(caller, "")  # whatever its address is
        address = limits.peers.address(peer[0] if isinstance(peer, tuple) else "", head.get("X-Forwarded-For"))
        return limits.of(caller, address)

    def date(self) -> bytes:
        """The present second, as the header has it."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, http_date(second).encode()
        return self._date

    # ---- to gunicorn, and back

    def visit(self, server: LaneServer, client: Any, address: Any) -> None:
        """Have gunicorn serve a connection, in this greenlet."""
        me = gevent.getcurrent()
        self._visits[me] = _Visit(server, client, address)
        try:
            self.worker.handle(server.listener, client, address)
        finally:
            self._visits.pop(me, None)

    def _handle_request(self, handle: Any, listener_name: Any, request: Any, client: Any, address: Any) -> Any:
        if visit := self._visits.get(gevent.getcurrent()):
            visit.request = request
        return handle(listener_name, request, client, address)

    def _timeout_ctx(self, timeout_ctx: Any) -> Any:
        """gunicorn is about to wait for a head. After a request that was read to its end, the lane waits instead."""
        visit = self._visits.get(gevent.getcurrent())
        if visit is not None and visit.is_over and not self.is_leaving:
            visit.server.take(visit.client, visit.address)
            raise StopIteration  # by which gunicorn is told that a connection has ended
        return timeout_ctx()

    # ---- ending

    def leave(self) -> None:
        """Answer what is under way or arrives in a moment, and end all other connections. Safe to call twice."""
        if not self.is_leaving:
            self.is_leaving = True
            self.idle_seconds = HURRIED_SECONDS
            now = time.monotonic()
            for connection in list(self.connections):
                connection.hurry(now)

    def close(self) -> None:
        """End every connection. Call it when gunicorn has stopped."""
        for connection in list(self.connections):
            connection.close()

    def _look_at_deadlines(self) -> None:
        if self.bus.draining or not self.worker.alive:  # it need not be SIGTERM that ends a worker
            self.leave()
        now = time.monotonic()
        for connection in list(self.connections):
            connection.look_at_deadline(now)


class _Visit:
    """A connection that gunicorn has, and the last request on it."""

    __slots__ = ("address", "client", "request", "server")

    def __init__(self, server: LaneServer, client: Any, address: Any) -> None:
        self.server = server
        self.client = client
        self.address = address
        self.request: Any = None

    @property
    def is_over(self) -> bool:
        """True when the request was read to its end, and nothing behind it."""
        if self.request is None or self.client.fileno() < 0:
            return False
        body, unreader = self.request.body, self.request.unreader
        if rest := unreader.take_buffered():
            unreader.unread(rest)
            return False
        return isinstance(body.reader, LengthReader) and not body.reader.length and not body.failed


class _Places(Pool):
    """gunicorn's pool of a listener, in which the connections of the lane have places, too."""

    def __init__(self, size: int | None) -> None:
        super().__init__(size)
        self.taken = 0

    def free_count(self) -> int:
        return super().free_count() - self.taken


class LaneServer(StreamServer):
    """A listener of gunicorn's: what it accepts goes to the lane, without a greenlet."""

    def __init__(self, lane: Lane, listener: Any, *, spawn: Pool, **_: Any) -> None:
        """As gunicorn builds the server of a worker that names its `server_class`."""
        self.places = _Places(spawn.size)
        self.listener = listener
        self._lane = lane
        super().__init__(listener, handle=partial(lane.visit, self), spawn=self.places)
        if lane.worker.cfg.workers > 1:
            self.max_accept = 1  # as gunicorn has it: neighbours shall have some, too

    def do_handle(self, *args: Any) -> None:
        """A client was accepted. Under load its request is there already, and need not wait for the loop's next turn."""
        self.take(*args).look()

    def take(self, client: Any, address: Any) -> LaneConnection:
        """Watch a connection until its next request. Its descriptor is taken out of `client`."""
        connection = LaneConnection(self._lane, self, client, address)
        self.places.taken += 1
        self._lane.connections.add(connection)
        return connection

    def left(self, connection: LaneConnection) -> None:
        """A connection is the lane's no more."""
        self._lane.connections.discard(connection)
        self.places.taken -= 1
        self._has_room()

    def give_to_gunicorn(self, client: Any, address: Any) -> None:
        """Have a connection served in a greenlet of the pool."""
        try:
            greenlet = self.places.greenlet_class(self._lane.visit, self, client, address)
            self.places.start(greenlet, blocking=False)
        except PoolFull:
            client.close()
        else:
            greenlet.rawlink(self._has_room)

    def start_accepting(self) -> None:
        """Accept, if there is a place: gevent calls this also while all places of its own are free, but none is."""
        if not self.places.full():
            super().start_accepting()

    def _has_room(self, _: object = None) -> None:
        if self.started:
            self.start_accepting()


def _hindrance(app: Flask, cfg: Any) -> str:
    """Why requests may not pass Flask or gunicorn by; empty when they may."""
    edge = app.extensions["edge"]
    hooks = [
        hook
        for hooks_of in (app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs)
        for scope in (None, "rest")
        for hook in hooks_of.get(scope, ())
    ]
    if "rest" not in app.extensions:
        return "there is no REST."
    if hooks != [edge.before, edge.after] or "wsgi_app" in vars(app):
        return "an extension wants to see each request."
    if cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json or cfg.syslog or cfg.statsd_host:
        return "gunicorn is to log each request."
    if cfg.max_requests:
        return "gunicorn is to count each request."
    if cfg.proxy_protocol != "off" or not cfg.keepalive:
        return "gunicorn's proxy_protocol is on, or its keepalive off."
    return ""


def register(app: Flask, bus: Bus) -> None:
    """Have a lane at hand; gunicorn.conf.py opens it."""
    app.extensions["lane"] = Lane(app, bus)
