"""Retention as the rest of the bus sees it: policies, more time for one message, what expires soon, figures, the archive.

Every process has one; what it changes stands in the store, so every other sees it with its next transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import msgspec
from msgspec.structs import replace

from bus.errors import BusError, Conflict, Malformed, NotFound
from bus.message import OWN_EXPIRY, Message, now_us, parse_time, render
from bus.retention import guard, policies
from bus.retention.archive import UNREADABLE, Archived, Entry, Folder, entries, page, restored, shown
from bus.retention.host import Host
from bus.retention.policies import RESTAMP, SECOND_US, Policy
from bus.storage import Outcome, Reader, Transaction
from bus.storage.deliveries import Swept
from bus.storage.rows import COLUMNS, message_of

log = logging.getLogger("bus.retention")

MAX_EXTENSION_SECONDS = policies.MAX_SECONDS
PAGE_BYTES = 4 * 1024 * 1024
SCANNED = 50_000
"""Messages that one look for what expires soon passes; its page is short then, and says that there is more."""

TRIES, TRY_SECONDS = 50, 0.2
"""How often, and after which pause, a change of policies asks again while another is applied."""

FILES_A_PAGE = 20
RESTORED_A_STEP = 200
_ARCHIVED = "SELECT count(*), coalesce(sum(messages), 0), coalesce(sum(bytes), 0) FROM archives"


class Life(msgspec.Struct, frozen=True):
    """When a message expires; None: never, or once it is delivered."""

    message_id: str
    expires_us: int | None


class Found(msgspec.Struct):
    """A page of the archive: lines, and where the next page begins: (number of the file, line in it).

    `elsewhere`: files that were passed over, since another node has them.
    """

    lines: list[Archived]
    cursor: tuple[int, int]
    more: bool
    elsewhere: list[str] = []


class Wanted(msgspec.Struct, frozen=True):
    """Which archived messages: times of the messages, in microseconds; None means any."""

    since_us: int | None = None
    until_us: int | None = None
    type: str | None = None
    sender: str | None = None
    id: str | None = None

    def fits(self, line: Archived) -> bool:
        """Whether a line is wanted."""
        said = shown(line)
        stamp = parse_time(said.timestamp, "timestamp")
        return (
            (self.since_us is None or stamp >= self.since_us)
            and (self.until_us is None or stamp <= self.until_us)
            and self.type in (None, said.type)
            and self.sender in (None, said.sender)
            and self.id in (None, said.id)
        )


class Retention:
    """Each call waits in its greenlet."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._folder = Folder(host.folder)

    # ---- policies

    def policies(self) -> list[Policy]:
        """All policies, by type."""
        return list(self._host.read(policies.policies).values())

    def put(self, policy: Policy, *, to_stored: bool = True) -> None:
        """Make or change a policy. What is its own to expire is not touched. Raises Conflict."""
        self._change(policies.put(policy, to_stored=to_stored))

    def delete(self, type_: str, *, to_stored: bool = True) -> None:
        """Give a type back to the default policy. Raises NotFound, Conflict."""
        self._change(policies.delete(type_, to_stored=to_stored))

    def _change(self, job: Callable[[Transaction], None]) -> None:
        """One that leaves stored messages alone waits for one before it that does not."""
        for _ in range(TRIES):
            try:
                self._host.write(job)
                return
            except Conflict as conflict:
                if conflict.code != "applying_policies":
                    raise
                refusal = conflict
            gevent.sleep(TRY_SECONDS)
        raise refusal

    def suggest(self, policy: Policy) -> None:
        """What a setting, or an extension's code, says; an administrator's policy stays as it is."""

        def job(transaction: Transaction) -> None:
            known = policies.policies(transaction).get(policy.type)
            if known is None or (known.origin != "admin" and known != replace(policy, origin=known.origin)):
                policies.put(policy, to_stored=True)(transaction)

        self._host.write(job)

    # ---- one message

    def extend(self, message_id: str, additional_seconds: float) -> Life:
        """Add to what is left of a message's life. What never expires stays so. Raises NotFound, Malformed."""
        if not 0 < additional_seconds <= MAX_EXTENSION_SECONDS:
            raise Malformed(
                f"`additional_seconds` must be above 0, and at most {MAX_EXTENSION_SECONDS:.0f}.",
                code="bad_field",
                field="additional_seconds",
            )
        added = round(additional_seconds * SECOND_US)
        own_seq = self._host.epochs().seq_of(message_id)

        def job(transaction: Transaction) -> Life | None:
            others = transaction.execute(
                "SELECT seq FROM other_ids WHERE id = ? ORDER BY seq DESC LIMIT 1", (message_id,)
            )
            seq = others[0][0] if others else own_seq
            rows = transaction.execute("SELECT expires_at FROM messages WHERE seq = ?", (seq,))
            if not rows or (rows[0][0] is not None and rows[0][0] <= transaction.ledger.now):
                return None
            if rows[0][0] is None:
                return Life(message_id, None)
            expires_us = min(rows[0][0] + added, transaction.ledger.now + round(MAX_EXTENSION_SECONDS * SECOND_US))
            transaction.execute(
                "UPDATE messages SET expires_at = ?, flags = flags | ? WHERE seq = ?", (expires_us, OWN_EXPIRY, seq)
            )
            transaction.execute(
                "UPDATE deliveries SET expires_at = ? WHERE seq = ? AND expires_at IS NOT NULL", (expires_us, seq)
            )
            return Life(message_id, expires_us)

        life: Life | None = self._host.write(job)
        if life is None:
            raise NotFound("There is no message with this id; it may have expired.", code="unknown_message")
        return life

    def expiring(self, within_us: int, after: int, limit: int) -> tuple[list[tuple[Message, int]], int, bool]:
        """Messages behind the seq `after` that expire in time, and when; the place it got to; whether there is more."""
        now = self._host.clock()

        def job(reader: Reader) -> tuple[list[tuple[Message, int]], int, bool]:
            return _expiring(reader, now, now + within_us, after, limit)

        return self._host.read(job)  # type: ignore[no-any-return]

    # ---- the whole

    def ask_for_sweep(self) -> None:
        """Have the sweep run soon, and go on if it is held."""
        self._host.write(guard.ask)

    def figures(self) -> dict[str, Any]:
        """Counts of one moment: what is kept, what the sweep has removed, and the archive."""

        def job(reader: Reader) -> dict[str, Any]:
            removed = [
                {"policy": policy, "reason": reason, "messages": n, "archived": archived, "bytes": size}
                for policy, reason, n, archived, size in reader.execute("SELECT * FROM removed ORDER BY policy, reason")
            ]
            files, messages, size = reader.execute(_ARCHIVED)[0]
            meta = dict(reader.execute("SELECT name, value FROM meta WHERE name IN (?, ?)", (guard.SEEN, RESTAMP)))
            head = reader.head()
            return {
                "total_messages": head.total,
                "kept_bytes": head.kept_bytes,
                "expired": sum(row["messages"] for row in removed if row["reason"] == "expired"),
                "delivered": sum(row["messages"] for row in removed if row["reason"] == "delivered"),
                "archived": sum(row["archived"] for row in removed),
                "removed": removed,
                "archive": {"files": files, "messages": messages, "bytes": size},
                "waiting_for_delivery": reader.execute("SELECT count(DISTINCT seq) FROM undelivered")[0][0],
                "applying_policies": RESTAMP in meta,
                "swept_us": meta.get(guard.SEEN),
            }

        return self._host.read(job)  # type: ignore[no-any-return]

    # ---- the archive

    def files(self, after: int, limit: int, since_us: int | None, until_us: int | None) -> list[Entry]:
        """The archive's files behind a number, that may hold messages of a time."""
        return self._host.read(lambda reader: page(reader, after, limit, since_us, until_us))  # type: ignore[no-any-return]

    def search(self, wanted: Wanted, after: tuple[int, int], limit: int) -> Found:
        """Archived messages behind a place. A page ends early where much was looked at and little found."""

        def job(reader: Reader) -> Found:
            files = entries(
                reader,
                "number >= ?1 AND (last_stamp >= ?3 OR ?3 IS NULL) AND (first_stamp <= ?4 OR ?4 IS NULL)"
                " ORDER BY number LIMIT ?2",
                (after[0], FILES_A_PAGE + 1, wanted.since_us, wanted.until_us),
            )
            found, size = Found([], after, more=False), 0
            for entry in files[:FILES_A_PAGE]:
                if not self._folder.has(entry.file):
                    found.elsewhere.append(entry.file)
                for at, line in self._lines(entry, after[1] if entry.number == after[0] else 0):
                    if len(found.lines) == limit or size > PAGE_BYTES:
                        found.more = True
                        return found
                    found.cursor = entry.number, at + 1
                    if wanted.fits(line):
                        found.lines.append(line)
                        size += len(line.message)
                found.cursor = entry.number + 1, 0
            found.more = len(files) > FILES_A_PAGE
            return found

        return self._host.read(job)  # type: ignore[no-any-return]

    def _lines(self, entry: Entry, begin: int) -> Iterator[tuple[int, Archived]]:
        try:
            for at, line in enumerate(self._folder.read(entry.file)):
                if at >= begin:
                    yield at, line
        except FileNotFoundError:  # another node has it, or its own time was over a moment ago
            return
        except UNREADABLE as error:
            log.error(
                "The archive's file %s is damaged (%s); what is behind that is passed over",
                entry.file,
                type(error).__name__,
                extra={"action": "archive_damaged"},
            )

    def restore(self, wanted: Wanted, to: str | None, limit: int) -> tuple[int, int, list[str]]:
        """Put up to `limit` archived messages into the log again, as new ones with their old ids.

        (found, restored, the files that another node has).

        One that is in the log is left alone. Raises the refusal of one that finds no room, if none did.
        """
        found = done = 0
        place, more = (0, 0), True
        refusal: BusError | None = None
        elsewhere: list[str] = []
        while more and found < limit and refusal is None:
            lines = self.search(wanted, place, min(RESTORED_A_STEP, limit - found))
            place, more = lines.cursor, lines.more
            found += len(lines.lines)
            elsewhere += lines.elsewhere
            stored, swept, refusal = self._host.write(self._restoring(lines.lines, to))
            self._host.tell_swept(swept)
            done += stored
        if refusal is not None and not done:
            raise refusal
        return found, done, elsewhere

    def _restoring(self, lines: list[Archived], to: str | None) -> Any:
        epochs = self._host.epochs()

        def is_kept(transaction: Transaction, message: Message) -> bool:
            rows = transaction.execute("SELECT seq FROM other_ids WHERE id = ?", (message.own_id,))
            seqs = [*(seq for (seq,) in rows), epochs.seq_of(message.own_id)]
            return any(transaction.execute("SELECT 1 FROM messages WHERE seq = ?", (seq,)) for seq in seqs)

        def job(transaction: Transaction) -> tuple[int, Swept, BusError | None]:
            stored, swept = 0, Swept(set(), [], [], more=False)
            for line in lines:
                message = restored(line, to)
                if is_kept(transaction, message):
                    continue
                message.stamp_us = now_us()
                outcome = transaction.append(message)
                if not isinstance(outcome, Outcome):
                    return stored, swept, outcome
                stored += 1
                swept.failures += outcome.failures
            return stored, swept, None

        return job

    def text_of(self, message: Message) -> bytes:
        """A message as JSON."""
        return render(message, self._host.epochs())


def _expiring(
    reader: Reader, now: int, until: int, after: int, limit: int
) -> tuple[list[tuple[Message, int]], int, bool]:
    bound = reader.execute(
        "SELECT max(seq) FROM (SELECT seq FROM messages WHERE seq > ? ORDER BY seq LIMIT ?) w", (after, SCANNED)
    )
    end = bound[0][0]
    if end is None:
        return [], after, False
    rows = reader.execute(
        f"SELECT {COLUMNS} FROM messages m WHERE m.seq > ? AND m.seq <= ? AND m.expires_at > ? AND m.expires_at <= ?"
        " ORDER BY m.seq LIMIT ?",
        (after, end, now, until, limit + 1),
    )
    found = [(message_of(row, reader.execute), row[6]) for row in rows[:limit]]
    if len(rows) > limit:
        return found, found[-1][0].seq if found else after, True
    return found, end, bool(reader.execute("SELECT 1 FROM messages WHERE seq > ? LIMIT 1", (end,)))
