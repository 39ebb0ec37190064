"""The sweep's guard against clocks: nothing is removed in masses because somebody set the time.

While the bus runs, no step of the wall's clock moves the bus's; a step is told, and the sweep pauses for ten minutes. Over a
restart the bus's clock begins anew, and whether a gap was a pause or a wrong clock can't be seen: then a sweep that would
remove a fifth of the log is held until an administrator asks for it, or for a day.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from bus.clock import STEP_US
from bus.events import ClockJumped, Event, RetentionHeld
from bus.retention.policies import NOTE
from bus.storage import Reader, Transaction

log = logging.getLogger("bus.retention")

PAUSE_US = 600_000_000
HOLD_US = 86_400_000_000
LARGEST_SHARE = 0.2
SEEN, RELEASE = "retention_seen", "retention_release"
"""In `meta`: when the sweep last ran, and that an administrator has asked for one."""

_WINDOW = 50_000
_COUNT = """
SELECT count(*), count(CASE WHEN expires_at <= ? THEN 1 END), max(seq)
 FROM (SELECT seq, expires_at FROM messages WHERE seq > ? ORDER BY seq LIMIT ?) w"""


class Guard:
    """Asked before each sweep. One greenlet."""

    def __init__(
        self,
        read: Callable[[Any], Any],
        clock: Callable[[], int],
        wall: Callable[[], int],
        emit: Callable[[Event], None],
    ) -> None:
        """`clock()` is the bus's, `wall()` the time of day, in microseconds; `read(job)` the bus's."""
        self._read = read
        self._clock = clock
        self._wall = wall
        self._emit = emit
        self._ahead_us: int | None = None
        self._paused_until = 0
        self._doubtful: bool | None = None  # None: not yet compared with the last run
        self._held_since: int | None = None

    @property
    def state(self) -> str:
        """running, paused (after a step), or held (until a person has looked)."""
        if self._held_since is not None:
            return "held"
        return "paused" if self._clock() < self._paused_until else "running"

    def look(self) -> None:
        """Notice a step of the wall's clock."""
        now = self._clock()
        ahead = self._wall() - now
        before, self._ahead_us = self._ahead_us, ahead
        # The first look compares with the start of the server, when both agreed.
        step = ahead - (before or 0)
        if abs(step) <= STEP_US:
            return
        self._paused_until = now + PAUSE_US
        self._jumped(step)

    def may_sweep(self, seen_us: int | None, *, asked: bool) -> bool:
        """Whether a sweep may run now. `seen_us`: when the last one ran; `asked`: an administrator wants it."""
        now = self._clock()
        if self._doubtful is None:
            gap = 0 if seen_us is None else now - seen_us
            self._doubtful = gap > 5 * STEP_US
            if gap < -STEP_US:
                self._jumped(gap)
        if asked:
            self._doubtful, self._held_since, self._paused_until = False, None, 0
            return True
        if self._held_since is not None and now - self._held_since < HOLD_US:
            return False
        if now < self._paused_until:
            return False
        if self._doubtful and self._held_since is None and self._is_too_much():
            return False
        self._doubtful, self._held_since = False, None
        return True

    def _is_too_much(self) -> bool:
        due, kept = self._count()
        if due <= kept * LARGEST_SHARE:
            return False
        self._held_since = self._clock()
        log.warning(
            "Time has passed that nobody saw, and %d of %d messages have expired since: is the clock right? They are not"
            " readable, and are kept for a day; POST /api/ttl/sweep removes them now",
            due,
            kept,
            extra={"action": "retention_held"},
        )
        self._emit(RetentionHeld(due, kept))
        return True

    def _count(self) -> tuple[int, int]:
        """How many messages have expired, and how many there are."""
        now, after, due, kept = self._clock(), 0, 0, 0
        while True:

            def job(reader: Reader, after: int = after) -> Any:
                return reader.execute(_COUNT, (now, after, _WINDOW))[0]

            found, expired, last = self._read(job)
            due, kept = due + expired, kept + found
            if last is None or found < _WINDOW:
                return due, kept
            after = last

    def _jumped(self, step_us: int) -> None:
        log.warning(
            "The clock was set by %+.0f s; nothing expires by that", step_us / 1e6, extra={"action": "clock_jump"}
        )
        self._emit(ClockJumped(step_us / 1e6))


def note_seen(transaction: Transaction) -> None:
    """A sweep runs now."""
    transaction.execute(NOTE, (SEEN, transaction.ledger.now))
    transaction.execute("DELETE FROM meta WHERE name = ?", (RELEASE,))


def ask(transaction: Transaction) -> None:
    """An administrator asks for a sweep."""
    transaction.execute(NOTE, (RELEASE, transaction.ledger.now))
