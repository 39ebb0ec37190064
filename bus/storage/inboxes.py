"""Inboxes and queues as places with room: who has a row, who is known, and what is refused when too much waits.

All inside the batch's transaction, so two processes can't disagree. What one batch learns of names the next may use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from bus.errors import InboxFull
from bus.message import REQUIRES_ACK, Kind, Message
from bus.storage import MAKE_KNOWN, STORED, Outcome, Pending
from bus.storage.ahead import Ahead
from bus.storage.deliveries import Failure
from bus.storage.ledger import Ledger
from bus.storage.log_reader import WAITING
from bus.storage.rows import COLUMNS, message_of

NAMES_REMEMBERED = 200_000
NAMES_REMEMBERED_SECONDS = 3600.0
"""A name that goes on sending is seen again after so long: what is unused for a month is forgotten."""

_OLDEST_PLAIN = f"""
SELECT {COLUMNS} FROM messages m WHERE m.seq = (SELECT min(seq) FROM (
    SELECT min(m.seq) AS seq FROM messages m
     WHERE m.kind = 0 AND m.address = ?1 AND m.flags & 1 = 0 AND m.seq > (SELECT mark FROM clients WHERE name = ?1)
      AND (m.expires_at IS NULL OR m.expires_at > ?2)
    UNION ALL SELECT min(a.seq) FROM addressed a JOIN messages m ON m.seq = a.seq
     WHERE a.name = ?1 AND m.flags & 1 = 0 AND a.seq > (SELECT mark FROM clients WHERE name = ?1)
      AND (m.expires_at IS NULL OR m.expires_at > ?2)) oldest)"""
_KNOWN = "SELECT known FROM clients WHERE name = ?"
_MARK = "SELECT mark FROM clients WHERE name = ?"
_OPEN_INBOX = "INSERT INTO clients VALUES (?1, 0, ?2, ?2, ?3, ?3) ON CONFLICT DO NOTHING"


class Names:
    """What a writer remembers of names between its batches. One thread.

    `known` and `opened`: their row needs no look-up any more. `fill`: (mark, counted through, waiting) of inboxes that were
    written to while their client was away. All are forgotten when a transaction fails, when they are too many, and hourly.
    `left`: what is left in inboxes that were written to; `unknown`: names whose row says that nobody knows them, each with
    the outcome of a send to it alone. These hold only until somebody else writes, or a job does: `look_anew`. `next_expiry`:
    when a full inbox gets room by itself.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.opened: set[str] = set()
        self.fill: dict[str, tuple[int, int, int]] = {}
        self.left: dict[str, int] = {}
        self.unknown: dict[str, Outcome] = {}
        self.next_expiry: dict[str, int | None] = {}
        self._since = time.monotonic()

    def forget(self) -> None:
        self.known.clear()
        self.opened.clear()
        self.fill.clear()
        self.look_anew()
        self._since = time.monotonic()

    def look_anew(self) -> None:
        """Something else has taken from inboxes, given back, or made names known."""
        self.left.clear()
        self.unknown.clear()
        self.next_expiry.clear()

    def tidy(self) -> None:
        """Forget when it is time."""
        many = len(self.known) + len(self.opened) + len(self.fill) + len(self.unknown) > NAMES_REMEMBERED
        if many or time.monotonic() - self._since > NAMES_REMEMBERED_SECONDS:
            self.forget()


class Batch(Protocol):
    """What is being written: `head` is the last seq given so far."""

    head: int

    def insert(self) -> None:
        """Write the messages that were taken in and are not yet rows."""
        ...


class Inboxes:
    """The room that one batch finds."""

    def __init__(
        self,
        execute: Callable[..., Any],
        ledger: Ledger,
        names: Names,
        first: int,
        now_us: int,
        *,
        inbox_limit: int,
        queue_limit: int,
    ) -> None:
        """The batch's seqs begin at `first`; `now_us` is the wall's clock."""
        self._execute = execute
        self._ledger = ledger
        self._names = names
        self._first = first
        self._now = now_us
        self._inbox_limit = inbox_limit
        self._queue_limit = queue_limit

    def drop(self) -> None:
        """Forget what a savepoint has taken back."""
        self._names.forget()

    def know_sender(self, sender: str, head: int) -> None:
        """A client that sends is known from then on."""
        if sender not in self._names.known and sender[0] != "$":
            self._execute(MAKE_KNOWN, (sender, max(head - 1, 0), self._now))
            self._names.known.add(sender)
            self._names.opened.add(sender)

    def look_ahead(self, ahead: Ahead, sends: Sequence[Pending]) -> None:
        """Ask what `make_room` will ask for these, in two trips at most: first who has a row, and then how much waits."""
        names, ledger = self._names, self._ledger
        senders = {send.message.sender for send in sends}
        counted: dict[str, None] = {}
        for send in sends:
            message = send.message
            if message.kind == Kind.QUEUE:
                ledger.ask_backlog(f"queue:{message.address}")
            for name in message.names:
                tracked = message.flags & REQUIRES_ACK
                goes_out = name in send.live if tracked else send.present
                if tracked or not goes_out:
                    ledger.ask_backlog(name)
                if name in senders or (goes_out and name in names.opened and name in names.known):
                    continue  # of a sender, the row may be made by what it sends
                if name not in names.known and name not in names.unknown:
                    ahead.ask(_KNOWN, name)
                if not goes_out and name not in names.left:
                    ahead.ask(_MARK, name)
                    counted[name] = None
        for name in counted:
            if rows := ahead.peek(_MARK, name):
                (mark,) = rows[0]
                counted_mark, through, _ = names.fill.get(name, (mark, mark, 0))
                through = mark if mark > counted_mark else through
                if through < self._first - 1:
                    capacity = ledger.backlog(name).capacity or self._inbox_limit
                    ahead.ask(WAITING, name, through, self._first - 1, capacity + 1, ledger.now)

    def make_room(self, item: Pending, batch: Batch) -> bool:
        """See that every recipient has an inbox with room, or the queue.

        False: refused; `item.error` says why. Some of several refused: the message goes to the others.
        """
        message = item.message
        if message.kind == Kind.QUEUE:
            return self._make_queue_room(item, batch)
        tracked = message.flags & REQUIRES_ACK
        if message.names and (tracked or not (item.present and self._names.opened.issuperset(message.names))):
            self._open_inboxes(item, batch)
        return item.error is None

    @property
    def opened(self) -> set[str]:
        """Names whose row needs no look-up any more."""
        return self._names.opened

    def take_in(self, name: str, batch: Batch) -> Outcome | None:
        """Count a plain message in that waits in one inbox, if that is known to have room. None: `make_room` has to look."""
        names = self._names
        left = names.left.get(name)
        if not left or name not in names.fill or name not in names.opened:
            return None
        outcome = STORED if name in names.known else names.unknown.get(name)
        if outcome is not None:
            self._count_in(name, left, batch)
        return outcome

    def _make_queue_room(self, item: Pending, batch: Batch) -> bool:
        owner = f"queue:{item.message.address}"
        backlog = self._ledger.backlog(owner)
        capacity = backlog.capacity or self._queue_limit
        if backlog.waiting < capacity:
            return True
        if backlog.on_full == "dead_letter" and self._set_aside(owner, item, batch):
            return True
        item.error = InboxFull(
            f"The queue {item.message.address} is full ({capacity} items wait in it); nothing was stored. Try again when"
            " its consumers have caught up.",
            code="queue_full",
            field="to",
            retry_after_seconds=5,
        )
        return False

    def _open_inboxes(self, item: Pending, batch: Batch) -> None:
        """Give each named recipient a row, and settle who is refused and who is unknown."""
        names, message = self._names, item.message
        refused, unknown = [], []
        for name in message.names:
            if name not in names.opened:
                self._execute(_OPEN_INBOX, (name, batch.head, self._now))
                names.opened.add(name)
            if name not in names.known:
                if name not in names.unknown and self._execute(_KNOWN, (name,)).get:
                    names.known.add(name)
                else:
                    names.unknown.setdefault(name, Outcome(unknown=(name,)))
                    unknown.append(name)
            if not self._has_room(name, item, batch):
                refused.append(name)
        assert item.outcome is not None
        if not refused:
            if unknown and item.outcome is STORED and len(message.names) == 1:
                item.outcome = names.unknown[unknown[0]]
            elif unknown:
                item.outcome = replace(item.outcome, unknown=tuple(unknown))
            return
        if len(refused) == len(message.names):
            item.error = InboxFull(
                f"The inbox of {', '.join(refused[:3])} is full ({self._inbox_limit} messages wait in it); nothing was"
                " stored. Try again when it has been read.",
                field="to",
                retry_after_seconds=5,
            )
            return
        left = tuple(name for name in message.names if name not in refused)
        message.names = left
        message.address = msgspec.json.encode(left).decode()
        item.outcome = replace(
            item.outcome, refused=tuple(refused), unknown=tuple(name for name in unknown if name in left)
        )

    def _has_room(self, name: str, item: Pending, batch: Batch) -> bool:
        """Count what waits above the mark, and count this message.

        The count is carried from batch to batch: when the mark or the log moved, only the rows in between are read. What
        this batch itself adds (it begins at `first`) is counted one by one.
        """
        if self._goes_out(name, item):
            return True
        left = self._names.left.get(name)
        if left == 0 and not self._is_still_full(name):
            left = None
        tracked = item.message.flags & REQUIRES_ACK
        if left and not tracked and name in self._names.fill:
            self._count_in(name, left, batch)
            return True
        backlog = self._ledger.backlog(name)
        capacity = backlog.capacity or self._inbox_limit
        if left is None:
            left = capacity - self._count_waiting(name, capacity, batch) - backlog.waiting
            if left <= 0:
                left = capacity - self._count_alive(name, capacity, batch) - backlog.waiting
        if left <= 0:
            if backlog.on_full != "dead_letter" or not self._set_aside(name, item, batch):
                self._names.left[name] = 0
                return False
            left = 1
        if tracked:
            takes_room = not self._goes_out(name, item)  # what was set aside may have been all that waited
            self._names.left[name] = left - takes_room
            return True
        if name not in self._names.fill:
            self._count_waiting(name, capacity, batch)
        self._count_in(name, left, batch)
        return True

    def _count_in(self, name: str, left: int, batch: Batch) -> None:
        """The next message is a plain one that waits in an inbox with `left` places."""
        self._names.left[name] = left - 1
        mark, _, waiting = self._names.fill[name]
        self._names.fill[name] = (mark, batch.head + 1, waiting + 1)

    def _goes_out(self, name: str, item: Pending) -> bool:
        """True when the message is pushed with its commit, and so does not wait."""
        if item.message.flags & REQUIRES_ACK:
            return name in item.live and self._ledger.leases_at_once(name)
        return item.present

    def _count_waiting(self, name: str, capacity: int, batch: Batch) -> int:
        row = self._execute(_MARK, (name,)).fetchone()
        if row is None:  # it was forgotten, elsewhere, since its row was last looked for
            self._execute(_OPEN_INBOX, (name, batch.head, self._now))
        mark = int(row[0]) if row else batch.head
        counted_mark, through, waiting = self._names.fill.get(name, (mark, mark, 0))
        if mark > counted_mark:  # counted anew: what the mark has passed may have been evicted, and can't be subtracted
            through, waiting = mark, 0
        if through < self._first - 1:
            waiting += self._count(name, through, self._first - 1, capacity)
            through = self._first - 1
        self._names.fill[name] = (mark, through, waiting)
        return waiting

    def _count(self, name: str, after: int, upto: int, capacity: int) -> int:
        return int(self._execute(WAITING, (name, after, upto, capacity + 1, self._ledger.now)).fetchone()[0])

    def _is_still_full(self, name: str) -> bool:
        """False when an inbox that was full was not counted anew for that, or something in it has expired since."""
        if name not in self._names.next_expiry:
            return False
        next_expiry = self._names.next_expiry[name]
        return next_expiry is None or next_expiry > self._ledger.now

    def _count_alive(self, name: str, capacity: int, batch: Batch) -> int:
        """As `_count_waiting`, all anew: of what was counted before, some may have expired."""
        batch.insert()
        mark = self._execute(_MARK, (name,)).fetchone()[0]
        bindings = (name, mark, batch.head, capacity + 1, self._ledger.now)
        waiting, self._names.next_expiry[name] = self._execute(WAITING, bindings).fetchone()
        self._names.fill[name] = (mark, batch.head, waiting)
        return int(waiting)

    def _set_aside(self, owner: str, item: Pending, batch: Batch) -> bool:
        """Make room where an inbox or a queue says so: its oldest waiting message becomes a dead letter."""
        batch.insert()
        tracked = self._ledger.oldest_waiting(owner)
        plain = None if owner.startswith("queue:") else self._oldest_plain(owner)
        failure: Failure | None
        if plain is not None and (tracked is None or plain.seq < tracked.seq):
            failure = self._ledger.bury(plain, owner, "overflow", None)
            self._execute("INSERT INTO set_aside VALUES (?, ?)", (owner, plain.seq))
            self._execute("UPDATE clients SET mark = max(mark, ?1) WHERE name = ?2", (plain.seq, owner))
            self._names.fill.pop(owner, None)
        elif tracked is not None:
            failure = self._ledger.overflow(tracked)
        else:
            return False
        if failure is not None:
            assert item.outcome is not None
            item.outcome = replace(item.outcome, failures=(*item.outcome.failures, failure))
        return True

    def _oldest_plain(self, name: str) -> Message | None:
        row = self._execute(_OLDEST_PLAIN, (name, self._ledger.now)).fetchone()
        return message_of(row, self._all) if row else None

    def _all(self, statement: str, bindings: Sequence[Any]) -> list[Any]:
        return self._execute(statement, bindings).fetchall()  # type: ignore[no-any-return]
