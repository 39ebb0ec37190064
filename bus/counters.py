"""Plain integers that all workers of one machine share: a memory-mapped table, one row a worker slot.

A slot writes its own row and anyone reads all of them, so a total needs no message and no lock. The row survives its
worker: the successor in the slot counts on. Gauges are zeroed when a slot is taken.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

COUNTERS = (
    "total_connections",
    "errors",
    "messages_accepted",
    "messages_refused",
    "rest_requests",
    "streams_opened",
    "stream_events",
    "stream_broadcasts",
)
GAUGES = ("active_connections", "streams_of_expiry")
NAMES = COUNTERS + GAUGES
MAX_SLOTS = 64
_WIDTH = 32  # integers a row, so that a counter can be added without moving the others
_BYTES = MAX_SLOTS * _WIDTH * 8


def clear(path: Path) -> None:
    """Forget a former server's figures. Only while no worker has the table open."""
    path.write_bytes(bytes(_BYTES))


class Counters:
    """One process's view of the table. `add` and `set` change its own row; safe on the event loop only."""

    def __init__(self, path: Path, slot: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _BYTES)
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self._table = memoryview(self._map).cast("q")
        self._row = slot * _WIDTH
        self._column = {name: index for index, name in enumerate(NAMES)}
        for name in GAUGES:
            self.set(name, 0)

    def add(self, name: str, amount: int = 1) -> None:
        """Raise this worker's figure."""
        self._table[self._row + self._column[name]] += amount

    def set(self, name: str, value: int) -> None:
        """Set this worker's figure."""
        self._table[self._row + self._column[name]] = value

    def total(self, name: str) -> int:
        """The sum over all workers."""
        return sum(self._table[self._column[name] :: _WIDTH])

    def close(self) -> None:
        self._table.release()
        self._map.close()
