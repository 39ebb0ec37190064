"""Tokens drawn by the handful: a process takes many from a shared bucket at once, and hands them out without its lock.

A handful is a fraction of the limit, so what several workers have drawn and not yet handed out stays within a hundredth
of it; of small limits it is nothing, and each take asks the shared bucket.
"""

from __future__ import annotations

from bus.limits.buckets import Bucket, Grant

HANDFULS = 400
"""How many of them a limit is."""


class DrawnBucket:
    """A `bus.limits.buckets.Bucket` before another one. Single thread. `_left`: drawn, and not yet handed out.

    What a grant says to remain is of the last draw, so it lags by a handful at most.
    """

    __slots__ = ("_bucket", "_grant", "_handful", "_left")

    def __init__(self, bucket: Bucket, limit: int) -> None:
        self._bucket = bucket
        self._handful = limit // HANDFULS
        self._left = 0
        self._grant: Grant | None = None

    def take(self, cost: int) -> Grant:
        """As of Bucket."""
        if 0 < cost <= self._left and self._grant is not None:
            self._left -= cost
            return self._grant
        if 1 <= cost < self._handful:
            grant = self._bucket.take(self._handful)
            if not grant.wait_seconds:
                self._left += self._handful - cost
                self._grant = grant
                return grant
        return self._bucket.take(cost)

    def give_back(self, cost: int) -> None:
        """As of Bucket."""
        if self._grant is not None and cost < self._handful:
            self._left += cost
        else:
            self._bucket.give_back(cost)
