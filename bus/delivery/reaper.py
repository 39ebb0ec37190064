"""What time does to messages: leases end, rests are over, delayed messages become due, what outlived its ttl is set aside.

One process in the cluster does it, in bounded batches, by the bus's clock (bus.clock): no step of the wall's clock ends a
lease or starts a storm. Looking costs three index lookups; it writes only when something is due.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from bus.clock import Clock
from bus.delivery.courier import Courier
from bus.errors import BusError
from bus.message import OWN_ID, Message, Terms, audience_of
from bus.storage import Outcome, Reader, Transaction
from bus.storage.deliveries import SWEEP_BYTES, Failure, Swept
from bus.storage.rows import named

log = logging.getLogger("bus.reaper")

INTERVAL_SECONDS = 0.1
BATCH = 500
"""Deliveries or delayed messages of one transaction: about 10 ms, so that no commit waits long."""

_DUE = """
SELECT (SELECT min(until) FROM deliveries WHERE until IS NOT NULL),
       (SELECT min(expires_at) FROM deliveries WHERE expires_at IS NOT NULL AND state <> 1),
       (SELECT min(due_at) FROM scheduled)"""
_SCHEDULED = """
SELECT id, kind, address, sender, type, stamp, flags, extras, payload, terms FROM scheduled
 WHERE due_at <= ? ORDER BY due_at, id LIMIT ?"""


class Reaper:
    """`tick` is the work of an exclusive worker, in its greenlet. `read` and `write` are the bus's."""

    def __init__(
        self, read: Callable[[Any], Any], write: Callable[[Any], Any], clock: Clock, courier: Callable[[], Courier]
    ) -> None:
        self._read = read
        self._write = write
        self._clock = clock
        self._courier = courier

    def tick(self) -> None:
        """Do what is due."""
        self._clock.look_for_step()

        def look(reader: Reader) -> tuple[int | None, ...]:
            return reader.execute(_DUE)[0]

        until, expires, due = self._read(look)
        now = self._clock.now_us()
        if any(moment is not None and moment <= now for moment in (until, expires)):
            self._expire()
        if due is not None and due <= now:
            self._enter()

    def _expire(self) -> None:
        def run(transaction: Transaction) -> Swept:
            return transaction.ledger.expire(BATCH)

        more = True
        while more:
            swept: Swept = self._write(run)
            self._courier().tell_swept(swept)
            more = swept.more

    def _enter(self) -> None:
        """Put delayed messages into the log, each exactly once: its row leaves `scheduled` in the same transaction."""
        while True:
            more, failures = self._write(_enter_batch)
            self._courier().tell_failures(failures)
            if not more:
                return


def _enter_batch(transaction: Transaction) -> tuple[bool, list[Failure]]:
    rows = transaction.execute(_SCHEDULED, (transaction.ledger.now, BATCH))
    failures: list[Failure] = []
    size = 0
    for row in rows:
        message = _scheduled(row)
        size += len(message.payload)
        if size > SWEEP_BYTES and size > len(message.payload):
            return True, failures
        transaction.execute("DELETE FROM scheduled WHERE id = ?", (message.own_id,))
        outcome = transaction.append(message)
        if isinstance(outcome, Outcome):
            failures += outcome.failures
            refused = outcome.refused
        else:
            refused = message.names or (audience_of(message),)
            log.info("A delayed message found no room", extra={"action": "overflow", "reason": outcome.code})
        ack_wait = message.terms.ack_wait_us if message.terms is not None else None
        why = _reason(outcome)
        failures += [transaction.ledger.bury(message, name, "overflow", why, ack_wait=ack_wait) for name in refused]
    return len(rows) == BATCH, failures


def _reason(outcome: Outcome | BusError) -> str:
    return outcome.sentence if isinstance(outcome, BusError) else "The inbox was full when the message became due."


def _scheduled(row: tuple[Any, ...]) -> Message:
    own_id, kind, address, sender, type_, stamp, flags, extras, payload, terms = row
    asked = msgspec.structs.replace(msgspec.json.decode(terms, type=Terms), delay_us=None, deliver_us=None)
    message = Message(
        kind, address, named(kind, address), sender, type_, payload, stamp, flags | OWN_ID, None, extras, terms=asked
    )
    message.own_id = own_id
    return message
