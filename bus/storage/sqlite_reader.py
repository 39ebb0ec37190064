"""The read side of the SQLite store: one read-only connection."""

from __future__ import annotations

from collections.abc import Callable

import apsw

from bus.storage.log_reader import LogReader


class SqliteReader(LogReader):
    """See `bus.storage.Reader`. Not thread-safe: one thread owns it."""

    def __init__(self, connection: apsw.Connection, clock: Callable[[], int], *, inbox_limit: int) -> None:
        """`clock()` is the bus's (bus.clock), in microseconds."""
        super().__init__(connection, clock, inbox_limit=inbox_limit)
        self._version = 0

    def changed(self) -> bool:
        """See `bus.storage.Reader.changed`."""
        version = self._one("PRAGMA data_version")[0]
        changed = bool(version != self._version)
        self._version = version
        return changed

    def size_bytes(self) -> int:
        """See `bus.storage.Reader.size_bytes`."""
        return int(self._one("PRAGMA page_count")[0] * self._one("PRAGMA page_size")[0])
