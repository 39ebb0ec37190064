"""Webhooks of one process: its endpoints, its outbox and its dispatcher, built with the bus and started with it.

Every process holds the same: none is elected. What an event owes is written by whichever process commits it, and sent by
the first that claims it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gevent
import psutil
from gevent.event import Event as Signal

from bus.backplane import Backplane
from bus.clock import Clock
from bus.companions import Companion
from bus.counters import MAX_SLOTS
from bus.errors import BusError, ForbiddenTarget, Unavailable
from bus.events import (
    ClientConnected,
    ClientDisconnected,
    Event,
    MessageExpired,
    MessageFailed,
    MessageReceived,
    MessageSent,
    RateLimitHit,
)
from bus.message import Epochs, Message
from bus.metrics import Metrics
from bus.nodes.leases import Leases
from bus.outbound import Outbound
from bus.settings import Settings
from bus.storage import Reader, Transaction
from bus.storage.log_writer import LogWriter
from bus.webhooks.breaker import Lane
from bus.webhooks.dispatcher import Dispatcher
from bus.webhooks.endpoints import Endpoint, Rows
from bus.webhooks.matching import Matcher, Subject
from bus.webhooks.measures import Measures
from bus.webhooks.occurrences import Occurrences
from bus.webhooks.outbox import MAX_PENDING, MAX_PENDING_BYTES, Outbox, subject_of
from bus.webhooks.vault import Vault

log = logging.getLogger("bus.webhooks")

MIGRATIONS = Path(__file__).parent / "migrations"
LOOK_SECONDS = 1.0
"""How often a process looks whether another has changed the endpoints, if no note told it."""

KNOWN_SECONDS = 1.0
"""How long a change waits for the other processes to know it."""

FAREWELL_SECONDS = 2.0
STOP_SECONDS = 5.0

T = TypeVar("T")
_NOTE = "webhooks"


class Host(Protocol):
    """What of the bus is needed."""

    settings: Settings
    clock: Clock
    epochs: Epochs

    @property
    def backplane(self) -> Backplane: ...

    writer: LogWriter
    metrics: Metrics

    def read(self, job: Callable[[Reader], Any]) -> Any: ...
    def write(self, job: Callable[[Transaction], Any]) -> Any: ...
    def with_commit(self, kind: type[Event], rows: Callable[[Any], Any]) -> Companion: ...
    def before_publish(self, accept: Callable[[Message], Message | None]) -> None: ...
    def on(self, kind: type[Event], handler: Callable[[Any], None]) -> None: ...
    def use_tables(self, name: str, migrations: Path) -> None: ...


class Webhooks:
    """Event loop only. `start` and `stop` are a worker's (Bus.add_worker). `rows` is there after `start`."""

    rows: Rows

    def __init__(self, host: Host, outbound: Outbound) -> None:
        self.host = host
        self.outbound = outbound
        self.running = False
        self.outbox = Outbox(host.clock.now_us, lambda: host.epochs)
        self.measures = Measures(host.metrics, host.read, host.clock.now_us)
        self.dispatcher = Dispatcher(self._write_lazily, host.read, host.clock.now_us, self.outbox, self._changed,
                                     self.measures.attempted, host.settings.webhook_secret)  # fmt: skip
        self.occurrences = Occurrences(self.outbox, host.write, self.dispatcher.wake)
        self.version = -1
        self._full = False
        self._known: dict[int, int] = {}  # what versions the neighbours said they know, by slot
        self._heard = Signal()
        self._watch: gevent.Greenlet[..., None] | None = None
        self._server = ""

    def attach(self) -> None:
        """Register with the bus: tables, rows, what is heard. Opens nothing, starts nothing."""
        host, outbox = self.host, self.outbox
        host.use_tables("webhooks", MIGRATIONS)
        self._companions = {
            "message.sent": host.with_commit(MessageSent, outbox.of_sent),
            "message.received": host.with_commit(MessageReceived, outbox.of_received),
            "message.failed": host.with_commit(MessageFailed, outbox.of_failed),
            "message.expired": host.with_commit(MessageExpired, outbox.of_expired),
        }
        for companion in self._companions.values():
            companion.active = False
        self.measures.watch()
        self._companions["message.sent"].on_commit(self.dispatcher.wake)
        host.before_publish(self._accept)
        host.on(ClientConnected, self._connected)
        host.on(ClientDisconnected, self._disconnected)
        host.on(RateLimitHit, self._limited)

    # ---- life

    def start(self, _: Leases) -> None:
        """Load the endpoints, tell that the server has started if nobody has, and begin to send."""
        host = self.host
        vault = Vault.of(host.settings)
        self.rows = Rows(vault)
        host.write(self.rows.seal_anew)
        host.backplane.hear(_NOTE, self._noted)  # before the first look, so that no change falls between
        self._refresh()
        for endpoint in self.dispatcher.endpoints.values():
            if endpoint.sealed is None:
                log.error(
                    "The endpoint %s was sealed with another key; give it its URL and secret again, or bring the key back",
                    endpoint.id,
                    extra={"action": "webhook_key"},
                )
        self._server = _server_identity()
        host.write(self._enter)
        process = f"{os.getpid()}@{os.uname().nodename}"
        siblings = self._numbers() if host.backplane.alone else None
        self.dispatcher.start(self.rows, self.outbound, host.backplane.number, process, siblings)
        self.occurrences.start()
        self._watch = gevent.spawn(self._look_after)
        self.running = True
        self.dispatcher.wake()

    def stop(self) -> None:
        """Write and send what is left, as far as it takes no time. Without the store, others notice by the lapse."""
        self.running = False
        if self._watch is not None:
            self._watch.kill()
        self.occurrences.stop()
        try:
            if self.host.write(self._leave):
                self.dispatcher.wake()
                self._await_farewell()
        except BusError as refusal:  # the store is away, or its disk full
            log.warning("This process could not say that it ends: %s", refusal, extra={"action": "webhooks"})
        self.dispatcher.stop(STOP_SECONDS)

    def _enter(self, transaction: Transaction) -> None:
        execute = transaction.execute
        number, (first, last) = self.host.backplane.number, self._numbers()
        if self.host.backplane.alone:
            execute(
                "DELETE FROM webhook_processes WHERE slot BETWEEN ? AND ? AND server <> ?", (first, last, self._server)
            )
        known = execute("SELECT 1 FROM webhook_processes WHERE server = ? LIMIT 1", (self._server,))
        execute(_ENTERED, (number, self._server))
        changed = execute(
            "UPDATE webhook_state SET server = ?1 WHERE server IS DISTINCT FROM ?1 RETURNING 1", (self._server,)
        )
        if changed and not known:
            self.outbox.write(transaction, "system.started", Subject(), b"{}")

    def _numbers(self) -> tuple[int, int]:
        """The first and the last number of a process of this node."""
        first = self.host.backplane.number - self.host.backplane.slot
        return first, first + MAX_SLOTS - 1

    def _leave(self, transaction: Transaction) -> bool:
        """True when the server has stopped with this process, and somebody wants to know."""
        transaction.execute("DELETE FROM webhook_processes WHERE slot = ?", (self.host.backplane.number,))
        if transaction.execute("SELECT 1 FROM webhook_processes WHERE server = ?", (self._server,)):
            return False
        return self.outbox.write(transaction, "system.stopped", Subject(), b"{}")

    def _await_farewell(self) -> None:
        deadline = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline and self.host.read(lambda reader: reader.execute(_FAREWELL)):
            gevent.sleep(0.02)

    def _write_lazily(self, job: Callable[[Transaction], Any]) -> Any:
        """What a step writes can be found out anew by sending again, so it does not wait for the disk."""
        return self.host.writer.call(job, lazy=True)

    # ---- endpoints

    def check(self, url: str) -> None:
        """Judge a URL as a call would, now. Raises ForbiddenTarget, and counts it."""
        try:
            self.outbound.check(url)
        except ForbiddenTarget as refusal:
            self.measures.refused(refusal.reason)
            raise

    def endpoints(self) -> list[Endpoint]:
        """Those that this process knows of."""
        return list(self.dispatcher.endpoints.values())

    def change(self, job: Callable[[Transaction], T]) -> T:
        """Run a job that changes endpoints. Waits for the commit, and for the other processes to have heard of it: for at
        most KNOWN_SECONDS, since one that does not answer looks by itself."""
        value: T = self.host.write(job)
        self._changed()
        deadline = time.monotonic() + KNOWN_SECONDS
        while any(self._known.get(slot, -1) < self.version for slot in self.host.backplane.neighbours()):
            self._heard.clear()
            if not self._heard.wait(deadline - time.monotonic()) or time.monotonic() > deadline:
                break
        return value

    def enable(self, endpoint_id: str) -> None:
        """Send to an endpoint again: its lane forgets what was, and begins slowly. Raises NotFound."""

        def job(transaction: Transaction) -> None:
            endpoint = self.rows.find(transaction, endpoint_id)
            now_us = self.host.clock.now_us()
            (policy,) = transaction.execute("SELECT policy FROM webhook_lanes WHERE endpoint = ?", (endpoint.number,))[
                0
            ]
            if (
                self.rows.set_state(transaction, endpoint.number, "enabled", None, now_us)
                and endpoint.state == "disabled"
            ):
                lane = Lane.load(policy)
                lane.enabled_again(now_us)
                bindings = (lane.dump(), endpoint.number)
                transaction.execute("UPDATE webhook_lanes SET policy = ? WHERE endpoint = ?", bindings)

        self.change(job)

    def _noted(self, slot: int, note: list[Any]) -> None:
        """A neighbour changed something, or says which version it knows."""
        known = note[1]
        if known is None:
            gevent.spawn(self._refresh_and_say)
        else:
            self._known[slot] = known
            self._heard.set()

    def _refresh_and_say(self) -> None:
        self._refresh()
        self.host.backplane.note([_NOTE, self.version])

    def _changed(self) -> None:
        self.host.backplane.note([_NOTE, None])
        self._refresh()

    def _refresh(self) -> None:
        """Take in the endpoints as they are."""

        def job(reader: Reader) -> tuple[int, dict[int, Endpoint], Matcher] | None:
            if self.rows.version(reader) == self.version:
                return None
            version, endpoints = self.rows.all(reader)
            return version, {endpoint.number: endpoint for endpoint in endpoints}, Matcher(endpoints)

        found = self.host.read(job)
        if found is None or found[0] <= self.version:
            return
        self.version, self.dispatcher.endpoints, self.outbox.matcher = found
        for name, companion in self._companions.items():
            wanted = self.outbox.matcher.wants(name)
            if companion.active != wanted:
                companion.active = wanted
        self.dispatcher.wake()

    def _look_after(self) -> None:
        while True:
            gevent.sleep(LOOK_SECONDS)
            try:
                self._refresh()
                self._measure()
            except Unavailable as away:
                log.warning("The endpoints can't be read for now: %s", away.sentence, extra={"action": "webhooks"})
            except Exception:
                log.exception("The endpoints could not be read; another look follows", extra={"action": "webhooks"})

    # ---- the cap

    def _measure(self) -> None:
        if not self.dispatcher.endpoints:
            return
        count, size = self.host.read(lambda reader: reader.execute(_OWED))[0]
        full = count >= MAX_PENDING or size >= MAX_PENDING_BYTES
        if full != self._full:
            self._full = full
            if full:
                log.error("%d deliveries (%d bytes) wait for receivers of webhooks; what they want is refused until there"
                          " is room", count, size, extra={"action": "outbox_full"})  # fmt: skip

    def _accept(self, message: Message) -> None:
        """Refuse, at the cap, what would have to be written for an endpoint."""
        if self._full and self.outbox.matcher.matches("message.sent", subject_of(message)):
            raise Unavailable(
                "Too much waits for receivers of webhooks, so nothing was stored; mend or delete the endpoints that do not"
                " answer, or try again later.",
                code="outbox_full",
                retry_after_seconds=5,
            )

    # ---- what happens

    def _connected(self, event: ClientConnected) -> None:
        data = {"client": event.client, "transport": event.transport}
        self.occurrences.add("client.connected", Subject((event.client,), sender=event.client), data)

    def _disconnected(self, event: ClientDisconnected) -> None:
        data = {"client": event.client, "transport": event.transport, "close_code": event.close_code}
        self.occurrences.add("client.disconnected", Subject((event.client,), sender=event.client), data)

    def _limited(self, event: RateLimitHit) -> None:
        data = {"scope": event.scope, "caller": event.caller, "retry_after_seconds": event.retry_after_seconds}
        self.occurrences.add("rate_limit.hit", Subject(), data)


_ENTERED = "INSERT INTO webhook_processes VALUES (?, ?) ON CONFLICT (slot) DO UPDATE SET server = excluded.server"
_OWED = "SELECT coalesce(sum(pending), 0), coalesce(sum(pending_bytes), 0) FROM webhook_lanes WHERE pending > 0"
_FAREWELL = """
SELECT 1 FROM webhook_deliveries d
 WHERE d.state < 2 AND d.attempts < 2 AND d.event = (SELECT max(number) FROM webhook_events WHERE name = 'system.stopped')
   AND (d.attempts = 0 OR d.state = 1)"""


def _server_identity() -> str:
    """Tells servers apart: all workers of one have the same parent."""
    parent = os.getppid()
    return f"{parent}-{psutil.Process(parent).create_time():.2f}"
