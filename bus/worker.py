"""Periodic background work of an extension, in a greenlet with a clean end.

A tick that fails is logged and counted, and the next one comes all the same, later and later while it goes on.
`exclusive` work is done by one process in the cluster: whoever holds the file lock; when it dies, the kernel frees the
lock and a neighbour takes over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import gevent
from gevent.event import Event

from bus.backplane.local import try_exclusive
from bus.errors import BusError

log = logging.getLogger("bus.worker")

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
"""What a failed tick adds to the pause before the next, and how long that pause becomes."""


class Background(Protocol):
    """What the bus starts after the fork and stops at its end, both on the event loop. A `Worker` is one."""

    def start(self, lock_folder: Path, /) -> None: ...

    def stop(self) -> None: ...


class Worker:
    """`tick()` is called every `interval_seconds`, first after one interval; it may wait, since it has a greenlet.

    `failures` counts failed ticks. Not thread-safe: built anywhere, started and stopped on the event loop.
    """

    def __init__(
        self, name: str, tick: Callable[[], None], *, interval_seconds: float, exclusive: bool = False
    ) -> None:
        if interval_seconds <= 0:
            raise ValueError("interval_seconds must be above 0")
        self.name = name
        self.tick = tick
        self.interval_seconds = interval_seconds
        self.exclusive = exclusive
        self.failures = 0
        self._stopping = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._lock: int | None = None

    def start(self, lock_folder: Path) -> None:
        """Begin; a second call does nothing. `lock_folder` is where exclusive work is claimed."""
        if self._greenlet is None:
            self._stopping.clear()
            self._greenlet = gevent.spawn(self._run, lock_folder)

    def stop(self, timeout: float = 5.0) -> None:
        """End after the running tick; kill it when that takes more than `timeout` seconds. Idempotent."""
        self._stopping.set()
        if self._greenlet is not None:
            self._greenlet.join(timeout)
            self._greenlet.kill()
            self._greenlet = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _run(self, lock_folder: Path) -> None:
        in_a_row = 0
        while not self._stopping.wait(max(self.interval_seconds, min(LONGEST_PAUSE_SECONDS, in_a_row * PAUSE_SECONDS))):
            if self.exclusive and self._lock is None:
                self._lock = try_exclusive(lock_folder / f"exclusive-{self.name}.lock")
                if self._lock is None:
                    continue
            try:
                self.tick()
                in_a_row = 0
            except BusError as refusal:  # the disk is full, say: the store has told more
                self.failures += 1
                in_a_row += 1
                log.warning("A tick of %s could not be done: %s", self.name, refusal.sentence, extra={"action": "tick"})
            except Exception:
                self.failures += 1
                in_a_row += 1
                log.exception("A tick of %s failed; the next one comes as planned", self.name, extra={"action": "tick"})
