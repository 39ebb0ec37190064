"""The event loop's pulse: a timer that says how long ago the loop ran, and how late it is.

A probe is answered by the loop that it asks about. So a loop that stands still shows as a probe without an answer, which
kubelet counts as a failure, and gunicorn's own watchdog ends such a worker after its `timeout`. The age is what remains to
be said, of a loop that runs and serves its timers too late.
"""

from __future__ import annotations

import time
from collections import deque

import gevent

from bus.nodes.leases import Leases

BEAT_SECONDS = 0.25
BEATS_KEPT = int(60 / BEAT_SECONDS)
STALLED_SECONDS = 30.0
"""A loop that did not run for so long is not alive."""


class Pulse:
    """Event loop only, but for building it. Started and stopped like a `Worker`."""

    def __init__(self) -> None:
        self._beat = time.monotonic()
        self._late: deque[float] = deque([0.0], maxlen=BEATS_KEPT)
        self._timer: object = None

    def start(self, _: Leases) -> None:
        """Begin to beat."""
        timer = gevent.get_hub().loop.timer(BEAT_SECONDS, BEAT_SECONDS)
        self._timer, self._beat = timer, time.monotonic()
        timer.start(self._tick)
        self._stop = timer.stop

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._stop()
            self._timer = None

    @property
    def age_seconds(self) -> float:
        """How long ago the loop served the timer."""
        return time.monotonic() - self._beat

    @property
    def is_alive(self) -> bool:
        """False when the loop stood still for STALLED_SECONDS."""
        return self.age_seconds < STALLED_SECONDS

    def lateness(self) -> tuple[float, float]:
        """How late the last beat was, and the latest of the last minute; in seconds."""
        return self._late[-1], max(self._late)

    def _tick(self) -> None:
        now = time.monotonic()
        self._late.append(max(now - self._beat - BEAT_SECONDS, 0.0))
        self._beat = now
