"""The write side of the SQLite store: one transaction a batch, under the writers' lock, with the seqs given inside it.

What a send may meet in here: its idempotency key was used before, or the inbox of a recipient is full. Both are
decided in the transaction, so two processes can't disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import apsw
import msgspec

from bus.errors import BusError, DiskFull, InboxFull, KeyReused, Unavailable
from bus.message import Kind, Message, now_us
from bus.protocol import body_key
from bus.storage import MAKE_KNOWN, SEQ, Group, Item, Job, Outcome, Pending
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
_OPEN_INBOX = "INSERT OR IGNORE INTO clients VALUES (?1, 0, ?2, ?2, ?3, ?3)"
NAMES_REMEMBERED = 200_000


class SqliteWriter:
    """See `bus.storage.Writer`. Not thread-safe: the writer thread owns it.

    `_known` and `_opened` remember names whose row needs no look-up any more; they are dropped whole when a
    transaction fails or they grow past NAMES_REMEMBERED. `_fill` keeps (mark, counted through, waiting) of inboxes
    that were written to while their client was away; see `_has_room`.
    """

    def __init__(self, connection: apsw.Connection, lock: WritersLock, *, inbox_limit: int) -> None:
        self._connection = connection
        self._lock = lock
        self._inbox_limit = inbox_limit
        self._known: set[str] = set()
        self._opened: set[str] = set()
        self._fill: dict[str, tuple[int, int, int]] = {}

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


class _Work:
    """One batch inside its transaction. `head` is the last seq given; `written` the new messages in seq order."""

    def __init__(self, writer: SqliteWriter, head: int) -> None:
        self._writer = writer
        self._execute = writer._connection.execute
        self.first = head + 1
        self.head = head
        self.written: list[Message] = []
        self._inserted = 0
        self._left: dict[str, int] = {}  # room in the inboxes that this batch wrote to
        self._now = now_us()
        if len(writer._known) + len(writer._opened) + len(writer._fill) > NAMES_REMEMBERED:
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
        if self.written:
            self._execute(
                "UPDATE log_head SET seq = ?, total_messages = total_messages + ?, kept_bytes = kept_bytes + ?",
                (self.head, len(self.written), sum(len(m.payload) for m in self.written)),
            )

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """For jobs; see `bus.storage.Transaction`."""
        return self._execute(statement, bindings).fetchall()

    def _run(self, job: Job) -> None:
        self._insert()
        self._execute("SAVEPOINT job")
        try:
            job.value = job.run(self)
        except (apsw.FullError, apsw.IOError):
            raise
        except Exception as error:  # noqa: BLE001  # the job's own fault: it alone is undone, and its caller is told
            self._execute("ROLLBACK TO job")
            job.error = error
        self._execute("RELEASE job")

    # ---- admission

    def _admit_group(self, members: Sequence[Pending]) -> None:
        """All or none: the first refusal undoes the others and is everybody's answer."""
        head, written = self.head, len(self.written)
        self._execute("SAVEPOINT atomic")
        for member in members:
            self._admit(member)
            if member.error is not None:
                break
        else:
            self._execute("RELEASE atomic")
            return
        self._execute("ROLLBACK TO atomic")
        self._execute("RELEASE atomic")
        self.head = head
        del self.written[written:]
        self._writer._forget()
        self._left.clear()
        for other in members:
            other.error = member.error
            other.message.seq = 0

    def _admit(self, item: Pending) -> None:
        message = item.message
        writer = self._writer
        if item.key is not None and self._seen_before(item):
            return
        outcome = Outcome()
        if message.names and not (item.present and writer._opened.issuperset(message.names)):
            self._open_inboxes(item, outcome)
            if item.error is not None:
                return
        self.head += 1
        message.seq = self.head
        if message.sender not in writer._known and message.sender[0] != "$":
            self._execute(MAKE_KNOWN, (message.sender, self.head - 1, self._now))
            writer._known.add(message.sender)
            writer._opened.add(message.sender)
        item.outcome = outcome
        self.written.append(message)
        if message.kind == Kind.LIST:
            for name in message.names:
                self._execute("INSERT INTO addressed VALUES (?, ?)", (name, self.head))
        for statement, bindings in item.rows:
            self._execute(statement, [self.head if value is SEQ else value for value in bindings])
        if item.key is not None:
            self._remember(item)

    def _open_inboxes(self, item: Pending, outcome: Outcome) -> None:
        """Give each named recipient a row, and settle who is refused and who is unknown."""
        writer, message = self._writer, item.message
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
            if not item.present and not self._has_room(name):
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

    def _has_room(self, name: str) -> bool:
        """Count what waits above the mark, and count this message.

        The count is carried from batch to batch: when the mark or the log moved, only the rows in between are read. What
        this batch itself adds (it begins at `first`) is counted one by one.
        """
        left = self._left.get(name)
        if left is None:
            left = self._writer._inbox_limit - self._count_waiting(name)
        if left <= 0:
            self._left[name] = 0
            return False
        self._left[name] = left - 1
        mark, _, waiting = self._writer._fill[name]
        self._writer._fill[name] = (mark, self.head + 1, waiting + 1)
        return True

    def _count_waiting(self, name: str) -> int:
        mark = int(self._execute("SELECT mark FROM clients WHERE name = ?", (name,)).get)
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

    # ---- idempotency

    def _seen_before(self, item: Pending) -> bool:
        message = item.message
        row = self._execute(
            "SELECT body_hash, seq, stamp, answer FROM idempotency WHERE sender = ? AND key = ?",
            (message.sender, item.key),
        ).fetchone()
        if row is None:
            return False
        body_hash, seq, stamp, answer = cast("tuple[bytes, int, int, bytes]", row)
        if body_hash != _hash(message):
            item.error = KeyReused(
                "This idempotency key was used for another message; make a new key for a new message.",
                field="idempotency_key",
            )
            return True
        message.seq = seq
        message.stamp_us = stamp
        item.outcome = Outcome(duplicate=True, answer=answer)
        return True

    def _remember(self, item: Pending) -> None:
        message, outcome = item.message, item.outcome
        assert outcome is not None
        states = [{"client": name, "state": "refused"} for name in outcome.refused]
        states += [
            {"client": name, "state": "unknown" if name in outcome.unknown else "queued"} for name in message.names
        ]
        if not message.names:
            states = [{"client": f"topic:{message.address}" if message.kind == Kind.TOPIC else "all", "state": "sent"}]
        self._execute(
            "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)",
            (message.sender, item.key, _hash(message), message.seq, message.stamp_us, msgspec.json.encode(states)),
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
