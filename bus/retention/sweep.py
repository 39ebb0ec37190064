"""The sweep: what has expired, or was delivered and is to go then, leaves the log in small transactions.

One process in the cluster does it. What a policy set falls due in the order of seq, so each lifetime has a place in the log
behind which nothing of it has expired yet, and a sweep goes on from there: every message is looked at once a lifetime. What
outlives its policy (which was changed, and not for that; or a clock went back) has a place of its own, so that nothing waits
for it. What is its own to expire stands in an index. A crash loses the places only: they are found again from the beginning.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
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

AIM_SECONDS = 0.003
"""How long a transaction of the sweep should take: its batch grows and shrinks by that, so that no send waits long."""

ARCHIVE_SECONDS = 3600.0
"""How often what is to be archived goes, so that its files are few; it is unreadable as soon as all else."""

WINDOW = 10_000
"""How much of the log one look passes."""

EXPIRED_KEPT_DAYS = 30

Row = tuple[int, str, int]
"""Seq, type, bytes of the payload."""

Group = tuple[int | None, bool]
"""A lifetime, in microseconds, and whether it ends in the archive; None is the default policy's."""

_OWN = f"""
SELECT seq, type, length(payload) FROM messages INDEXED BY messages_by_expiry
 WHERE flags & {OWN_EXPIRY} AND expires_at <= ?1 {{}} ORDER BY expires_at LIMIT ?2"""
_BY_POLICY = f"""
SELECT seq, type, length(payload), expires_at FROM messages
 WHERE seq > ? AND seq <= ? AND flags & {OWN_EXPIRY} = 0 AND expires_at IS NOT NULL
  AND type {{}} (SELECT value FROM json_each(?)) ORDER BY seq LIMIT ?"""
_NEXT_SEQ = "SELECT seq FROM messages WHERE seq > ? ORDER BY seq LIMIT 1"


class Sweeper:
    """`tick` is the work of an exclusive worker, in its greenlet.

    `_places`: up to which seq nothing of a group is left to expire. `_strays`: behind and up to which seq there is what
    outlives its policy.
    """

    def __init__(self, host: Host, interval_seconds: float, archive_seconds: float = ARCHIVE_SECONDS) -> None:
        """A sweep every `interval_seconds`, one with archive every `archive_seconds`; all, when an administrator asks."""
        self._host = host
        self._archive_us = round(archive_seconds * 1e6)
        self._archived_at: int | None = None
        self._interval_us = round(interval_seconds * 1e6)
        self.guard = Guard(host.read, host.clock, host.wall, host.emit)
        self._archiver = Archiver(host, self._remove, self._hold)
        self._delivered = Delivered(host)
        self._places: dict[Group, int] = {}
        self._strays: dict[Group, tuple[int, int]] = {}
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
            archives = asked or self._archived_at is None or now - self._archived_at >= self._archive_us
            self.sweep(archives=archives)
            if archives:
                self._archived_at = now
            host.write(note_seen)

    def sweep(self, *, archives: bool = True) -> None:
        """Remove all that has expired; what is to be archived only with `archives`."""
        self._read_policies()
        held, self._held = self._held, []
        self._archiver.begin()
        try:
            if not archives:
                self._held += [row for row in held if self._policy_of(row).archive]
                held = [row for row in held if not self._policy_of(row).archive]
            self._take(held, EXPIRED)
            self._sweep_own(archives=archives)
            for key, types in self._groups().items():
                if archives or not key[1]:
                    self._sweep_group(key, types)
            self._archiver.flush(EXPIRED)
        except BaseException:
            self._begin_anew()  # what was gathered and is still there is found again
            self._archiver.drop()
            raise
        if self._archiver.failed:
            self._begin_anew()
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
            self._begin_anew()

    def _restamp(self) -> None:
        """Give stored messages what a changed policy says; others write between two batches."""
        if not self._host.read(lambda reader: reader.execute("SELECT 1 FROM meta WHERE name = ?", (RESTAMP,))):
            return
        more, self._born = True, 0
        while more:
            began = time.monotonic()
            more, self._born = self._host.write(restamp.step(self._born))
            self._yield(time.monotonic() - began)
        self._begin_anew()

    def _policy_of(self, row: Row) -> Policy:
        return self._policies.get(row[1]) or self._policies[DEFAULT]

    def _begin_anew(self) -> None:
        self._places.clear()
        self._strays.clear()

    def _groups(self) -> dict[Group, list[str]]:
        """The types of each lifetime, apart by whether they are archived. (None, …) is the default's: all but these."""
        own = [p for p in self._policies.values() if not p.type.startswith("$") and (p.ttl_us is not None or p.archive)]
        groups: dict[Group, list[str]] = {}
        for policy in own:
            groups.setdefault((policy.ttl_us or 0, policy.archive), []).append(policy.type)
        groups[None, self._policies[DEFAULT].archive] = [policy.type for policy in own]
        return groups

    # ---- looking

    def _sweep_own(self, *, archives: bool) -> None:
        every_type = not self._policies[DEFAULT].archive
        kept_back = [p.type for p in self._policies.values() if p.archive == every_type]
        while True:
            # Without archives: only types that go without, which are these, or all but these.
            narrow = "" if archives and not self._archiver.failed else f"AND type {'NOT ' * every_type}IN"
            limit = BATCH + len(self._held) + len(self._archiver.gathered)
            statement, bindings = _own(self._host.clock(), limit, narrow, kept_back)

            def job(reader: Reader, statement: str = statement, bindings: Any = bindings) -> list[Any]:
                return reader.execute(statement, bindings)

            passed = {row[0] for row in self._held} | self._archiver.gathered
            rows = [row for row in self._host.read(job) if row[0] not in passed]
            if not rows:
                return
            self._take(rows, EXPIRED)

    def _sweep_group(self, group: Group, types: Sequence[str]) -> None:
        statement = _BY_POLICY.format("NOT IN" if group[0] is None else "IN")
        listed = msgspec.json.encode(types).decode()
        longest = (self._policies[DEFAULT].ttl_us if group[0] is None else group[0]) or 0

        def look(place: int, last: int | None = None) -> Found:
            now = self._host.clock()
            until = now + longest if last is None else None
            found: Found = self._host.read(lambda reader: _look(reader, (statement, listed), place, last, now, until))
            self._take(found.due, EXPIRED)
            return found

        more = True
        while more and group in self._strays:
            place, last = self._strays[group]
            found = look(place, last)
            more = found.more
            self._strays[group] = (found.place, last)
            if found.place >= last:
                del self._strays[group]
        more = True
        while more:
            found = look(self._places.get(group, 0))
            self._places[group], more = found.place, found.more
            if found.strays:
                first = self._strays[group][0] if group in self._strays else found.strays[0] - 1
                self._strays[group] = (first, found.strays[-1])

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
            began = time.monotonic()
            removed, taken = self._host.write(_removal([row[0] for row in batch], reason, archived=archived))
            waited = time.monotonic() - began
            self._adapt(taken, len(batch))
            self._count(batch, set(removed.gone), archived=archived)
            held = set(removed.held)
            self._hold(row for row in batch if row[0] in held)
            if removed.failures:
                self._host.tell_swept(Swept(set(), [], removed.failures, more=False))
            for message in [messages[seq] for seq in removed.gone if seq in messages]:
                self._host.emit(MessageExpired(message, reason))
            self._yield(waited)

    def _count(self, rows: Sequence[Row], gone: set[int], *, archived: bool) -> None:
        """Tell the metrics of what has left the log."""
        metrics = self._host.metrics
        if not self._policies:  # it goes on with what a former process had begun
            self._read_policies()
        for name, count in Counter(self._policy_of(row).name for row in rows if row[0] in gone).items():
            metrics.count("bus_retention_deleted_total", name, by=count)
        if archived:
            metrics.count("bus_retention_archived_total", by=len(gone))

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

    def _yield(self, waited: float) -> None:
        """Let others in: the sweep is a fifth of the writer's time, its syncs included, and while others write, a tenth."""
        self._host.pause(min(waited * (9 if self._host.is_busy() else 4), 1.0))


def _removal(seqs: Sequence[int], reason: str, *, archived: bool) -> Callable[[Transaction], tuple[Removed, float]]:
    """A job that removes messages, and says how long that took."""

    def job(transaction: Transaction) -> tuple[Removed, float]:
        began = time.monotonic()
        heard = transaction.wants(MessageExpired)
        messages = {message.seq: message for message in whole(transaction, seqs)} if heard else {}
        removed = remove(transaction, seqs, reason, archived=archived)
        for message in [messages[seq] for seq in removed.gone if seq in messages]:
            transaction.announce(MessageExpired(message, reason))
        return removed, time.monotonic() - began

    return job


class Found(msgspec.Struct):
    """What one look at a group found: what is due, the seqs of strays, the place that it got to, whether there is more."""

    due: list[Row]
    strays: list[int]
    place: int
    more: bool


def _look(reader: Reader, query: tuple[str, str], place: int, last: int | None, now: int, until: int | None) -> Found:
    """Look at a group behind a place, up to the seq `last` or the end, in one window: at what has expired by `now`.

    It ends at the first that has not, but for strays: those that expire after `until`.
    """
    statement, listed = query
    (head,) = reader.execute("SELECT seq FROM log_head")[0]
    head = head if last is None else min(last, head)
    first = reader.execute(_NEXT_SEQ, (place,))
    if not first or first[0][0] > head:
        return Found([], [], head, more=False)
    end = min(first[0][0] + WINDOW, head)
    rows = reader.execute(statement, (place, end, listed, BATCH))
    found = Found([], [], end, more=end < head)
    for row in rows:
        if row[3] <= now:
            found.due.append(row[:3])
        elif until is not None and row[3] > until:
            found.strays.append(row[0])
        else:
            found.place, found.more = row[0] - 1, False
            return found
    if len(rows) == BATCH:
        found.place, found.more = rows[-1][0], True
    return found


def _own(now: int, limit: int, narrow: str, types: Sequence[str]) -> tuple[str, tuple[Any, ...]]:
    """The statement that finds what is its own to expire, and its bindings; `narrow` to types, if not empty."""
    if not narrow:
        return _OWN.format(""), (now, limit)
    return _OWN.format(f"{narrow} (SELECT value FROM json_each(?3))"), (now, limit, msgspec.json.encode(types).decode())


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
