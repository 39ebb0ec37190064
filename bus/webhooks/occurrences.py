"""Events that are no messages, on their way into the outbox: gathered on the event loop, written as one job.

What could not be written waits and is tried again; beyond MAX_WAITING the oldest goes, and the log says how many. An error
of the server is what it logs as one: lines of the log hold no payloads and no secrets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import msgspec
from gevent.event import Event as Signal

from bus.errors import BusError
from bus.storage import Transaction
from bus.webhooks import body
from bus.webhooks.matching import Subject
from bus.webhooks.outbox import Outbox

log = logging.getLogger("bus.webhooks.occurrences")

MAX_WAITING, MAX_WAITING_BYTES = 10_000, 64 * 1024 * 1024
AT_ONCE = 500
PAUSE_SECONDS = 1.0
ERRORS_A_SECOND = 10


class Occurrence(msgspec.Struct, frozen=True):
    """Something that happened. `data` is JSON text."""

    name: str
    subject: Subject
    data: bytes


class Occurrences:
    """Event loop only. `dropped` counts what found no room."""

    def __init__(
        self, outbox: Outbox, write: Callable[[Callable[[Transaction], Any]], Any], woken: Callable[[], None]
    ) -> None:
        """`woken()` is called when some were written."""
        self.dropped = 0
        self._outbox = outbox
        self._write = write
        self._woken = woken
        self._waiting: list[Occurrence] = []
        self._size = 0  # bytes of what waits
        self._reported = 0  # of `dropped`
        self._signal = Signal()
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._errors = ErrorHandler(self._error)

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)
        logging.getLogger().addHandler(self._errors)

    def stop(self) -> None:
        """Write what waits, once."""
        logging.getLogger().removeHandler(self._errors)
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._waiting:
            self._flush()

    def add(self, name: str, subject: Subject, data: dict[str, Any]) -> None:
        """Something happened. Costs a dict lookup when nobody wants it."""
        if self._outbox.matcher.wants(name):
            self.put(name, subject, body.encode(data))

    def put(self, name: str, subject: Subject, data: bytes) -> None:
        """The same with JSON text, wanted or not."""
        self._waiting.append(Occurrence(name, subject, data))
        self._size += len(data)
        while len(self._waiting) > MAX_WAITING or self._size > MAX_WAITING_BYTES:
            self._size -= len(self._waiting.pop(0).data)
            self.dropped += 1
        self._signal.set()

    def _error(self, data: dict[str, Any]) -> None:
        self.add("error.occurred", Subject(), data)

    def _run(self) -> None:
        while True:
            self._signal.wait()
            self._signal.clear()
            if not self._flush():
                gevent.sleep(PAUSE_SECONDS)
                self._signal.set()

    def _flush(self) -> bool:
        """Write what waits. False: it could not be written."""
        while batch := self._waiting[:AT_ONCE]:
            del self._waiting[:AT_ONCE]
            self._size -= sum(len(each.data) for each in batch)

            def job(transaction: Transaction, batch: list[Occurrence] = batch) -> None:
                for each in batch:
                    self._outbox.write(transaction, each.name, each.subject, each.data)

            try:
                self._write(job)
            except BusError as refusal:
                self._waiting[:0] = batch
                self._size += sum(len(each.data) for each in batch)
                log.warning(
                    "Events wait, for nothing can be written: %s", refusal.sentence, extra={"action": "webhooks"}
                )
                return False
            except Exception:
                log.exception("Events could not be written", extra={"action": "webhooks"})
                self.dropped += len(batch)
            self._woken()
        if self.dropped > self._reported:
            lost, self._reported = self.dropped - self._reported, self.dropped
            log.error("%d events were not told: there was no room for them", lost, extra={"action": "webhooks"})
        return True


class ErrorHandler(logging.Handler):
    """Tells of what is logged as an error, but for what webhooks themselves log: a failing receiver is no error of ours,
    and telling of it would feed itself. At most ERRORS_A_SECOND; the next says how many were left out."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell
        self._second = 0
        self._told = 0
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("bus.webhooks", "webhooks")):
            return
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._told = second, 0
        if self._told >= ERRORS_A_SECOND:
            self._left_out += 1
            return
        self._told += 1
        data = {"error": record.getMessage()[:2000], "action": getattr(record, "action", None), "logger": record.name}
        if self._left_out:
            data["left_out"] = self._left_out
            self._left_out = 0
        self._tell(data)
