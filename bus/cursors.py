"""The cursor that the bus keeps for each client, and the mark of what was pushed or fetched. Written lazily.

Both only rise. They are flushed once a second and at the stop: a crash repeats up to a second, it never skips.
"""

from __future__ import annotations

from collections.abc import Callable

from bus.events import MessageReceived
from bus.message import REQUIRES_ACK, now_us
from bus.storage import Job, Transaction
from bus.storage.log_writer import LogWriter
from bus.storage.rows import COLUMNS, message_of

PAGE = 500
"""Messages read at a time to tell that they were received."""

_RAISE = "UPDATE clients SET cursor = max(cursor, ?2), mark = max(mark, ?3), last_seen = ?4 WHERE name = ?1"


_PASSED = f"""
SELECT {COLUMNS} FROM messages m
 WHERE m.seq IN (SELECT seq FROM messages WHERE kind = 0 AND address = ?1 AND seq > ?2 AND seq <= ?3
                 UNION ALL SELECT seq FROM addressed WHERE name = ?1 AND seq > ?2 AND seq <= ?3)
   AND m.seq NOT IN (SELECT seq FROM set_aside WHERE owner = ?1)
   AND m.flags & {REQUIRES_ACK} = 0 ORDER BY m.seq LIMIT {PAGE}"""


class Cursors:
    """`_dirty` holds (cursor, mark) of the names that moved since the last flush. Event loop only."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._dirty: dict[str, tuple[int, int]] = {}

    def confirm(self, name: str, seq: int) -> None:
        """A push connection of `name` has received everything up to `seq`."""
        cursor, mark = self._dirty.get(name, (0, 0))
        self._dirty[name] = (max(cursor, seq), max(mark, seq))

    def mark(self, name: str, seq: int) -> None:
        """Everything up to `seq` was pushed to, or fetched by, `name`."""
        cursor, mark = self._dirty.get(name, (0, 0))
        self._dirty[name] = (cursor, max(mark, seq))

    def flush(self, then: Callable[[], None] | None = None) -> None:
        """Hand what moved to the writer; `then()` when it is durable."""
        if not self._dirty:
            if then is not None:
                then()
            return
        dirty, self._dirty = self._dirty, {}

        def run(transaction: Transaction) -> None:
            stamp = now_us()
            heard = transaction.wants(MessageReceived)
            for name, (cursor, mark) in dirty.items():
                if heard and cursor:
                    _announce_received(transaction, name, cursor)
                transaction.execute(_RAISE, (name, cursor, mark, stamp))

        def settled(job: Job) -> None:
            if job.error is not None:  # the disk is full, say: keep them for the next flush
                for name, (cursor, mark) in dirty.items():
                    self.confirm(name, cursor)
                    self.mark(name, mark)
            if then is not None:
                then()

        self._writer.submit([Job(run, settled)])


def _announce_received(transaction: Transaction, name: str, cursor: int) -> None:
    """Tell of each plain message to `name` that its kept cursor passes on its way to `cursor`."""
    rows = transaction.execute("SELECT cursor FROM clients WHERE name = ?", (name,))
    after = rows[0][0] if rows else cursor
    while after < cursor:
        passed = [message_of(row, transaction.execute) for row in transaction.execute(_PASSED, (name, after, cursor))]
        for message in passed:
            transaction.announce(MessageReceived(message, name))
        after = passed[-1].seq if len(passed) == PAGE else cursor
