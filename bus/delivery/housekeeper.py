"""Forgets what has had its time: idempotency keys, settled deliveries and questions after a day, clients after a month.

One process in the cluster does it, in bounded batches. Ages are taken by the bus's clock (bus.clock), so a step of the
wall's clock forgets nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bus.clock import Clock
from bus.message import now_us
from bus.storage import Transaction
from bus.storage.log_reader import WAITING

INTERVAL_SECONDS = 60.0
CLIENTS_EVERY = 60
"""Every so many ticks the clients are looked through."""

BATCH = 1000
DAY_US = 86_400_000_000
KEY_AGE_US = DAY_US
"""How long a repeat under an idempotency key is the same message, an ack is remembered, and an answer can be fetched."""

CLIENT_AGE_US = 30 * DAY_US

_AGED = (
    "DELETE FROM idempotency WHERE (sender, key) IN (SELECT sender, key FROM idempotency WHERE kept_at < ? LIMIT ?)",
    "DELETE FROM settled WHERE (seq, owner) IN (SELECT seq, owner FROM settled WHERE settled_at < ? LIMIT ?)",
    "DELETE FROM requests WHERE seq IN (SELECT seq FROM requests WHERE asked_at < ? LIMIT ?)",
)
_ORPHANS = "DELETE FROM replies WHERE request NOT IN (SELECT seq FROM requests)"
_EMPTY = """
DELETE FROM backlogs WHERE owner IN (
    SELECT owner FROM backlogs WHERE waiting = 0 AND leased = 0 AND capacity IS NULL AND on_full IS NULL LIMIT ?)
 RETURNING 1"""
_UNUSED = "SELECT name, mark FROM clients WHERE last_seen < ? AND name > ? ORDER BY name LIMIT ?"


class Housekeeper:
    """`tick` is the work of an exclusive worker. `write` is the bus's; `online()` names who is connected anywhere."""

    def __init__(self, write: Callable[[Any], Any], clock: Clock, online: Callable[[], Any]) -> None:
        self._write = write
        self._clock = clock
        self._online = online
        self._ticks = 0

    def tick(self) -> None:
        """Forget, batch by batch; others write between two batches."""
        before = self._clock.now_us() - KEY_AGE_US
        for statement in _AGED:
            while self._write(_delete(statement, before)) == BATCH:
                continue
        self._write(lambda transaction: transaction.execute(_ORPHANS))
        self._ticks += 1
        if self._ticks % CLIENTS_EVERY == 0:
            self.forget_clients()

    def forget_clients(self) -> None:
        """Forget the clients that nobody used for a month, and for whom nothing waits; and backlogs of nothing."""
        while len(self._write(lambda transaction: transaction.execute(_EMPTY, (BATCH,)))) == BATCH:
            continue
        before = (
            min(self._clock.now_us(), now_us()) - CLIENT_AGE_US
        )  # they are seen by the wall's clock, which may be set
        after: str | None = ""
        while after is not None:
            after = self._write(_forget(before, after, set(self._online())))


def _delete(statement: str, before: int) -> Callable[[Transaction], int]:
    def run(transaction: Transaction) -> int:
        return len(transaction.execute(f"{statement} RETURNING 1", (before, BATCH)))

    return run


def _forget(before: int, after: str, online: set[str]) -> Callable[[Transaction], str | None]:
    """Forget clients unused since `before` and without mail; the answer is where the next batch begins, if there is one."""

    def run(transaction: Transaction) -> str | None:
        rows = transaction.execute(_UNUSED, (before, after, BATCH))
        for name, mark in rows:
            backlog = transaction.ledger.backlog(name)
            if name in online or backlog.waiting or backlog.leased:
                continue
            if not transaction.execute(WAITING, (name, mark, transaction.head, 1, transaction.ledger.now))[0][0]:
                transaction.execute("DELETE FROM clients WHERE name = ?", (name,))
        return str(rows[-1][0]) if len(rows) == BATCH else None

    return run
