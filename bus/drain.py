"""Saying goodbye: how the connections of a process end when it stops.

`goaway` first, when the process gives notice that it will stop; then, when its door is closed, closes with 1012 in random
order, spread so that clients do not all come back at once; then a wait for their answers. A closing handshake that we began
confirms what was written before it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import gevent

from bus.connection import CLOSE_WAIT_SECONDS, Connection
from bus.hub import Hub
from bus.protocol import encode
from bus.settings import Settings

CLOSES_A_SECOND = 100
"""A few connections need no spreading: it lasts as long as this rate needs, at most DRAIN_SPREAD_SECONDS."""

STEP_SECONDS = 0.1
RESTART = 1012


class Drain:
    """One drain of one hub. In a greenlet."""

    def __init__(self, hub: Callable[[], Hub], settings: Settings) -> None:
        """`hub()` is asked when it begins."""
        self._hub = hub
        self._spread = settings.drain_spread_seconds
        self._told: set[Connection] = set()  # of those that are open

    def give_notice(self) -> None:
        """Tell every connection that it will be closed soon, if it was not told."""
        self._told &= self._hub().connections
        for connection in self._hub().connections - self._told:
            connection.reply(_goaway(min(self._spread, len(self._hub().connections) / CLOSES_A_SECOND)))
        self._told |= self._hub().connections

    def run(self, timeout: float, notify: Callable[[], None]) -> None:
        """Close every connection within about `timeout` seconds; `notify()` is called while waiting."""
        deadline = time.monotonic() + timeout
        leaving = list(self._hub().connections)
        random.shuffle(leaving)
        if not leaving:
            return
        spread = min(self._spread, len(leaving) / CLOSES_A_SECOND, max(timeout - CLOSE_WAIT_SECONDS, 0.0))
        self.give_notice()
        self._close(leaving, spread, notify)
        self._wait(min(time.monotonic() + CLOSE_WAIT_SECONDS, deadline), notify)
        for connection in list(self._hub().connections):
            connection.lose()

    def _close(self, leaving: list[Connection], spread: float, notify: Callable[[], None]) -> None:
        steps = max(1, int(spread / STEP_SECONDS))
        for step in range(steps):
            for connection in leaving[step::steps]:
                connection.close(RESTART, "The server restarts; come back.")
            notify()
            if spread:
                gevent.sleep(STEP_SECONDS)

    def _wait(self, until: float, notify: Callable[[], None]) -> None:
        while self._hub().connections and time.monotonic() < until:
            notify()
            gevent.sleep(min(STEP_SECONDS, max(until - time.monotonic(), 0.001)))


def _goaway(spread: float) -> bytes:
    wait_ms = 500 + int(1000 * random.uniform(0.0, max(spread, 0.5)))
    return encode({"type": "goaway", "reason": "restart", "reconnect_after_ms": wait_ms})
