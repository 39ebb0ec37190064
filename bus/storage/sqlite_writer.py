"""The write side of the SQLite store: one transaction a batch, under the writers' lock, with the seqs given inside it.

What a send may meet in here: its idempotency key was used before, or the inbox of a recipient is full. Both are
decided in the transaction, so two processes can't disagree.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import apsw
import msgspec

from bus.errors import BusError, DiskFull, InboxFull, KeyReused, Unavailable
from bus.message import OWN_ID, REQUIRES_ACK, Epochs, Kind, Message, audience_of, now_us
from bus.protocol import body_key, encode
from bus.storage import MAKE_KNOWN, SEQ, Group, Item, Job, Outcome, Pending, Row
from bus.storage.deliveries import Failure
from bus.storage.ledger import Ledger
from bus.storage.rows import COLUMNS, message_of
from bus.storage.sqlite_reader import WAITING

if TYPE_CHECKING:
    from bus.storage.sqlite import WritersLock

_WIDTH = 10
_INSERT_SIZES = (256, 64, 16, 4, 1)
"""Rows of one INSERT. Multi-row VALUES write 24–40 % more rows a second than executemany; few sizes keep the cache warm."""

_INSERTS = {
    size: "INSERT INTO messages VALUES " + ",".join(["(" + ",".join("?" * _WIDTH) + ")"] * size)
    for size in _INSERT_SIZES
}
_OLDEST_PLAIN = f"""
SELECT {COLUMNS} FROM messages m WHERE m.seq = (SELECT min(seq) FROM (
    SELECT min(m.seq) AS seq FROM messages m
     WHERE m.kind = 0 AND m.address = ?1 AND m.flags & 1 = 0 AND m.seq > (SELECT mark FROM clients WHERE name = ?1)
    UNION ALL SELECT min(a.seq) FROM addressed a JOIN messages m ON m.seq = a.seq
     WHERE a.name = ?1 AND m.flags & 1 = 0 AND a.seq > (SELECT mark FROM clients WHERE name = ?1)))"""
_OPEN_INBOX = "INSERT OR IGNORE INTO clients VALUES (?1, 0, ?2, ?2, ?3, ?3)"
NAMES_REMEMBERED = 200_000
NAMES_REMEMBERED_SECONDS = 3600.0
"""A name that goes on sending is seen again after so long: what is unused for a month is forgotten."""


class SqliteWriter:
    """See `bus.storage.Writer`. Not thread-safe: the writer thread owns it.

    `_known` and `_opened` remember names whose row needs no look-up any more; they are dropped whole when a
    transaction fails or they grow past NAMES_REMEMBERED. `_fill` keeps (mark, counted through, waiting) of inboxes
    that were written to while their client was away; see `_has_room`.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        lock: WritersLock,
        epochs: Epochs,
        clock: Callable[[], int],
        *,
        inbox_limit: int,
        queue_limit: int,
    ) -> None:
        """`clock()` is the bus's (bus.clock), in microseconds; the limits are how much may wait in one inbox or queue."""
        self._connection = connection
        self._lock = lock
        self._epochs = epochs
        self._clock = clock
        self._inbox_limit = inbox_limit
        self._queue_limit = queue_limit
        self._known: set[str] = set()
        self._opened: set[str] = set()
        self._fill: dict[str, tuple[int, int, int]] = {}
        self._remembers_since = time.monotonic()

    def commit(self, batch: Sequence[Item]) -> tuple[int, list[Message]]:
        """See `bus.storage.Writer.commit`."""
        try:
            with self._lock:
                return self._commit_locked(batch)
        except (apsw.FullError, apsw.IOError, apsw.BusyError, apsw.CorruptError, apsw.ReadOnlyError) as error:
            self._forget()
            raise _refusal(error) from error
        except OSError as error:
            self._forget()
            raise Unavailable("The log can't be written for now; nothing was stored. Try again.") from error

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    # ---- one transaction

    def _commit_locked(self, batch: Sequence[Item]) -> tuple[int, list[Message]]:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            work = _Work(self, int(execute("SELECT seq FROM log_head").get))
            work.take(batch)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        with suppress(OSError):  # it is stored: a note that fails must not turn that into a refusal
            self._lock.note(work.head)
        return work.first, work.written

    def _forget(self) -> None:
        self._known.clear()
        self._opened.clear()
        self._fill.clear()
        self._remembers_since = time.monotonic()


class _Work:
    """One batch inside its transaction. `head` is the last seq given; `written` the new messages in seq order.

    `ledger` holds what must be acked. It is flushed wherever a savepoint begins, and forgets with one that is undone.
    """

    def __init__(self, writer: SqliteWriter, head: int) -> None:
        self._writer = writer
        self._execute = writer._connection.execute
        self.first = head + 1
        self.head = head
        self.written: list[Message] = []
        self.ledger = Ledger(self._execute, writer._epochs, writer._clock())
        self._inserted = 0
        self._left: dict[str, int] = {}  # room in the inboxes that this batch wrote to
        self._now = now_us()
        many = len(writer._known) + len(writer._opened) + len(writer._fill) > NAMES_REMEMBERED
        if many or time.monotonic() - writer._remembers_since > NAMES_REMEMBERED_SECONDS:
            writer._forget()

    def take(self, batch: Sequence[Item]) -> None:
        for item in batch:
            if isinstance(item, Pending):
                self._admit(item)
            elif isinstance(item, Group):
                self._admit_group(item.members)
            else:
                self._run(item)
        self._insert()
        self.ledger.flush()
        if self.written:
            self._execute(
                "UPDATE log_head SET seq = ?, total_messages = total_messages + ?, kept_bytes = kept_bytes + ?",
                (self.head, len(self.written), sum(len(m.payload) for m in self.written)),
            )

    # ---- for jobs; see `bus.storage.Transaction`

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._execute(statement, bindings).fetchall()

    def append(self, message: Message, rows: Sequence[Row] = ()) -> Outcome | BusError:
        item = Pending(message, _unheard, rows=rows)
        self._admit(item)
        self._insert()
        return item.error or item.outcome or Outcome()

    def _run(self, job: Job) -> None:
        self._insert()
        self.ledger.flush()
        head, written = self.head, len(self.written)
        self._execute("SAVEPOINT job")
        try:
            job.value = job.run(self)
            self.ledger.flush()
        except (apsw.FullError, apsw.IOError):
            raise
        except Exception as error:  # noqa: BLE001  # the job's own fault: it alone is undone, and its caller is told
            self._execute("ROLLBACK TO job")
            self._undo(head, written)
            job.error = error
        self._execute("RELEASE job")

    def _undo(self, head: int, written: int) -> None:
        """Forget, in memory, what a savepoint has taken back."""
        if len(self.written) > written:
            self._writer._forget()
            self._left.clear()
        self.head = head
        del self.written[written:]
        self._inserted = min(self._inserted, written)
        self.ledger.drop()

    # ---- admission

    def _admit_group(self, members: Sequence[Pending]) -> None:
        """All or none: the first refusal undoes the others and is everybody's answer."""
        self.ledger.flush()
        head, written = self.head, len(self.written)
        self._execute("SAVEPOINT atomic")
        for member in members:
            self._admit(member)
            if member.error is not None:
                break
        else:
            self.ledger.flush()
            self._execute("RELEASE atomic")
            return
        self._execute("ROLLBACK TO atomic")
        self._execute("RELEASE atomic")
        self._writer._forget()
        self._left.clear()
        self._undo(head, written)
        for other in members:
            other.error = member.error
            other.message.seq = 0

    def _admit(self, item: Pending) -> None:
        message = item.message
        if item.key is not None and self._seen_before(item):
            return
        if (terms := message.terms) is not None:
            if (due_us := self._due(message)) > self.ledger.now:
                self._schedule(item, due_us)
                return
            if terms.ttl_us is not None:
                message.expires_us = self.ledger.now + terms.ttl_us
        item.outcome = Outcome()
        if not self._make_room(item):
            item.outcome = None
            return
        self.head += 1
        message.seq = self.head
        self._know_sender(message.sender)
        self.written.append(message)
        if message.kind == Kind.LIST:
            for name in message.names:
                self._execute("INSERT INTO addressed VALUES (?, ?)", (name, self.head))
        if terms is not None or message.flags:
            self._admit_special(message, item.live)
        for statement, bindings in item.rows:
            self._execute(statement, [self.head if value is SEQ else value for value in bindings])
        if item.key is not None:
            self._remember(item)

    def _know_sender(self, sender: str) -> None:
        writer = self._writer
        if sender not in writer._known and sender[0] != "$":
            self._execute(MAKE_KNOWN, (sender, max(self.head - 1, 0), self._now))
            writer._known.add(sender)
            writer._opened.add(sender)

    def _admit_special(self, message: Message, live: Sequence[str]) -> None:
        """What is written of a message beyond its row."""
        terms, seq = message.terms, message.seq
        if message.flags & OWN_ID:
            self._execute("INSERT INTO other_ids VALUES (?, ?)", (message.own_id, seq))
        if message.flags & REQUIRES_ACK:
            owners = message.names or (f"queue:{message.address}",)
            leased = [owner for owner in owners if self.ledger.enter(message, owner, online=owner in live)]
            message.leased_to = tuple(leased)
        if terms is None:
            return
        if terms.thread_id is not None:
            self._execute("INSERT INTO thread_messages VALUES (?, ?)", (terms.thread_id, seq))
        if terms.correlation_id is not None:
            self._note_reply(message, terms.correlation_id)

    def _note_reply(self, message: Message, correlation_id: str) -> None:
        """It may answer a question that one of its recipients asked: then the question keeps it."""
        for name in message.names:
            row = self._execute(
                "SELECT seq, asked FROM requests WHERE asker = ? AND correlation_id = ?", (name, correlation_id)
            ).fetchone()
            if row is None or (row[1] is not None and message.sender not in msgspec.json.decode(cast("bytes", row[1]))):
                continue
            self._execute("INSERT INTO replies VALUES (?, ?, ?)", (row[0], message.seq, message.sender))

    # ---- later

    def _due(self, message: Message) -> int:
        terms = message.terms
        assert terms is not None
        if terms.deliver_us is not None:
            return self.ledger.now + terms.deliver_us - message.stamp_us
        return self.ledger.now + (terms.delay_us or 0)

    def _schedule(self, item: Pending, due_us: int) -> None:
        """Keep it outside the log until it is due; bus.delivery.scheduler puts it in."""
        message = item.message
        self._know_sender(message.sender)
        self._execute(
            "INSERT INTO scheduled VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                message.own_id,
                due_us,
                message.kind,
                message.address,
                message.sender,
                message.type,
                message.stamp_us,
                message.flags,
                message.extras,
                message.payload,
                encode(message.terms),
            ),
        )
        item.outcome = Outcome(scheduled=True)
        if item.key is not None:
            self._remember(item)

    # ---- room

    def _make_room(self, item: Pending) -> bool:
        """See that every recipient has an inbox with room, or the queue. False: refused; `item.error` says why."""
        message = item.message
        if message.kind == Kind.QUEUE:
            return self._make_queue_room(item)
        tracked = message.flags & REQUIRES_ACK
        if message.names and (tracked or not (item.present and self._writer._opened.issuperset(message.names))):
            self._open_inboxes(item)
        return item.error is None

    def _make_queue_room(self, item: Pending) -> bool:
        owner = f"queue:{item.message.address}"
        backlog = self.ledger.backlog(owner)
        capacity = backlog.capacity or self._writer._queue_limit
        if backlog.waiting < capacity:
            return True
        if backlog.on_full == "dead_letter" and self._set_aside(owner, item):
            return True
        item.error = InboxFull(
            f"The queue {item.message.address} is full ({capacity} items wait in it); nothing was stored. Try again when"
            " its consumers have caught up.",
            code="queue_full",
            field="to",
            retry_after_seconds=5,
        )
        return False

    def _open_inboxes(self, item: Pending) -> None:
        """Give each named recipient a row, and settle who is refused and who is unknown."""
        writer, message, outcome = self._writer, item.message, item.outcome
        assert outcome is not None
        refused, unknown = [], []
        for name in message.names:
            if name not in writer._opened:
                self._execute(_OPEN_INBOX, (name, self.head, self._now))
                writer._opened.add(name)
            if name not in writer._known:
                if self._execute("SELECT known FROM clients WHERE name = ?", (name,)).get:
                    writer._known.add(name)
                else:
                    unknown.append(name)
            if not self._has_room(name, item):
                refused.append(name)
        if not refused:
            outcome.unknown = tuple(unknown)
            return
        if len(refused) == len(message.names):
            item.error = InboxFull(
                f"The inbox of {', '.join(refused[:3])} is full ({writer._inbox_limit} messages wait in it); nothing was"
                " stored. Try again when it has been read.",
                field="to",
                retry_after_seconds=5,
            )
            return
        left = tuple(name for name in message.names if name not in refused)
        message.names = left
        message.address = msgspec.json.encode(left).decode()
        outcome.refused = tuple(refused)
        outcome.unknown = tuple(name for name in unknown if name in left)

    def _has_room(self, name: str, item: Pending) -> bool:
        """Count what waits above the mark, and count this message.

        The count is carried from batch to batch: when the mark or the log moved, only the rows in between are read. What
        this batch itself adds (it begins at `first`) is counted one by one.
        """
        tracked = item.message.flags & REQUIRES_ACK
        if item.present if not tracked else name in item.live and self.ledger.leases_at_once(name):
            return True
        left = self._left.get(name)
        if left is None:
            backlog = self.ledger.backlog(name)
            capacity = backlog.capacity or self._writer._inbox_limit
            left = capacity - self._count_waiting(name) - backlog.waiting
        if left <= 0:
            if self.ledger.backlog(name).on_full != "dead_letter" or not self._set_aside(name, item):
                self._left[name] = 0
                return False
            left = 1
        self._left[name] = left - 1
        if not tracked:
            mark, _, waiting = self._writer._fill.get(name) or self._counted(name)
            self._writer._fill[name] = (mark, self.head + 1, waiting + 1)
        return True

    def _counted(self, name: str) -> tuple[int, int, int]:
        self._count_waiting(name)
        return self._writer._fill[name]

    def _count_waiting(self, name: str) -> int:
        row = self._execute("SELECT mark FROM clients WHERE name = ?", (name,)).fetchone()
        if row is None:  # it was forgotten, elsewhere, since its row was last looked for
            self._execute(_OPEN_INBOX, (name, self.head, self._now))
        mark = int(row[0]) if row else self.head
        counted_mark, through, waiting = self._writer._fill.get(name, (mark, mark, 0))
        if mark >= through:
            through, waiting = mark, 0
        elif mark > counted_mark:
            waiting -= self._count(name, counted_mark, mark)
        if through < self.first - 1:
            waiting += self._count(name, through, self.first - 1)
            through = self.first - 1
        self._writer._fill[name] = (mark, through, waiting)
        return waiting

    def _count(self, name: str, after: int, upto: int) -> int:
        return int(self._execute(WAITING, (name, after, upto, self._writer._inbox_limit + 1)).get)

    def _set_aside(self, owner: str, item: Pending) -> bool:
        """Make room where an inbox or a queue says so: its oldest waiting message becomes a dead letter."""
        self._insert()
        tracked = self.ledger.oldest_waiting(owner)
        plain = None if owner.startswith("queue:") else self._oldest_plain(owner)
        failure: Failure | None
        if plain is not None and (tracked is None or plain.seq < tracked.seq):
            failure = self.ledger.bury(plain, owner, "overflow", None)
            self._execute(
                "UPDATE clients SET mark = max(mark, ?1), cursor = max(cursor, ?1) WHERE name = ?2", (plain.seq, owner)
            )
            self._writer._fill.pop(owner, None)
        elif tracked is not None:
            failure = self.ledger.overflow(tracked)
        else:
            return False
        assert item.outcome is not None
        item.outcome.failures += (failure,) if failure is not None else ()
        return True

    def _oldest_plain(self, name: str) -> Message | None:
        row = self._execute(_OLDEST_PLAIN, (name,)).fetchone()
        return message_of(row, self.execute) if row else None

    # ---- idempotency

    def _seen_before(self, item: Pending) -> bool:
        message = item.message
        row = self._execute(
            "SELECT body_hash, seq, stamp, answer, id FROM idempotency WHERE sender = ? AND key = ?",
            (message.sender, item.key),
        ).fetchone()
        if row is None:
            return False
        body_hash, seq, stamp, answer, own_id = cast("tuple[bytes, int, int, bytes, str | None]", row)
        if body_hash != _hash(message):
            item.error = KeyReused(
                "This idempotency key was used for another message; make a new key for a new message.",
                field="idempotency_key",
            )
            return True
        message.seq = seq
        message.stamp_us = stamp
        message.own_id = own_id or ""
        item.outcome = Outcome(duplicate=True, answer=answer, scheduled=own_id is not None)
        return True

    def _remember(self, item: Pending) -> None:
        message, outcome = item.message, item.outcome
        assert outcome is not None
        states = [{"client": name, "state": "refused"} for name in outcome.refused]
        if outcome.scheduled:
            states = [{"client": name, "state": "scheduled"} for name in message.names or (audience_of(message),)]
        elif message.names:
            unknown = outcome.unknown
            states += [{"client": name, "state": "unknown" if name in unknown else "queued"} for name in message.names]
        else:
            states = [{"client": audience_of(message), "state": "sent"}]
        self._execute(
            "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                message.sender,
                item.key,
                _hash(message),
                message.seq,
                message.stamp_us,
                encode(states),
                message.own_id if outcome.scheduled else None,
            ),
        )

    # ---- rows

    def _insert(self) -> None:
        """Write the admitted messages that are not yet rows."""
        rows = [
            (m.seq, m.kind, m.address, m.sender, m.type, m.stamp_us, m.expires_us, m.flags, m.extras, m.payload)
            for m in self.written[self._inserted :]
        ]
        offset, left = 0, len(rows)
        for size in _INSERT_SIZES:
            statement = _INSERTS[size]
            while left >= size:
                self._execute(statement, _flat(rows[offset : offset + size]))
                offset += size
                left -= size
        self._inserted = len(self.written)


def _unheard(_: Pending) -> None:
    """Nobody waits for the answer: the job has it."""


def _flat(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return list(chain.from_iterable(rows))


def _hash(message: Message) -> bytes:
    return hashlib.blake2b(body_key(message), digest_size=16).digest()


def _refusal(error: apsw.Error) -> BusError:
    if isinstance(error, apsw.FullError):
        return DiskFull("The disk of the log is full; nothing was stored. Make room: the bus goes on by itself.")
    return Unavailable("The log can't be written for now; nothing was stored. Try again.", retry_after_seconds=2)


class SqliteUpkeep:
    """Checkpoints, off the committing path: a commit that checkpoints takes 30–50 ms. One thread in the cluster."""

    PASSIVE_AT_BYTES = 4 * 1024 * 1024
    TRUNCATE_AT_BYTES = 64 * 1024 * 1024

    def __init__(self, connection: apsw.Connection, lock: WritersLock, wal_bytes: Callable[[], int]) -> None:
        self._connection = connection
        self._lock = lock
        self._wal_bytes = wal_bytes

    def tick(self) -> None:
        """Move what was committed into the file, beside running commits; cut the WAL when it has grown large."""
        size = self._wal_bytes()
        if size < self.PASSIVE_AT_BYTES:
            return
        self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        if size < self.TRUNCATE_AT_BYTES:
            return
        with self._lock:  # little is left to move, so writers wait for milliseconds
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.BusyError:
                return  # a reader is in the middle of a page; the next tick cuts it

    def close(self) -> None:
        self._connection.close()
        self._lock.close()
