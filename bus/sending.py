"""Sends: accepted on the event loop, gathered until the end of the turn, handed to the writer, answered after the commit.

Plain ones that came together, as nearly all do under load, are a *burst*. What a message costs is mostly the calls and the
objects it takes, so a burst has one object for each, and its answers are made together. Whatever is to be said of a
single message of it (a refusal, what an extension stamped) goes the way of a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from bus.admission import Accept, Admission, refusal_of
from bus.backplane import Backplane
from bus.companions import Companions
from bus.counters import Counters
from bus.delivery.courier import Courier
from bus.errors import BusError, Malformed
from bus.events import Event, MessageRefused, MessageSent
from bus.health.vitals import Vitals
from bus.hub import Hub
from bus.message import REQUIRES_ACK, Epochs, Message, texts_of
from bus.own_ids import OwnIds
from bus.protocol import Draft
from bus.receipts import Receipt, deliver_us, fate, fate_of_ephemeral
from bus.storage import STORED, Burst, Group, Item, Outcome, Pending, Row

MAX_BURST = 500
"""Messages of one burst: a commit should hold a few."""

Settled = Callable[["Receipt | BusError"], None]


class Host(Protocol):
    """What sends need of the bus. All but the first three are there once it has started."""

    admission: Admission
    vitals: Vitals
    companions: Companions
    counters: Counters
    own_ids: OwnIds
    epochs: Epochs
    hub: Hub
    courier: Courier

    @property
    def backplane(self) -> Backplane: ...

    def emit(self, event: Event) -> None: ...
    def is_live(self, name: str) -> bool: ...
    def audience_size(self, message: Message) -> int: ...


class Sending:
    """Event loop only. `gathered` is what this turn brought, `rows` how many messages that is."""

    def __init__(self, bus: Host) -> None:
        self._bus = bus
        self._gathered: list[Item] = []
        self.rows = 0
        self.ephemeral_sent = 0

    def take(self) -> list[Item]:
        """What was gathered, for the writer."""
        gathered, self._gathered, self.rows = self._gathered, [], 0
        return gathered

    def _gather(self, item: Item, rows: int) -> None:
        if not self._gathered:
            self._bus.hub.kick()
        self._gathered.append(item)
        self.rows += rows

    # ---- one by one

    def publish(self, draft: Draft, settled: Settled, *, receipt: bool = True) -> None:
        """See `Bus.publish`."""
        pending = self._accept(draft, settled, receipt=receipt)
        if pending is not None:
            self._gather(pending, 1)

    def publish_group(self, drafts: Sequence[Draft], settled: Sequence[Settled]) -> None:
        """Accept several for one commit: all are stored, or none."""
        if any(draft.ephemeral for draft in drafts):
            raise Malformed("An atomic batch can't hold ephemeral messages.", code="ephemeral_conflict", field="atomic")
        accepted = [self._accept(draft, settle) for draft, settle in zip(drafts, settled, strict=True)]
        members = [pending for pending in accepted if pending is not None]
        if len(members) == len(drafts):
            self._gather(Group(members), len(members))
            return
        refusal = Malformed(
            "Another message of the atomic batch was refused; nothing was stored.", code="batch_refused"
        )
        for pending in members:
            pending.error = refusal
            self._settle(pending)

    def _accept(
        self, draft: Draft, settled: Settled, *, receipt: bool = True, lookers: Sequence[Accept] | None = None
    ) -> Pending | None:
        bus, message = self._bus, draft.message
        try:
            for accept in bus.admission.lookers if lookers is None else lookers:
                message = accept(message) or message
        except Exception as error:  # noqa: BLE001  # logged there
            self._refuse(message, refusal_of(error), settled)
            return None
        if draft.ephemeral:
            self._publish_ephemeral((message,))
            if receipt:
                recipients = self._fate_of_ephemeral(message, STORED)
                settled(Receipt(message.own_id.encode(), None, message.stamp_us, recipients))
            return None
        if bus.vitals.disk.is_on:
            self._refuse(message, bus.vitals.disk.refusal(), settled)
            return None
        rows: Sequence[Row] = bus.companions.rows_of(MessageSent(message)) if bus.companions.sent else ()
        names = message.names
        if message.terms is not None or message.flags:
            rows = [*rows, *draft.rows]
            if deliver_us(message) is not None:
                message.own_id = bus.own_ids.scheduled()
        there: tuple[str, ...] = ()
        if len(names) == 1:
            there = names if bus.is_live(names[0]) else ()
        elif names:
            there = tuple(filter(bus.is_live, names))
        live = there if message.flags & REQUIRES_ACK else ()
        present = bool(names) and len(there) == len(names)
        return Pending(message, self._settle, settled, draft.key, present, live, rows, len(names) // 10, receipt)

    def _refuse(self, message: Message, refusal: BusError, settled: Settled) -> None:
        self._bus.counters.add("messages_refused")
        self._bus.emit(MessageRefused(message.sender, refusal.code))
        settled(refusal)

    def _settle(self, pending: Pending) -> None:
        bus, settled = self._bus, pending.answer
        assert settled is not None
        if pending.error is not None:
            self._refuse(pending.message, pending.error, settled)
            return
        message, outcome = pending.message, pending.outcome
        assert outcome is not None
        if outcome.failures:
            bus.courier.tell_failures(outcome.failures)
        if not pending.receipt:
            return
        recipients = self._fate(message, outcome)
        if not outcome.scheduled:
            message_id = message.own_id.encode() if message.own_id else bus.epochs.id_of(message.seq)
            settled(Receipt(message_id, message.seq, message.stamp_us, recipients, outcome.duplicate))
            return
        due_us = deliver_us(message)
        own_id = message.own_id.encode()
        settled(
            Receipt(own_id, None, message.stamp_us, recipients, outcome.duplicate, scheduled=True, deliver_us=due_us)
        )

    def _publish_ephemeral(self, messages: Sequence[Message]) -> None:
        bus = self._bus
        self.ephemeral_sent += len(messages)
        bus.own_ids.ephemeral(messages)
        if bus.backplane.size > 1:
            texts_of(messages, bus.epochs)
            for message in messages:
                bus.backplane.share_ephemeral(message)
        bus.hub.deliver(messages)

    # ---- bursts

    def publish_burst(self, burst: Burst) -> None:
        """Accept a burst; its caller hears of each message, as of `publish`, by `heard` or `stored`."""
        rest: Burst | None = burst
        while rest is not None:
            rest = self._publish_head(rest)

    def _publish_head(self, burst: Burst) -> Burst | None:
        """Accept a burst up to the first message that is not plain, or not welcome, that one too; returns what is left."""
        bus = self._bus
        if bus.vitals.disk.is_on and not burst.ephemeral:
            for message, ref in zip(burst.messages, burst.refs, strict=True):
                self._refuse(message, bus.vitals.disk.refusal(), partial(burst.heard, ref))
            return None
        for at, message in enumerate(burst.messages):
            try:
                stamped = message
                for accept in bus.admission.lookers:
                    stamped = accept(stamped) or stamped
            except Exception as error:  # noqa: BLE001  # logged there
                self._gather_burst(_part(burst, 0, at))
                self._refuse(stamped, refusal_of(error), partial(burst.heard, burst.refs[at]))
                return _part(burst, at + 1, None)
            if stamped is not message:
                self._gather_burst(_part(burst, 0, at))
                heard, wanted = partial(burst.heard, burst.refs[at]), burst.refs[at] is not None
                pending = self._accept(Draft(stamped, burst.ephemeral), heard, receipt=wanted, lookers=())
                if pending is not None:
                    self._gather(pending, 1)
                return _part(burst, at + 1, None)
        self._gather_burst(burst)
        return None

    def _gather_burst(self, burst: Burst) -> None:
        """A burst was looked at."""
        bus, messages = self._bus, burst.messages
        if not messages:
            return
        if burst.ephemeral:
            self._publish_ephemeral(messages)
            self._answer(burst, self._fate_of_ephemeral)
            return
        if bus.companions.sent:
            burst.rows = {at: bus.companions.rows_of(MessageSent(message)) for at, message in enumerate(messages)}
        burst.weight = sum(len(message.payload) for message in messages)
        present, there = burst.present, False
        last: Sequence[str] | None = None
        for message in messages:
            if message.names is not last:
                last = message.names
                there = all(map(bus.is_live, last))
            present.append(there)
        burst.settled = self._settle_burst
        self._gather(burst, len(messages))

    def _settle_burst(self, burst: Burst) -> None:
        for at, error in burst.errors.items():
            self._refuse(burst.messages[at], error, partial(burst.heard, burst.refs[at]))
        for outcome in burst.outcomes.values():
            if outcome.failures:
                self._bus.courier.tell_failures(outcome.failures)
        self._answer(burst, self._fate)

    def _fate(self, message: Message, outcome: Outcome) -> bytes:
        return fate(message, outcome, self._bus.is_live, self._bus.audience_size)

    def _fate_of_ephemeral(self, message: Message, _: Outcome) -> bytes:
        return fate_of_ephemeral(message, self._bus.is_live, self._bus.audience_size)

    def _answer(self, burst: Burst, fate_of: Callable[[Message, Outcome], bytes]) -> None:
        """Tell what became of what was not refused, to whom it may concern. What has one address shares its text."""
        errors, outcomes = burst.errors, burst.outcomes
        refs, messages, fates = [], [], []
        names: Sequence[str] | None = None
        sender, known, text = "", STORED, b""
        for at, (ref, message) in enumerate(zip(burst.refs, burst.messages, strict=True)):
            if ref is None or at in errors:
                continue
            outcome = outcomes.get(at, STORED)
            if message.names is not names or outcome is not known or (not names and message.sender != sender):
                names, sender, known = message.names, message.sender, outcome
                text = fate_of(message, outcome)
            refs.append(ref)
            messages.append(message)
            fates.append(text)
        if refs:
            burst.stored(refs, messages, fates)


def _part(burst: Burst, start: int, stop: int | None) -> Burst:
    rest = slice(start, stop)
    return Burst(burst.messages[rest], burst.refs[rest], burst.heard, burst.stored, burst.ephemeral)
