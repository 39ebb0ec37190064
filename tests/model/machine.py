"""Random histories of the store beside the model: after every step both must show the same.

What one step does, it does to the product first; its answer and all that can be seen of the store are then compared
with the model's. Beside that stand invariants that need no model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import precondition, rule

from bus.delivery.dead_letters import Choice
from bus.errors import BusError
from bus.protocol import Settle
from bus.storage import MAKE_KNOWN, Group, Job, Pending, Transaction
from bus.storage.deliveries import Lease, Settled, Slot
from tests.model.choices import (
    CLIENTS,
    HOURS,
    QUEUES,
    clients,
    holders,
    owners,
    pauses,
    picks,
    priorities,
    queues,
    sendings,
    writers,
)
from tests.model.model import DAY, LEASED, SECOND, Answer, Delivery, Sending
from tests.model.product import Killed, answer_of, refusal_of, unheard, verdict_of
from tests.model.side_by_side import SideBySide, Step


class Histories(SideBySide):
    """The steps that a history is made of."""

    # ---- sends

    @rule(sending=sendings, writer=writers)
    def send(self, sending: Sending, writer: int) -> None:
        self._commit([self._sent(sending)], writer)

    @rule(batch=st.lists(sendings, min_size=2, max_size=4), writer=writers, atomic=st.booleans())
    def send_batch(self, batch: list[Sending], writer: int, atomic: bool) -> None:
        # What is plain and pushed with its commit is counted from the next commit on, so that here nobody can say.
        batch = [s for s in batch if s.is_tracked or (isinstance(s.to, str) and s.to not in self.live)]
        if atomic and batch:
            self._commit([self._sent_together(batch)], writer)
        else:
            self._commit([self._sent(sending) for sending in batch], writer)

    @rule(owner=owners, priorities=st.lists(priorities, min_size=3, max_size=5))
    def flood(self, owner: str, priorities: list[str]) -> None:
        """More at once than a client's window has, or a small inbox."""
        flood = [Sending("ann", owner, require_ack=True, priority=priority) for priority in priorities]
        self._commit([self._sent(sending) for sending in flood])

    @precondition(lambda self: self.model.keys)
    @rule(pick=picks, writer=writers)
    def send_again(self, pick: int, writer: int) -> None:
        """Repeat a send that had a key."""
        self.send(_picked([first for first, *_ in self.model.keys.values()], pick), writer)

    def _sent(self, sending: Sending) -> Step:
        self.own_ids += 1
        own_id, live = f"s{self.own_ids:04}", sorted(self.live)
        pending = self.product.pending(sending, live, own_id)

        def compare() -> None:
            got = answer_of(pending, sending)
            native = self.product.id_of(self.model.head + 1)
            assert got == self.model.send(sending, live, own_id, native)
            if got.refusal is None and not got.duplicate:
                self._accepted(sending, own_id if sending.delay else native, got)

        return Step(pending, compare)

    def _sent_together(self, batch: list[Sending]) -> Step:
        steps = [self._sent(sending) for sending in batch]
        members = [step.item for step in steps if isinstance(step.item, Pending)]

        def compare() -> None:
            trial = copy.deepcopy(self.model)
            live = sorted(self.live)
            refusals = [trial.send(sending, live, f"t{n}", f"t{n}").refusal for n, sending in enumerate(batch)]
            if first := next(filter(None, refusals), None):
                assert [refusal_of(member.error) for member in members] == [first] * len(members)
                return
            for step in steps:
                step.compare()

        return Step(Group(members), compare)

    def _accepted(self, sending: Sending, id: str, answer: Answer) -> None:
        self.ids.append(id)
        if sending.is_tracked:
            self.accepted |= {(id, owner) for owner, state in answer.states if state != "refused"}
        for name in answer.pushed_to:
            self._take(name, answer.seq, name)

    @precondition(lambda self: self.model.scheduled)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        own_id = _picked(sorted(self.model.scheduled), pick)
        self.product.do(lambda transaction: transaction.execute("DELETE FROM scheduled WHERE id = ?", (own_id,)))
        del self.model.scheduled[own_id]
        self.accepted = {place for place in self.accepted if place[0] != own_id}

    # ---- into hands

    @rule(name=clients)
    def connect(self, name: str) -> None:
        """What the courier does for a connection that turns live."""
        self.product.do(
            lambda transaction: transaction.execute(MAKE_KNOWN, (name, transaction.head, self.product.wall))
        )
        self.model.known.add(name)
        self.model.marks.setdefault(name, self.model.head)
        self.live.add(name)
        after, again = (-1, -1), list[int]()

        def run(transaction: Transaction) -> list[Lease]:
            return transaction.ledger.lease_again(name, 0, transaction.head, after)

        while leases := self.product.do(run):
            assert all(lease.again for lease in leases)
            again += [lease.message.seq for lease in leases]
            after = (leases[-1].due_key, again[-1])
        assert again == [delivery.seq for delivery in self.model.push_again(name)]
        self.push_waiting(name)

    @rule(name=clients)
    def disconnect(self, name: str) -> None:
        self.live.discard(name)

    @rule(name=clients)
    def push_waiting(self, name: str) -> None:
        if name in self.live:
            self._commit([self._pushed(name)])

    def _pushed(self, name: str) -> Step:
        def run(transaction: Transaction) -> list[Lease]:
            return transaction.ledger.lease_to_client(name)

        job = Job(run, unheard)
        return Step(job, lambda: self._compare_leases(job, self.model.push_waiting(name)))

    @rule(owner=queues, holder=holders, wanted=st.integers(1, 4), ack_wait=st.sampled_from((None, None, 2 * SECOND)))
    def claim(self, owner: str, holder: str, wanted: int, ack_wait: int | None) -> None:
        self._commit([self._claimed(owner, holder, wanted, ack_wait)])

    def _claimed(self, owner: str, holder: str, wanted: int, ack_wait: int | None) -> Step:
        def run(transaction: Transaction) -> list[Lease]:
            return transaction.ledger.lease(owner, [Slot(holder, ack_wait)] * wanted)

        job = Job(run, unheard)
        return Step(job, lambda: self._compare_leases(job, self.model.lease(owner, [(holder, ack_wait)] * wanted)))

    def _compare_leases(self, job: Job, expected: list[Delivery]) -> None:
        assert job.error is None
        leases: list[Lease] = job.value
        assert [(lease.message.seq, lease.attempt) for lease in leases] == [(d.seq, d.attempt) for d in expected]
        for lease in leases:
            self._take(lease.owner, lease.message.seq, lease.holder)

    @rule(name=clients)
    def fetch(self, name: str) -> None:
        """What is plain was read up to the end of the log."""
        run = "UPDATE clients SET mark = max(mark, ?) WHERE name = ?"
        self.product.do(lambda transaction: transaction.execute(run, (transaction.head, name)))
        if name in self.model.marks:
            self.model.marks[name] = max(self.model.marks[name], self.model.head)

    # ---- what recipients say

    @precondition(lambda self: self.model.open)
    @rule(
        pick=picks,
        verb=st.sampled_from(("ack", "ack", "nack", "nack", "nack", "progress", "release", "reject")),
        other=st.sampled_from((None, None, None, "bob", "cy", "eve")),
        attempt=st.sampled_from((0, 0, 0, -1, 1, None)),
        delay=st.sampled_from((None, None, 0, 20 * SECOND)),
        ack_wait=st.sampled_from((None, 5 * SECOND, DAY)),
    )
    def settle(
        self, pick: int, verb: str, other: str | None, attempt: int | None, delay: int | None, ack_wait: int | None
    ) -> None:
        """`attempt` counts from the current one."""
        held = [self.model.open[place] for place in sorted(self.hands)]
        delivery = _picked(held if held and pick % 4 else list(self.model.open.values()), pick)
        said = None if attempt is None else max(max(delivery.attempt, 1) + attempt, 1)
        self._commit([self._said(verb, delivery.id, other or _speaker(delivery), said, delay, ack_wait)])

    @precondition(lambda self: self.hands)
    @rule(pick=picks)
    def ask_for_a_day(self, pick: int) -> None:
        """The holder of a lease that is an hour old asks for a day more."""
        delivery = self.model.open[_picked(sorted(self.hands), pick)]
        self.wait(HOURS, reaped=False)
        self._commit([self._said("progress", delivery.id, delivery.client, None, None, DAY)])

    @precondition(lambda self: self.ids)
    @rule(
        pick=picks,
        verb=st.sampled_from(("ack", "nack", "reject", "release", "progress")),
        client=st.sampled_from(("bob", "cy", "eve")),
        attempt=st.sampled_from((1, None, 2, 3)),
    )
    def settle_late(self, pick: int, verb: str, client: str, attempt: int | None) -> None:
        """About any message that ever was, settled or not."""
        self._commit([self._said(verb, _picked(self.ids, pick), client, attempt, None, None)])

    def _said(
        self,
        verb: str,
        id: str,
        client: str,
        attempt: int | None,
        delay: int | None = None,
        ack_wait: int | None = None,
    ) -> Step:
        settle = Settle(verb, id, client, attempt, delay, ack_wait, "so" if verb in ("nack", "reject") else None)

        def run(transaction: Transaction) -> Settled | BusError:
            try:
                transaction.ledger.look_ahead([settle, settle])
                return transaction.ledger.settle(settle)
            except BusError as refusal:
                return refusal

        job = Job(run, unheard)

        def compare() -> None:
            assert job.error is None
            expected = self.model.settle(
                verb, id, self.product.epochs.seq_of(id) or 0, client, attempt, delay, ack_wait, settle.reason
            )
            assert verdict_of(job.value) == expected
            self._hear(id, job.value)

        return Step(job, compare)

    def _hear(self, id: str, settled: Settled | BusError) -> None:
        """Take what the product says for true: whose hands it left, and what is done."""
        if isinstance(settled, BusError) or not settled.owner:
            return
        if settled.status in ("acked", "nacked", "released", "rejected", "dead"):
            self.hands.pop((settled.owner, settled.seq), None)
        if settled.status == "acked":
            self.acked.add((id, settled.owner))

    @rule(holder=holders)
    def close_cleanly(self, holder: str) -> None:
        """A queue's consumer says goodbye."""
        held = [place for place, hand in self.hands.items() if hand == holder and place[0] in QUEUES]
        self.product.do(lambda transaction: transaction.ledger.release_all(held, holder))
        self.model.release_all(held, holder)
        for place in held:
            del self.hands[place]

    @rule(owner=owners, rounds=st.integers(1, 6), how=st.sampled_from(("nack", "rest", "expire")))
    def fail_stubbornly(self, owner: str, rounds: int, how: str) -> None:
        """A recipient fails and fails again: by nacks, with a rest that nobody waits for, or by letting the lease end."""
        for _ in range(rounds):
            if owner in QUEUES:
                self.claim(owner, "cy", 1, None)
            else:
                self.connect(owner)
            for delivery in self.model.of(owner, LEASED)[:1]:
                if how == "expire":
                    self._wait_until(delivery.until)
                    self._wait_until(delivery.until)
                else:
                    delay = 0 if how == "nack" else None
                    self._commit([self._said("nack", delivery.id, delivery.client, delivery.attempt, delay)])

    @rule(batch=st.lists(sendings, min_size=1, max_size=3), owner=queues, pick=picks, fails=st.booleans())
    def mix(self, batch: list[Sending], owner: str, pick: int, fails: bool) -> None:
        """Sends, verdicts and hand-outs in one commit, and perhaps a job among them that fails."""
        steps = [self._sent(sending) for sending in batch[:-1] if sending.is_tracked]
        steps += [self._pushed(name) for name in sorted(self.live)]
        if fails:
            steps.append(self._failed(owner))
        if self.model.open:
            delivery = _picked(list(self.model.open.values()), pick)
            steps.append(self._said("nack", delivery.id, _speaker(delivery), None, 0))
        steps.append(self._claimed(owner, "bob/1", 2, None))
        steps += [self._sent(sending) for sending in batch[-1:] if sending.is_tracked]
        self._commit(steps)

    def _failed(self, owner: str) -> Step:
        def run(transaction: Transaction) -> None:
            transaction.ledger.lease(owner, [Slot("cy")] * 9)
            transaction.append(self.product.pending(Sending("ann", owner, require_ack=True), (), "").message)
            raise ValueError("as it may happen")

        job = Job(run, unheard)
        return Step(job, lambda: _check(isinstance(job.error, ValueError)))

    # ---- time

    @rule(pause=pauses, reaped=st.booleans())
    def wait(self, pause: int, reaped: bool) -> None:
        self.product.now += pause
        self.model.now = self.product.now
        if reaped:
            self.reap()

    @rule(pick=st.integers(0, 2), short=st.sampled_from((0, 1, SECOND // 2)))
    def wait_for_deadline(self, pick: int, short: int) -> None:
        """Until the moment that one of the next deadlines comes, or a microsecond short of it."""
        moments = {d.until for d in self.model.open.values()} | {d.expires for d in self.model.open.values()}
        moments |= {due for due, _ in self.model.scheduled.values()}
        coming = sorted(moment for moment in moments if moment is not None and moment - short > self.model.now)
        if coming:
            self._wait_until(coming[min(pick, len(coming) - 1)] - short)

    @precondition(lambda self: any(delivery.expires for delivery in self.model.open.values()))
    @rule(pick=picks)
    def outlive(self, pick: int) -> None:
        """The end of a ttl comes, and somebody takes what waits before the reaper sees it."""
        delivery = _picked([delivery for delivery in self.model.open.values() if delivery.expires], pick)
        self.wait(max(delivery.expires - self.model.now, 0), reaped=False)
        if delivery.owner in QUEUES:
            self.claim(delivery.owner, "bob", 4, None)
        else:
            self.connect(delivery.owner)

    def _wait_until(self, moment: int | None) -> None:
        if moment is not None and moment > self.model.now:
            self.wait(moment - self.model.now, reaped=True)

    @rule()
    def reap(self) -> None:
        self.product.failures.clear()
        self.product.freed.clear()
        self.product.reap()
        assert sorted(self.product.failures) == sorted(self.model.pass_judgement())
        for owner, holder, seq in self.product.freed:
            assert self.hands.get((owner, seq)) == holder
        leased = {place for place, row in self.product.look().deliveries.items() if row[0] == LEASED}
        self.hands = {place: holder for place, holder in self.hands.items() if place in leased}

    @rule(skew=st.sampled_from((0, HOURS, -HOURS, 40 * DAY, -40 * DAY)))
    def set_wall_clock(self, skew: int) -> None:
        self.product.skew = skew

    @rule()
    def keep_house(self) -> None:
        """A day and a bit goes by for those who forget after a day."""
        self.wait(DAY + SECOND, reaped=True)
        self.product.keep_house()
        self.model.forget()

    # ---- room

    @rule(
        owner=owners, limit=st.sampled_from((None, 1, 2, 5)), on_full=st.sampled_from((None, "refuse", "dead_letter"))
    )
    def cap(self, owner: str, limit: int | None, on_full: str | None) -> None:
        self.product.do(lambda transaction: transaction.ledger.set_cap(owner, limit, on_full))
        self.model.caps[owner] = (limit, on_full)

    @rule(max_bytes=st.sampled_from((0, 4, 210, 500)))
    def evict(self, max_bytes: int) -> None:
        self.product.failures.clear()
        self.product.cap_log(max_bytes)
        assert sorted(self.product.failures) == sorted(self.model.evict(max_bytes))
        self.hands = {place: holder for place, holder in self.hands.items() if place in self.model.open}

    # ---- dead letters

    @precondition(lambda self: self.model.dead)
    @rule(pick=picks)
    def redrive(self, pick: int) -> None:
        letter, owner = _picked(sorted(self.model.dead), pick)
        done = self.product.redrive(Choice(owner=owner, id=letter), 10)
        assert done == self.model.redrive(letter, owner)

    @precondition(lambda self: self.model.dead)
    @rule(pick=picks)
    def purge(self, pick: int) -> None:
        letter, owner = _picked(sorted(self.model.dead), pick)
        assert self.product.purge(Choice(owner=owner, id=letter), 10) == 1
        del self.model.dead[letter, owner]
        self.purged.add((letter, owner))

    # ---- crashes

    @rule(how=st.sampled_from(("idle", "open", "job")), sending=sendings)
    def kill(self, how: str, sending: Sending) -> None:
        """The process ends: with nothing under way, in an open transaction, or in the middle of a commit."""
        if how == "open":
            self.product.leave_open()
        if how == "job":
            job = Job(self._harm, unheard)
            with pytest.raises(Killed):
                self.product.commit([self._sent(sending).item, job])
        self.live.clear()
        self.product.kill()

    def _harm(self, transaction: Transaction) -> None:
        for owner in (*CLIENTS, *QUEUES):
            transaction.ledger.lease(owner, [Slot("eve")] * 3)
        transaction.ledger.flush()
        raise Killed

    @rule(sending=sendings, writer=writers)
    def fail_commit(self, sending: Sending, writer: int) -> None:
        """A whole commit fails by a fault that nobody foresaw, and the process goes on."""
        with pytest.raises(Killed):
            self.product.commit([self._sent(sending).item, Job(self._harm, unheard)], writer)


def _check(holds: bool) -> None:
    assert holds


def _picked(choices: Sequence[Any], pick: int) -> Any:
    return choices[pick % len(choices)]


def _speaker(delivery: Delivery) -> str:
    """Who would speak of a delivery: its holder, else its last, else its owner."""
    if delivery.state == LEASED:
        return delivery.client
    if delivery.owner not in QUEUES:
        return delivery.owner
    return delivery.history[-1].consumer if delivery.history else "bob"
