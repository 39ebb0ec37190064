"""How messages leave the log: with all that hangs on them, and never silently.

What is still open of a message becomes a dead letter first. Whoever removes messages comes through here: `evict` takes the
oldest for want of room, and readers who miss them are told; `remove` takes what has had its time, which is no gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from bus.message import REQUIRES_ACK, Kind
from bus.storage import Transaction
from bus.storage.deliveries import Failure, Swept
from bus.storage.ledger_sql import OPEN
from bus.storage.lifetimes import DEFAULT
from bus.storage.rows import named

DAY_US = 86_400_000_000
EXPIRED, DELIVERED = "expired", "delivered"


def evict(transaction: Transaction, through: int, freed_bytes: int) -> Swept:
    """Remove the messages up to the seq `through`, whose payloads are `freed_bytes`; readers who miss them are told.

    What came of open deliveries is for `Courier.tell_swept`, after the commit.
    """
    swept = transaction.ledger.evict(through)
    for table, column in _HANGS_ON:
        transaction.execute(f"DELETE FROM {table} WHERE {column} <= ?", (through,))
    transaction.execute("UPDATE clients SET mark = ?1 WHERE mark < ?1", (through,))
    transaction.execute(
        "UPDATE log_head SET kept_bytes = kept_bytes - ?, lost_through = max(lost_through, ?)", (freed_bytes, through)
    )
    return swept


class Removed(msgspec.Struct):
    """The seqs that went, those that stay since somebody has them in hands, and the dead letters that were made."""

    gone: list[int]
    held: list[int]
    failures: list[Failure]


def remove(transaction: Transaction, seqs: Sequence[int], reason: str, *, archived: bool = False) -> Removed:
    """Remove `seqs`, whose time is over: EXPIRED by the bus's clock, or DELIVERED to everybody.

    What expires is looked at again in here, since it may have been extended meanwhile. Counted in `removed`, and, of what
    did not reach a named client, in `expired`.
    """
    alive_at = transaction.ledger.now if reason == EXPIRED else None
    rows = transaction.execute(_DUE, (msgspec.json.encode(seqs).decode(), alive_at))
    removed = Removed([], [], [])
    going = []
    tracked = {row[0]: _owners(row[1], row[2]) for row in rows if row[4] & REQUIRES_ACK}
    if (ahead := transaction.ledger.ahead) is not None:
        for seq, owners in tracked.items():
            for owner in owners:
                ahead.ask(OPEN, owner, seq)
    for row in rows:
        seq = row[0]
        if seq in tracked:
            failures = transaction.ledger.outlive(seq, tracked[seq])
            if failures is None:
                removed.held.append(seq)
                continue
            removed.failures += failures
        going.append(row)
        removed.gone.append(seq)
    if not going:
        return removed
    _count(transaction, going, reason, archived=archived)
    listed = (msgspec.json.encode(removed.gone).decode(),)
    for table, column in _HANGS_ON:
        transaction.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))", listed)
    freed = sum(row[5] for row in going)
    transaction.execute("UPDATE log_head SET kept_bytes = kept_bytes - ?", (freed,))
    return removed


def _owners(kind: int, address: str) -> tuple[str, ...]:
    return (f"queue:{address}",) if kind == Kind.QUEUE else named(kind, address)


def _count(transaction: Transaction, rows: Sequence[Any], reason: str, *, archived: bool) -> None:
    governed = {type_ for (type_,) in transaction.execute("SELECT type FROM policies")}
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    missed: dict[str, list[int]] = {}
    for seq, kind, address, type_, flags, size in rows:
        policy = type_ if type_ in governed else DEFAULT
        counts[policy] += 1
        sizes[policy] += size
        if reason == EXPIRED and not flags & REQUIRES_ACK and kind != Kind.TOPIC:
            for name in named(kind, address) if kind != Kind.ALL else ("",):
                missed.setdefault(name, []).append(seq)
    for policy, n in counts.items():
        transaction.execute(_COUNT_REMOVED, (policy, reason, n, n if archived else 0, sizes[policy]))
    had = dict(transaction.execute(_HAD, (msgspec.json.encode(list(missed)).decode(),))) if missed else {}
    unread = {name: [seq for seq in seqs if seq > had.get(name, 0)] for name, seqs in missed.items()}
    today = transaction.ledger.now // DAY_US
    _count_expired(transaction, [(name, today, len(seqs), max(seqs)) for name, seqs in unread.items() if seqs])


def _count_expired(transaction: Transaction, rows: Sequence[tuple[str, int, int, int]]) -> None:
    """Add to what expired unread, by name, day, how many and the last; no name twice."""
    at = 0
    while at < len(rows):
        size = next(size for size in _COUNT_EXPIRED if size <= len(rows) - at)
        transaction.execute(_COUNT_EXPIRED[size], list(chain.from_iterable(rows[at : at + size])))
        at += size


_DUE_COLUMNS = "m.seq, m.kind, m.address, m.type, m.flags, length(m.payload)"
_DUE = f"""
SELECT {_DUE_COLUMNS} FROM json_each(?1) j CROSS JOIN messages m ON m.seq = j.value
 WHERE m.expires_at <= ?2 OR ?2 IS NULL"""
_HAD = "SELECT name, cursor FROM clients WHERE name IN (SELECT value FROM json_each(?))"
_COUNT_REMOVED = """
INSERT INTO removed VALUES (?, ?, ?, ?, ?) ON CONFLICT (policy, reason) DO UPDATE
 SET n = removed.n + excluded.n, archived = removed.archived + excluded.archived, bytes = removed.bytes + excluded.bytes"""
_COUNT_EXPIRED = {
    rows: f"""
INSERT INTO expired VALUES {", ".join(["(?, ?, ?, ?)"] * rows)} ON CONFLICT (name, day) DO UPDATE
 SET n = expired.n + excluded.n, max_seq = max(expired.max_seq, excluded.max_seq)"""
    for rows in (64, 8, 1)
}
"""By how many rows: a statement for each client would take longer than all else that removes a batch."""

_HANGS_ON = (
    ("messages", "seq"),
    ("addressed", "seq"),
    ("thread_messages", "seq"),
    ("other_ids", "seq"),
    ("set_aside", "seq"),
    ("undelivered", "seq"),
)
