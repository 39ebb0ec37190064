"""Why a connection ended, whether to come back, and after how long. Pure: no clock, no I/O.

Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"): a uniform draw between zero and a limit that
doubles, so that a thousand clients of one server do not return in step.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from bus.client.errors import refusal_of_close, refusal_of_status
from bus.errors import BusError

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 20.0
RESTART_SPREAD_SECONDS = 3.0
OVERLOAD_SECONDS = (5.0, 20.0)
STEADY_SECONDS = 10.0
"""A connection that lasted this long was a good one: the next pause starts small again."""

FINAL_STATUSES = frozenset({400, 401, 403})


class Ending(msgspec.Struct, kw_only=True, frozen=True):
    """How one connection, or one attempt at it, ended.

    `status` is the HTTP status when there was no upgrade; `close_code` as in RFC 6455, 1006 when the peer just went.
    `after_seconds` is what the server asked for (`goaway`, `Retry-After`), `lasted_seconds` how long it was open.
    """

    reason: str
    close_code: int = 1006
    status: int | None = None
    after_seconds: float | None = None
    lasted_seconds: float = 0.0

    def refusal(self) -> BusError | None:
        """The error, when coming back is no use: HTTP 400, 401, 403, and close codes 44xx. Else None."""
        if self.status in FINAL_STATUSES:
            return refusal_of_status(self.status or 0, self.reason)
        if 4400 <= self.close_code <= 4499:
            return refusal_of_close(self.close_code, self.reason)
        return None


class Backoff:
    """Counts the attempts in a row and draws the pauses. Belongs to the reader thread alone."""

    def __init__(self, chance: Callable[[float, float], float] = random.uniform) -> None:
        self._chance = chance
        self._attempts = 0

    def pause(self, ending: Ending) -> float:
        """Seconds to wait before the next attempt."""
        if ending.lasted_seconds >= STEADY_SECONDS:
            self._attempts = 0
        limit = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(self._attempts, 16))
        is_first = self._attempts == 0
        self._attempts += 1
        if ending.after_seconds is not None:
            return ending.after_seconds + self._chance(0.0, max(limit, RESTART_SPREAD_SECONDS))
        if ending.close_code == 1013:
            return self._chance(*OVERLOAD_SECONDS)
        if ending.close_code == 1012 and is_first:
            return self._chance(0.0, RESTART_SPREAD_SECONDS)
        return self._chance(0.0, limit)
