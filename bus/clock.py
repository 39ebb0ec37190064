"""The clock of deadlines: leases, delays, backoff, expiry. All workers of one machine share it, and no step moves it.

It runs as the monotonic clock does, from what the wall's clock said when the first worker started. So what is stored
still means a time of day, a restart goes on with it, and nobody's lease ends because somebody set the clock.
"""

from __future__ import annotations

import logging
import struct
import time
from pathlib import Path

log = logging.getLogger("bus.clock")

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Monotonic, and goes on while the machine sleeps, where the system has such a clock."""

STEP_US = 60_000_000
"""A difference from the wall's clock above this is said in the log, once a step."""


class Clock:
    """`path` keeps the anchor: microseconds to be added to the monotonic clock. Safe on any thread once it runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_us = 0
        self._followed_us: int | None = None
        self._said_us = 0

    def anchor(self) -> None:
        """Begin at the wall's clock. Only while no other worker runs."""
        self._path.write_bytes(struct.pack("<q", (time.time_ns() - time.clock_gettime_ns(_CLOCK)) // 1000))

    def start(self) -> None:
        """Join the others at the anchor."""
        (self._offset_us,) = struct.unpack("<q", self._path.read_bytes())

    def follow(self, now_us: int) -> None:
        """Go by another clock, the database's, which says `now_us`: several machines share that one. One thread.

        The first time it takes that over as it is. From then on it never falls: to come back, it runs a tenth slower.
        """
        here = time.clock_gettime_ns(_CLOCK) // 1000
        change = now_us - here - self._offset_us
        if self._followed_us is not None:
            change = max(change, -(here - self._followed_us) // 10)
        self._offset_us += change
        self._followed_us = here

    def now_us(self) -> int:
        """Microseconds since 1970, as far as the wall's clock was right at the start. Never falls."""
        return self._offset_us + time.clock_gettime_ns(_CLOCK) // 1000

    def look_for_step(self) -> None:
        """Log when somebody has set the wall's clock."""
        ahead = time.time_ns() // 1000 - self.now_us()
        if abs(ahead - self._said_us) > STEP_US:
            self._said_us = ahead
            log.warning(
                "The clock was set by %+.0f s; leases, delays and expiry go on as they were",
                ahead / 1e6,
                extra={"action": "clock_jump"},
            )
