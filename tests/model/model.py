"""What delivery promises, in plain Python: the reference that random histories of the store are compared with.

No SQL, no index, no counter: what can be counted is counted anew. Times are microseconds of one clock, `Model.now`,
which only the caller moves. An owner is a client's inbox or a queue (`queue:<name>`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

SECOND = 1_000_000
DAY = 86_400 * SECOND
WAITING, LEASED, RESTING = "waiting", "leased", "resting"
CLASSES = {"critical": 0, "high": 1, "normal": 2, "low": 3, "bulk": 4}
AGING = 30 * SECOND
BACKOFF = (5 * SECOND, 30 * SECOND, 120 * SECOND, 600 * SECOND)
JITTER = 0.2
MAX_FAILURES = 5
ACK_WAIT = 30 * SECOND


@dataclass(frozen=True)
class Sending:
    """What a sender says. `to` is a client, several, or `queue:<name>`."""

    sender: str
    to: str | tuple[str, ...]
    payload: bytes = b"{}"
    require_ack: bool = False
    priority: str = "normal"
    ack_wait: int = ACK_WAIT
    ttl: int | None = None
    delay: int = 0
    key: str | None = None

    @property
    def owners(self) -> tuple[str, ...]:
        return (self.to,) if isinstance(self.to, str) else self.to

    @property
    def is_tracked(self) -> bool:
        return self.require_ack or self.owners[0].startswith("queue:")


@dataclass(frozen=True)
class Answer:
    """What a send is answered with. `refusal` is an error's code; then nothing else is set."""

    refusal: str | None = None
    seq: int = 0
    states: tuple[tuple[str, str], ...] = ()
    pushed_to: tuple[str, ...] = ()
    failures: tuple[tuple[str, str, str], ...] = ()
    duplicate: bool = False
    scheduled: bool = False


@dataclass(frozen=True)
class Verdict:
    """What an ack, nack, progress, release or reject is answered with, or the code of its refusal."""

    status: str
    attempt: int = 0
    failure: tuple[str, str, str] | None = None


@dataclass
class Kept:
    """A message of the log: `id` is what its sender was told, `owners` whom it went to."""

    id: str
    sending: Sending
    owners: tuple[str, ...]
    expires: int | None


@dataclass(frozen=True)
class Attempt:
    """One line of a delivery's history."""

    attempt: int
    consumer: str
    began: int | None
    ended: int
    outcome: str
    reason: str | None


@dataclass
class Delivery:
    """What one owner owes an ack for."""

    id: str
    owner: str
    seq: int
    rank: tuple[int, int]
    ack_wait: int
    expires: int | None
    state: str = WAITING
    until: int | None = None
    holder: str | None = None
    attempt: int = 0
    failures: int = 0
    leased_at: int | None = None
    history: list[Attempt] = field(default_factory=list)
    lease_wait: int = 0

    @property
    def client(self) -> str:
        """The client in whose hands it is; a socket's consumer has a slash in its name."""
        return (self.holder or "").partition("/")[0]


@dataclass(frozen=True)
class DeadLetter:
    sending: Sending
    reason: str
    detail: str | None
    died: int
    attempts: tuple[Attempt, ...]


@dataclass
class Model:
    """The whole of it. `window`: unsettled pushes to a client; `lease_bytes`: payload of a hand-out; `chance`: of jitter."""

    now: int
    inbox_limit: int
    queue_limit: int
    window: int = 100
    lease_bytes: int = 1024 * 1024
    chance: float = 0.0
    head: int = 0
    lost_through: int = 0
    log: dict[int, Kept] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)  # of ids that are not made of their seq
    open: dict[tuple[str, int], Delivery] = field(default_factory=dict)
    settled: dict[tuple[int, str], tuple[str, int, str, int]] = field(default_factory=dict)
    dead: dict[tuple[str, str], DeadLetter] = field(default_factory=dict)
    scheduled: dict[str, tuple[int, Sending]] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[Sending, Answer, int]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    marks: dict[str, int] = field(default_factory=dict)
    caps: dict[str, tuple[int | None, str | None]] = field(default_factory=dict)

    # ---- what is there

    def of(self, owner: str, *states: str) -> list[Delivery]:
        """An owner's open deliveries in these states (any, if none is named), the most urgent first."""
        mine = (delivery for delivery in self.open.values() if delivery.owner == owner)
        return sorted((d for d in mine if not states or d.state in states), key=lambda d: d.rank)

    def plain_waiting(self, name: str) -> list[int]:
        """The seqs of what needs no ack, was neither pushed to nor fetched by a client, and has not expired."""
        mark = self.marks.get(name, self.head)
        return [
            seq
            for seq, kept in self.log.items()
            if seq > mark
            and name in kept.owners
            and not kept.sending.is_tracked
            and (kept.expires is None or kept.expires > self.now)
        ]

    def waiting(self, owner: str) -> int:
        """How much of an owner's counts against its cap."""
        plain = 0 if owner.startswith("queue:") else len(self.plain_waiting(owner))
        return plain + len(self.of(owner, WAITING, RESTING))

    # ---- in

    def send(self, sending: Sending, live: Iterable[str] = (), own_id: str = "", native: str = "") -> Answer:
        """Take a send. `live`: who is online. `own_id` is its id if it is delayed; `native` if it is not."""
        key = None if sending.key is None else (sending.sender, sending.key)
        if key is not None and key in self.keys:
            first, answer, _ = self.keys[key]
            if replace(first, require_ack=first.is_tracked) != replace(sending, require_ack=sending.is_tracked):
                return Answer("idempotency_key_reused")
            return replace(answer, duplicate=True, pushed_to=(), failures=())
        if sending.delay > 0:
            self.known.add(sending.sender)
            self.marks.setdefault(sending.sender, self.head)
            self.scheduled[own_id] = (self.now + sending.delay, sending)
            answer = Answer(states=tuple((owner, "scheduled") for owner in sending.owners), scheduled=True)
        else:
            answer = self._enter(sending, frozenset(live), native, is_native=True)
        if key is not None and answer.refusal is None:
            self.keys[key] = (sending, answer, self.now)
        return answer

    def _enter(self, sending: Sending, live: frozenset[str], id: str, *, is_native: bool) -> Answer:
        """Put a message into the log, for those of its owners who have room."""
        failures: list[tuple[str, str, str]] = []
        states: list[tuple[str, str]] = []
        refused = [owner for owner in sending.owners if not self._has_room(owner, sending, live, states, failures)]
        if len(refused) == len(sending.owners):
            return Answer("queue_full" if refused[0].startswith("queue:") else "inbox_full")
        self.head += 1
        seq = self.head
        if not is_native:
            self.places.setdefault(id, []).insert(0, seq)
        if sending.sender not in self.known:
            self.known.add(sending.sender)
            self.marks.setdefault(sending.sender, max(seq - 1, 0))
        owners = tuple(owner for owner in sending.owners if owner not in refused)
        expires = None if sending.ttl is None else self.now + sending.ttl
        self.log[seq] = Kept(id, sending, owners, expires)
        pushed = [
            owner for owner in owners if sending.is_tracked and self._open(id, owner, seq, sending, expires, live)
        ]
        states = [(owner, "refused") for owner in refused] + [pair for pair in states if pair[0] in owners]
        return Answer(None, seq, tuple(states), tuple(pushed), tuple(failures))

    def _has_room(
        self,
        owner: str,
        sending: Sending,
        live: frozenset[str],
        states: list[tuple[str, str]],
        failures: list[tuple[str, str, str]],
    ) -> bool:
        if owner.startswith("queue:"):
            states.append((owner, "sent"))
        else:
            self.marks.setdefault(owner, self.head)
            states.append((owner, "queued" if owner in self.known else "unknown"))
            if self._pushes_at_once(owner, live) if sending.is_tracked else live.issuperset(sending.owners):
                return True
        limit, on_full = self.caps.get(owner, (None, None))
        if self.waiting(owner) < (limit or (self.queue_limit if owner.startswith("queue:") else self.inbox_limit)):
            return True
        return on_full == "dead_letter" and self._set_aside_oldest(owner, failures)

    def _set_aside_oldest(self, owner: str, failures: list[tuple[str, str, str]]) -> bool:
        tracked = [delivery.seq for delivery in self.of(owner, WAITING, RESTING)]
        plain = [] if owner.startswith("queue:") else self.plain_waiting(owner)
        if not tracked and not plain:
            return False
        seq = min(tracked + plain)
        if seq in plain:
            self.marks[owner] = seq
            failures.append(self._bury(self.log[seq].id, owner, self.log[seq].sending, "overflow", None, ()))
        else:
            failures.append(self._die(self.open[owner, seq], "overflow", None))
        return True

    def _pushes_at_once(self, client: str, live: frozenset[str]) -> bool:
        return client in live and not self.of(client, WAITING, RESTING) and len(self.of(client, LEASED)) < self.window

    def _open(self, id: str, owner: str, seq: int, sending: Sending, expires: int | None, live: frozenset[str]) -> bool:
        rank = (self.now + AGING * CLASSES[sending.priority], seq)
        delivery = Delivery(id, owner, seq, rank, sending.ack_wait, expires)
        pushed = self._pushes_at_once(owner, live)
        self.open[owner, seq] = delivery
        if pushed:
            self._lease(delivery, owner, sending.ack_wait)
        return pushed

    # ---- out, into hands

    def lease(self, owner: str, slots: Sequence[tuple[str, int | None]]) -> list[Delivery]:
        """Give what waits to the slots (holder, ack wait), one each."""
        waiting = [d for d in self.of(owner, WAITING) if d.expires is None or d.expires > self.now]
        given: list[Delivery] = []
        for delivery, (holder, ack_wait) in zip(self._first_bytes(waiting[: len(slots)]), slots, strict=False):
            self._lease(delivery, holder, ack_wait or delivery.ack_wait)
            given.append(delivery)
        return given

    def push_waiting(self, client: str) -> list[Delivery]:
        """Push what waits for a client, up to its window."""
        room = self.window - len(self.of(client, LEASED))
        return self.lease(client, [(client, None)] * max(room, 0))

    def push_again(self, client: str) -> list[Delivery]:
        """What was pushed to a client, is not settled, and lives comes again: the same attempts, with fresh leases."""
        again = [d for d in self.of(client, LEASED) if d.expires is None or d.expires > self.now]
        for delivery in again:
            assert delivery.until is not None
            delivery.until = max(delivery.until, self.now + delivery.ack_wait)  # what was granted stays granted
        return again

    def _first_bytes(self, deliveries: list[Delivery]) -> list[Delivery]:
        size = 0
        for place, delivery in enumerate(deliveries):
            size += len(self.log[delivery.seq].sending.payload)
            if place and size > self.lease_bytes:
                return deliveries[:place]
        return deliveries

    def _lease(self, delivery: Delivery, holder: str, ack_wait: int) -> None:
        delivery.state, delivery.holder, delivery.lease_wait = LEASED, holder, ack_wait
        delivery.leased_at, delivery.until = self.now, self.now + ack_wait
        delivery.attempt += 1

    # ---- what recipients say

    def settle(
        self,
        verb: str,
        id: str,
        seq: int,
        client: str,
        attempt: int | None = None,
        delay: int | None = None,
        ack_wait: int | None = None,
        reason: str | None = None,
    ) -> Verdict:
        """Do what a client says of the message with this id; `seq` is the place that the id itself names, or 0."""
        found = self._find(verb, [*self.places.get(id, []), *([seq] if seq else [])], client, attempt)
        if isinstance(found, Verdict):
            return found
        begun = found.attempt
        # Who reads an inbox, and says something of what waits in it, has begun an attempt.
        current = begun + (found.state == WAITING and not found.owner.startswith("queue:"))
        if attempt is not None and attempt > current:
            return Verdict("bad_field")
        is_late_ack = verb == "ack" and attempt == begun
        if (attempt not in (None, current) and not is_late_ack) or not self._may_speak(found, verb, client, attempt):
            return Verdict("superseded", begun)
        found.attempt = begun if is_late_ack else current
        return self._do(found, verb, client, delay, ack_wait, reason)

    def _find(self, verb: str, seqs: list[int], client: str, attempt: int | None) -> Delivery | Verdict:
        """The delivery that a client speaks of: its own, or a queue's that it holds or held; or what became of it."""
        for seq in seqs:
            if (client, seq) in self.open:
                return self.open[client, seq]
        for seq in (seq for seq in seqs if seq in self.log):
            kept = self.log[seq]
            if not kept.sending.is_tracked:
                return Verdict("not_needed")
            is_queue = kept.owners[0].startswith("queue:")
            owner = kept.owners[0] if is_queue else client
            if (owner, seq) in self.open:
                delivery = self.open[owner, seq]
                if client in {delivery.client, *(past.consumer for past in delivery.history)}:
                    return delivery
            elif is_queue or client in kept.owners:
                return self._remembered(verb, self.settled.get((seq, owner)), client, attempt)
        if any(seq in self.log for seq in seqs):
            return Verdict("not_recipient")
        for seq in seqs:
            for (settled, owner), (outcome, last, consumer, _) in self.settled.items():
                if settled == seq and client in (owner, consumer):
                    return Verdict(outcome, last)
        return Verdict("unknown_message")

    def _remembered(
        self, verb: str, known: tuple[str, int, str, int] | None, client: str, attempt: int | None
    ) -> Verdict:
        if known is None:  # forgotten after a day
            return Verdict("acked" if verb == "ack" else "superseded", attempt or 0)
        outcome, last, consumer, _ = known
        if outcome == "dead":
            return Verdict("dead", last)
        again = verb == "ack" and consumer == client and attempt in (None, max(last, 1))
        return Verdict("acked" if again else "superseded", last)

    def _may_speak(self, delivery: Delivery, verb: str, client: str, attempt: int | None) -> bool:
        if not delivery.owner.startswith("queue:"):
            return delivery.state == LEASED or verb in ("ack", "nack", "reject")
        if delivery.state == LEASED:
            return delivery.client == client
        held_last = bool(delivery.history) and delivery.history[-1].consumer == client
        return verb == "ack" and attempt is not None and held_last

    def _do(
        self,
        delivery: Delivery,
        verb: str,
        client: str,
        delay: int | None,
        ack_wait: int | None,
        reason: str | None,
    ) -> Verdict:
        attempt, failure = delivery.attempt, None
        if verb == "ack":
            del self.open[delivery.owner, delivery.seq]
            self.settled[delivery.seq, delivery.owner] = ("acked", attempt, client, self.now)
            return Verdict("acked", attempt)
        if verb == "progress":
            assert delivery.leased_at is not None
            delivery.until = max(min(self.now + (ack_wait or delivery.lease_wait), delivery.leased_at + DAY), self.now)
            return Verdict("extended", attempt)
        if verb == "release":
            self._give_back(delivery, "released", reason, rest=0)
            return Verdict("released", attempt)
        if verb == "reject":
            self._note(delivery, "rejected", reason)
            return Verdict("rejected", attempt, self._die(delivery, "rejected", reason))
        if delivery.state == RESTING:
            return Verdict("nacked", attempt)
        failure = self._fail(delivery, "nacked", reason, self._backoff(delivery) if delay is None else delay)
        return Verdict("dead" if failure else "nacked", attempt, failure)

    def release_all(self, held: Iterable[tuple[str, int]], holder: str) -> None:
        """A queue's consumer says goodbye."""
        for place in held:
            if place in self.open and self.open[place].holder == holder:
                self._give_back(self.open[place], "released", None, rest=0)

    # ---- what time and want of room do

    def pass_judgement(self) -> list[tuple[str, str, str]]:
        """End the leases and rests that are over, bury what outlived its ttl, let in what is due. Who died comes back."""
        failures = []
        over = [d for d in self.open.values() if d.until is not None and d.until <= self.now]
        for delivery in over:
            if delivery.state == RESTING:
                delivery.state, delivery.until = WAITING, None
                continue
            assert delivery.leased_at is not None
            rest = delivery.leased_at + self._backoff(delivery) - self.now
            failures.append(self._fail(delivery, "lease_expired", None, rest))
        outlived = [d for d in self.open.values() if d.expires is not None and d.expires <= self.now]
        failures += [self._die(d, "expired", None) for d in outlived if d.state != LEASED]
        due = [own_id for own_id, (moment, _) in self.scheduled.items() if moment <= self.now]
        for own_id in sorted(due, key=lambda own_id: self.scheduled[own_id][0]):  # of one moment: as they were sent
            failures += self._let_in(own_id, self.scheduled.pop(own_id)[1])
        return [failure for failure in failures if failure is not None]

    def _let_in(self, id: str, sending: Sending) -> list[tuple[str, str, str]]:
        answer = self._enter(replace(sending, delay=0), frozenset(), id, is_native=False)
        refused = sending.owners if answer.refusal else [name for name, state in answer.states if state == "refused"]
        detail = "The inbox was full when the message became due."
        buried = [self._bury(id, name, sending, "overflow", None if answer.refusal else detail, ()) for name in refused]
        return [*answer.failures, *buried]

    def evict(self, max_bytes: int) -> list[tuple[str, str, str]]:
        """The log's cap: the oldest messages go, and what is open of them dies."""
        failures = []
        while sum(len(kept.sending.payload) for kept in self.log.values()) > max_bytes:
            seq = min(self.log)
            for owner in self.log[seq].owners:
                if (owner, seq) in self.open:
                    delivery = self.open[owner, seq]
                    if delivery.state == LEASED:
                        self._note(delivery, "evicted", None)
                    failures.append(self._die(delivery, "overflow", None))
            del self.log[seq]
            self.places = {own_id: [s for s in seqs if s > seq] for own_id, seqs in self.places.items()}
            self.lost_through = seq
        self.marks = {name: max(mark, self.lost_through) for name, mark in self.marks.items()}
        return failures

    def forget(self) -> None:
        """After a day a settled delivery and an idempotency key are forgotten."""
        self.settled = {place: fate for place, fate in self.settled.items() if fate[3] >= self.now - DAY}
        self.keys = {key: kept for key, kept in self.keys.items() if kept[2] >= self.now - DAY}

    # ---- dead letters

    def redrive(self, id: str, owner: str) -> bool:
        """Send a dead letter again. False: there is no room, and it stays."""
        letter = self.dead[id, owner]
        sending = replace(letter.sending, to=owner, ttl=None, delay=0, key=None)
        if self._enter(sending, frozenset(), id, is_native=False).refusal is not None:
            return False
        del self.dead[id, owner]
        return True

    # ---- below

    def _backoff(self, delivery: Delivery) -> int:
        return int(BACKOFF[min(delivery.failures, len(BACKOFF) - 1)] * (1 + JITTER * self.chance))

    def _fail(self, delivery: Delivery, outcome: str, reason: str | None, rest: int) -> tuple[str, str, str] | None:
        if delivery.failures + 1 == MAX_FAILURES:
            self._note(delivery, outcome, reason)
            return self._die(delivery, "max_attempts", reason)
        delivery.failures += 1
        self._give_back(delivery, outcome, reason, rest)
        return None

    def _give_back(self, delivery: Delivery, outcome: str, reason: str | None, rest: int) -> None:
        self._note(delivery, outcome, reason)
        delivery.state, delivery.until = (RESTING, self.now + rest) if rest > 0 else (WAITING, None)
        delivery.holder = delivery.leased_at = None

    def _note(self, delivery: Delivery, outcome: str, reason: str | None) -> None:
        consumer = delivery.client or delivery.owner
        line = Attempt(delivery.attempt, consumer, delivery.leased_at, self.now, outcome, reason)
        delivery.history = [*delivery.history, line][-20:]

    def _die(self, delivery: Delivery, reason: str, detail: str | None) -> tuple[str, str, str]:
        place = (delivery.owner, delivery.seq)
        del self.open[place]
        self.settled[delivery.seq, delivery.owner] = ("dead", delivery.attempt, delivery.client, self.now)
        sending = self.log[delivery.seq].sending
        return self._bury(delivery.id, delivery.owner, sending, reason, detail, tuple(delivery.history))

    def _bury(
        self, id: str, owner: str, sending: Sending, reason: str, detail: str | None, attempts: tuple[Attempt, ...]
    ) -> tuple[str, str, str]:
        self.dead[id, owner] = DeadLetter(sending, reason, detail, self.now, attempts)
        return (id, owner, reason)
