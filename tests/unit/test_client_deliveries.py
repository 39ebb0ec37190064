"""What a client remembers of deliveries: by itself, with a clock that the test turns; and what a mailbox reserves."""

from __future__ import annotations

import msgspec
import pytest

from bus.client.deliveries import KEEP_SECONDS, LONGEST_WAIT_SECONDS, Deliveries
from bus.client.mailbox import Mailbox
from bus.client.received import Message, message_of
from bus.client.rest import address_of
from tests.unit.scripted_bus import EPOCH, at, message


class Clock:
    """Monotonic seconds that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tracked(seq: int, **fields: object) -> Message:
    """A message that needs an ack."""
    return message_of(msgspec.json.encode(message(seq, **{"requires_ack": True, **fields})))


def plain(seq: int, **fields: object) -> Message:
    """A message that needs none."""
    return tracked(seq, requires_ack=False, **fields)


def ids(frames: list[bytes]) -> list[str]:
    """The messages that frames are about."""
    return [msgspec.json.decode(frame)["message_id"] for frame in frames]


def test_a_redriven_message_begins_a_life_of_its_own() -> None:
    deliveries = Deliveries()
    first = tracked(1, id="m")
    assert not deliveries.is_repeat(first)
    deliveries.settle(first, "reject", {})
    again = tracked(8, id="m", redriven=True)
    assert not deliveries.is_repeat(again)
    assert deliveries.is_repeat(tracked(8, id="m", redriven=True, redelivered=True)), "while it is being handled"
    assert deliveries.answer_again(again) is None
    deliveries.settle(again, "ack", {})
    assert deliveries.answer_again(tracked(8, id="m", redriven=True, redelivered=True)) is not None
    assert not deliveries.is_repeat(tracked(9, id="m", redriven=True)), "redriven once more"


def test_memory_is_bounded() -> None:
    deliveries = Deliveries(limit=3)
    for seq in range(1, 6):
        deliveries.is_repeat(one := plain(seq))
        deliveries.settle(one, "ack", {})
        deliveries.keep(b"%d" % seq)
    assert deliveries.take_unsaid() == [b"3", b"4", b"5"]
    assert deliveries.take_unsaid() == []
    assert not deliveries.is_repeat(plain(1))
    assert deliveries.is_repeat(plain(5))


def test_leases_are_extended_until_they_are_settled_or_waited_too_long() -> None:
    clock = Clock()
    deliveries = Deliveries(clock=clock)
    handled, waits, acked = tracked(1), tracked(2), tracked(3)
    for each in (handled, waits, acked, plain(4)):
        deliveries.is_repeat(each)
    deliveries.hold(handled)
    deliveries.hold(plain(4))
    deliveries.settle(acked, "ack", {})
    assert deliveries.extensions() == []
    clock.now = deliveries.next_due
    assert ids(deliveries.extensions()) == ["msg-1", "msg-2"]
    assert deliveries.extensions() == []
    assert deliveries.next_due == clock.now + KEEP_SECONDS
    clock.now += LONGEST_WAIT_SECONDS
    assert ids(deliveries.extensions()) == ["msg-1"]
    deliveries.let_go(handled)
    clock.now += KEEP_SECONDS
    assert deliveries.extensions() == []
    assert deliveries.next_due == float("inf")


def test_replies_that_a_request_took_are_not_taken_again_and_the_others_can_be() -> None:
    mailbox = Mailbox(10)
    mailbox.stand_at(at(0))
    mailbox.reserve("c")
    for seq, correlation_id in ((1, "c"), (2, "other"), (3, "c")):
        mailbox.put(plain(seq, correlation_id=correlation_id), EPOCH, timeout=0)
    entry = mailbox.take(lambda _: True, timeout=0)
    assert entry is not None
    assert entry.message.seq == 2
    mailbox.done(entry)
    assert mailbox.take(lambda _: True, timeout=0) is None
    assert mailbox.handed == at(0)
    mailbox.unreserve("c", {"msg-1"})
    assert mailbox.handed == at(2)
    late = mailbox.take(lambda _: True, timeout=0)
    assert late is not None
    assert late.message.seq == 3


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:5001", True),
        ("http://127.0.0.1:5001", True),
        ("http://127.8.9.1", True),
        ("http://[::1]:5001", True),
        ("http://127.example.com", False),
        ("http://localhost.example.com", False),
        ("http://10.0.0.1", False),
    ],
)
def test_only_this_machine_is_reached_without_a_proxy(url: str, here: bool) -> None:
    assert address_of(url).is_loopback is here
