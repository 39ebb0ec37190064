"""The canary: a message that the process sends through itself from time to time; and the write of an idle bus.

Publish, store and fan-out are each looked at where they could stand still: a row is committed and read back, the tail must
come to the end of the log, and an ephemeral message must reach who waits for `$canary…`, a name that no client can have.
Nothing of it is in the log, in an inbox, in `all` or in a figure of messages; its row is one of `meta`, ever the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import gevent
from gevent.event import Event

from bus.errors import BusError
from bus.hub import Hub
from bus.message import Kind, Message, now_us
from bus.protocol import Draft
from bus.storage import Head, Reader, Transaction
from bus.storage.log_writer import LogWriter

log = logging.getLogger("bus.canary")

INTERVAL_SECONDS = 15.0
DEADLINE_SECONDS = 10.0
STALE_SECONDS = 45.0
"""Without an arrival for so long, the canary is overdue."""

BEAT_SECONDS = 5.0
QUIET_SECONDS = 4.0
"""A bus that committed nothing for so long writes a row, so that a store that can't is noticed before somebody needs it."""

TAIL_STEP_SECONDS = 0.005
_KEEP = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2"


class Circuit(Protocol):
    """What the canary flies through: the bus."""

    hub: Hub
    writer: LogWriter

    def write(self, job: Callable[[Transaction], Any]) -> Any: ...

    def read(self, job: Callable[[Reader], Any]) -> Any: ...

    def publish(self, draft: Draft, settled: Callable[[Any], None]) -> None: ...


class Canary:
    """One of a process. `tick` and `beat` are the work of workers; the rest tells. Event loop only.

    `seconds`: how long the last arrival took; `problem`: what became of the last flight, empty if it arrived.
    """

    def __init__(self, circuit: Circuit, arrived: Callable[[float | None], None]) -> None:
        """`arrived(seconds)` hears of each flight; None: it was lost."""
        self._circuit = circuit
        self._arrived = arrived
        self.seconds: float | None = None
        self.problem = ""
        self._name = "$canary"
        self._at = ""  # the step that is being made
        self._arrived_at = time.monotonic()

    def begin(self, slot: int) -> None:
        """The process serves, in this slot of the cluster."""
        self._name = f"$canary.{slot}"
        self._arrived_at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """How long ago it arrived; before the first time, how long ago it might first have started."""
        return time.monotonic() - self._arrived_at

    def beat(self) -> None:
        """Write a row if nothing else was committed lately. Raises what the store refuses."""
        if time.monotonic() - self._circuit.writer.committed_at > QUIET_SECONDS:
            self._circuit.write(self._keep)

    def tick(self) -> None:
        """One flight."""
        began = time.monotonic()
        try:
            with gevent.Timeout(DEADLINE_SECONDS):
                for at, step in (("store", self._store), ("tail", self._follow), ("fan-out", self._fan_out)):
                    self._at = at
                    step()
        except (gevent.Timeout, BusError) as error:
            self.problem = f"It was lost at the {self._at}."
            log.warning("The canary was lost at the %s: %r", self._at, error, extra={"action": "canary_lost"})
            self._arrived(None)
            return
        self._arrived_at = time.monotonic()
        self.seconds, self.problem = self._arrived_at - began, ""
        self._arrived(self.seconds)

    # ---- the steps

    def _keep(self, transaction: Transaction) -> int:
        stamp = now_us()
        transaction.execute(_KEEP, (self._name, stamp))
        return stamp

    def _store(self) -> None:
        kept = self._circuit.write(self._keep)
        rows = self._circuit.read(lambda reader: reader.execute("SELECT value FROM meta WHERE name = ?", (self._name,)))
        if not rows or rows[0][0] < kept:
            raise BusError("What was committed can't be read.")

    def _follow(self) -> None:
        head: Head = self._circuit.read(lambda reader: reader.head())
        while self._circuit.hub.tail.delivered < head.seq:
            gevent.sleep(TAIL_STEP_SECONDS)

    def _fan_out(self) -> None:
        hub, name = self._circuit.hub, self._name
        event = hub.waiter(name)
        try:
            message = Message(Kind.CLIENT, name, (name,), "$canary", "canary", b"null", now_us())
            self._circuit.publish(Draft(message, ephemeral=True), partial(_answered, event))
            event.wait()  # a message to all wakes it, too: that one went the same way
        finally:
            hub.forget(name, event)


def _answered(event: Event, answer: object) -> None:
    """An extension whose rules have no place for canaries does its work: that is no loss."""
    if isinstance(answer, BusError) and answer.status < 500:
        event.set()
