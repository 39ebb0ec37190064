"""The table of the trail: what appends to it, reads it, and takes what has had its time. SQL, inside jobs of the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from bus.audit.record import TRIMMED, Anchor, Entry, Record
from bus.message import iso
from bus.retention.policies import AUDIT
from bus.storage import Reader, Transaction

MIGRATIONS = Path(__file__).parent / "migrations"
DEFAULT_LIFE_US = 90 * 86_400 * 1_000_000
TRIMMED_A_STEP = 5000
PAGE = 1000

_COLUMNS = (
    "number, timestamp, table_name, record_id, operation, outcome, old_values, new_values, user_id, org_id, address,"
    " request_id, times, hash"
)
_INSERT = f"INSERT INTO audit_logs ({_COLUMNS}) VALUES ({', '.join('?' * 14)})"

Execute = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]


class Wanted(msgspec.Struct, frozen=True):
    """Which records; None means any. An action that ends in `.*` means all that begin so. Times in microseconds."""

    actor: str | None = None
    action: str | None = None
    outcome: str | None = None
    since_us: int | None = None
    until_us: int | None = None

    def conditions(self) -> tuple[str, list[Any]]:
        """What stands behind WHERE, and its bindings."""
        chosen: list[tuple[str, Any]] = [
            ("user_id = ?", self.actor),
            ("outcome = ?", self.outcome),
            ("timestamp >= ?", self.since_us),
            ("timestamp <= ?", self.until_us),
        ]
        if self.action is not None and self.action.endswith(".*"):
            begin = self.action[:-1]
            chosen += [("operation >= ?", begin), ("operation < ?", begin[:-1] + "/")]  # the character after the dot
        else:
            chosen.append(("operation = ?", self.action))
        given = [(text, value) for text, value in chosen if value is not None]
        return "".join(f" AND {text}" for text, _ in given), [value for _, value in given]


def append(transaction: Transaction, entries: Sequence[Entry]) -> None:
    """Write entries behind the last record, in this transaction."""
    end = _end(transaction.execute)
    for entry in entries:
        record = entry.placed(end)
        old, new = (None if given is None else json.dumps(given) for given in (entry.old_values, entry.new_values))
        transaction.execute(
            _INSERT,
            (
                record.number, entry.timestamp_us, record.table_name, record.record_id, record.operation, record.outcome,
                old, new, record.user_id, record.org_id, record.address, record.request_id, record.times, record.hash,
            ),
        )  # fmt: skip
        end = Anchor(record.number, record.hash)


def end(reader: Reader) -> Anchor:
    """The last record."""
    return _end(reader.execute)


def anchor(execute: Execute) -> Anchor:
    """Where the chain begins."""
    return Anchor(*execute("SELECT number, hash FROM audit_anchor", ())[0])


def newest(reader: Reader, wanted: Wanted, before: int | None, limit: int) -> list[Record]:
    """Records that are wanted, the youngest first, from before a number."""
    conditions, bindings = wanted.conditions()
    if before is not None:
        conditions, bindings = conditions + " AND number < ?", [*bindings, before]
    query = f"SELECT {_COLUMNS} FROM audit_logs WHERE true{conditions} ORDER BY number DESC LIMIT ?"
    return [_record(row) for row in reader.execute(query, (*bindings, limit))]


def following(execute: Execute, after: int, wanted: Wanted | None = None, limit: int = PAGE) -> list[Record]:
    """Records behind a number, in their order."""
    conditions, bindings = (wanted or Wanted()).conditions()
    query = f"SELECT {_COLUMNS} FROM audit_logs WHERE number > ?{conditions} ORDER BY number LIMIT ?"
    return [_record(row) for row in execute(query, (after, *bindings, limit))]


def pages(execute: Execute) -> Iterator[list[Record]]:
    """The whole trail, page by page."""
    after = 0
    while page := following(execute, after):
        yield page
        after = page[-1].number


def life_us(source: Reader | Transaction) -> int | None:
    """How long records live, by the policy `$audit`; None: for ever."""
    rows = source.execute("SELECT ttl FROM policies WHERE type = ?", (AUDIT,))
    return rows[0][0] if rows else DEFAULT_LIFE_US


def is_due(source: Reader | Transaction, now_us: int) -> bool:
    """True when the oldest record has outlived its time by a ninetieth: so a quiet trail is not trimmed all the time."""
    life = life_us(source)
    oldest = source.execute("SELECT timestamp FROM audit_logs ORDER BY number LIMIT 1")
    return life is not None and bool(oldest) and oldest[0][0] < now_us - life - life // 90


def trim(transaction: Transaction, now_us: int) -> int:
    """Take what has had its time, a step at most, and record that; how many records went."""
    life = life_us(transaction)
    if life is None:
        return 0
    rows = transaction.execute(
        "SELECT number, hash, timestamp FROM audit_logs ORDER BY number LIMIT ?", (TRIMMED_A_STEP,)
    )
    old = list(takewhile(lambda row: row[2] < now_us - life, rows))
    if not old:
        return 0
    number, digest, _ = old[-1]
    values = {"hash": digest, "records": str(len(old)), "through": iso(old[-1][2]).decode()}
    append(transaction, [Entry(now_us, TRIMMED, "done", "retention", "audit_logs", str(number), None, values)])
    transaction.execute("UPDATE audit_anchor SET number = ?, hash = ?", (number, digest))
    transaction.execute("DELETE FROM audit_logs WHERE number <= ?", (number,))
    return len(old)


def _end(execute: Execute) -> Anchor:
    rows = execute("SELECT number, hash FROM audit_logs ORDER BY number DESC LIMIT 1", ())
    return Anchor(*rows[0]) if rows else anchor(execute)


def _record(row: tuple[Any, ...]) -> Record:
    number, stamp_us, table, record_id, operation, outcome, old, new, user, org, address, request, times, digest = row
    return Record(
        number=number,
        timestamp=iso(stamp_us).decode(),
        table_name=table,
        record_id=record_id,
        operation=operation,
        outcome=outcome,
        old_values=None if old is None else json.loads(old),
        new_values=None if new is None else json.loads(new),
        user_id=user,
        org_id=org,
        address=address,
        request_id=request,
        times=times,
        hash=digest,
    )
