"""The write side of the SQLite store: one transaction a batch, under the writers' lock, with the seqs given inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import apsw

from bus.companions import Companions
from bus.errors import BusError, DiskFull, Unavailable
from bus.message import Epochs, Message
from bus.storage import Item, Job
from bus.storage.work import Memory, Work

if TYPE_CHECKING:
    from bus.storage.sqlite import WritersLock


class SqliteWriter:
    """See `bus.storage.Writer`. Not thread-safe: the writer thread owns it."""

    def __init__(
        self,
        connection: apsw.Connection,
        lock: WritersLock,
        epochs: Epochs,
        clock: Callable[[], int],
        *,
        inbox_limit: int,
        queue_limit: int,
        companions: Companions,
        synchronous: bool,
    ) -> None:
        """`clock()` is the bus's (bus.clock), in microseconds; the limits are how much may wait in one inbox or queue.

        `synchronous`: the connection syncs each commit, but for those of lazy jobs alone.
        """
        self._connection = connection
        self._lock = lock
        self._synchronous = synchronous
        self._waits = synchronous
        self._memory = Memory(
            connection.execute,
            epochs,
            clock,
            inbox_limit=inbox_limit,
            queue_limit=queue_limit,
            companions=companions,
            fatal=(apsw.FullError, apsw.IOError),
        )

    def commit(self, batch: Sequence[Item]) -> tuple[int, list[Message]]:
        """See `bus.storage.Writer.commit`."""
        try:
            with self._lock:
                return self._commit_locked(batch)
        except (apsw.FullError, apsw.IOError, apsw.BusyError, apsw.CorruptError, apsw.ReadOnlyError) as error:
            raise _refusal(error) from error
        except OSError as error:
            raise Unavailable("The log can't be written for now; nothing was stored. Try again.") from error

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    # ---- one transaction

    def _commit_locked(self, batch: Sequence[Item]) -> tuple[int, list[Message]]:
        execute = self._connection.execute
        self._wait_for_the_disk(not all(type(item) is Job and item.lazy for item in batch))
        memory = self._memory
        execute("BEGIN IMMEDIATE")
        try:
            self._catch_up()
            work = Work(memory)
            work.take(batch)
            execute("COMMIT")
        except BaseException:
            memory.forget()
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        with suppress(OSError):  # it is stored: a note that fails must not turn that into a refusal
            self._lock.note(work.head)
        memory.head = work.head
        memory.companions.commits += work.wrote_beside
        return work.first, work.written

    def _wait_for_the_disk(self, wanted: bool) -> None:
        """Have the next commits synced, or left to the next one that is."""
        if self._synchronous and wanted != self._waits:
            self._waits = wanted
            self._connection.execute(f"PRAGMA synchronous={'FULL' if wanted else 'NORMAL'}")

    def _catch_up(self) -> None:
        """Learn where the log ends, and forget what others may have changed, if others have written at all.

        The version is the file's, as this connection last saw it: another's commit changes it.
        """
        version = int(self._connection.execute("PRAGMA data_version").get)
        if version != self._memory.version:
            head, policies = cast("tuple[int, int]", self._connection.execute("SELECT seq, policies FROM log_head").get)
            self._memory.learn(version, head, policies)


def _refusal(error: apsw.Error) -> BusError:
    if isinstance(error, apsw.FullError):
        return DiskFull("The disk of the log is full; nothing was stored. Make room: the bus goes on by itself.")
    if isinstance(error, apsw.IOError):  # a failed sync leaves it open, and the bytes may have arrived
        return Unavailable(
            "The disk of the log failed, so it is not known whether this was stored. Send it again, with an Idempotency-Key"
            " if it must not be stored twice.",
            code="outcome_unknown",
            retry_after_seconds=2,
        )
    return Unavailable("The log can't be written for now; nothing was stored. Try again.", retry_after_seconds=2)
