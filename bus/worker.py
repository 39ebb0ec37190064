"""Periodic background work of an extension, in a greenlet with a clean end.

A tick that fails is logged and counted, and the next one comes all the same, later and later while it goes on.
`exclusive` work is done by one process of all that share the log: whoever has its lease (bus.nodes.leases); when it dies, a
neighbour takes over. What each node has to do for itself is `per_node`: one process of each does it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

import gevent
from gevent.event import Event

from bus.errors import BusError
from bus.nodes.leases import HELD, Hold, LeaseLost, Leases

log = logging.getLogger("bus.worker")

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
"""What a failed tick adds to the pause before the next, and how long that pause becomes."""


class Background(Protocol):
    """What the bus starts after the fork and stops at its end, both on the event loop. A `Worker` is one."""

    def start(self, leases: Leases, /) -> None: ...

    def stop(self) -> None: ...


class Worker:
    """`tick()` is called every `interval_seconds`, first after one interval; it may wait, since it has a greenlet.

    `failures` counts failed ticks. Not thread-safe: built anywhere, started and stopped on the event loop.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[], None],
        *,
        interval_seconds: float,
        exclusive: bool = False,
        per_node: bool = False,
    ) -> None:
        if interval_seconds <= 0:
            raise ValueError("interval_seconds must be above 0")
        self.name = name
        self.tick = tick
        self.interval_seconds = interval_seconds
        self.exclusive = exclusive
        self.per_node = per_node
        self.failures = 0
        self._stopping = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._hold: Hold | None = None

    def start(self, leases: Leases) -> None:
        """Begin; a second call does nothing. `leases` is where exclusive work is claimed."""
        if self._greenlet is None:
            self._stopping.clear()
            self._greenlet = gevent.spawn(self._run, leases)

    def stop(self, timeout: float = 5.0) -> None:
        """End after the running tick; kill it when that takes more than `timeout` seconds. Idempotent."""
        self._stopping.set()
        if self._greenlet is not None:
            self._greenlet.join(timeout)
            self._greenlet.kill()
            self._greenlet = None
        if self._hold is not None:
            with contextlib.suppress(BusError):  # the store is away: then the lease ends by itself
                self._hold.release()
            self._hold = None

    def _run(self, leases: Leases) -> None:
        in_a_row = 0
        while not self._stopping.wait(max(self.interval_seconds, min(LONGEST_PAUSE_SECONDS, in_a_row * PAUSE_SECONDS))):
            try:
                if self._is_mine(leases):
                    self._work()
                in_a_row = 0
            except LeaseLost as refusal:
                log.warning("%s", refusal.sentence, extra={"action": "lease_lost"})
            except BusError as refusal:  # the disk is full, say: the store has told more
                self.failures += 1
                in_a_row += 1
                log.warning("A tick of %s could not be done: %s", self.name, refusal.sentence, extra={"action": "tick"})
            except Exception:
                self.failures += 1
                in_a_row += 1
                log.exception("A tick of %s failed; the next one comes as planned", self.name, extra={"action": "tick"})

    def _is_mine(self, leases: Leases) -> bool:
        """True when this process is to do the work. Raises Unavailable."""
        if not (self.exclusive or self.per_node):
            return True
        if self._hold is not None and not self._hold.holds():
            self._hold = None
            raise LeaseLost(f"Another process has taken over {self.name}.")
        if self._hold is None:
            self._hold = leases.try_take_here(self.name) if self.per_node else leases.try_take(self.name)
        return self._hold is not None

    def _work(self) -> None:
        token = HELD.set(self._hold)
        try:
            self.tick()
        finally:
            HELD.reset(token)
