"""Upkeep of the SQLite store: what was committed moves from the WAL into the file, and freed pages go back to the disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from bus.storage.sqlite import WritersLock


INCREMENTAL = 2
"""What SQLite calls the mode."""


class SqliteUpkeep:
    """Checkpoints, off the committing path: a commit that checkpoints takes 30–50 ms. One thread in the cluster.

    The WAL is written again from its beginning when RECYCLE_AT_FRAMES are in it and all have been moved. A commit that
    overwrites takes two thirds of the time of one that makes the file longer, which the file system has to note down.

    Pages that became free are given back in steps of about a millisecond, but for SPARE_PAGES, which are soon used again.
    """

    PASSIVE_AT_FRAMES = 1024
    RECYCLE_AT_FRAMES = 4096
    TRUNCATE_AT_BYTES = 64 * 1024 * 1024
    SPARE_PAGES = 1024
    PAGES_A_STEP = 64
    STEPS_A_TICK = 4

    def __init__(self, connection: apsw.Connection, lock: WritersLock, wal_bytes: Callable[[], int]) -> None:
        """`connection` must not wait for readers; `wal_bytes()` is how long the WAL's file is."""
        self._connection = connection
        self._lock = lock
        self._wal_bytes = wal_bytes
        # A log that was made without it reuses its free pages, and keeps them.
        self._gives_back = int(connection.execute("PRAGMA auto_vacuum").get) == INCREMENTAL

    def tick(self) -> None:
        """Give back what is free; then move what was committed into the file."""
        self._give_back()
        self._checkpoint()

    def _give_back(self) -> None:
        execute = self._connection.execute
        for _ in range(self.STEPS_A_TICK if self._gives_back else 0):
            free = int(execute("PRAGMA freelist_count").get)
            if free <= self.SPARE_PAGES:
                return
            with self._lock:
                execute(f"PRAGMA incremental_vacuum({min(self.PAGES_A_STEP, free - self.SPARE_PAGES)})").fetchall()

    def _checkpoint(self) -> None:
        """Beside running commits; but the last that came, with the writers' lock, so that they begin anew.

        The next commit does so unless a reader is in the middle of a page: then the next tick tries again.
        """
        frames, moved = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        is_long, is_large = frames >= self.RECYCLE_AT_FRAMES, self._wal_bytes() >= self.TRUNCATE_AT_BYTES
        if frames - moved < (1 if is_long else self.PASSIVE_AT_FRAMES) and not (is_long and is_large):
            return
        self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        if not is_long:
            return
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if is_large else apsw.SQLITE_CHECKPOINT_PASSIVE
        with self._lock, suppress(apsw.BusyError):  # little is left to move, so writers wait for milliseconds
            self._connection.wal_checkpoint(mode=mode)

    def close(self) -> None:
        self._connection.close()
        self._lock.close()
