"""Queues on one process: items go from the store to consumers on sockets and to REST claims, fairly.

An item may be taken by any process. They race for it: each waits a moment drawn by chance, the shorter the more room its
takers have, so takers are served evenly wherever they are connected (a race of exponential clocks is won in
proportion to the rates). A process that is alone does not wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import gevent

from bus.backplane import Backplane
from bus.delivery.takers import Claim, Consumer, LocalQueue, Taker
from bus.errors import BusError, Unavailable
from bus.hub import Hub
from bus.storage import Job, Reader, Transaction
from bus.storage.deliveries import Lease, Slot
from bus.storage.log_writer import LogWriter
from bus.threads import WorkerPool

if TYPE_CHECKING:
    from bus.delivery.courier import Courier

RACE_SECONDS = 0.002
"""How long one free taker waits on average before its process reaches for an item."""

RETRY_SECONDS = 1.0

LATE_US = 1_000_000
"""How long after a lease's end its consumer's room is looked at, in case nobody told that it ended."""

Held = tuple[str, str, int]
"""An owner, its item's holder, its seq."""


class Queues:
    """Event loop only. `_elsewhere`: how many takers each queue has at each neighbour."""

    def __init__(
        self,
        courier: Courier,
        hub: Hub,
        writer: LogWriter,
        readers: WorkerPool,
        backplane: Backplane,
        clock: Callable[[], int],
    ) -> None:
        self._courier = courier
        self._hub = hub
        self._writer = writer
        self._readers = readers
        self._backplane = backplane
        self._clock = clock
        self._queues: dict[str, LocalQueue] = {}
        self._consumers: dict[str, Consumer] = {}
        self._elsewhere: dict[int, dict[str, int]] = {}

    # ---- takers come and go

    def subscribe(self, consumer: Consumer, owners: Iterable[str], max_in_flight: int) -> None:
        """Have a consumer take items of these queues."""
        self._consumers[consumer.holder] = consumer
        consumer.max_in_flight = max_in_flight
        for owner in owners:
            if owner not in consumer.queues:
                consumer.queues[owner] = None
                self._open(owner).consumers.append(consumer)
                self._announce(owner)
        self.freed(consumer)

    def unsubscribe(self, consumer: Consumer, owners: Iterable[str]) -> None:
        """Have it take no more. What it holds, it holds."""
        for owner in owners:
            if owner in consumer.queues:
                del consumer.queues[owner]
                self._queues[owner].consumers.remove(consumer)
                self._tidy(owner)

    def leave(self, consumer: Consumer, *, cleanly: bool) -> None:
        """A consumer's connection ended."""
        self.unsubscribe(consumer, list(consumer.queues))
        self._consumers.pop(consumer.holder, None)
        if cleanly and consumer.in_flight:
            self.give_back(list(consumer.in_flight), consumer.holder)

    def freed(self, consumer: Consumer) -> None:
        """A consumer has room again."""
        for owner in consumer.queues:
            self.stir(owner)

    def takers(self, owner: str) -> int:
        """How many consumers and waiting claims a queue has, on all processes."""
        queue = self._queues.get(owner)
        return (queue.takers if queue else 0) + sum(takers.get(owner, 0) for takers in self._elsewhere.values())

    def neighbour_has(self, slot: int, owner: str, takers: int) -> None:
        """A neighbour's takers of a queue changed."""
        there = self._elsewhere.setdefault(slot, {})
        if takers:
            there[owner] = takers
        else:
            there.pop(owner, None)

    def neighbour_left(self, slot: int) -> None:
        self._elsewhere.pop(slot, None)

    def snapshot(self) -> list[tuple[str, int]]:
        """What a neighbour that just joined has to know."""
        return [(owner, queue.takers) for owner, queue in self._queues.items()]

    def open(self) -> list[str]:
        """The queues that have takers here."""
        return list(self._queues)

    def _announce(self, owner: str) -> None:
        if self._backplane.size > 1:
            queue = self._queues.get(owner)
            self._backplane.note(["takers", owner, queue.takers if queue else 0])

    def _open(self, owner: str) -> LocalQueue:
        queue = self._queues.get(owner)
        if queue is None:
            queue = self._queues[owner] = LocalQueue(owner)
            self._hub.interest(1)
        return queue

    def _tidy(self, owner: str) -> None:
        queue = self._queues[owner]
        if not queue.takers and not queue.busy:
            if queue.timer is not None:
                queue.timer.close()
            del self._queues[owner]
            self._hub.interest(-1)
        self._announce(owner)

    # ---- claims

    def claim(self, owner: str, client: str, wanted: int, wait: float, ack_wait_us: int | None) -> list[Lease]:
        """Take up to `wanted` items for a client, waiting up to `wait` seconds for the first. In a greenlet."""
        claim = Claim(client, wanted, ack_wait_us, waits=wait > 0)
        queue = self._open(owner)
        queue.claims.append(claim)
        if wait:
            self._announce(owner)
        self._hand_out(queue)
        try:
            # Without a wait the first look answers, also with nothing.
            return claim.result.get(timeout=wait or None) or []
        except gevent.Timeout:
            if not claim.result.ready():  # a long turn of the loop may bring both at once
                claim.result.set([])
            return claim.result.get(block=False) or []
        finally:
            if claim in queue.claims:
                queue.claims.remove(claim)
            self._tidy(owner)

    def end_waits(self) -> None:
        """Answer every waiting claim: the bus is draining."""
        for queue in self._queues.values():
            for claim in queue.claims:
                if claim.free:
                    claim.result.set([])

    # ---- handing out

    def stir(self, owner: str) -> None:
        """Something may wait in a queue, or a taker of it got room."""
        queue = self._queues.get(owner)
        if queue is None:
            return
        if queue.busy:
            queue.again = True
            return
        if queue.timer is not None:
            return
        free = queue.free
        if not free:
            queue.denied = True
            return
        if self._backplane.size == 1:
            self._hand_out(queue)
        else:
            queue.timer = gevent.get_hub().loop.timer(random.expovariate(free / RACE_SECONDS))
            queue.timer.start(self._race, queue)

    def _race(self, queue: LocalQueue) -> None:
        queue.timer.close()
        queue.timer = None
        if queue.busy or self._queues.get(queue.owner) is not queue:
            return

        def look(reader: Reader) -> bool:
            return bool(
                reader.execute("SELECT 1 FROM deliveries WHERE owner = ? AND state = 0 LIMIT 1", (queue.owner,))
            )

        def looked(waits: bool, error: BaseException | None) -> None:
            queue.busy = False
            if error is not None:
                self._hub.later(RETRY_SECONDS, partial(self.stir, queue.owner))
            if not queue.takers:
                self._tidy(queue.owner)
            elif error is None and waits:
                self._hand_out(queue)
            elif queue.again or queue.impatient:
                self._go_on(queue)

        queue.busy = True
        self._readers.submit(look, looked)

    def _hand_out(self, queue: LocalQueue) -> None:
        if queue.busy:
            queue.again = True
            return
        slots = queue.slots()
        if not slots:
            queue.denied = True
            return
        queue.busy = True
        queue.again = queue.denied = False
        owner = queue.owner
        for taker, _ in slots:
            if isinstance(taker, Consumer):
                taker.reserved += 1

        def run(transaction: Transaction) -> tuple[list[Lease], bool]:
            leases = transaction.ledger.lease(owner, [slot for _, slot in slots])
            return leases, bool(leases) and transaction.ledger.backlog(owner).waiting > 0

        self._writer.submit([Job(run, partial(self._handed_out, queue, slots))])

    def _handed_out(self, queue: LocalQueue, slots: list[tuple[Taker, Slot]], job: Job) -> None:
        queue.busy = False
        leases, more = job.value or ([], False)
        claimed: dict[Claim, list[Lease]] = {}
        pushed: dict[Consumer, list[Lease]] = {}
        for taker, _ in slots:
            if isinstance(taker, Claim):
                claimed[taker] = []
            else:
                taker.reserved -= 1
                pushed[taker] = []
        for (taker, _), lease in zip(slots, leases, strict=False):
            (claimed[taker] if isinstance(taker, Claim) else pushed[taker]).append(lease)
        for consumer, mine in pushed.items():
            self._hand_to_consumer(consumer, mine)
        self._hand_to_claims(claimed, job.error)
        queue.rotate(len(leases))
        for consumer in pushed:
            self._stir_denied(consumer)
        if job.error is not None:
            self._hub.later(RETRY_SECONDS, partial(self.stir, queue.owner))
        if self._queues.get(queue.owner) is not queue:
            return
        if not queue.takers:
            self._tidy(queue.owner)
        elif more:
            self._hand_out(queue)  # and there may be room
        elif queue.again or queue.impatient:
            self._go_on(queue)

    def _stir_denied(self, consumer: Consumer) -> None:
        """What was reserved and not filled is room for a consumer's other queues."""
        if not consumer.free or len(consumer.queues) < 2:
            return
        for owner in consumer.queues:
            if self._queues[owner].denied:
                self._queues[owner].denied = False
                self.stir(owner)

    def _go_on(self, queue: LocalQueue) -> None:
        """Something came while a look or a hand-out was under way."""
        queue.again = False
        if any(claim.free and not claim.waits for claim in queue.claims):
            self._hand_out(queue)
        else:
            self.stir(queue.owner)

    def _hand_to_consumer(self, consumer: Consumer, leases: list[Lease]) -> None:
        connection = consumer.connection
        if not leases:
            return
        if connection.closing or connection.descriptor < 0:
            self.give_back([(lease.owner, lease.message.seq) for lease in leases], consumer.holder)
            return
        for lease in leases:
            consumer.in_flight[lease.owner, lease.message.seq] = lease.until_us
        pushed = self._hub.push_to(connection, [self._courier.hand_out(lease) for lease in leases])
        unseen = [(lease.owner, lease.message.seq) for lease in leases[pushed:]]
        for held in unseen:  # it fell behind meanwhile, and nothing would ever bring it these
            consumer.in_flight.pop(held, None)
        self.give_back(unseen, consumer.holder)

    def _hand_to_claims(self, claimed: dict[Claim, list[Lease]], error: BaseException | None) -> None:
        for claim, leases in claimed.items():
            if claim.result.ready():  # it gave up meanwhile
                self.give_back([(lease.owner, lease.message.seq) for lease in leases], claim.client)
            elif error is not None:
                claim.result.set_exception(
                    error if isinstance(error, BusError) else Unavailable("The queue could not be read; try again.")
                )
            elif leases or not claim.waits:
                claim.result.set(leases)

    def give_back(self, held: Sequence[tuple[str, int]], holder: str) -> None:
        """Release what nobody will work on."""
        if not held:
            return

        def run(transaction: Transaction) -> set[str]:
            return transaction.ledger.release_all(held, holder)

        def released(job: Job) -> None:
            if job.error is None:
                self._courier.stir(job.value)

        self._writer.submit([Job(run, released)])

    # ---- what leaves hands

    def settled(self, held: Iterable[Held], until_us: int | None, *, everywhere: bool = True) -> None:
        """Items left their holders' hands (`until_us` None), or their leases go on until then."""
        unknown = []
        for owner, holder, seq in held:
            consumer = self._consumers.get(holder)
            if consumer is None:
                unknown.append((owner, holder, seq))
            elif until_us is not None:
                consumer.in_flight[owner, seq] = until_us
            elif consumer.in_flight.pop((owner, seq), None) is not None:
                self.freed(consumer)
        if everywhere and unknown and self._backplane.size > 1:
            self._backplane.note(["settled", unknown, until_us])

    def look_after(self) -> None:
        """Once a second: ask the store about leases that should have ended, in case a neighbour's word was lost."""
        late = self._clock() - LATE_US
        for consumer in list(self._consumers.values()):
            overdue = [held for held, until in consumer.in_flight.items() if until < late]
            if overdue:
                self._readers.submit(
                    partial(_still_held, consumer.holder, overdue), partial(self._looked_after, consumer)
                )

    def _looked_after(
        self, consumer: Consumer, found: dict[tuple[str, int], int | None], error: BaseException | None
    ) -> None:
        for held, until in found.items() if error is None else ():
            if until is None:
                consumer.in_flight.pop(held, None)
            elif held in consumer.in_flight:
                consumer.in_flight[held] = until
        self.freed(consumer)


def _still_held(holder: str, held: list[tuple[str, int]], reader: Reader) -> dict[tuple[str, int], int | None]:
    found: dict[tuple[str, int], int | None] = {}
    for owner, seq in held:
        row = reader.execute(
            "SELECT until FROM deliveries WHERE owner = ? AND seq = ? AND holder = ? AND state = 1",
            (owner, seq, holder),
        )
        found[owner, seq] = row[0][0] if row else None
    return found
