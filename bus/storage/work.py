"""One batch inside its transaction: what becomes of each item, and the rows that are written, in either dialect.

What a send may meet in here: its idempotency key was used before, or the inbox of a recipient is full. Both are decided in
the transaction, so two processes can't disagree. Who holds the lock, begins and commits is the store's writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

import msgspec

from bus.companions import Announcer, Companions
from bus.errors import BusError, KeyReused
from bus.events import MessageSent
from bus.message import (
    OWN_EXPIRY,
    OWN_ID,
    REQUIRES_ACK,
    TYPE_EXPIRY,
    Epochs,
    Kind,
    Message,
    audience_of,
    now_us,
    text_of,
)
from bus.protocol import body_key, encode
from bus.storage import SEQ, STORED, TEXT, Burst, Group, Item, Job, Outcome, Pending
from bus.storage.ahead import Ahead
from bus.storage.inboxes import Inboxes, Names
from bus.storage.ledger import Ledger
from bus.storage.lifetimes import NEVER, Lifetime, Lifetimes, read_lifetimes
from bus.storage.rows import values_of

_WIDTH = 10
_INSERT_SIZES = (256, *range(64, 0, -1))
"""Rows of one INSERT. Multi-row VALUES write 24–40 % more rows a second than executemany, and each statement hands the
interpreter's lock over twice: so up to 64 messages are one statement."""

_INSERTS = {
    size: "INSERT INTO messages VALUES " + ",".join(["(" + ",".join("?" * _WIDTH) + ")"] * size)
    for size in _INSERT_SIZES
}

_USED = "SELECT body_hash, seq, stamp, answer, id FROM idempotency WHERE sender = ? AND key = ?"
_UNDELIVERED = "INSERT INTO undelivered VALUES (?, ?, ?, ?)"

CLOCKS_DIFFER_BY_US = 1_000_000
"""The bus's clock is ahead of the wall's by a multiple of this, the nearest: so equal times of delivery stay equal."""


class Memory:
    """What a writer knows between its batches. `version` names the state of the log that it knows; -1: none.

    `names`, `head` and `lifetimes` hold as of that state. `fatal` are the errors that are the store's and no job's: they end
    the whole batch. `sync()` raises what is wrong with the statements so far, where they are sent late. `ahead`: for a store
    that is far; what a batch will ask is asked at once.
    """

    def __init__(
        self,
        execute: Callable[..., Any],
        epochs: Epochs,
        clock: Callable[[], int],
        *,
        inbox_limit: int,
        queue_limit: int,
        companions: Companions,
        fatal: tuple[type[BaseException], ...],
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        """`execute(statement, bindings)` is the connection's; `clock()` the bus's (bus.clock), in microseconds.

        The limits are how much may wait in one inbox or queue.
        """
        self.execute = execute
        self.epochs = epochs
        self.clock = clock
        self.inbox_limit = inbox_limit
        self.queue_limit = queue_limit
        self.companions = companions
        self.fatal = fatal
        self.sync = sync
        self.ahead: Ahead | None = None
        self.names = Names()
        self.lifetimes = Lifetimes()
        self.version = -1
        self.head = 0

    def learn(self, version: int, head: int, policies: int) -> None:
        """Another has written, or a job: take in where the log ends, and forget what may have changed."""
        self.version, self.head = version, head
        if policies != self.lifetimes.version:
            self.lifetimes = read_lifetimes(self.execute, policies)
        self.names.look_anew()

    def look_anew(self) -> None:
        """A job has written: the next batch learns what may have changed by it."""
        self.names.look_anew()
        self.version = -1

    def forget(self) -> None:
        """The transaction failed: what was learnt in it does not hold."""
        self.names.forget()
        self.version = -1


class Work:
    """One batch inside its transaction. `head` is the last seq given; `written` the new messages in seq order.

    `ledger` holds what must be acked. It is flushed wherever a savepoint begins, and forgets with one that is undone.
    """

    def __init__(self, memory: Memory) -> None:
        head = memory.head
        self._memory = memory
        self._execute = memory.execute
        self.first = head + 1
        self.head = head
        self.written: list[Message] = []
        self._companions = memory.companions
        announcer = self._announcer = Announcer(memory.companions, self._execute)
        self.wants, self.announce = announcer.wants, announcer.announce
        self.ledger = Ledger(self._execute, memory.epochs, memory.clock(), announcer=announcer)
        self.ledger.ahead = memory.ahead
        default_us = memory.lifetimes.default_us
        self._by_type = memory.lifetimes.by_type
        self._default_expiry = None if default_us is None else self.ledger.now + default_us
        self._inserted = 0
        self._counted = 0  # of what was written, how much the log's head knows of
        self._inboxes = Inboxes(
            self._execute,
            self.ledger,
            memory.names,
            self.first,
            now_us(),
            inbox_limit=memory.inbox_limit,
            queue_limit=memory.queue_limit,
        )
        memory.names.tidy()

    def take(self, batch: Sequence[Item]) -> None:
        ahead = self._memory.ahead
        if ahead is None:
            self._take(batch)
        else:
            for are_jobs, run in groupby(batch, lambda item: type(item) is Job):
                items = list(run)
                if not are_jobs:
                    self._look_ahead(ahead, items)
                self._take(items)
                ahead.forget()
        self._write_all()

    def _take(self, batch: Sequence[Item]) -> None:
        for item in batch:
            if isinstance(item, Pending):
                self._admit(item)
            elif isinstance(item, Burst):
                self._admit_burst(item)
            elif isinstance(item, Group):
                self._admit_group(item.members)
            else:
                self._run(item)

    def _look_ahead(self, ahead: Ahead, batch: Sequence[Item]) -> None:
        """Ask what these sends will ask: whether their keys were used, and how much room their recipients have."""
        sends = [send for item in batch for send in _sends_of(item)]
        for send in sends:
            if send.key is not None:
                ahead.ask(_USED, send.message.sender, send.key)
        self._inboxes.look_ahead(ahead, sends)

    def _write_all(self) -> None:
        """Bring the tables up to what was taken in so far."""
        self.insert()
        self.ledger.flush()
        counted = self.written[self._counted :]
        if counted:
            self._execute(
                "UPDATE log_head SET seq = ?, total_messages = total_messages + ?, kept_bytes = kept_bytes + ?",
                (self.head, len(counted), sum(len(m.payload) for m in counted)),
            )
            self._counted = len(self.written)

    @property
    def wrote_beside(self) -> bool:
        """True when rows of companions are among what was written."""
        return self._announcer.wrote

    # ---- for jobs; see `bus.storage.Transaction`

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._execute(statement, bindings).fetchall()  # type: ignore[no-any-return]

    def append(self, message: Message, *, again: bool = False) -> Outcome | BusError:
        rows = self._companions.rows_of(MessageSent(message)) if self._companions.sent and not again else ()
        item = Pending(message, _unheard, rows=rows)
        self._admit(item)
        self.insert()
        return item.error or item.outcome or STORED

    def _run(self, job: Job) -> None:
        self._write_all()
        head, written = self.head, len(self.written)
        self._execute("SAVEPOINT job")
        try:
            job.value = job.run(self)
            self.ledger.flush()
            self._memory.sync()
        except self._memory.fatal:
            raise
        except Exception as error:  # noqa: BLE001  # the job's own fault: it alone is undone, and its caller is told
            self._execute("ROLLBACK TO job")
            self._undo(head, written)
            job.error = error
        self._execute("RELEASE job")
        if self._memory.ahead is not None:
            self._memory.ahead.forget()
        self._memory.look_anew()

    def _undo(self, head: int, written: int) -> None:
        """Forget, in memory, what a savepoint has taken back."""
        if len(self.written) > written:
            self._inboxes.drop()
        self.head = head
        del self.written[written:]
        self._inserted = min(self._inserted, written)
        self.ledger.drop()

    # ---- admission

    def _admit_group(self, members: Sequence[Pending]) -> None:
        """All or none: the first refusal undoes the others and is everybody's answer."""
        self.ledger.flush()
        head, written = self.head, len(self.written)
        self._execute("SAVEPOINT atomic")
        for member in members:
            self._admit(member)
            if member.error is not None:
                break
        else:
            self.ledger.flush()
            self._execute("RELEASE atomic")
            return
        self._execute("ROLLBACK TO atomic")
        self._execute("RELEASE atomic")
        self._inboxes.drop()
        self._undo(head, written)
        for other in members:
            other.error = member.error
            other.message.seq = 0

    def _admit(self, item: Pending) -> None:
        message = item.message
        body = b"" if item.key is None else _hash(message)  # before a refusal takes names off the address
        if item.key is not None and self._seen_before(item, body):
            return
        if (terms := message.terms) is not None:
            if (due_us := self._due(message)) > self.ledger.now:
                self._schedule(item, due_us, body)
                return
            if not message.flags & OWN_ID:
                message.own_id = ""  # it is due already: its seq names it
            if terms.ttl_us is not None:
                message.expires_us = self.ledger.now + self._ttl_us(message, terms.ttl_us, terms.may_lengthen)
        item.outcome = STORED
        if not self._inboxes.make_room(item, self):
            item.outcome = None
            return
        self.head += 1
        message.seq = self.head
        self._inboxes.know_sender(message.sender, self.head)
        self.written.append(message)
        if message.kind == Kind.LIST:
            for name in message.names:
                self._execute("INSERT INTO addressed VALUES (?, ?)", (name, self.head))
        if (lifetime := self._by_type.get(message.type)) is not None:
            self._give_life(message, lifetime)
        if terms is not None or message.flags:
            self._admit_special(message, item.live)
        for statement, bindings in item.rows:
            self._announcer.wrote = True
            self._execute(statement, [self._known_now(message, value) for value in bindings])
        if item.key is not None:
            self._remember(item, body)

    def _admit_burst(self, burst: Burst) -> None:
        """As `_admit`, of each. What is for all, or for a client whose inbox is known to have room, only needs a seq."""
        inboxes, by_type, written, rows = self._inboxes, self._by_type, self.written, burst.rows
        opened = inboxes.opened
        sender = ""
        for at, message in enumerate(burst.messages):
            if not rows and message.type not in by_type and message.kind != Kind.LIST:
                names = message.names
                outcome: Outcome | None = STORED
                if names and not (burst.present[at] and names[0] in opened):
                    outcome = inboxes.take_in(names[0], self)
                if outcome is not None:
                    self.head += 1
                    message.seq = self.head
                    if message.sender != sender:
                        sender = message.sender
                        inboxes.know_sender(sender, self.head)
                    written.append(message)
                    if outcome is not STORED:
                        burst.outcomes[at] = outcome
                    continue
            item = Pending(message, _unheard, present=burst.present[at], rows=rows.get(at, ()))
            self._admit(item)
            if item.error is not None:
                burst.errors[at] = item.error
            elif item.outcome is not None and item.outcome is not STORED:
                burst.outcomes[at] = item.outcome

    def _known_now(self, message: Message, value: Any) -> Any:
        """What stands for SEQ or TEXT; any other value stands for itself."""
        if value is SEQ:
            return message.seq
        return text_of(message, self._memory.epochs) if value is TEXT else value

    def _ttl_us(self, message: Message, asked_us: int, may_lengthen: bool) -> int:
        """What a sender gets of the life that it asked for: without the right, no more than its type's policy gives."""
        most_us = None if may_lengthen else self._memory.lifetimes.of(message).ttl_us
        return asked_us if most_us is None else min(asked_us, most_us)

    def _give_life(self, message: Message, lifetime: Lifetime) -> None:
        """Stamp a message whose type has a policy. What its sender asked for wins, but not over one that keeps for ever."""
        if lifetime.immediate:
            if lifetime.ends_with_delivery(message):
                owners = message.names or (f"queue:{message.address}",)
                tracked = message.flags & REQUIRES_ACK
                for owner in owners:
                    self._execute(_UNDELIVERED, (tracked, owner, message.seq, self.ledger.now))
                message.expires_us = message.expires_us or NEVER
        elif lifetime.ttl_us is None:
            message.expires_us = NEVER
        elif message.expires_us is None:
            message.expires_us = self.ledger.now + lifetime.ttl_us

    def _admit_special(self, message: Message, live: Sequence[str]) -> None:
        """What is written of a message beyond its row."""
        terms, seq = message.terms, message.seq
        if message.flags & OWN_ID:
            self._execute("INSERT INTO other_ids VALUES (?, ?)", (message.own_id, seq))
        if message.flags & REQUIRES_ACK:
            owners = message.names or (f"queue:{message.address}",)
            leased = [owner for owner in owners if self.ledger.enter(message, owner, online=owner in live)]
            message.leased_to = tuple(leased)
        if terms is None:
            return
        if terms.thread_id is not None:
            self._execute("INSERT INTO thread_messages VALUES (?, ?)", (terms.thread_id, seq))
        if terms.correlation_id is not None:
            self._note_reply(message, terms.correlation_id)

    def _note_reply(self, message: Message, correlation_id: str) -> None:
        """It may answer a question that one of its recipients asked: then the question keeps it."""
        for name in message.names:
            row = self._execute(
                "SELECT seq, asked FROM requests WHERE asker = ? AND correlation_id = ? ORDER BY seq DESC LIMIT 1",
                (name, correlation_id),
            ).fetchone()
            if row is None or (row[1] is not None and message.sender not in msgspec.json.decode(cast("bytes", row[1]))):
                continue
            self._execute("INSERT INTO replies VALUES (?, ?, ?)", (row[0], message.seq, message.sender))

    # ---- later

    def _due(self, message: Message) -> int:
        terms = message.terms
        assert terms is not None
        if terms.deliver_us is not None:
            ahead = round((self.ledger.now - now_us()) / CLOCKS_DIFFER_BY_US) * CLOCKS_DIFFER_BY_US
            return terms.deliver_us + ahead
        return self.ledger.now + (terms.delay_us or 0)

    def _schedule(self, item: Pending, due_us: int, body: bytes) -> None:
        """Keep it outside the log until it is due; bus.delivery.scheduler puts it in."""
        message = item.message
        self._inboxes.know_sender(message.sender, self.head + 1)  # behind what there is, and before what comes
        self._execute(
            "INSERT INTO scheduled VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (message.own_id, due_us, *values_of(message), encode(message.terms)),
        )
        item.outcome = Outcome(scheduled=True)
        if item.key is not None:
            self._remember(item, body)

    # ---- idempotency

    def _seen_before(self, item: Pending, body: bytes) -> bool:
        message = item.message
        row = self._execute(_USED, (message.sender, item.key)).fetchone()
        if row is None:
            return False
        body_hash, seq, stamp, answer, own_id = cast("tuple[bytes, int, int, bytes, str | None]", row)
        if body_hash != body:
            item.error = KeyReused(
                "This idempotency key was used for another message; make a new key for a new message.",
                field="idempotency_key",
            )
            return True
        message.seq = seq
        message.stamp_us = stamp
        message.own_id = own_id or ""
        item.outcome = Outcome(duplicate=True, answer=answer, scheduled=own_id is not None)
        return True

    def _remember(self, item: Pending, body: bytes) -> None:
        message, outcome = item.message, item.outcome
        assert outcome is not None
        states = [{"client": name, "state": "refused"} for name in outcome.refused]
        if outcome.scheduled:
            states = [{"client": name, "state": "scheduled"} for name in message.names or (audience_of(message),)]
        elif message.names:
            unknown = outcome.unknown
            states += [{"client": name, "state": "unknown" if name in unknown else "queued"} for name in message.names]
        else:
            states = [{"client": audience_of(message), "state": "sent"}]
        self._execute(
            "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                message.sender,
                item.key,
                body,
                message.seq,
                message.stamp_us,
                encode(states),
                message.own_id if outcome.scheduled else None,
                self.ledger.now,
            ),
        )

    # ---- rows

    def insert(self) -> None:
        """Write the admitted messages that are not yet rows."""
        written, offset, default_us = self.written, self._inserted, self._default_expiry
        while left := len(written) - offset:
            size = 256 if left >= 256 else min(left, 64)
            values: list[Any] = []
            for m in written[offset : offset + size]:
                expires_us, flags = default_us, m.flags
                if m.expires_us is not None:
                    own = m.terms is not None and m.terms.ttl_us is not None and m.expires_us
                    expires_us, flags = m.expires_us or None, flags | (OWN_EXPIRY if own else TYPE_EXPIRY)
                values += (
                    m.seq,
                    m.kind,
                    m.address,
                    m.sender,
                    m.type,
                    m.stamp_us,
                    expires_us,
                    flags,
                    m.extras,
                    m.payload,
                )
            self._execute(_INSERTS[size], values)
            offset += size
        self._inserted = offset


def _sends_of(item: Item) -> Sequence[Pending]:
    """What an item sends; of a burst, as if each were sent by itself."""
    if isinstance(item, Burst):
        pairs = zip(item.messages, item.present, strict=True)
        return [Pending(message, _unheard, present=there) for message, there in pairs]
    if isinstance(item, Group):
        return item.members
    return [item] if isinstance(item, Pending) else []


def _unheard(_: Pending) -> None:
    """Nobody waits for the answer: the job has it."""


def _hash(message: Message) -> bytes:
    return hashlib.blake2b(body_key(message), digest_size=16).digest()
