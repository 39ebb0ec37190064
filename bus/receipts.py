"""Receipts: what a sender is answered, and what happens to its message for each recipient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from bus.message import Epochs, Message, audience_of, iso
from bus.storage import Outcome


class Receipt(msgspec.Struct, gc=False):
    """The answer to a send. `message_id` is ASCII; `recipients` is JSON: what happens, for each named recipient.

    `seq` is None for an ephemeral message and for one that waits for its time; that one has `deliver_us`. Times in
    microseconds since 1970.
    """

    message_id: bytes
    seq: int | None
    stamp_us: int
    recipients: bytes
    duplicate: bool = False
    scheduled: bool = False
    deliver_us: int | None = None

    def members(self) -> bytes:
        """The members of its JSON object that a frame and a body have in common."""
        if self.seq is not None and not self.duplicate:
            return b'"message_id":"%b","seq":%d,"recipients":%b' % (self.message_id, self.seq, self.recipients)
        tail = b',"duplicate":true' if self.duplicate else b""
        if self.deliver_us is not None:
            tail += b',"deliver_at":"%b"' % iso(self.deliver_us)
        seq = b"null" if self.seq is None else b"%d" % self.seq
        return b'"message_id":"%b","seq":%b,"recipients":%b%b' % (self.message_id, seq, self.recipients, tail)


def members_of(messages: Sequence[Message], fates: Sequence[bytes], epochs: Epochs) -> list[bytes]:
    """As `Receipt.members`, of messages that are all in the log since the same commit, or all ephemeral."""
    if messages[0].own_id:
        return [
            b'"message_id":"%b","seq":null,"recipients":%b' % (message.own_id.encode(), fate)
            for message, fate in zip(messages, fates, strict=True)
        ]
    prefix = epochs.prefix_of(messages[0].seq)
    return [
        b'"message_id":"%b%012x","seq":%d,"recipients":%b' % (prefix, (seq := message.seq), seq, fate)
        for message, fate in zip(messages, fates, strict=True)
    ]


def fate(message: Message, outcome: Outcome, is_live: Callable[[str], bool], online: Callable[[Message], int]) -> bytes:
    """The JSON of `recipients`, after the commit. `online(message)` counts who hears what names nobody."""
    if outcome.answer:
        return outcome.answer
    if outcome.scheduled:
        return _states((name, "scheduled") for name in message.names or (audience_of(message),))
    if len(message.names) == 1 and not outcome.refused:
        name = message.names[0]
        state = b"delivered" if is_live(name) else b"unknown" if outcome.unknown else b"queued"
        return b'[{"client":"%b","state":"%b"}]' % (name.encode(), state)
    if not message.names:
        return b'[{"client":"%b","state":"sent","online":%d}]' % (audience_of(message).encode(), online(message))
    states = [(name, "refused") for name in outcome.refused]
    states += [
        (name, "delivered" if is_live(name) else "unknown" if name in outcome.unknown else "queued")
        for name in message.names
    ]
    return _states(states)


def fate_of_ephemeral(message: Message, is_live: Callable[[str], bool], online: Callable[[Message], int]) -> bytes:
    """As `fate`, of what is never stored."""
    if not message.names:
        return fate(message, Outcome(), is_live, online)
    return _states((name, "delivered" if is_live(name) else "dropped") for name in message.names)


def _states(states: Iterable[tuple[str, str]]) -> bytes:
    return msgspec.json.encode([{"client": name, "state": state} for name, state in states])


def deliver_us(message: Message) -> int | None:
    """When a delayed message is to enter the log, as a time of day."""
    terms = message.terms
    if terms is None or (terms.deliver_us is None and terms.delay_us is None):
        return None
    return terms.deliver_us if terms.deliver_us is not None else message.stamp_us + (terms.delay_us or 0)
