"""`integration_events`: what came of each webhook. It is also the memory by which the same is never taken twice.

What was taken is written in the transaction of its message, with a nonce that is unique: a second process that gets the same
request finds it there. Refusals need no such care, and strangers can cause any number of them: they are gathered, alike
ones in one row, and written once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from bus.errors import BusError
from bus.nodes.leases import Leases
from bus.storage import Reader, Transaction
from bus.worker import Worker

KEPT_US = 90 * 86_400 * 1_000_000
MAX_TAKEN, MAX_REFUSED = 1_000_000, 100_000
"""Rows; beyond, the oldest go."""

LEAST_KEPT_US = 900 * 1_000_000
"""What was taken is remembered for so long whatever the caps say: beyond the tolerance of a signed time, to both sides."""

AT_ONCE = 1000
FLUSH_SECONDS = 1.0
FORGET_SECONDS = 30.0
MAX_GATHERED = 200
"""Sorts of refusals in one second of one process; those beyond count together, without an address."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row. `outcome`: accepted, duplicate, ping, challenge, or why it was refused. `seq`: of its message; `size`: of the
    body, in bytes."""

    integration_id: str
    outcome: str
    address: str
    request_id: str
    size: int
    count: int = 1
    timestamp_us: int = 0
    event: str | None = None
    delivery: str | None = None
    nonce: bytes | None = None
    seq: int | None = None
    number: int = 0


class Journal:
    """Event loop only. `start` and `stop` are a worker's (Bus.add_worker)."""

    def __init__(self, write_lazily: Callable[[Callable[[Transaction], Any]], Any], now_us: Callable[[], int]) -> None:
        self._write = write_lazily
        self._now_us = now_us
        self._gathered: dict[tuple[str, str, str], Entry] = {}  # refusals of this second, by their sort; MAX_GATHERED
        self._flusher = Worker("ingress_journal", self.flush, interval_seconds=FLUSH_SECONDS)
        self._forgetter = Worker("ingress_forget", self.forget, interval_seconds=FORGET_SECONDS, exclusive=True)

    def start(self, leases: Leases) -> None:
        self._flusher.start(leases)
        self._forgetter.start(leases)

    def stop(self) -> None:
        self._forgetter.stop()
        self._flusher.stop()
        self.flush()

    def refuse(self, entry: Entry) -> None:
        """Note a refusal; it is written within a second."""
        sort = (entry.integration_id, entry.outcome, entry.address)
        if sort not in self._gathered and len(self._gathered) >= MAX_GATHERED:
            sort = (entry.integration_id if entry.outcome != "unknown" else "", entry.outcome, "")
            entry = msgspec.structs.replace(entry, integration_id=sort[0], address="")
        before = self._gathered.get(sort)
        count = before.count + 1 if before else 1
        self._gathered[sort] = msgspec.structs.replace(entry, count=count, timestamp_us=self._now_us())

    def flush(self) -> None:
        """Write what was refused. Raises BusError where the log can't be written; then it is kept for the next time."""
        gathered, self._gathered = self._gathered, {}
        if not gathered:
            return
        try:
            self._write(lambda transaction: _put_all(transaction, gathered.values()))
        except BusError:
            self._gathered = {**gathered, **self._gathered}
            raise

    def forget(self) -> None:
        """Remove what is old, and what is too much."""
        while self._write(lambda transaction: forget(transaction, self._now_us())):
            continue


def put(transaction: Transaction, entry: Entry) -> None:
    """Write a row."""
    transaction.execute(
        "INSERT INTO integration_events (integration_id, timestamp, outcome, count, address, request_id, bytes, event,"
        " delivery, nonce, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (entry.integration_id, entry.timestamp_us, entry.outcome, entry.count, entry.address, entry.request_id,
         entry.size, entry.event, entry.delivery, entry.nonce, entry.seq),
    )  # fmt: skip


def _put_all(transaction: Transaction, entries: Iterable[Entry]) -> None:
    for entry in entries:
        put(transaction, entry)


def was_taken(transaction: Transaction, integration_id: str, nonce: bytes) -> bool:
    """Whether just this was taken before, by any process."""
    return bool(
        transaction.execute(
            "SELECT 1 FROM integration_events WHERE integration_id = ? AND nonce = ?", (integration_id, nonce)
        )
    )


def delivered(transaction: Transaction, integration_id: str, delivery: str) -> int | None:
    """The place in the log of the message that an event has become; None: it has not come before."""
    rows = transaction.execute(
        "SELECT seq FROM integration_events WHERE integration_id = ? AND delivery = ? AND outcome = 'accepted'",
        (integration_id, delivery),
    )
    return int(rows[0][0]) if rows else None


def page(
    reader: Reader, integration_id: str | None, outcome: str | None, before: int | None, limit: int
) -> Sequence[Entry]:
    """Rows below a number, the youngest first."""
    chosen = [("integration_id = ?", integration_id), ("outcome = ?", outcome), ("number < ?", before)]
    given = [(condition, value) for condition, value in chosen if value is not None]
    where = " AND ".join(condition for condition, _ in given) or "true"
    bindings = [*(value for _, value in given), limit]
    rows = reader.execute(
        f"SELECT {_COLUMNS} FROM integration_events WHERE {where} ORDER BY number DESC LIMIT ?", bindings
    )
    return [Entry(**dict(zip(_FIELDS, row, strict=True))) for row in rows]


def forget(transaction: Transaction, now_us: int) -> bool:
    """Remove some of what is old or too much. True: there is more."""
    gone = transaction.execute(_OLD, (AT_ONCE, now_us - KEPT_US))
    for what, most in (("IS NULL", MAX_REFUSED), ("IS NOT NULL", MAX_TAKEN)):
        kept = f"(SELECT number FROM integration_events WHERE nonce {what} ORDER BY number"
        (count,) = transaction.execute(f"SELECT count(*) FROM {kept} LIMIT ?) k", (most + AT_ONCE,))[0]
        if count > most:
            oldest = f"DELETE FROM integration_events WHERE number IN {kept} LIMIT ?) AND timestamp < ? RETURNING 1"
            gone += transaction.execute(oldest, (count - most, now_us - LEAST_KEPT_US))
    return len(gone) >= AT_ONCE


_FIELDS = ("number", "integration_id", "timestamp_us", "outcome", "count", "address", "request_id", "size", "event",
           "delivery", "seq")  # fmt: skip
_COLUMNS = ", ".join(_FIELDS).replace("timestamp_us", "timestamp").replace("size", "bytes")
_OLD = """
DELETE FROM integration_events WHERE number IN
 (SELECT number FROM (SELECT number, timestamp FROM integration_events ORDER BY number LIMIT ?) o WHERE timestamp < ?)
 RETURNING 1"""
