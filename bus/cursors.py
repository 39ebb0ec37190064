"""The cursor that the bus keeps for each client, and the mark of what was pushed or fetched. Written lazily.

Both only rise. They are flushed once a second and at the stop: a crash repeats up to a second, it never skips.
"""

from __future__ import annotations

from collections.abc import Callable

from bus.message import now_us
from bus.storage import Job, Transaction
from bus.storage.log_writer import LogWriter

_RAISE = "UPDATE clients SET cursor = max(cursor, ?2), mark = max(mark, ?3), last_seen = ?4 WHERE name = ?1"


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
            for name, (cursor, mark) in dirty.items():
                transaction.execute(_RAISE, (name, cursor, mark, stamp))

        def settled(job: Job) -> None:
            if job.error is not None:  # the disk is full, say: keep them for the next flush
                for name, (cursor, mark) in dirty.items():
                    self.confirm(name, cursor)
                    self.mark(name, mark)
            if then is not None:
                then()

        self._writer.submit([Job(run, settled)])
