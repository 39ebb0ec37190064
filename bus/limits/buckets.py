"""Buckets of tokens: at most `limit` in any window of time, taken at once or spread. No state here; see shared_buckets.

A token comes back a window after it was taken. A bucket that is refilled at a steady rate (token bucket, leaky bucket,
the generic cell rate algorithm of ATM Forum TM 4.0) would let twice its limit pass in a window that begins full. Here
time is cut into slices of a window's 24th, and what was taken in the present slice and the 24 before it may not exceed
the limit. So no window ever sees more than the limit, and whoever asks all the time gets 24 parts of 25 of it.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

SLICES = 24
"""Slices of a window. What is counted are these and the present one."""


class Grant(msgspec.Struct, frozen=True):
    """What came of a try: `remaining` tokens, all back in `full_seconds`; `wait_seconds` is 0 when it was granted."""

    limit: int
    window_seconds: int
    remaining: int
    full_seconds: float
    wait_seconds: float = 0.0


class Bucket(Protocol):
    """The bucket of one caller for one window."""

    def take(self, cost: int) -> Grant:
        """Take `cost` tokens, or none at all. 0 only looks: it waits while the bucket is empty. Never blocks for long."""
        ...

    def give_back(self, cost: int) -> None:
        """Undo a `take` of a moment ago."""
        ...


class Buckets(Protocol):
    """Where buckets are kept: in a table of this machine, or elsewhere."""

    def bucket(self, who: str, limit: int, window_seconds: int) -> Bucket:
        """The bucket of `who`; the same one in every process."""
        ...


class Counts:
    """What was taken of one bucket, slice by slice. A plain value: whoever keeps it sees that one process changes it."""

    __slots__ = ("newest", "taken", "total")

    def __init__(self, newest: int = 0, total: int = 0, taken: list[int] | None = None) -> None:
        """`newest` is the number of the last slice in which something was taken; slice n has its count at n modulo 25."""
        self.newest = newest
        self.total = total
        self.taken = taken if taken is not None else [0] * (SLICES + 1)

    def move_to(self, now: int) -> None:
        """Let the slices go that are out of the window when slice `now` is the present one."""
        if now <= self.newest:
            return  # a neighbour saw the clock a moment later
        gone = min(now - self.newest, SLICES + 1)
        for number in range(now - gone + 1, now + 1):
            place = number % (SLICES + 1)
            self.total -= self.taken[place]
            self.taken[place] = 0
        self.newest = now

    def add(self, cost: int) -> None:
        """Count `cost` in the newest slice; at least what leaves it at 0."""
        place = self.newest % (SLICES + 1)
        cost = max(cost, -self.taken[place])
        self.taken[place] += cost
        self.total += cost

    def slice_with_room(self, limit: int, cost: int) -> int:
        """The first slice in which `cost` more would fit under `limit`, if nothing else is taken till then."""
        total = self.total
        for number in range(self.newest - SLICES, self.newest + 1):
            if total + cost <= limit:
                return number + SLICES
            total -= self.taken[number % (SLICES + 1)]
        return self.newest + SLICES + 1
