"""The size cap of the log: with MAX_LOG_BYTES set, the oldest messages go first, and readers who miss them are told.

What is taken raises `lost_through`; a cursor below it resumes with a gap that says so. What somebody still owes an ack
for becomes a dead letter. One process in the cluster
does it, in bounded steps.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bus.storage import Transaction
from bus.storage.deliveries import Swept
from bus.storage.eviction import evict
from bus.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus

log = logging.getLogger("extensions.log_cap")

INTERVAL_SECONDS = 1.0
STEP_MESSAGES = 2000
"""Messages taken in one transaction, so that no commit waits long for an eviction."""


class LogCap:
    """Evicts while the payloads kept are more than `max_bytes`."""

    def __init__(self, bus: Bus, max_bytes: int) -> None:
        self._bus = bus
        self._max_bytes = max_bytes

    def tick(self) -> None:
        """Evict until the log fits. Waits between steps for the writer, so others get in."""
        evicted = 0
        taken = -1
        while taken:
            taken, swept = self._bus.write(self._step)
            if swept is not None:
                self._bus.courier.tell_swept(swept)
            evicted += taken
            self._bus.metrics.count("bus_log_evicted_total", by=taken)
        if evicted:
            log.info(
                "The log reached its cap; the oldest messages went", extra={"action": "evicted", "messages": evicted}
            )

    def _step(self, transaction: Transaction) -> tuple[int, Swept | None]:
        (kept_bytes,) = transaction.execute("SELECT kept_bytes FROM log_head")[0]
        if kept_bytes <= self._max_bytes:
            return 0, None
        rows = transaction.execute("SELECT seq, length(payload) FROM messages ORDER BY seq LIMIT ?", (STEP_MESSAGES,))
        through = freed = taken = 0
        for seq, size in rows:
            if kept_bytes - freed <= self._max_bytes:
                break
            through, freed, taken = seq, freed + size, taken + 1
        return taken, evict(transaction, through, freed)


def register(app: Flask, bus: Bus) -> None:
    """Cap the log if MAX_LOG_BYTES is set."""
    max_bytes = bus.settings.max_log_bytes
    cap = LogCap(bus, max_bytes or 0)
    app.extensions["log_cap"] = cap
    if max_bytes is not None:
        bus.add_worker(Worker("log_cap", cap.tick, interval_seconds=INTERVAL_SECONDS, exclusive=True))
