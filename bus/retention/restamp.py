"""Gives stored messages what a changed policy says, batch by batch: what is their own to expire stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bus.message import OWN_EXPIRY, REQUIRES_ACK, TYPE_EXPIRY, Kind, Message
from bus.retention.policies import RESTAMP
from bus.storage import Transaction
from bus.storage.lifetimes import Lifetime, Lifetimes, read_lifetimes
from bus.storage.rows import named

BATCH = 500

TOLERANCE_US = 500_000
"""A stamp that differs by less is left as it is: it was taken at the commit, and what is known of it here is the receipt."""

_ROWS = f"""
SELECT seq, kind, address, type, stamp, expires_at, flags FROM messages
 WHERE seq > ? AND flags & {OWN_EXPIRY} = 0 ORDER BY seq LIMIT ?"""


def step(born_before: int) -> Callable[[Transaction], tuple[bool, int]]:
    """A job that stamps the next messages; it gives whether there are more, and what the next step is made with.

    `born_before`: when the last message of the step before was born; 0 at the first. A stamp of the wall's clock that does
    not fit in between that and now is not believed.
    """

    def job(transaction: Transaction) -> tuple[bool, int]:
        place = transaction.execute("SELECT value FROM meta WHERE name = ?", (RESTAMP,))
        if not place:
            return False, 0
        lifetimes = read_lifetimes(transaction.execute, 0)
        rows = transaction.execute(_ROWS, (place[0][0], BATCH))
        born = born_before
        for row in rows:
            seq, kind, address, type_, stamp, expires_at, flags = row
            if stamp <= transaction.ledger.now:
                born = max(born, stamp)
            if expires_at is not None and expires_at <= transaction.ledger.now:
                continue  # what is gone stays gone, swept or not
            message = Message(kind, address, named(kind, address), "", type_, b"", stamp, flags, seq=seq)
            moment = born if stamp <= transaction.ledger.now else transaction.ledger.now
            _stamp(transaction, message, lifetimes, moment, (expires_at, flags))
        if len(rows) < BATCH:
            transaction.execute("DELETE FROM meta WHERE name = ?", (RESTAMP,))
            return False, 0
        transaction.execute("UPDATE meta SET value = ? WHERE name = ?", (rows[-1][0], RESTAMP))
        return True, born

    return job


def _stamp(transaction: Transaction, message: Message, lifetimes: Lifetimes, born: int, had: tuple[Any, int]) -> None:
    lifetime = lifetimes.of(message)
    flags = had[1] & ~TYPE_EXPIRY
    if message.type in lifetimes.by_type and lifetime is lifetimes.by_type[message.type]:
        flags |= TYPE_EXPIRY
    if lifetime.immediate:
        waits = _note_undelivered(transaction, message, born)
        lifetime = Lifetime(None if waits else lifetimes.default_us)
    elif had[0] is None:
        transaction.execute("DELETE FROM undelivered WHERE seq = ?", (message.seq,))
    expires_at = None if lifetime.ttl_us is None else born + lifetime.ttl_us
    same = expires_at == had[0] or (None not in (expires_at, had[0]) and abs(expires_at - had[0]) < TOLERANCE_US)
    if not same or flags != had[1]:
        transaction.execute(
            "UPDATE messages SET expires_at = ?, flags = ? WHERE seq = ?", (expires_at, flags, message.seq)
        )


def _note_undelivered(transaction: Transaction, message: Message, born: int) -> bool:
    """Note whom the message may not have reached. False: all have settled it, and it goes by the default policy."""
    tracked = message.flags & REQUIRES_ACK
    owners = (f"queue:{message.address}",) if message.kind == Kind.QUEUE else message.names
    waits = False
    for owner in owners:
        statement = "SELECT 1 FROM deliveries WHERE owner = ? AND seq = ?"
        if not tracked or transaction.execute(statement, (owner, message.seq)):
            waits = True
            bindings = (tracked, owner, message.seq, born)
            transaction.execute("INSERT INTO undelivered VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", bindings)
    return waits
