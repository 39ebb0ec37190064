"""The bus: what transports and extensions call. It owns the parts of one process and starts and stops them in order.

A send is accepted on the event loop, gathered until the end of the turn, committed by the writer thread, and only
then answered; every process, this one included, delivers from the tail of the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult

from bus.admission import Admission
from bus.audience import Audience
from bus.auth import Auth
from bus.backplane import Presence
from bus.backplane.local import Slot
from bus.clock import Clock
from bus.companions import Companion, Companions, Rows
from bus.connection import Connection
from bus.counters import Counters, clear
from bus.cursors import Cursors
from bus.delivery.delivery import Delivery
from bus.dispatch import Dispatcher, When, always
from bus.drain import Drain
from bus.errors import BusError, Malformed, StoreAway, Unavailable
from bus.events import BusStarted, BusStopping, ClientConnected, ClientDisconnected, Event, MessageSent
from bus.health.vitals import Vitals
from bus.heartbeat import Heartbeat
from bus.hub import Hub
from bus.known import Known
from bus.limits.limits import Limits
from bus.message import REDRIVEN, Kind, Message, Names, audience_of, now_us, texts_of
from bus.metric_files import forget
from bus.metrics import Metrics
from bus.nodes import node
from bus.own_ids import OwnIds
from bus.presence import presence_of, together
from bus.process import begins_anew, calm_collector, connections_possible
from bus.protocol import Draft
from bus.receipts import Receipt
from bus.resume import Place, place_for
from bus.room import Room
from bus.sending import Sending, Settled
from bus.settings import Settings
from bus.storage import Burst, Reader, Store, Transaction
from bus.storage.log_writer import LogWriter
from bus.storage.opening import open_store, readers
from bus.storage.upkeep import UpkeepThread
from bus.threads import Mailbox, WorkerPool
from bus.worker import Background

log = logging.getLogger("bus")

MAX_UNCOMMITTED = 20_000
MAX_UNCOMMITTED_BYTES = 64 * 1024 * 1024
"""Past either, sockets are not read and requests get 503: lag turns into waiting before memory does."""

MIGRATIONS = Path(__file__).parent / "storage" / "migrations"


class Bus:
    """One process's share of the bus. Build it anywhere; `start` and everything after belong to the event loop's thread.

    The verbs for extensions (`before_publish` … `write`) are called from `register(app, bus)`, before `start`;
    `emit` and `write` also later.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = Names()
        self.metrics = Metrics()
        self.auth = Auth(settings)
        self.lock_folder = settings.lock_folder
        self.clock = Clock(self.lock_folder / "clock")
        self.companions = Companions()
        self.store: Store = open_store(settings, self.clock, self.companions)
        self.vitals = Vitals(settings)
        self.drain = Drain(lambda: self.hub, settings)
        self.running = self.leaving = self.draining = False
        self._migrations: list[tuple[str, Path]] = [("core", MIGRATIONS), *node.migrations(settings)]
        self.admission, self._dispatcher = Admission(), Dispatcher()
        self.sending = Sending(self)
        self._paused: list[Connection] = []
        self.delivery = Delivery(self.read, self.write, self.clock, lambda: self.epochs, self.online)
        self.limits = Limits(settings, self)
        self.workers: list[Background] = [*self.vitals.workers(self.read), *self.delivery.workers(), self.limits]
        self.make_known = Known(self.read, self.write).make
        self.started_us = 0

    # ---- verbs for extensions

    def before_publish(self, accept: Callable[[Message], Message | None]) -> None:
        """Have `accept(message)` look at each message before it is stored, in order of registration.

        It may return another message (to stamp it) or None (as it is), or raise a BusError to refuse it. It runs on
        the event loop and may neither block nor switch. An exception that is no BusError refuses the message too.
        """
        self.admission.lookers.append(accept)

    def on(self, kind: type[Event], handler: Callable[[Any], None], *, wait: bool = False, when: When = always) -> None:
        """Have `handler(event)` hear events of a type, or all for `Event`; with `wait`, in a greenlet that may block."""
        self._dispatcher.on(kind, handler, wait=wait, when=when)

    def emit(self, event: Event) -> None:
        """Announce an event. Event loop only."""
        self._dispatcher.emit(event)

    def is_heard(self, kind: type[Event]) -> bool:
        """True when anybody hears events of this type now: a handler counts while its `when()` is true."""
        return self._dispatcher.wants(kind)

    def add_worker(self, worker: Background) -> None:
        """Have a worker started after the fork, and stopped in reverse order."""
        self.workers.append(worker)

    def with_commit(self, kind: type[Event], rows: Rows) -> Companion:
        """Have `rows(event)` say what else is written in the transaction of each event of a type; see bus.companions.

        There are MessageSent, MessageReceived, MessageFailed, and what jobs announce (`Transaction.announce`).
        """
        return self.companions.add(kind, rows)

    def use_tables(self, name: str, migrations: Path) -> None:
        """Have a numbered folder of SQL files applied with the core's, once, under `name`."""
        if any(name == taken for taken, _ in self._migrations):
            raise ValueError(f"the tables of {name} are registered already")
        self._migrations.append((name, migrations))

    @property
    def migrations(self) -> Sequence[tuple[str, Path]]:
        """Whose tables there are, and the folders of their migrations; the core's are the first."""
        return self._migrations

    def write(self, job: Callable[[Transaction], Any]) -> Any:
        """Run `job(transaction)` on the writer in its next batch; waits for its answer in the calling greenlet."""
        return self.writer.call(job)

    def read(self, job: Callable[[Reader], Any]) -> Any:
        """Run `job(reader)` on a reader thread; waits for its answer in the calling greenlet."""
        return self.readers.call(job)

    def pause(self, seconds: float) -> None:
        """Let others in, in the middle of a worker's tick. When the server stops the tick ends there: GreenletExit."""
        if self.draining:
            raise gevent.GreenletExit
        gevent.sleep(seconds)

    # ---- life

    def start(self) -> None:
        """Open the store and begin to work. Raises StartRefused. Call it after the fork, with gevent patched."""
        self.max_connections = connections_possible(self.settings.max_connections)
        self._open()
        self.epochs = self.store.epochs
        self.mailbox = Mailbox()
        self.companions.report_by(self.mailbox.post)
        size, overflow = readers(self.settings)
        self.readers = WorkerPool(self.mailbox, self.store.reader, size=size, overflow=overflow)
        self.writer = LogWriter(self.mailbox, self.store.writer, self._committed)
        self.writer.on_relief = self._relieve
        self.cursors = Cursors(self.writer)
        self.backplane, self.leases = node.join(self.node, self._slot, self)
        self.audience = Audience(self.backplane)
        self.hub = Hub(self.epochs, self.readers, self.cursors, self, self.audience)
        self.delivery.start(self)
        self.courier = self.delivery.courier
        self.heartbeat = Heartbeat(self.hub, self.cursors)
        self._upkeep = UpkeepThread(self.store.upkeep, self.lock_folder / "exclusive-upkeep.lock")
        self.readers.start()
        self.writer.start()
        self.hub.tail.start(self.read(lambda reader: reader.head()).seq)
        if self._slot.alone:
            self.delivery.recover()
        self.backplane.start(self)
        self.auth.start(self)
        self.heartbeat.start()
        self._upkeep.start()
        self._dispatcher.start()
        self._hears_sent = self._dispatcher.wants(MessageSent)
        for worker in self.workers:
            worker.start(self.leases)
        calm_collector()
        self.started_us = now_us()
        self.running = True
        self.emit(BusStarted())
        log.info("The bus serves", extra={"action": "started", "slot": self._slot.number, "epoch": self.epochs.current})

    def _open(self) -> None:
        """Take a place among the processes of the log, and open it."""
        try:
            self._slot = Slot(self.lock_folder, self._when_alone)
            self.clock.start()
            self.store.open(self._migrations)
            self.node = node.enter(self.store, self.settings)
            self.vitals.disk.measure_now()
            self.counters = Counters(self.lock_folder / "counters", self._slot.number)
        except OSError as error:
            raise StoreAway(
                f"The folder {self.lock_folder.parent} can't be written ({error.strerror}); make room on its disk, or set"
                " DATA_DIR or DATABASE_URL to one that this user may write."
            ) from None
        self.own_ids = OwnIds(self.clock.now_us, node.number_of(self.node, self._slot))

    def _when_alone(self) -> None:
        """Before any neighbour is let in: refuse a damaged log, and forget a former server's figures."""
        self.store.check()
        if begins_anew(self.lock_folder):
            clear(self.lock_folder / "counters")
            forget(self.lock_folder)
        self.clock.anchor()

    def give_notice(self) -> None:
        """Say that the process is about to leave: it is no longer ready, and clients are told. All else goes on."""
        if self.running and not self.leaving:
            self.leaving = True
            self.drain.give_notice()

    def begin_drain(self) -> None:
        """Refuse what is new and answer who waits. Safe in a signal handler's callback."""
        if self.running and not self.draining:
            self.leaving = self.draining = True
            self.emit(BusStopping())
            self.hub.wake_all()
            self.courier.queues.end_waits()

    def stop(self, timeout: float = 10.0, notify: Callable[[], None] = lambda: None) -> None:
        """Drain and end: commit what is accepted, say goodbye to every connection, then stop all parts in reverse.

        `timeout` bounds the wait for connections, in seconds; `notify()` is called about every tenth of a second.
        """
        if not self.running:
            return
        self.begin_drain()
        try:
            self.drain.run(timeout, notify)
        finally:  # also when a signal asks to hurry
            self._end()

    def _end(self) -> None:
        self.running = False
        for worker in reversed(self.workers):
            try:
                worker.stop()
            except Exception:
                log.exception("%s could not be stopped in order", type(worker).__name__, extra={"action": "stop"})
        self._dispatcher.stop(2.0)
        self.heartbeat.stop()
        self.hub.flush()
        self.cursors.flush()
        self.hub.tail.stop()
        self._upkeep.stop()
        self.readers.stop()
        self.writer.stop()  # after the readers: whoever closes the log last folds its WAL in, and they could not
        self.backplane.stop()
        self.mailbox.close()
        self.counters.close()
        self._slot.release()
        log.info("The bus has stopped", extra={"action": "stopped"})

    # ---- sending

    def publish(self, draft: Draft, settled: Settled, *, receipt: bool = True) -> None:
        """Accept a draft; `settled` gets the receipt after the commit, or the refusal. Event loop; never blocks.

        Without `receipt`, it hears of refusals only.
        """
        self.sending.publish(draft, settled, receipt=receipt)

    def publish_all(self, drafts: Sequence[Draft], settled: Sequence[Settled], *, atomic: bool) -> None:
        """Accept several drafts for one commit. Atomic: all are stored, or none."""
        if atomic:
            self.sending.publish_group(drafts, settled)
            return
        for draft, settle in zip(drafts, settled, strict=True):
            self.sending.publish(draft, settle)

    def publish_burst(self, burst: Burst) -> None:
        """As `publish`, of plain sends that came together; see `bus.storage.Burst`."""
        self.sending.publish_burst(burst)

    def send(self, drafts: Sequence[Draft], *, atomic: bool = False) -> list[Receipt | BusError]:
        """Publish and wait for every answer, in the calling greenlet."""
        self.check_load()
        answers: list[Any] = [AsyncResult() for _ in drafts]
        self.publish_all(drafts, [answer.set for answer in answers], atomic=atomic)
        return [answer.get() for answer in answers]

    @property
    def overloaded(self) -> bool:
        """True when so much waits for the disk that no more should be taken in."""
        waiting = self.writer.waiting + self.sending.rows
        return waiting > MAX_UNCOMMITTED or self.writer.waiting_bytes > MAX_UNCOMMITTED_BYTES

    def check_load(self) -> None:
        """Raise Unavailable while the bus is overloaded."""
        if self.overloaded:
            raise Unavailable("The bus is behind with its commits; nothing was stored.", retry_after_seconds=1)

    def hold_back(self, connection: Connection) -> None:
        """Stop reading a connection until the writer has caught up."""
        connection.pause()
        self._paused.append(connection)

    def audience_size(self, message: Message) -> int:
        """How many hear a message that names nobody."""
        if message.kind == Kind.QUEUE:
            return self.courier.queues.takers(audience_of(message))
        if message.kind == Kind.TOPIC:
            return self.audience.online(message.address)
        everybody = self.hub.rooms if self.backplane.size == 1 else self.online()
        return len(everybody) - sum(name in everybody for name in {message.sender, *message.excluded})

    def _committed(self, first: int, messages: list[Message]) -> None:
        last = first + len(messages) - 1
        self.counters.add("messages_accepted", len(messages))
        if self._hears_sent:
            for message in messages:
                if REDRIVEN not in message.extras:
                    self.emit(MessageSent(message))
        if self.backplane.size > 1:
            texts_of(messages, self.epochs)
            self.backplane.share(first, last, messages)
        self.hub.tail.offer(first, last, messages)

    def _relieve(self) -> None:
        self.companions.tell()
        self.hub.commit_ended()
        if self._paused and self.writer.waiting < MAX_UNCOMMITTED // 2:
            paused, self._paused = self._paused, []
            for connection in paused:
                connection.resume()

    # ---- reading and listening

    def place(self, name: str, since: str | None, *, at_gap_go_to_latest: bool = False) -> Place:
        """Where a reader of `name` goes on. Waits for a look at the store. Raises Malformed."""
        look = partial(place_for, epochs=self.epochs, name=name, since=since, at_gap_go_to_latest=at_gap_go_to_latest)
        try:
            place: Place = self.read(look)
        except Malformed:
            self.metrics.count("bus_resume_total", "denied")
            raise
        return place

    def is_live(self, name: str) -> bool:
        """True when a connection of `name`, on any worker, keeps up with the tail."""
        room = self.hub.rooms.get(name)
        return (room is not None and room.live) or self.backplane.live(name)

    def online(self) -> dict[str, Presence]:
        """Everybody connected, on any worker: connections summed, the earliest `since_us`."""
        return together([*self.snapshot(), *self.backplane.elsewhere()])

    # ---- what the hub tells (bus.hub.Listener)

    def presence_changed(self, room: Room) -> None:
        self.counters.set("active_connections", len(self.hub.connections))
        if self.backplane.size > 1:
            self.backplane.announce(presence_of(room))

    def turn_ended(self) -> None:
        said = self.courier.turn_ended()
        if self.sending.rows or said:
            self.writer.submit([*self.sending.take(), *said])

    def is_committing(self) -> bool:
        return bool(self.sending.rows or self.writer.waiting)

    def tracked(self, message: Message) -> None:
        self.courier.arrived(message)

    def turned_live(self, connection: Connection) -> None:
        self.courier.turned_live(connection)

    def emptied(self, connection: Connection) -> None:
        self.courier.emptied(connection)

    def connection_opened(self, connection: Connection) -> None:
        """A transport took a connection in."""
        self.counters.add("total_connections")
        self.counters.set("active_connections", len(self.hub.connections))
        self.emit(ClientConnected(connection.client, connection.encoding.name))

    def connection_lost(self, connection: Connection) -> None:
        self.counters.set("active_connections", len(self.hub.connections))
        self.courier.left(connection)
        self.emit(ClientDisconnected(connection.client, connection.encoding.name, connection.close_code))

    # ---- what neighbours tell (bus.backplane.Neighbours)

    def block(self, first: int, last: int, messages: list[Message]) -> None:
        self.hub.tail.offer(first, last, messages)

    def hint(self, head: int) -> None:
        self.hub.tail.hint(head)

    def ephemeral(self, message: Message) -> None:
        self.hub.deliver([message])

    def snapshot(self) -> Iterable[Presence]:
        return [presence_of(room) for room in self.hub.rooms.values()]

    def notes(self) -> Iterable[list[Any]]:
        return self.courier.notes()

    def noted(self, slot: int, note: list[Any]) -> None:
        self.courier.noted(slot, note)

    def left(self, slot: int) -> None:
        self.courier.queues.neighbour_left(slot)

    def missed(self) -> None:
        self.courier.catch_up()

    def subscriptions(self) -> Iterable[tuple[int, Collection[str]]]:
        return self.audience.subscriptions()
