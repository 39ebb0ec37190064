"""Writes the trail: from the events that are heard to records, soon after, in the store's writer; and its retention."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from bus.audit import trail
from bus.audit.gatherer import Gatherer
from bus.audit.record import Anchor, Entry
from bus.events import Audited
from bus.nodes.leases import Leases
from bus.storage import Transaction

log = logging.getLogger("bus.audit")

ENTRIES_A_WRITE = 200
LOOK_SECONDS = 0.25
"""How often it is looked whether gathered refusals are due."""

PAUSE_SECONDS = 1.0
"""After a write that failed."""

STOP_SECONDS = 5.0


class Recorder:
    """`hear` is called on the event loop; a greenlet writes. Started and stopped by the bus (`Background`)."""

    def __init__(self, write: Callable[[Any], Any], clock_us: Callable[[], int]) -> None:
        """`write(job)` waits for a job on the writer; `clock_us` is the bus's clock."""
        self._write = write
        self._gatherer = Gatherer(clock_us)
        self._stir = Event()
        self._stopping = False
        self._failing = False
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def hear(self, event: Audited) -> None:
        """Have an event written. Neither blocks nor switches."""
        was_empty = self._gatherer.is_empty
        if self._gatherer.hear(event) or was_empty:
            self._stir.set()

    def start(self, _: Leases) -> None:
        if self._greenlet is None:
            self._stopping = False
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Write what is left, for some seconds at most."""
        self._stopping = True
        self._stir.set()
        if self._greenlet is not None:
            self._greenlet.join(STOP_SECONDS)
            self._greenlet.kill()
            self._greenlet = None

    def _run(self) -> None:
        while not self._stopping:
            self._stir.wait()
            self._stir.clear()
            while not self._gatherer.is_empty and not self._stopping:
                pause = LOOK_SECONDS if self._flush() else PAUSE_SECONDS
                self._stir.wait(pause)
                self._stir.clear()
        self._flush(all_=True)

    def _flush(self, *, all_: bool = False) -> bool:
        """Write what is due; False when the store could not."""
        entries = self._gatherer.take(all_=all_)
        while entries:
            chunk = entries[:ENTRIES_A_WRITE]
            try:
                self._write(_appending(chunk))
            except Exception as error:  # a full disk, a table that somebody tampered with
                self._gatherer.put_back(entries)
                if not self._failing:
                    log.error("The audit trail can't be written", exc_info=error, extra={"action": "audit_failed"})
                self._failing = True
                return False
            del entries[:ENTRIES_A_WRITE]
        self._failing = False
        return True


class Retention:
    """Takes what has had its time, and notes in the log where the trail stands. `tick` is the work of one process."""

    def __init__(self, read: Callable[[Any], Any], write: Callable[[Any], Any], clock_us: Callable[[], int]) -> None:
        self._read = read
        self._write = write
        self._clock_us = clock_us
        self._told = Anchor()

    def tick(self) -> None:
        """Trim if it is due; say the last record's hash, which whoever keeps the logs can compare later."""
        if self._read(lambda reader: trail.is_due(reader, self._clock_us())):
            while self._write(lambda transaction: trail.trim(transaction, self._clock_us())) == trail.TRIMMED_A_STEP:
                continue
        end = self._read(trail.end)
        if end != self._told:
            self._told = end
            log.info(
                "The audit trail has %d records so far",
                end.number,
                extra={"action": "audit_stands", "number": end.number, "hash": end.hash},
            )


def _appending(entries: list[Entry]) -> Callable[[Transaction], None]:
    return lambda transaction: trail.append(transaction, entries)
