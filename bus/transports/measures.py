"""Where the figures of the bus's own families come from: the integers that its parts keep, and the store."""

from __future__ import annotations

import platform
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
import msgspec
import psutil
from flask import g, request

from bus import __version__
from bus.backplane.nodes import NodesBackplane
from bus.delivery.dead_letters import Choice, count
from bus.events import ClientConnected, ClientDisconnected, MessageFailed, MessageRefused
from bus.families import BUILD_INFO, HTTP_REQUESTS, PUSH, STATUS_CLASSES, UNMATCHED, build_info, http_requests
from bus.message import now_us
from bus.metrics import Detail
from bus.nodes.leases import StoreLeases
from bus.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus
    from bus.message import Message
    from bus.storage import Reader

LAG_SECONDS = 0.1
"""How often the event loop is asked how late it is."""

FILES_SECONDS = 10.0
"""How often open files are counted: with 10,000 of them it takes milliseconds."""

JUMP_SECONDS = 1.0
FAILURES = {
    "FullError": "full",
    "IOError": "io",
    "BusyError": "busy",
    "CorruptError": "corrupt",
    "ReadOnlyError": "readonly",
    "ConnectionLost": "io",
    "53100": "full",
    "55P03": "busy",
    "57014": "busy",
    "25006": "readonly",
}
"""The classes of `bus_db_errors_total`, by the drivers' exceptions, and by PostgreSQL's states."""

CONNECTING = {"/ws/<client_id>": "websocket", "/stream/events": "sse"}
"""The routes that connections are opened by, and their transports."""

WAITING = frozenset({*CONNECTING, "/api/request", "/api/queues/<queue>/claim", "/api/profile"})
"""Routes whose answer may wait for something to happen: how long says nothing of the bus."""

_BACKLOGS = "SELECT substr(owner, 1, 6) = 'queue:', sum(waiting), sum(leased) FROM backlogs GROUP BY 1"
_QUEUES = """
SELECT owner, waiting, leased FROM backlogs
 WHERE owner > ?1 AND owner < 'queue;' AND owner = coalesce(?2, owner) ORDER BY owner LIMIT ?3"""


class Stored(msgspec.Struct):
    """What one look at the store tells; `waiting` and `leased` by sort of owner."""

    total: int
    kept_bytes: int
    dead_letters: int
    database_bytes: int
    waiting: dict[str, int]
    leased: dict[str, int]


class Measures:
    """Fills in the families of one process. Event loop only; `begin` when the bus has started."""

    def __init__(self, app: Flask, bus: Bus) -> None:
        self._app = app
        self._bus = bus
        self._metrics = bus.metrics
        self._process = psutil.Process()
        self._opened = dict.fromkeys(PUSH, 0)  # connections that are open
        self._files = 0
        self._files_at = -FILES_SECONDS
        self._stored: Stored | None = None
        self._answered: Counter[tuple[str, int]] = Counter()  # by route and class of status
        self._timer: Any = None
        self._wall = time.time() - time.monotonic()
        bus.on(ClientConnected, self._connected)
        bus.on(ClientDisconnected, self._disconnected)
        bus.on(MessageRefused, lambda event: self._metrics.count("bus_messages_refused_total", event.code))
        bus.on(MessageFailed, lambda event: self._metrics.count("bus_messages_dead_lettered_total", event.reason))
        bus.metrics.detail("client", self._clients)
        bus.metrics.detail("queue", self._queues)

    def begin(self) -> None:
        """Have every part read, or tell what it does."""
        self._watch_messages()
        self._watch_requests()
        self._watch_store()
        self._watch_process()
        self._watch_nodes()

    def end(self) -> None:
        """Let the event loop's timer go."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def look(self) -> None:
        """Once a second: what no part counts by itself."""
        wall = time.time() - time.monotonic()
        if abs(wall - self._wall) > JUMP_SECONDS:
            self._metrics.count("bus_clock_jumps_total")
        self._wall = wall
        for stopwatch in self._stopwatches:
            stopwatch.look_at_clock(now_us())

    def look_at_store(self) -> None:
        """Ask the store what the families that it fills are to say. Waits."""
        try:
            self._stored = self._bus.read(_stored)
        except Exception:
            self._stored = None  # what is not known is left out
            raise

    @property
    def stored(self) -> Stored:
        """What the last look found. Raises LookupError when it failed, or there was none."""
        if self._stored is None:
            raise LookupError("The store could not be read.")
        return self._stored

    # ---- messages and connections

    def _watch_messages(self) -> None:
        bus, metrics, read, parts = self._bus, self._metrics, self._metrics.read, self._app.extensions
        sends = [parts[name].sends for name in ("rest", "lane") if name in parts]
        ws = parts.get("ws")
        read("bus_sends_total", lambda: sum(each.handed_over for each in sends), "http")
        read("bus_messages_ephemeral_total", lambda: bus.sending.ephemeral_sent)
        read("bus_messages_redelivered_total", lambda: bus.courier.redelivered)
        read("bus_uncommitted_messages", lambda: bus.writer.waiting)
        read("bus_slow_consumers_total", lambda: bus.hub.written.fallen_behind)
        for transport in (*PUSH, "http"):
            read("bus_messages_delivered_total", partial(bus.hub.written.of, transport), transport)
        for transport in PUSH:
            read("bus_connections", partial(self._opened.__getitem__, transport), transport)
        self._stopwatches = [each.stopwatch for each in sends]
        for stopwatch in self._stopwatches:
            stopwatch.start(metrics.histogram("bus_publish_duration_seconds", "http"))
        if ws is not None:
            read("bus_sends_total", lambda: ws.sends.handed_over, "websocket")
            ws.sends.stopwatch.start(metrics.histogram("bus_publish_duration_seconds", "websocket"))
            self._stopwatches.append(ws.sends.stopwatch)
        ages = {transport: metrics.histogram("bus_end_to_end_seconds", transport) for transport in PUSH}
        bus.hub.written.start(ages, metrics.histogram("bus_send_queue_bytes").observe)

    def _connected(self, event: ClientConnected) -> None:
        self._opened[event.transport] += 1
        self._metrics.count("bus_connections_opened_total", event.transport)

    def _disconnected(self, event: ClientDisconnected) -> None:
        self._opened[event.transport] -= 1
        self._metrics.count("bus_disconnects_total", event.transport, str(event.close_code))

    # ---- requests

    def _watch_requests(self) -> None:
        app, bus, metrics = self._app, self._bus, self._metrics
        routes = sorted({rule.rule for rule in app.url_map.iter_rules()})
        metrics.declare(http_requests(tuple(routes)))
        for route in (*routes, UNMATCHED):
            for status in STATUS_CLASSES:
                call = partial(self._answered.__getitem__, (route, int(status[0])))
                metrics.read(HTTP_REQUESTS, call, route, status)
        metrics.read("bus_errors_total", partial(bus.counters.total, "errors"))
        self._durations = metrics.histogram("bus_http_request_duration_seconds")
        app.extensions["edge"].on_answer = self._flask_answered
        lane = app.extensions.get("lane")
        if lane is not None:
            lane.answered = self._answered

    def _flask_answered(self, status: int) -> None:
        """Flask has an answer to the present request."""
        rule = request.url_rule
        route = rule.rule if rule is not None else UNMATCHED
        self._answered[route, status // 100] += 1
        if route in CONNECTING and status >= 400:
            self._metrics.count("bus_connections_refused_total", CONNECTING[route], str(status))
        elif route.replace("/v1/", "/") not in WAITING and "wait" not in request.args:
            self._durations.observe(time.perf_counter() - g.began)

    # ---- the store

    def _watch_store(self) -> None:
        bus, metrics, read = self._bus, self._metrics, self._metrics.read
        path = bus.settings.database_path
        metrics.prepare(self.look_at_store)
        read("bus_messages_published_total", lambda: self.stored.total)
        read("bus_log_bytes", lambda: self.stored.kept_bytes)
        read("bus_dead_letters", lambda: self.stored.dead_letters)
        for owner in ("inbox", "queue"):
            read("bus_deliveries_waiting", partial(self._backlog, "waiting", owner), owner)
            read("bus_deliveries_leased", partial(self._backlog, "leased", owner), owner)
        if bus.settings.is_on_postgresql:
            read("bus_database_bytes", lambda: self.stored.database_bytes, "main")
        else:
            read("bus_database_bytes", lambda: path.stat().st_size, "main")
            wal = path.with_name(path.name + "-wal")
            read("bus_database_bytes", lambda: wal.stat().st_size if wal.exists() else 0, "wal")
        read("bus_disk_free_bytes", lambda: psutil.disk_usage(str(path.parent)).free)
        read("bus_disk_size_bytes", lambda: psutil.disk_usage(str(path.parent)).total)
        metrics.set("bus_durability_info", 1, bus.settings.durability)
        durations, sizes = metrics.histogram("bus_commit_duration_seconds"), metrics.histogram("bus_commit_batch_size")
        payloads = metrics.histogram("bus_message_size_bytes")

        def committed(seconds: float, writes: int, messages: list[Message]) -> None:
            durations.observe(seconds)
            sizes.observe(writes)
            if messages:
                payloads.observe(len(messages[0].payload))

        bus.writer.on_commit = committed
        bus.writer.on_failed = partial(self._failed, "commit")
        bus.hub.tail.on_failed = partial(self._failed, "read")

    def _backlog(self, what: str, owner: str) -> int:
        return int(getattr(self.stored, what)[owner])

    def _failed(self, operation: str, error: BaseException) -> None:
        cause = error.__cause__ or error
        kind = type(cause).__name__
        failure = FAILURES.get(getattr(cause, "state", "")) or FAILURES.get(kind, kind)
        self._metrics.count("bus_db_errors_total", operation, failure)

    # ---- the process

    def _watch_process(self) -> None:
        bus, metrics, read, process = self._bus, self._metrics, self._metrics.read, self._process
        python = platform.python_version()
        metrics.declare(build_info(__version__, python))
        metrics.set(BUILD_INFO, 1, __version__, python)
        metrics.set("bus_process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        metrics.set("bus_process_start_time_seconds", bus.started_us / 1e6)
        read("bus_workers", lambda: len(bus.backplane.here()))
        read("bus_process_cpu_seconds_total", lambda: sum(process.cpu_times()[:2]))
        read("bus_process_resident_memory_bytes", lambda: process.memory_info().rss)
        read("bus_process_open_fds", self._open_files)
        workers = [worker for worker in bus.workers if isinstance(worker, Worker)]
        read("bus_background_failures_total", lambda: sum(worker.failures for worker in workers))
        lateness = metrics.histogram("bus_event_loop_lag_seconds")
        last = time.perf_counter()

        def ticked() -> None:
            nonlocal last
            now = time.perf_counter()
            lateness.observe(max(0.0, now - last - LAG_SECONDS))
            last = now

        self._timer = gevent.get_hub().loop.timer(LAG_SECONDS, LAG_SECONDS)
        self._timer.start(ticked)

    def _watch_nodes(self) -> None:
        read, nodes, leases = self._metrics.read, self._bus.backplane, self._bus.leases
        if isinstance(nodes, NodesBackplane):
            limits = self._bus.limits
            read("bus_limits_shared", lambda: int(limits.tally is not None and limits.tally.up))
            read("bus_backplane_up", lambda: int(nodes.up))
            read("bus_backplane_members", lambda: nodes.members)
            read("bus_backplane_loads_total", lambda: nodes.sent, "sent")
            read("bus_backplane_loads_total", lambda: nodes.heard, "heard")
            read("bus_backplane_lost_total", lambda: nodes.lost)
            read("bus_backplane_left_out_total", lambda: nodes.left_out)
            read("bus_backplane_connects_total", lambda: nodes.channel.connects)
        if isinstance(leases, StoreLeases):
            read("bus_leases_taken_over_total", lambda: leases.taken)

    def _open_files(self) -> int:
        now = time.monotonic()
        if now - self._files_at >= FILES_SECONDS:
            self._files, self._files_at = self._process.num_fds(), now
        return self._files

    # ---- details

    def _clients(self, asked: Mapping[str, str], limit: int) -> Iterator[Detail]:
        """Clients by name, behind `cursor`; or the one that `client` names."""
        one, after = asked.get("client"), asked.get("cursor", "")
        online = self._bus.online()
        if one is not None:
            rows = [row for row in (self._bus.read(lambda reader: reader.client(one)),) if row is not None]
        else:
            rows = self._bus.read(lambda reader: reader.clients(after, limit))
        for row in rows:
            labels = {"client": row.name}
            here = online.get(row.name)
            yield Detail("bus_client_connections", "Open connections.", labels, here.connections if here else 0)
            yield Detail("bus_client_waiting_messages", "Neither pushed nor fetched.", labels, row.waiting)
            seen = row.last_seen_us / 1e6
            yield Detail("bus_client_last_seen_timestamp_seconds", "When it was last seen.", labels, seen)

    def _queues(self, asked: Mapping[str, str], limit: int) -> Iterator[Detail]:
        """Queues by name, behind `cursor`; or the one that `queue` names."""
        one, after = asked.get("queue"), asked.get("cursor", "")
        rows = self._bus.read(lambda reader: reader.execute(_QUEUES, (f"queue:{after}", one and f"queue:{one}", limit)))
        for owner, waiting, leased in rows:
            labels = {"queue": owner.removeprefix("queue:")}
            yield Detail("bus_queue_waiting_messages", "Items that wait.", labels, waiting)
            yield Detail("bus_queue_leased_messages", "Items that a consumer has.", labels, leased)


def _stored(reader: Reader) -> Stored:
    head = reader.head()
    found = Stored(
        head.total,
        head.kept_bytes,
        count(reader, Choice()),
        reader.size_bytes(),
        {"inbox": 0, "queue": 0},
        {"inbox": 0, "queue": 0},
    )
    for is_queue, waiting, leased in reader.execute(_BACKLOGS):
        owner = "queue" if is_queue else "inbox"
        found.waiting[owner], found.leased[owner] = waiting, leased
    return found
