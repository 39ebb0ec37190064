"""The thread that keeps the store's files in shape. Every process has one; the one that holds the lock works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gevent
from gevent.monkey import get_original

from bus.nodes.leases import try_exclusive
from bus.storage import Upkeep
from bus.threads import start_native

INTERVAL_SECONDS = 0.25

_sleep = get_original("time", "sleep")  # the thread is native: gevent's would look for a loop in it


class UpkeepThread:
    """`failures` counts ticks that failed: the next one tries again, and the WAL only grows meanwhile."""

    def __init__(self, open_upkeep: Callable[[], Upkeep], lock_path: Path) -> None:
        self._open_upkeep = open_upkeep
        self._lock_path = lock_path
        self._stopping = False
        self._ended = True
        self.failures = 0

    def start(self) -> None:
        self._ended = False
        start_native(self._run)

    def stop(self) -> None:
        """End after the running tick; waits for at most 5 s. In a greenlet."""
        self._stopping = True
        for _ in range(500):
            if self._ended:
                return
            gevent.sleep(0.01)

    def _run(self) -> None:
        lock: int | None = None
        upkeep: Upkeep | None = None
        while not self._stopping:
            _sleep(INTERVAL_SECONDS)
            try:
                lock = try_exclusive(self._lock_path) if lock is None else lock
                if lock is not None:
                    upkeep = upkeep or self._open_upkeep()
                    upkeep.tick()
            except Exception:  # noqa: BLE001  # a full disk, say; logging is not for native threads
                self.failures += 1
        if upkeep is not None:
            upkeep.close()
        if lock is not None:
            os.close(lock)
        self._ended = True
