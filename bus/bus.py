"""The bus: what transports and extensions call. It owns the parts of one process and starts and stops them in order.

A send is accepted on the event loop, gathered until the end of the turn, committed by the writer thread, and only
then answered; every process, this one included, delivers from the tail of the log.
"""

from __future__ import annotations

import gc
import logging
import resource
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from gevent.event import AsyncResult

from bus.audience import Audience
from bus.auth import Auth, key_digest, new_key
from bus.backplane import Presence
from bus.backplane.local import LocalBackplane, Slot
from bus.connection import Connection
from bus.counters import Counters, clear
from bus.cursors import Cursors
from bus.dispatch import Dispatcher, Guarded
from bus.drain import Drain
from bus.errors import BusError, DiskFull, Malformed, StartRefused, Unavailable
from bus.events import BusStarted, BusStopping, ClientConnected, ClientDisconnected, Event, MessageRefused, MessageSent
from bus.heartbeat import Heartbeat
from bus.hub import Hub
from bus.message import Kind, Message, Names, now_us, text_of
from bus.protocol import Draft
from bus.resume import Place, place_of
from bus.room import Room
from bus.settings import Settings
from bus.storage import MAKE_KNOWN, Group, Job, Pending, Reader, Row, Store, Transaction
from bus.storage.log_writer import LogWriter
from bus.storage.sqlite import SqliteStore
from bus.storage.upkeep import UpkeepThread
from bus.threads import Mailbox, WorkerPool
from bus.worker import Worker

log = logging.getLogger("bus")

READER_THREADS = 2
MAX_UNCOMMITTED = 20_000
MAX_UNCOMMITTED_BYTES = 64 * 1024 * 1024
"""Past either, sockets are not read and requests get 503: lag turns into waiting before memory does."""

MIGRATIONS = Path(__file__).parent / "storage" / "migrations"

Settled = Callable[["Receipt | BusError"], None]


class Receipt(msgspec.Struct, gc=False):
    """The answer to a send. `message_id` is ASCII; `recipients` is JSON: what happens, for each named recipient.

    `seq` is None for an ephemeral message.
    """

    message_id: bytes
    seq: int | None
    stamp_us: int
    recipients: bytes
    duplicate: bool = False


class Bus:
    """One process's share of the bus. Build it anywhere; `start` and everything after belong to the event loop's thread.

    The verbs for extensions (`before_publish` … `write`) are called from `register(app, bus)`, before `start`;
    `emit` and `write` also later.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = Names()
        self.auth = Auth(settings)
        self.lock_folder = settings.database_path.with_name(settings.database_path.name + ".workers")
        self.store: Store = SqliteStore(
            settings.database_path, self.lock_folder, durability=settings.durability, inbox_limit=settings.inbox_limit
        )
        self.running = False
        self.draining = False
        self.started_us = 0
        self._migrations: list[tuple[str, Path]] = [("core", MIGRATIONS)]
        self._before_publish: list[Callable[[Message], Message | None]] = []
        self._with_commit: list[Guarded] = []
        self._dispatcher = Dispatcher()
        self._workers: list[Worker] = []
        self._gathered: list[Pending | Group | Job] = []
        self._paused: list[Connection] = []
        self._known: set[str] = set()
        self._ephemeral_count = 0

    # ---- verbs for extensions

    def before_publish(self, accept: Callable[[Message], Message | None]) -> None:
        """Have `accept(message)` look at each message before it is stored, in order of registration.

        It may return another message (to stamp it) or None (as it is), or raise a BusError to refuse it. It runs on
        the event loop and may neither block nor switch. An exception that is no BusError refuses the message too.
        """
        self._before_publish.append(accept)

    def on(self, kind: type[Event], handler: Callable[[Any], None], *, wait: bool = False) -> None:
        """Have `handler(event)` hear events of a type, or all for `Event`; with `wait`, in a greenlet that may block."""
        self._dispatcher.on(kind, handler, wait=wait)

    def emit(self, event: Event) -> None:
        """Announce an event. Event loop only."""
        self._dispatcher.emit(event)

    def add_worker(self, worker: Worker) -> None:
        """Have a worker started after the fork, and stopped in reverse order."""
        self._workers.append(worker)

    def with_commit(self, rows: Callable[[Message], Sequence[Row]]) -> None:
        """Have `rows(message)` say what else is written in the message's own transaction. May neither block nor switch."""
        self._with_commit.append(Guarded(rows))

    def use_tables(self, name: str, migrations: Path) -> None:
        """Have a numbered folder of SQL files applied with the core's, once, under `name`."""
        if any(name == taken for taken, _ in self._migrations):
            raise ValueError(f"the tables of {name} are registered already")
        self._migrations.append((name, migrations))

    def write(self, job: Callable[[Transaction], Any]) -> Any:
        """Run `job(transaction)` on the writer in its next batch; waits for its answer in the calling greenlet."""
        return self.writer.call(job)

    def read(self, job: Callable[[Reader], Any]) -> Any:
        """Run `job(reader)` on a reader thread; waits for its answer in the calling greenlet."""
        return self.readers.call(job)

    # ---- life

    def start(self) -> None:
        """Open the store and begin to work. Raises StartRefused. Call it after the fork, with gevent patched."""
        _raise_file_limit()
        try:
            self._slot = Slot(self.lock_folder, self._when_alone)
            self.store.open(self._migrations)
            self.counters = Counters(self.lock_folder / "counters", self._slot.number)
        except OSError as error:
            raise StartRefused(
                f"The folder {self.lock_folder.parent} can't be written ({error.strerror}); make room on its disk, or set"
                " DATA_DIR or DATABASE_URL to one that this user may write."
            ) from None
        self.epochs = self.store.epochs
        self.mailbox = Mailbox()
        self.readers = WorkerPool(self.mailbox, self.store.reader, size=READER_THREADS)
        self.writer = LogWriter(self.mailbox, self.store.writer, self._committed)
        self.writer.on_relief = self._relieve
        self.cursors = Cursors(self.writer)
        self.backplane = LocalBackplane(self._slot)
        self.audience = Audience(self.backplane)
        self.hub = Hub(self.epochs, self.readers, self.cursors, self, self.audience)
        self.heartbeat = Heartbeat(self.hub, self.cursors)
        self._upkeep = UpkeepThread(self.store.upkeep, self.lock_folder / "exclusive-upkeep.lock")
        self._ephemeral_prefix = f"msg-{int(time.time() * 1000):012x}-{self._slot.number:02d}e"
        self.readers.start()
        self.writer.start()
        self.hub.tail.start(self.read(lambda reader: reader.head()).seq)
        self._first_key()
        self.backplane.start(self)
        self.heartbeat.start()
        self._upkeep.start()
        self._dispatcher.start()
        self._hears_sent = self._dispatcher.wants(MessageSent)
        for worker in self._workers:
            worker.start(self.lock_folder)
        _calm_collector()
        self.started_us = now_us()
        self.running = True
        self.emit(BusStarted())
        log.info("The bus serves", extra={"action": "started", "slot": self._slot.number, "epoch": self.epochs.current})

    def _when_alone(self) -> None:
        """Before any neighbour is let in: refuse a damaged log, and forget a former server's figures."""
        self.store.check()
        clear(self.lock_folder / "counters")

    def begin_drain(self) -> None:
        """Refuse what is new and answer who waits. Safe in a signal handler's callback."""
        if self.running and not self.draining:
            self.draining = True
            self.emit(BusStopping())
            self.hub.wake_all()

    def stop(self, timeout: float = 10.0, notify: Callable[[], None] = lambda: None) -> None:
        """Drain and end: commit what is accepted, say goodbye to every connection, then stop all parts in reverse.

        `timeout` bounds the wait for connections, in seconds; `notify()` is called about every tenth of a second.
        """
        if not self.running:
            return
        self.begin_drain()
        Drain(self.hub, self.settings).run(timeout, notify)
        self.running = False
        for worker in reversed(self._workers):
            worker.stop()
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

    def publish(self, draft: Draft, settled: Settled) -> None:
        """Accept a draft; `settled` gets the receipt after the commit, or the refusal. Event loop; never blocks."""
        pending = self._accept(draft, settled)
        if pending is not None:
            self._gathered.append(pending)
            self.hub.kick()

    def publish_all(self, drafts: Sequence[Draft], settled: Sequence[Settled], *, atomic: bool) -> None:
        """Accept several drafts for one commit. Atomic: all are stored, or none."""
        if not atomic:
            for draft, settle in zip(drafts, settled, strict=True):
                self.publish(draft, settle)
            return
        if any(draft.ephemeral for draft in drafts):
            raise Malformed("An atomic batch can't hold ephemeral messages.", code="ephemeral_conflict", field="atomic")
        accepted = [self._accept(draft, settle) for draft, settle in zip(drafts, settled, strict=True)]
        members = [pending for pending in accepted if pending is not None]
        if len(members) == len(drafts):
            self._gathered.append(Group(members))
            self.hub.kick()
            return
        refusal = Malformed(
            "Another message of the atomic batch was refused; nothing was stored.", code="batch_refused"
        )
        for pending in members:
            pending.error = refusal
            pending.settled(pending)

    def send(self, drafts: Sequence[Draft], *, atomic: bool = False) -> list[Receipt | BusError]:
        """Publish and wait for every answer, in the calling greenlet."""
        if self.overloaded:
            raise Unavailable("The bus is behind with its commits; nothing was stored.", retry_after_seconds=1)
        answers: list[Any] = [AsyncResult() for _ in drafts]
        self.publish_all(drafts, [answer.set for answer in answers], atomic=atomic)
        return [answer.get() for answer in answers]

    @property
    def overloaded(self) -> bool:
        """True when so much waits for the disk that no more should be taken in."""
        return (
            self.writer.waiting + len(self._gathered) > MAX_UNCOMMITTED
            or self.writer.waiting_bytes > MAX_UNCOMMITTED_BYTES
        )

    def hold_back(self, connection: Connection) -> None:
        """Stop reading a connection until the writer has caught up."""
        connection.pause()
        self._paused.append(connection)

    def _accept(self, draft: Draft, settled: Settled) -> Pending | None:
        message = draft.message
        for accept in self._before_publish:
            try:
                message = accept(message) or message
            except BusError as refusal:
                self._refuse(message, refusal, settled)
                return None
            except Exception:
                log.exception("An extension could not look at a message", extra={"action": "before_publish"})
                self._refuse(message, Unavailable("The message could not be checked; nothing was stored."), settled)
                return None
        if draft.ephemeral:
            self._publish_ephemeral(message, settled)
            return None
        rows = [row for extra in self._with_commit for row in extra(message) or ()] if self._with_commit else ()
        names = message.names
        present = self.is_live(names[0]) if len(names) == 1 else bool(names) and all(map(self.is_live, names))
        return Pending(message, self._settle, settled, draft.key, present, rows)

    def _refuse(self, message: Message, refusal: BusError, settled: Settled) -> None:
        self.counters.add("messages_refused")
        self.emit(MessageRefused(message.sender, refusal.code))
        settled(refusal)

    def _settle(self, pending: Pending) -> None:
        settled = pending.answer
        assert settled is not None
        if pending.error is not None:
            self._refuse(pending.message, pending.error, settled)
            return
        message, outcome = pending.message, pending.outcome
        assert outcome is not None
        if self._hears_sent and not outcome.duplicate:
            self.emit(MessageSent(message))
        recipients = outcome.answer or self._fate(message, outcome.refused, outcome.unknown)
        settled(Receipt(self.epochs.id_of(message.seq), message.seq, message.stamp_us, recipients, outcome.duplicate))

    def _publish_ephemeral(self, message: Message, settled: Settled) -> None:
        self._ephemeral_count += 1
        message.own_id = f"{self._ephemeral_prefix}{self._ephemeral_count:010x}"
        text_of(message, self.epochs)
        self.backplane.share_ephemeral(message)
        self.hub.deliver([message])
        states = [{"client": name, "state": "delivered" if self.is_live(name) else "dropped"} for name in message.names]
        recipients = msgspec.json.encode(states) if states else self._fate(message, (), ())
        settled(Receipt(message.own_id.encode(), None, message.stamp_us, recipients))

    def _fate(self, message: Message, refused: tuple[str, ...], unknown: tuple[str, ...]) -> bytes:
        if len(message.names) == 1 and not refused:
            name = message.names[0]
            fate = b"delivered" if self.is_live(name) else b"unknown" if unknown else b"queued"
            return b'[{"client":"%b","state":"%b"}]' % (name.encode(), fate)
        if message.kind == Kind.TOPIC:
            return self.audience.fate(message.address)
        if not message.names:
            everybody = self.hub.rooms if self.backplane.size == 1 else self.online()
            online = len(everybody) - (message.sender in everybody)
            return b'[{"client":"all","state":"sent","online":%d}]' % online
        states = [{"client": name, "state": "refused"} for name in refused]
        for name in message.names:
            state = "delivered" if self.is_live(name) else "unknown" if name in unknown else "queued"
            states.append({"client": name, "state": state})
        return msgspec.json.encode(states)

    def _committed(self, first: int, messages: list[Message]) -> None:
        last = first + len(messages) - 1
        self.counters.add("messages_accepted", len(messages))
        if self.backplane.size > 1:
            for message in messages:
                text_of(message, self.epochs)
            self.backplane.share(first, last, messages)
        self.hub.tail.offer(first, last, messages)

    def _relieve(self) -> None:
        if self._paused and self.writer.waiting < MAX_UNCOMMITTED // 2:
            paused, self._paused = self._paused, []
            for connection in paused:
                connection.resume()

    # ---- reading and listening

    def make_known(self, name: str) -> None:
        """Give a client its row, and make it part of `all`. Waits for the commit when the name is new here."""
        if name in self._known:
            return

        def job(transaction: Transaction) -> None:
            transaction.execute(MAKE_KNOWN, (name, transaction.head, now_us()))

        try:
            self.write(job)
        except (DiskFull, Unavailable):  # who is known already may read while nothing can be written
            row = self.read(lambda reader: reader.client(name))
            if row is None or not row.known:
                raise
            return
        if len(self._known) > 200_000:
            self._known.clear()
        self._known.add(name)

    def place(self, name: str, since: str | None, *, at_gap_go_to_latest: bool = False) -> Place:
        """Where a reader of `name` goes on. Waits for a look at the store. Raises Malformed."""

        def job(reader: Reader) -> Place:
            kept = reader.client(name) if since is None else None
            cursor = kept.cursor if kept else reader.head().seq
            return place_of(reader, self.epochs, since, cursor, at_gap_go_to_latest=at_gap_go_to_latest)

        place: Place = self.read(job)
        return place

    def is_live(self, name: str) -> bool:
        """True when a connection of `name`, on any worker, keeps up with the tail."""
        room = self.hub.rooms.get(name)
        return (room is not None and room.live) or self.backplane.live(name)

    def online(self) -> dict[str, Presence]:
        """Everybody connected, on any worker: connections summed, the earliest `since_us`."""
        everybody = {presence.name: presence for presence in self.snapshot()}
        for presence in self.backplane.elsewhere():
            here = everybody.get(presence.name)
            everybody[presence.name] = presence if here is None else _joined(here, presence)
        return everybody

    # ---- what the hub tells (bus.hub.Listener)

    def presence_changed(self, room: Room) -> None:
        self.counters.set("active_connections", len(self.hub.connections))
        if self.backplane.size > 1:
            self.backplane.announce(_presence(room))

    def turn_ended(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self.writer.submit(gathered)

    def connection_opened(self, connection: Connection) -> None:
        """A transport took a connection in."""
        self.counters.add("total_connections")
        self.counters.set("active_connections", len(self.hub.connections))
        self.emit(ClientConnected(connection.client, connection.encoding.name))

    def connection_lost(self, connection: Connection) -> None:
        self.counters.set("active_connections", len(self.hub.connections))
        self.emit(ClientDisconnected(connection.client, connection.encoding.name, connection.close_code))

    # ---- what neighbours tell (bus.backplane.Neighbours)

    def block(self, first: int, last: int, messages: list[Message]) -> None:
        self.hub.tail.offer(first, last, messages)

    def hint(self, head: int) -> None:
        self.hub.tail.hint(head)

    def ephemeral(self, message: Message) -> None:
        self.hub.deliver([message])

    def snapshot(self) -> Iterable[Presence]:
        return [_presence(room) for room in self.hub.rooms.values()]

    def subscriptions(self) -> Iterable[tuple[int, Collection[str]]]:
        return self.audience.subscriptions()

    # ---- below

    def _first_key(self) -> None:
        """With auth on and no API_KEY: use the key made at the first start, or make it and print it, once."""
        if not self.auth.needs_first_key:
            return
        key = new_key()

        def job(transaction: Transaction) -> str:
            transaction.execute("INSERT OR IGNORE INTO meta VALUES ('admin_key_digest', ?)", (key_digest(key),))
            return str(transaction.execute("SELECT value FROM meta WHERE name = 'admin_key_digest'")[0][0])

        digest = self.write(job)
        self.auth.use(digest)
        if secrets.compare_digest(digest, key_digest(key)):
            print(f"\nThe admin key of this bus, shown this once: {key}\n", flush=True)


def _presence(room: Room) -> Presence:
    mine = room.connections()
    live = sum(1 for connection in mine if connection.live)
    since = min((connection.opened_us for connection in mine), default=0)
    transport = ",".join(sorted({connection.encoding.name for connection in mine}))
    return Presence(room.name, len(mine), live, since, transport)


def _joined(one: Presence, other: Presence) -> Presence:
    transports = sorted({*one.transport.split(","), *other.transport.split(",")})
    return Presence(
        one.name,
        one.connections + other.connections,
        one.live + other.live,
        min(one.since_us, other.since_us),
        ",".join(transports),
    )


def _calm_collector() -> None:
    """What is there now stays, and messages in flight make no cycles: looking for some took a quarter of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
