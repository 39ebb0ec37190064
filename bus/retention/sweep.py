"""The sweep: what has expired, or was delivered and is to go then, leaves the log in small transactions.

One process in the cluster does it. What a policy set falls due in the order of seq, so each lifetime has a place in the log
behind which nothing of it has expired yet, and a sweep goes on from there: every message is looked at once a lifetime. What
is its own to expire stands in an index. A crash loses the places only: they are found again from the beginning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from bus.events import MessageExpired
from bus.message import OWN_EXPIRY, Message
from bus.retention import restamp
from bus.retention.archiver import Archiver, whole
from bus.retention.delivered import Delivered
from bus.retention.guard import RELEASE, SEEN, Guard, note_seen
from bus.retention.host import Host
from bus.retention.policies import ARCHIVE, RESTAMP, Policy, policies
from bus.storage import Reader, Transaction
from bus.storage.deliveries import Swept
from bus.storage.eviction import DAY_US, DELIVERED, EXPIRED, Removed, remove
from bus.storage.lifetimes import DEFAULT

log = logging.getLogger("bus.retention")

INTERVAL_SECONDS = 1.0
"""How often it is looked for what was delivered, and for changed policies."""

BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
"""Messages, and bytes of payload, that one transaction removes at most."""

AIM_SECONDS = 0.005
"""How long a transaction of the sweep should take: its batch grows and shrinks by that, so that no send waits long."""

WINDOW = 10_000
"""How much of the log one look passes."""

EXPIRED_KEPT_DAYS = 30

Row = tuple[int, str, int]
"""Seq, type, bytes of the payload."""

_OWN = f"""
SELECT seq, type, length(payload) FROM messages INDEXED BY messages_by_expiry
 WHERE flags & {OWN_EXPIRY} AND expires_at <= ? ORDER BY expires_at LIMIT ?"""
_BY_POLICY = f"""
SELECT seq, type, length(payload), expires_at FROM messages
 WHERE seq > ? AND seq <= ? AND flags & {OWN_EXPIRY} = 0 AND expires_at IS NOT NULL
  AND type {{}} (SELECT value FROM json_each(?)) ORDER BY seq LIMIT ?"""
_NEXT_SEQ = "SELECT seq FROM messages WHERE seq > ? ORDER BY seq LIMIT 1"


class Sweeper:
    """`tick` is the work of an exclusive worker, in its greenlet."""

    def __init__(self, host: Host, interval_seconds: float) -> None:
        """A sweep every `interval_seconds`, and whenever an administrator asks."""
        self._host = host
        self._interval_us = round(interval_seconds * 1e6)
        self.guard = Guard(host.read, host.clock, host.wall, host.emit)
        self._archiver = Archiver(host, self._remove, self._hold)
        self._delivered = Delivered(host)
        self._places: dict[int, int] = {}
        self._policies: dict[str, Policy] = {}
        self._held: list[Row] = []
        self._rows = 100
        self._born = 0
        self._swept_at: int | None = None
        self._is_recovered = False

    def tick(self) -> None:
        """Do what is due."""
        host = self._host
        self.guard.look()
        if not self._is_recovered:
            self._archiver.recover()
            self._is_recovered = True
        self._restamp()
        now = host.clock()
        asked, seen = host.read(_asked)
        due = asked or self._swept_at is None or now - self._swept_at >= self._interval_us
        if self.guard.state == "running":
            self._read_policies()
            self._sweep_delivered()
        if due and self._policies_are_there() and self.guard.may_sweep(seen, asked=asked):
            self._swept_at = now
            self.sweep()
            host.write(note_seen)

    def sweep(self) -> None:
        """Remove all that has expired."""
        self._read_policies()
        held, self._held = self._held, []
        self._archiver.begin()
        try:
            self._take(held, EXPIRED)
            self._sweep_own()
            for ttl_us, (types, is_default) in self._groups().items():
                self._sweep_group(ttl_us, types, is_default=is_default)
            self._archiver.flush(EXPIRED)
        except BaseException:
            self._places.clear()  # what was gathered and is still there is found anew
            self._archiver.drop()
            raise
        if self._archiver.failed:
            self._places.clear()
        self._archiver.expire(self._policies.get(ARCHIVE))
        oldest = self._host.clock() // DAY_US - EXPIRED_KEPT_DAYS
        self._host.write(lambda transaction: transaction.execute("DELETE FROM expired WHERE day < ?", (oldest,)))

    def _sweep_delivered(self) -> None:
        if DEFAULT in self._policies:
            self._archiver.begin()
            while not self._archiver.failed and (rows := self._delivered.find(self._policies[DEFAULT].ttl_us)):
                self._take(rows, DELIVERED)

    # ---- policies

    def _policies_are_there(self) -> bool:
        self._read_policies()
        return DEFAULT in self._policies

    def _read_policies(self) -> None:
        known = self._host.read(policies)
        if known != self._policies:
            self._policies = known
            self._places.clear()

    def _restamp(self) -> None:
        """Give stored messages what a changed policy says; others write between two batches."""
        if not self._host.read(lambda reader: reader.execute("SELECT 1 FROM meta WHERE name = ?", (RESTAMP,))):
            return
        more, self._born = True, 0
        while more:
            began = time.monotonic()
            more, self._born = self._host.write(restamp.step(self._born))
            self._yield(time.monotonic() - began)
        self._places.clear()

    def _policy_of(self, row: Row) -> Policy:
        return self._policies.get(row[1]) or self._policies[DEFAULT]

    def _groups(self) -> dict[int, tuple[list[str], bool]]:
        """The types of each lifetime. The default's are all that have no lifetime of their own: it names those that have."""
        own = {p.type: p.ttl_us for p in self._policies.values() if p.ttl_us is not None and not p.type.startswith("$")}
        groups: dict[int, tuple[list[str], bool]] = {}
        for type_, ttl_us in own.items():
            groups.setdefault(ttl_us, ([], False))[0].append(type_)
        groups[-1] = (list(own), True)
        return groups

    # ---- looking

    def _sweep_own(self) -> None:
        while True:
            limit = BATCH + len(self._held)
            now = self._host.clock()

            def job(reader: Reader, now: int = now, limit: int = limit) -> list[Any]:
                return reader.execute(_OWN, (now, limit))

            passed = {row[0] for row in self._held} | self._archiver.gathered
            rows = [row for row in self._host.read(job) if row[0] not in passed]
            if self._archiver.failed:
                rows = [row for row in rows if not self._policy_of(row).archive]
            if rows:
                self._take(rows, EXPIRED)
            elif self._archiver.gathered:
                self._archiver.flush(EXPIRED)
            else:
                return

    def _sweep_group(self, key: int, types: Sequence[str], *, is_default: bool) -> None:
        statement = _BY_POLICY.format("NOT IN" if is_default else "IN")
        listed = msgspec.json.encode(types).decode()
        more = True
        while more:
            place, now = self._places.get(key, 0), self._host.clock()

            def job(reader: Reader, place: int = place, now: int = now) -> tuple[list[Row], int, bool]:
                return _look(reader, statement, listed, place, now)

            rows, place, more = self._host.read(job)
            self._take(rows, EXPIRED)
            self._places[key] = place

    # ---- removing

    def _take(self, rows: Sequence[Row], reason: str) -> None:
        """Remove rows, or have them archived first."""
        going: list[Row] = []
        for row in rows:
            if self._policy_of(row).archive:
                self._archiver.add(row, reason)
            else:
                going.append(row)
        if reason == DELIVERED:
            self._archiver.flush(reason)
        self._remove(going, reason)

    def _remove(self, rows: Sequence[Row], reason: str, *, archived: bool = False) -> None:
        """Remove rows in small transactions."""
        at = 0
        while at < len(rows):
            batch = _batch(rows, at, self._rows)
            at += len(batch)
            messages = self._whole(batch) if self._host.wants(MessageExpired) else {}
            removed, taken = self._host.write(_removal([row[0] for row in batch], reason, archived=archived))
            self._adapt(taken, len(batch))
            held = set(removed.held)
            self._hold(row for row in batch if row[0] in held)
            if removed.failures:
                self._host.tell_swept(Swept(set(), [], removed.failures, more=False))
            for message in [messages[seq] for seq in removed.gone if seq in messages]:
                self._host.emit(MessageExpired(message, reason))
            self._yield(taken)

    def _hold(self, rows: Iterable[Row]) -> None:
        """Somebody has them in hands: they are looked at again by the next sweep."""
        self._held += rows

    def _whole(self, rows: Sequence[Row]) -> dict[int, Message]:
        """The messages that are about to go, for who hears of them."""

        def job(reader: Reader) -> dict[int, Message]:
            return {message.seq: message for message in whole(reader, [row[0] for row in rows])}

        return self._host.read(job)  # type: ignore[no-any-return]

    def _adapt(self, taken: float, count: int) -> None:
        if taken > AIM_SECONDS:
            self._rows = max(self._rows // 2, 20)
        elif count >= self._rows and taken < AIM_SECONDS / 2:
            self._rows = min(self._rows * 2, BATCH)

    def _yield(self, taken: float) -> None:
        """Let others in: while they send, the sweep is a tenth of the writer's time."""
        self._host.pause(min(taken * (9 if self._host.is_busy() else 0.5), 1.0))


def _removal(seqs: Sequence[int], reason: str, *, archived: bool) -> Callable[[Transaction], tuple[Removed, float]]:
    """A job that removes messages, and says how long that took."""

    def job(transaction: Transaction) -> tuple[Removed, float]:
        began = time.monotonic()
        removed = remove(transaction, seqs, reason, archived=archived)
        return removed, time.monotonic() - began

    return job


def _look(reader: Reader, statement: str, listed: str, place: int, now: int) -> tuple[list[Row], int, bool]:
    """What has expired of a group behind a place, in one window; the place it is then at, and whether there is more."""
    (head,) = reader.execute("SELECT seq FROM log_head")[0]
    first = reader.execute(_NEXT_SEQ, (place,))
    if not first:
        return [], head, False
    end = min(first[0][0] + WINDOW, head)
    rows = reader.execute(statement, (place, end, listed, BATCH))
    due: list[Row] = []
    for row in rows:
        if row[3] > now:
            return due, row[0] - 1, False
        due.append(row[:3])
    if len(rows) == BATCH:
        return due, due[-1][0], True
    return due, end, end < head


def _batch(rows: Sequence[Row], at: int, most: int) -> Sequence[Row]:
    size = 0
    for end in range(at, min(at + most, len(rows))):
        size += rows[end][2]
        if size > BATCH_BYTES and end > at:
            return rows[at:end]
    return rows[at : at + most]


def _asked(reader: Reader) -> tuple[bool, int | None]:
    """Whether a sweep was asked for, and when the last one ran."""
    found = dict(reader.execute("SELECT name, value FROM meta WHERE name IN (?, ?)", (SEEN, RELEASE)))
    return RELEASE in found, found.get(SEEN)
