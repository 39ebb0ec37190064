"""Checkpoints of the SQLite store: what was committed moves from the WAL into the file, beside running commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from bus.storage.sqlite import WritersLock


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
