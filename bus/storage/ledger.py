"""What must be acked one by one: leases, attempts, backoff and dead letters, as SQL in a write transaction.

An owner is a client's inbox or a queue (`queue:<name>`). A delivery of it waits, is leased, or rests after a failure;
settled, it leaves the table. Ack, nack and expiry all meet in here, inside one transaction, so no two processes can
disagree about who holds what. Everything goes by the bus's clock (bus.clock), handed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any

from bus.companions import Announcer, Companions
from bus.errors import Forbidden, Malformed, NotFound
from bus.events import MessageFailed, MessageReceived
from bus.message import REQUIRES_ACK, Epochs, Kind, Message, Terms
from bus.protocol import Settle
from bus.storage import ledger_sql as sql
from bus.storage.ahead import Ahead
from bus.storage.deliveries import (
    ACKED,
    AGING_US,
    BACKOFF_SECONDS,
    CLIENT_WINDOW,
    DEAD,
    JITTER,
    LEASE_BYTES,
    LEASED,
    MAX_FAILURES,
    MAX_LEASE_US,
    RESTING,
    SWEEP_BYTES,
    WAITING,
    Backlog,
    Delivery,
    Failure,
    Lease,
    Settled,
    Slot,
    Swept,
    mend,
)
from bus.storage.rows import message_of, named, values_of


class Ledger:
    """The open deliveries, inside one write transaction. Backlogs are kept in memory until `flush`."""

    def __init__(
        self,
        execute: Callable[..., Any],
        epochs: Epochs,
        now_us: int,
        chance: Callable[[], float] = random.random,
        announcer: Announcer | None = None,
    ) -> None:
        """`execute(statement, bindings)` is the transaction's; `chance()` gives 0 to 1 for the jitter.

        `announcer` is told what was received and what failed; None means that nobody wants to know.
        """
        self._execute = execute
        self._epochs = epochs
        self._chance = chance
        self._announcer = announcer or Announcer(Companions(), execute)
        self._backlogs: dict[str, Backlog] = {}
        self.now = now_us
        self.ahead: Ahead | None = None  # for a store that is far
        self.buried_bytes = 0  # what this transaction has copied into dead letters

    # ---- backlogs

    def backlog(self, owner: str) -> Backlog:
        """What `owner` has open, as of now."""
        backlog = self._backlogs.get(owner)
        if backlog is None:
            row = self._one(sql.BACKLOG, (owner,))
            backlog = self._backlogs[owner] = Backlog(*row) if row else Backlog()
        return backlog

    def ask_backlog(self, owner: str) -> None:
        """It will be wanted."""
        if self.ahead is not None and owner not in self._backlogs:
            self.ahead.ask(sql.BACKLOG, owner)

    def flush(self) -> None:
        """Write the backlogs that changed."""
        for owner, backlog in self._backlogs.items():
            if backlog.changed:
                kept = (owner, backlog.waiting, backlog.leased, backlog.capacity, backlog.on_full)
                self._execute(sql.KEEP_BACKLOG, kept)
                backlog.changed = False

    def drop(self) -> None:
        """Forget what was not flushed: the savepoint is undone."""
        self._backlogs.clear()

    def set_cap(self, owner: str, capacity: int | None, on_full: str | None) -> None:
        """Give an owner a cap of its own; None means as the settings say."""
        backlog = self.backlog(owner)
        backlog.capacity, backlog.on_full, backlog.changed = capacity, on_full, True

    def _move(self, owner: str, waiting: int, leased: int) -> None:
        backlog = self.backlog(owner)
        backlog.waiting += waiting
        backlog.leased += leased
        backlog.changed = True

    # ---- in

    def enter(self, message: Message, owner: str, *, online: bool) -> bool:
        """Open a delivery of `message` to `owner`. True when it is leased at once, to be pushed with the commit.

        That is so for a client that is online and has nothing waiting, so that what comes live comes in seq order. Whoever
        reads the row back sees it by `leased_at` and `due_key`, which are of one moment then (log_reader).
        """
        terms = message.terms or _PLAIN
        due_key = self.now + AGING_US * (terms.priority // 2)
        leased = online and self.leases_at_once(owner)
        state: tuple[Any, ...]
        if leased:
            self._move(owner, 0, 1)
            state = (LEASED, due_key, self.now + terms.ack_wait_us, owner, 1, 0, terms.ack_wait_us, self.now)
        else:
            self._move(owner, 1, 0)
            state = (WAITING, due_key, None, None, 0, 0, terms.ack_wait_us, None)
        expires_us = message.expires_us or None if terms.ttl_us is not None else None  # a policy is the sweep's affair
        self._execute(sql.ENTER, (owner, message.seq, *state, expires_us, None))
        return leased

    def leases_at_once(self, client: str) -> bool:
        """True when what comes for a client that is online is pushed with its commit: nothing waits, the window is open."""
        backlog = self.backlog(client)
        return not backlog.waiting and backlog.leased < CLIENT_WINDOW

    # ---- out, into hands

    def lease(self, owner: str, slots: Sequence[Slot]) -> list[Lease]:
        """Give what waits to the slots, one each, the most urgent first. Fewer come back when fewer wait."""
        rows = self._all(sql.NEXT, (owner, self.now, len(slots)))
        leases: list[Lease] = []
        size = 0
        for (seq, attempt, ack_wait), slot in zip(rows, slots, strict=False):
            if self.ahead is not None and len(leases) % ASKED_AT_ONCE == 0:
                for row in rows[len(leases) : len(leases) + ASKED_AT_ONCE]:
                    self.ahead.ask(sql.MESSAGE, row[0])
            message = self._message(seq)
            size += _size(message)
            if leases and size > LEASE_BYTES:
                break
            until = self.now + (slot.ack_wait_us or ack_wait)
            self._execute(sql.LEASE, (until, slot.holder, slot.ack_wait_us, self.now, owner, seq))
            leases.append(Lease(message, owner, slot.holder, attempt + 1, until))
        if leases:
            self._move(owner, -len(leases), len(leases))
        return leases

    def lease_to_client(self, name: str) -> list[Lease]:
        """Give a client what waits for it, up to its window."""
        backlog = self.backlog(name)
        room = CLIENT_WINDOW - backlog.leased
        if room <= 0 or not backlog.waiting:
            return []
        return self.lease(name, [Slot(name)] * room)

    def lease_again(self, name: str, above: int, upto: int, after: tuple[int, int]) -> list[Lease]:
        """What a client has not acked of what was pushed before: the same attempts, with fresh leases. Not counted.

        A page of it: the most urgent first, behind the rank `after` (due_key, seq); of messages behind the seq `above`, up
        to `upto`.
        """
        rows = self._all(sql.AGAIN, (name, above, upto, *after, self.now, CLIENT_WINDOW))
        leases: list[Lease] = []
        size = 0
        for seq, attempt, ack_wait, due_key, until in rows:
            message = self._message(seq)
            size += _size(message)
            if leases and size > LEASE_BYTES:
                break
            end = max(until, self.now + ack_wait)  # never shorter than `progress` has made it
            self._execute("UPDATE deliveries SET until = ? WHERE owner = ? AND seq = ?", (end, name, seq))
            leases.append(Lease(message, name, name, attempt, end, again=True, due_key=due_key))
        return leases

    # ---- what recipients say

    def look_ahead(self, said: Sequence[Settle]) -> None:
        """These are settled next: ask at once what each of them will, where the store is far."""
        if (ahead := self.ahead) is None:
            return
        places = [(each, seq) for each in said if (seq := self._epochs.seq_of(each.message_id)) is not None]
        for each, seq in places:
            ahead.ask(sql.OTHER_PLACES, each.message_id)
            ahead.ask(sql.OPEN, each.client, seq)
            self.ask_backlog(each.client)
        queued = [seq for each, seq in places if not ahead.peek(sql.OPEN, each.client, seq)]
        for seq in queued:
            ahead.ask(sql.PLACE, seq)
        for seq in queued:
            for kind, address, _ in ahead.peek(sql.PLACE, seq):
                if kind == Kind.QUEUE:
                    ahead.ask(sql.OPEN, f"queue:{address}", seq)
                    self.ask_backlog(f"queue:{address}")

    def settle(self, said: Settle) -> Settled:
        """Do what a recipient says. Raises NotFound, Forbidden, Malformed; then nothing was changed."""
        delivery = self._find(said)
        if isinstance(delivery, Settled):
            return delivery
        begun = delivery.attempt
        if delivery.state == WAITING and not delivery.owner.startswith("queue:"):
            delivery.attempt += 1  # who reads an inbox, and says something of what waits in it, has begun an attempt
        current = delivery.attempt
        if said.attempt is not None and said.attempt > current:
            raise Malformed("`attempt` has not begun yet.", code="bad_field", field="attempt")
        late_ack = said.verb == "ack" and said.attempt == begun
        if (said.attempt not in (None, current) and not late_ack) or not self._may_speak(delivery, said):
            return Settled("superseded", begun)
        if late_ack:
            delivery.attempt = begun
        return _VERBS[said.verb](self, delivery, said)

    def _may_speak(self, delivery: Delivery, said: Settle) -> bool:
        """An inbox is its client's. A queue's item is its holder's, and after the lease still for an ack, until it is
        given to another: work that was done need not be done again."""
        if not delivery.owner.startswith("queue:"):
            return delivery.state == LEASED or said.verb not in ("progress", "release")
        if delivery.state == LEASED:
            return delivery.client == said.client
        return said.verb == "ack" and said.attempt is not None and delivery.consumers()[-1:] == [said.client]

    def _find(self, said: Settle) -> Delivery | Settled:
        seqs = self._places(said.message_id)
        for seq in seqs:
            if delivery := self._delivery(said.client, seq):
                return delivery
        exists = False
        for seq in seqs:
            row = self._one(sql.PLACE, (seq,))
            exists = exists or row is not None
            if row is not None and (found := self._find_by_message(said, seq, *row)):
                return found
        if exists:
            raise Forbidden("Only a recipient of the message may settle it.", code="not_recipient")
        for seq in seqs:  # the message is gone; what became of it may still be known
            known = self._one(
                "SELECT outcome, attempt FROM settled WHERE seq = ? AND ? IN (owner, consumer)", (seq, said.client)
            )
            if known:
                return Settled("dead" if known[0] == DEAD else "acked", known[1])
        raise NotFound("There is no message with this id; it may have been evicted.", code="unknown_message")

    def _find_by_message(
        self, said: Settle, seq: int, kind: int, address: str, flags: int
    ) -> Delivery | Settled | None:
        """What `said` is about, if the client has a share in the message at `seq`; None if it has not."""
        if not flags & REQUIRES_ACK:
            return Settled("not_needed", 0)
        owner = f"queue:{address}" if kind == Kind.QUEUE else said.client
        if kind == Kind.QUEUE:
            delivery = self._delivery(owner, seq)
            if delivery is not None:
                return delivery if said.client in {delivery.client, *delivery.consumers()} else None
        elif said.client not in named(kind, address):
            return None
        known = self._one("SELECT outcome, attempt, consumer FROM settled WHERE seq = ? AND owner = ?", (seq, owner))
        if known is None:
            return Settled("acked" if said.verb == "ack" else "superseded", said.attempt or 0)
        outcome, attempt, consumer = known
        if outcome == DEAD:
            return Settled("dead", attempt)
        same = consumer == said.client and said.attempt in (None, max(attempt, 1))
        return Settled("acked" if same and said.verb == "ack" else "superseded", attempt)

    def _places(self, message_id: str) -> list[int]:
        """The seqs that an id has had, the likeliest first."""
        own = self._epochs.seq_of(message_id)
        others = self._all(sql.OTHER_PLACES, (message_id,))
        return [seq for (seq,) in others] + ([own] if own is not None else [])

    def _ack(self, delivery: Delivery, said: Settle) -> Settled:
        self._close(delivery, ACKED, delivery.attempt, said.client)
        if self._announcer.wants(MessageReceived):
            self._announcer.announce(MessageReceived(self._message(delivery.seq), said.client))
        return self._settled("acked", delivery)

    def _nack(self, delivery: Delivery, said: Settle) -> Settled:
        if delivery.state == RESTING:
            return self._settled("nacked", delivery)  # said twice: it counts once
        rest = self._backoff(delivery.failures + 1) if said.delay_us is None else said.delay_us
        failure = self._fail(delivery, "nacked", said.reason, rest)
        return self._settled("dead" if failure else "nacked", delivery, failure)

    def _progress(self, delivery: Delivery, said: Settle) -> Settled:
        assert delivery.leased_at is not None
        until = self.now + (said.ack_wait_us or delivery.lease_wait or delivery.ack_wait)
        until = max(min(until, delivery.leased_at + MAX_LEASE_US), self.now)
        self._execute(
            "UPDATE deliveries SET until = ? WHERE owner = ? AND seq = ?", (until, delivery.owner, delivery.seq)
        )
        settled = self._settled("extended", delivery)
        settled.until_us = until
        return settled

    def _release(self, delivery: Delivery, said: Settle) -> Settled:
        self._rest(delivery, "released", said.reason, delivery.failures, 0)
        return self._settled("released", delivery)

    def _reject(self, delivery: Delivery, said: Settle) -> Settled:
        history = delivery.history_with("rejected", said.reason, self.now)
        failure = self._die(delivery, "rejected", said.reason, history)
        return self._settled("dead" if failure is None else "rejected", delivery, failure)

    def _settled(self, status: str, delivery: Delivery, failure: Failure | None = None) -> Settled:
        holder = delivery.holder if delivery.state == LEASED else None
        return Settled(status, delivery.attempt, delivery.owner, delivery.seq, holder, None, failure)

    def release_all(self, held: Sequence[tuple[str, int]], holder: str) -> set[str]:
        """Give back, uncounted, what `holder` still has of `held` (owner, seq). Returns the owners stirred."""
        stirred = set()
        for owner, seq in held:
            delivery = self._delivery(owner, seq)
            if delivery is not None and delivery.state == LEASED and delivery.holder == holder:
                self._rest(delivery, "released", None, delivery.failures, 0)
                stirred.add(owner)
        return stirred

    # ---- what time does

    def expire(self, limit: int) -> Swept:
        """End the leases and rests that are over, and set aside what outlived its ttl; at most `limit` of each."""
        swept = Swept(set(), [], [], more=False)
        rows = self._all(sql.OVER, (self.now, limit))
        for delivery in starmap(Delivery, rows):
            if self.buried_bytes > SWEEP_BYTES:
                break
            swept.stirred.add(delivery.owner)
            if delivery.state == RESTING:
                self._execute(sql.WAKE, (delivery.owner, delivery.seq))
                continue
            swept.freed.append((delivery.owner, delivery.holder or "", delivery.seq))
            assert delivery.leased_at is not None
            rest = delivery.leased_at + self._backoff(delivery.failures + 1) - self.now
            if failure := self._fail(delivery, "lease_expired", None, max(rest, 0)):
                swept.failures.append(failure)
        old = self._all(sql.OUTLIVED, (self.now, limit))
        for delivery in starmap(Delivery, old):
            if self.buried_bytes > SWEEP_BYTES:
                break
            history = delivery.history_with(None, None, self.now)
            if failure := self._die(delivery, "expired", None, history):
                swept.failures.append(failure)
        swept.more = len(rows) == limit or len(old) == limit or self.buried_bytes > SWEEP_BYTES
        return swept

    def recover(self) -> None:
        """Mend what begins in the future: the clock was set back while nobody ran. Leases and rests keep their length, and
        what waits since then goes behind nothing that comes more than two minutes from now."""
        mend(self._execute, self.now)

    def evict(self, through: int) -> Swept:
        """Messages up to the seq `through` are about to go: what is still open of them becomes a dead letter."""
        swept = Swept(set(), [], [], more=False)
        rows = self._all("SELECT seq, kind, address FROM messages WHERE seq <= ? AND flags & 1 = 1", (through,))
        for seq, kind, address in rows:
            for owner in (f"queue:{address}",) if kind == Kind.QUEUE else named(kind, address):
                delivery = self._delivery(owner, seq)
                if delivery is not None and (failure := self.overflow(delivery)):
                    swept.failures.append(failure)
                    if delivery.state == LEASED:
                        swept.freed.append((owner, delivery.holder or "", seq))
                        swept.stirred.add(owner)
        return swept

    def outlive(self, seq: int, owners: Sequence[str]) -> list[Failure] | None:
        """The message's time is over: what still waits of it becomes a dead letter. None: somebody has it in hands."""
        found = [self._delivery(owner, seq) for owner in owners]
        deliveries = [delivery for delivery in found if delivery is not None]
        if any(delivery.state == LEASED for delivery in deliveries):
            return None
        histories = [(delivery, delivery.history_with(None, None, self.now)) for delivery in deliveries]
        failures = [self._die(delivery, "expired", None, history) for delivery, history in histories]
        return [failure for failure in failures if failure is not None]

    def oldest_waiting(self, owner: str) -> Delivery | None:
        """The first of an owner's deliveries that is in nobody's hands."""
        row = self._one(sql.OLDEST, (owner,))
        return Delivery(*row) if row else None

    def overflow(self, delivery: Delivery) -> Failure | None:
        """Set one aside because there is no room for it."""
        outcome = "evicted" if delivery.state == LEASED else None
        return self._die(delivery, "overflow", None, delivery.history_with(outcome, None, self.now))

    def bury(
        self,
        message: Message,
        owner: str,
        reason: str,
        detail: str | None,
        attempts: bytes = b"[]",
        ack_wait: int | None = None,
    ) -> Failure:
        """Write the dead letter of a message to one owner; `ack_wait` is what its sender said, in microseconds."""
        message_id = message.own_id or self._epochs.id_of(message.seq).decode()
        self.buried_bytes += _size(message)
        self._execute(
            sql.BURY,
            (message_id, owner, self.now, reason, detail, attempts, message.seq, *values_of(message), ack_wait),
        )
        if self._announcer.wants(MessageFailed):
            self._announcer.announce(MessageFailed(message, message_id, owner, reason))
        return Failure(message, message_id, owner, reason)

    # ---- below

    def _fail(self, delivery: Delivery, outcome: str, reason: str | None, rest_us: int) -> Failure | None:
        """Count a failure: rest, or end as a dead letter."""
        if delivery.failures + 1 >= MAX_FAILURES:
            return self._die(delivery, "max_attempts", reason, delivery.history_with(outcome, reason, self.now))
        self._rest(delivery, outcome, reason, delivery.failures + 1, rest_us)
        return None

    def _rest(self, delivery: Delivery, outcome: str, reason: str | None, failures: int, rest_us: int) -> None:
        state, until = (RESTING, self.now + rest_us) if rest_us > 0 else (WAITING, None)
        history = delivery.history_with(outcome, reason, self.now)
        self._execute(sql.REST, (state, until, delivery.attempt, failures, history, delivery.owner, delivery.seq))
        if delivery.state == LEASED:
            self._move(delivery.owner, 1, -1)

    def _backoff(self, failures: int) -> int:
        seconds = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
        return int(seconds * 1e6 * (1 + JITTER * self._chance()))

    def _die(self, delivery: Delivery, reason: str, detail: str | None, history: bytes) -> Failure | None:
        consumer = delivery.client or ""
        self._close(delivery, DEAD, delivery.attempt, consumer)
        message = self._message(delivery.seq)
        return self.bury(message, delivery.owner, reason, detail, history, delivery.ack_wait)

    def _close(self, delivery: Delivery, outcome: int, attempt: int, consumer: str) -> None:
        owner, seq = delivery.owner, delivery.seq
        self._execute("DELETE FROM deliveries WHERE owner = ? AND seq = ?", (owner, seq))
        self._execute(
            "INSERT INTO settled VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (seq, owner, outcome, attempt, consumer, self.now),
        )
        self._move(owner, *((0, -1) if delivery.state == LEASED else (-1, 0)))

    def _delivery(self, owner: str, seq: int) -> Delivery | None:
        row = self._one(sql.OPEN, (owner, seq))
        return Delivery(*row) if row else None

    def _message(self, seq: int) -> Message:
        row = self._one(sql.MESSAGE, (seq,))
        return message_of(row, self._all)

    def _one(self, statement: str, bindings: Sequence[Any]) -> Any:
        return self._execute(statement, bindings).fetchone()

    def _all(self, statement: str, bindings: Sequence[Any]) -> list[Any]:
        return self._execute(statement, bindings).fetchall()  # type: ignore[no-any-return]


_VERBS: dict[str, Callable[[Ledger, Delivery, Settle], Settled]] = {
    "ack": Ledger._ack,
    "nack": Ledger._nack,
    "progress": Ledger._progress,
    "release": Ledger._release,
    "reject": Ledger._reject,
}
VERBS = frozenset(_VERBS)

ASKED_AT_ONCE = 16
"""Messages that are fetched in one trip, however large they are."""

_PLAIN = Terms()


def _size(message: Message) -> int:
    """About what it takes on the wire: a sender's headers count, too."""
    return len(message.payload) + len(message.extras) + len(message.address) + 400
