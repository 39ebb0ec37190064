"""The write side of the PostgreSQL store: one transaction a batch, in the order in which the log's head is locked.

The lock of that row takes the place of the writers' lock of a file: it is held from the beginning of a transaction to its
end, so commit order is seq order over all nodes. Each transaction also writes down its number, for its writer: when the
answer to a COMMIT is lost, that tells whether it took place, before anyone is told. (The server's own word, pg_xact_status,
would not do: after a crash it gives the numbers of transactions again that had not reached its disk.)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from gevent.monkey import get_original

from bus.clock import Clock
from bus.companions import Companions
from bus.errors import Unavailable
from bus.message import Epochs, Message
from bus.storage import Item, Job
from bus.storage.ahead import Ahead
from bus.storage.postgres_connection import ConnectionLost, PostgresConnection, PostgresError
from bus.storage.postgres_link import UNKNOWN, Link, away, refusal_of
from bus.storage.postgres_reader import VERSION
from bus.storage.work import Memory, Work

RESOLVE_SECONDS = 5.0
"""How long a batch waits to hear whether it was committed, before its senders are told that nobody knows."""

_BEGIN = f"""
WITH head AS MATERIALIZED (SELECT seq, policies, {VERSION} AS version FROM log_head FOR UPDATE)
SELECT seq, policies, version, CAST(CAST(pg_current_xact_id() AS text) AS BIGINT),
 CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) FROM head"""
_TOUCH = "UPDATE log_head SET seq = seq"
_NUMBER = """
INSERT INTO commits VALUES (?1, ?2, ?3) ON CONFLICT (writer) DO UPDATE SET number = excluded.number, at = excluded.at"""

_sleep = get_original("time", "sleep")  # the thread is native: gevent's would look for a loop in it


class PostgresWriter:
    """See `bus.storage.Writer`. Not thread-safe: the writer thread owns it."""

    def __init__(
        self,
        connect: Callable[[], PostgresConnection],
        epochs: Epochs,
        clock: Clock,
        *,
        inbox_limit: int,
        queue_limit: int,
        companions: Companions,
    ) -> None:
        """`clock` is the bus's, which follows the database's from here. The limits are of one inbox, and one queue."""
        self._link = Link(connect)
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._number = 0
        self._memory = Memory(
            self._execute,
            epochs,
            clock.now_us,
            inbox_limit=inbox_limit,
            queue_limit=queue_limit,
            companions=companions,
            fatal=(ConnectionLost,),
            sync=self._flush,
        )

    def commit(self, batch: Sequence[Item]) -> tuple[int, list[Message]]:
        """See `bus.storage.Writer.commit`."""
        try:
            try:
                connection, xid = self._begin(batch)
            except ConnectionLost:  # it went while nobody wrote; nothing of the batch was sent
                connection, xid = self._begin(batch)
            return self._commit_locked(connection, xid, batch)
        except ConnectionLost as error:
            raise away() from error
        except PostgresError as error:
            if error.state == "25006":  # this is no longer the primary
                self._link.drop()
            refusal = refusal_of(error) or Unavailable("The log failed; nothing was stored. Try again.")
            raise refusal from error

    def close(self) -> None:
        self._link.close()

    # ---- one transaction

    def _begin(self, batch: Sequence[Item]) -> tuple[PostgresConnection, int]:
        """Lock the head, learn where the log ends, and what time it is."""
        connection, memory = self._link.get(), self._memory
        memory.ahead = Ahead(connection.execute)
        memory.execute = memory.ahead.execute
        connection.execute("BEGIN")
        if all(type(item) is Job and item.lazy for item in batch):
            connection.execute("SET LOCAL synchronous_commit = off")
        try:
            seq, policies, version, xid, now_us = connection.execute(_BEGIN).get
            self._clock.follow(now_us)
            if version != memory.version:
                memory.learn(version, seq, policies)
        except PostgresError:
            self._undo(connection)
            raise
        return connection, xid

    def _commit_locked(
        self, connection: PostgresConnection, xid: int, batch: Sequence[Item]
    ) -> tuple[int, list[Message]]:
        memory = self._memory
        try:
            work = Work(memory)
            work.take(batch)
            if not work.written:
                connection.execute(_TOUCH)  # whoever looks sees that somebody wrote
            self._number += 1
            connection.execute(_NUMBER, (self._name, self._number, work.ledger.now))
        except BaseException:
            self._undo(connection)
            raise
        try:
            connection.execute("COMMIT")
            connection.flush()  # with what is still queued: a statement that fails keeps those behind it from being run
        except ConnectionLost:
            memory.forget()
            if not self._was_committed():
                raise
        except BaseException:
            self._undo(connection)
            raise
        if memory.version != -1:
            memory.version, memory.head = xid & 0xFFFFFFFF, work.head
        memory.companions.commits += work.wrote_beside
        return work.first, work.written

    def _undo(self, connection: PostgresConnection) -> None:
        self._memory.forget()
        if connection.is_open:
            try:
                connection.execute("ROLLBACK")
                connection.flush()
            except PostgresError:
                self._link.drop()

    def _was_committed(self) -> bool:
        """Whether the transaction whose COMMIT was not answered took place. Raises Unavailable when nobody can tell."""
        deadline = time.monotonic() + RESOLVE_SECONDS
        while time.monotonic() < deadline:
            try:
                connection = self._link.get()
                connection.execute("BEGIN")
                connection.execute(
                    "SELECT 1 FROM log_head FOR UPDATE"
                )  # until that transaction has ended, one way or the other
                number = connection.execute("SELECT number FROM commits WHERE writer = ?", (self._name,)).get
                connection.execute("ROLLBACK")
                connection.flush()
            except PostgresError:
                self._link.drop()
                _sleep(0.05)
            else:
                return bool(number == self._number)
        raise Unavailable(UNKNOWN, code="outcome_unknown", retry_after_seconds=2)

    # ---- for `Memory`

    def _execute(self, statement: str, bindings: Sequence[Any] = ()) -> Any:
        return self._link.get().execute(statement, bindings)

    def _flush(self) -> None:
        self._link.get().flush()
