"""Who takes a queue's items on this process: consumers on sockets, and REST claims that wait. Fair between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from gevent.event import AsyncResult

from bus.connection import Connection
from bus.storage.deliveries import Lease, Slot

SLOTS_AT_ONCE = 100
"""Items that one transaction hands out at most, so that processes take turns."""


class Consumer:
    """A connection that takes items of queues. `in_flight`: (owner, seq) it holds, with the end of each lease.

    `holder` names it in the store: the client, a slash, and a name of this socket that is never used again.
    """

    __slots__ = ("client", "connection", "holder", "in_flight", "max_in_flight", "queues", "reserved")

    def __init__(self, connection: Connection, holder: str) -> None:
        self.connection = connection
        self.client = connection.client
        self.holder = holder
        self.queues: dict[str, None] = {}
        self.max_in_flight = 0
        self.in_flight: dict[tuple[str, int], int] = {}
        self.reserved = 0  # room that hand-outs under way may fill

    @property
    def free(self) -> int:
        """How many more items it may have now. A slow reader gets none."""
        connection = self.connection
        if connection.closing or connection.held is not None or not connection.live:
            return 0
        return max(self.max_in_flight - len(self.in_flight) - self.reserved, 0)


class Claim:
    """A request for items. `result` is set once: with the leases, or with none when the wait was over.

    `waits`: it stays when the first look finds nothing.
    """

    __slots__ = ("ack_wait_us", "client", "result", "waits", "wanted")

    def __init__(self, client: str, wanted: int, ack_wait_us: int | None, *, waits: bool) -> None:
        self.client = client
        self.wanted = wanted
        self.ack_wait_us = ack_wait_us
        self.waits = waits
        self.result: AsyncResult[list[Lease]] = AsyncResult()

    @property
    def free(self) -> int:
        return 0 if self.result.ready() else self.wanted


Taker = Consumer | Claim


class LocalQueue:
    """A queue's takers on this process. `busy`: a hand-out is on its way; `again`: something came meanwhile."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.consumers: deque[Consumer] = deque()
        self.claims: deque[Claim] = deque()
        self.busy = False
        self.again = False
        self.denied = False  # something came while all room was reserved by other queues
        self.timer: Any = None

    @property
    def free(self) -> int:
        """How many items could be taken now."""
        return sum(taker.free for taker in self._takers())

    @property
    def impatient(self) -> bool:
        """True when a claim that does not wait has no answer yet."""
        return any(claim.free and not claim.waits for claim in self.claims)

    @property
    def takers(self) -> int:
        return len(self.consumers) + len(self.claims)

    def slots(self) -> list[tuple[Taker, Slot]]:
        """Room for items, round by round: everybody gets one before anybody gets a second."""
        rounds = [(taker, taker.free) for taker in self._takers()]
        slots: list[tuple[Taker, Slot]] = []
        depth = 0
        while rounds and len(slots) < SLOTS_AT_ONCE:
            depth += 1
            rounds = [(taker, free) for taker, free in rounds if free >= depth]
            slots += [(taker, _slot(taker)) for taker, _ in rounds]
        return slots[:SLOTS_AT_ONCE]

    def rotate(self, taken: int) -> None:
        """Who was served goes behind those who were not."""
        if self.consumers:
            self.consumers.rotate(-taken)

    def _takers(self) -> Iterator[Taker]:
        yield from (claim for claim in self.claims if not claim.waits)
        yield from (claim for claim in self.claims if claim.waits)
        yield from self.consumers


def _slot(taker: Taker) -> Slot:
    return Slot(taker.holder) if isinstance(taker, Consumer) else Slot(taker.client, taker.ack_wait_us)
