"""Archives what the sweep is about to remove: a durable file first, then its row in the catalogue, then the removal.

After a crash in between, what is in a catalogued file leaves the log. A file that was never catalogued goes if the log has
all of it, and is catalogued if not. So each message is in the log or in the archive, and in the end in one of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from bus.message import REQUIRES_ACK, Kind, Message, iso, parse_time
from bus.retention.archive import UNREADABLE, Archived, Entry, Folder, entries, line_of, shown
from bus.retention.host import Host
from bus.retention.policies import Policy
from bus.storage import Reader, Transaction
from bus.storage.deliveries import LEASED
from bus.storage.rows import COLUMNS, message_of

log = logging.getLogger("bus.retention")

FILE_MESSAGES = 2000
FILE_BYTES = 4 * 1024 * 1024
"""A file holds so many messages, or bytes of payload, at most."""

STEP_MESSAGES = 50
"""So many are written in one go."""

Row = tuple[int, str, int]


class Archiver:
    """`gathered` are the seqs that wait for their file. One greenlet; files are written on a reader's thread.

    When the disk refuses a file, `failed` is set, and nothing more is archived, or removed for that, until `begin`.
    """

    def __init__(self, host: Host, remove: Callable[..., None], hold: Callable[[Iterable[Row]], None]) -> None:
        """`remove(rows, reason, archived=True)` takes them from the log; `hold(rows)` keeps what somebody has in hands."""
        self._host = host
        self._remove = remove
        self._hold = hold
        self._folder = Folder(host.folder)
        self._rows: list[Row] = []
        self._bytes = 0
        self.gathered: set[int] = set()
        self.failed = False

    def begin(self) -> None:
        """A new sweep: what failed in the last one is tried again."""
        self.failed = False

    def add(self, row: Row, reason: str) -> None:
        """Have one archived, and removed."""
        if self.failed:
            return
        self._rows.append(row)
        self._bytes += row[2]
        self.gathered.add(row[0])
        if len(self._rows) >= FILE_MESSAGES or self._bytes >= FILE_BYTES:
            self.flush(reason)

    def drop(self) -> None:
        """Forget what was gathered: it is in the log."""
        self._rows, self._bytes = [], 0
        self.gathered = set()

    def flush(self, reason: str) -> None:
        """Write what was gathered, and remove it."""
        rows = self._rows
        if not rows:
            return
        now = self._host.clock()
        try:
            written = self._write(rows, reason, now)
        except OSError as error:
            log.error(  # the cause is the disk's, and said
                "The archive can't be written (%s); what was to be archived stays until it can, unreadable",
                error.strerror,
                extra={"action": "archive_failed"},
            )
            self.drop()
            self.failed = True
            return
        kept = set(written.held)
        self._hold([row for row in rows if row[0] in kept])
        if written.entry is not None:
            number = self._host.write(_catalogue(written.entry))
            self._begin_removal([row for row in rows if row[0] not in kept], reason)
            self._host.write(_complete(number))
        self.drop()

    def _begin_removal(self, rows: Sequence[Row], reason: str) -> None:
        self._remove(rows, reason, archived=True)

    def _write(self, rows: Sequence[Row], reason: str, now: int) -> Written:
        """The file, durable: a few messages at a time, on a reader's thread, since Python's lock is everybody's."""
        moment = iso(now).decode()
        name = f"{moment[:19].replace(':', '').replace('-', '')}-{rows[0][0]:012d}-{rows[-1][0]:012d}"
        self._host.read(lambda _: self._folder.begin(name))
        written = Written(None, [])
        stamps: list[int] = []
        for at in range(0, len(rows), STEP_MESSAGES):
            began = time.monotonic()
            seqs = [row[0] for row in rows[at : at + STEP_MESSAGES]]
            held, taken = self._host.read(partial(self._add, name, seqs, reason, moment))
            written.held += held
            stamps += taken
            self._host.pause(min(time.monotonic() - began, 1.0))
        if stamps:
            size = self._host.read(lambda _: self._folder.finish(name))
            written.entry = Entry(0, name, reason, len(stamps), size, min(stamps), max(stamps), now, complete=False)
        else:
            self._host.read(lambda _: self._folder.clear_drafts())
        return written

    def _add(
        self, name: str, seqs: Sequence[int], reason: str, moment: str, reader: Reader
    ) -> tuple[list[int], list[int]]:
        """Add messages to a draft. Which are in hands, and so are not in it; the stamps of those that are."""
        messages, held = [], []
        for message in whole(reader, seqs):
            if message.flags & REQUIRES_ACK and _is_in_hands(reader, message):
                held.append(message.seq)
            else:
                messages.append(message)
        epochs = self._host.epochs()
        self._folder.add(name, (line_of(message, epochs, reason, moment) for message in messages))
        return held, [message.stamp_us for message in messages]

    # ---- after a crash

    def recover(self) -> None:
        """Finish what a crash has left half done."""
        pending, strays = self._host.read(self._look_for_pieces)
        for entry in pending:
            try:
                rows = self._host.read(partial(self._rows_of, entry.file))
            except UNREADABLE as error:
                _complain(entry.file, error)
                self._host.write(_forget(entry.file))  # what of it is in the log is archived anew
                continue
            self._remove(rows, entry.reason, archived=True)
            self._host.write(_complete(entry.number))
        for name in strays:
            try:
                stray = self._host.read(partial(self._judge, name))
            except UNREADABLE as error:
                _complain(name, error)
                continue
            if stray is not None:
                self._host.write(_catalogue(stray))
                log.warning(
                    "The archive has a file that was not catalogued; it is now", extra={"action": "archive_found"}
                )

    def _look_for_pieces(self, reader: Reader) -> tuple[list[Entry], list[str]]:
        self._folder.clear_drafts()
        known = {file for (file,) in reader.execute("SELECT file FROM archives")}
        return entries(reader, "complete = 0", ()), [name for name in self._folder.names() if name not in known]

    def _rows_of(self, name: str, _: Reader) -> list[Row]:
        return [(line.seq, shown(line).type, len(shown(line).payload)) for line in self._folder.read(name)]

    def _judge(self, name: str, reader: Reader) -> Entry | None:
        """Remove a stray file if the log has all of it; else this is its row for the catalogue."""
        epochs = self._host.epochs()

        def is_there(line: Archived) -> bool:
            found = whole(reader, [line.seq])
            return bool(found) and (found[0].own_id or epochs.id_of(line.seq).decode()) == shown(line).id

        lines = list(self._folder.read(name))
        if all(map(is_there, lines)):
            self._folder.forget(name)
            return None
        stamps = [parse_time(shown(line).timestamp, "timestamp") for line in lines]
        made = parse_time(lines[0].archived_at, "archived_at")
        return Entry(0, name, lines[0].reason, len(lines), 0, min(stamps), max(stamps), made, complete=True)

    # ---- an archive's own time

    def expire(self, policy: Policy | None) -> None:
        """Remove the files whose time is over."""
        if policy is None or policy.ttl_us is None:
            return
        before = self._host.clock() - policy.ttl_us

        def job(reader: Reader) -> list[str]:
            names = [entry.file for entry in entries(reader, "made_at <= ? AND complete = 1", (before,))]
            for name in names:
                self._folder.forget(name)
            return names

        for name in self._host.read(job):
            self._host.write(_forget(name))


def _complain(name: str, error: Exception) -> None:
    log.error(
        "The archive's file %s can't be read (%s); it is left alone",
        name,
        type(error).__name__,
        extra={"action": "archive_damaged"},
    )


class Written(msgspec.Struct):
    """A file's row for the catalogue (None: there was nothing to write), and the seqs that somebody has in hands."""

    entry: Entry | None
    held: list[int]


def whole(source: Any, seqs: Sequence[int]) -> list[Message]:
    """Messages as they are stored, also those that have expired. `source` is a reader or a transaction."""
    listed = msgspec.json.encode(seqs).decode()
    rows = source.execute(f"SELECT {COLUMNS} FROM json_each(?) j CROSS JOIN messages m ON m.seq = j.value", (listed,))
    return [message_of(row, source.execute) for row in rows]


def _is_in_hands(reader: Reader, message: Message) -> bool:
    owners = (f"queue:{message.address}",) if message.kind == Kind.QUEUE else message.names
    statement = "SELECT 1 FROM deliveries WHERE owner = ? AND seq = ? AND state = ?"
    return any(reader.execute(statement, (owner, message.seq, LEASED)) for owner in owners)


def _catalogue(entry: Entry) -> Callable[[Transaction], int]:
    def job(transaction: Transaction) -> int:
        row = msgspec.structs.astuple(entry)[1:]
        made = transaction.execute(
            "INSERT INTO archives (file, reason, messages, bytes, first_stamp, last_stamp, made_at, complete)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
            (*row[:7], int(entry.complete)),
        )
        return int(made[0][0])

    return job


def _complete(number: int) -> Callable[[Transaction], None]:
    def job(transaction: Transaction) -> None:
        transaction.execute("UPDATE archives SET complete = 1 WHERE number = ?", (number,))

    return job


def _forget(name: str) -> Callable[[Transaction], None]:
    def job(transaction: Transaction) -> None:
        transaction.execute("DELETE FROM archives WHERE file = ?", (name,))

    return job
