"""The newest values of a stream, for true quantiles: those of the last seconds, at most so many."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence

MAX_SAMPLES = 10_000
"""Values of one window, 16 bytes each: of more within its age, the newest count."""


class Window:
    """Values not older than `max_age_seconds`. `now` is a moment of any clock that only rises. Not thread-safe."""

    __slots__ = ("_first", "_max_age", "_moments", "_values")

    def __init__(self, max_age_seconds: float) -> None:
        self._max_age = max_age_seconds
        self._moments = array("d")
        self._values = array("d")
        self._first = 0  # the place of the oldest that counts; those before it are cleared away now and then

    def add(self, value: float, now: float) -> None:
        self._moments.append(now)
        self._values.append(value)
        if len(self._values) - self._first > MAX_SAMPLES:
            self._first += 1
        if self._first >= MAX_SAMPLES:
            self._clear_away()

    def values(self, now: float) -> Sequence[float]:
        """What counts now, sorted."""
        self._first = bisect_left(self._moments, now - self._max_age, lo=self._first)
        self._clear_away()
        return sorted(self._values)

    def _clear_away(self) -> None:
        del self._moments[: self._first], self._values[: self._first]
        self._first = 0


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, by linear interpolation between the two nearest ranks; NaN when there are none.

    This is method 7 of Hyndman and Fan (1996), the default of numpy and R: the rank is q * (n - 1), counted from 0.
    """
    if not ordered:
        return math.nan
    rank = q * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)
