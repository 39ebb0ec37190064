"""What a client says about messages that need an ack, against a bus that the test scripts."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bus.client import Failed, Message
from bus.client import deliveries as deliveries_module
from tests.unit.scripted_bus import PATIENCE_SECONDS, Gathered, ScriptedBus, Start


def said(verb: str, seq: int, attempt: int = 1, **fields: object) -> dict[str, object]:
    """The frame that says something about the message of a seq."""
    return {"type": verb, "message_id": f"msg-{seq}", "attempt": attempt, **fields}


# ---- handlers


def test_a_message_is_acked_only_after_its_handler_succeeded_and_nacked_when_it_failed(
    bus: ScriptedBus, start: Start
) -> None:
    client = start()
    entered, leave = threading.Event(), threading.Event()

    @client.on("task")
    def work(message: Message) -> None:
        entered.set()
        assert leave.wait(PATIENCE_SECONDS)
        if message.payload == "bad":
            raise ValueError

    peer = bus.accept_confirmed()
    peer.push(1, type="task", requires_ack=True)
    assert entered.wait(PATIENCE_SECONDS)
    client.send_nowait("writer", "while it works")
    assert peer.hear()["type"] == "send"
    leave.set()
    assert peer.hear() == said("ack", 1)
    peer.push(2, type="task", requires_ack=True, payload="bad")
    peer.push(3, type="task")
    peer.push(4, type="task", requires_ack=True, attempt=3)
    assert peer.hear() == said("nack", 2, reason="ValueError")
    assert peer.hear() == said("ack", 4, attempt=3)


def test_what_a_handler_settled_by_hand_stays_so(bus: ScriptedBus, start: Start) -> None:
    client = start()
    verbs = iter(["nack", "release", "reject", "progress"])

    @client.on("task")
    def work(message: Message) -> None:
        match next(verbs):
            case "nack":
                message.nack(delay=7)
                raise ValueError
            case "release":
                message.release()
            case "reject":
                message.reject("no such file")
            case "progress":
                message.progress(60)

    peer = bus.accept_confirmed()
    for seq in (1, 2, 3, 4):
        peer.push(seq, type="task", requires_ack=True)
    assert [peer.hear() for _ in range(5)] == [
        said("nack", 1, delay=7),
        said("release", 2),
        said("reject", 3, reason="no such file"),
        said("progress", 4, ack_wait=60),
        said("ack", 4),
    ]


def test_without_auto_ack_nothing_is_said_that_the_program_did_not_say(bus: ScriptedBus, start: Start) -> None:
    client = start(auto_ack=False)

    @client.on("task")
    def work(message: Message) -> None:
        if message.seq == 1:
            raise ValueError
        if message.seq == 3:
            message.ack()

    peer = bus.accept_confirmed()
    for seq in (1, 2, 3):
        peer.push(seq, type="task", requires_ack=True)
    assert peer.hear() == said("ack", 3)


# ---- receive and iteration


def test_what_was_received_is_acked_by_hand(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    for seq in (1, 2):
        peer.push(seq, requires_ack=True)
    first, second = client.receive(PATIENCE_SECONDS), client.receive(PATIENCE_SECONDS)
    assert second.ack() is None
    client.ack(first)
    assert [peer.hear(), peer.hear()] == [said("ack", 2), said("ack", 1)]


def test_iterating_acks_the_message_before_when_the_next_is_asked_for(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    for seq in (1, 2, 3, 4):
        peer.push(seq, requires_ack=seq != 2)
    seqs = []
    for message in client:
        seqs.append(message.seq)
        if message.seq == 3:
            message.nack()
        if message.seq == 4:
            break
    client.send_nowait("writer", "behind it")
    assert seqs == [1, 2, 3, 4]
    assert [peer.hear(), peer.hear()] == [said("ack", 1), said("nack", 3)]
    assert peer.hear()["type"] == "send", "breaking off acks nothing"


def test_iterating_without_auto_ack_acks_nothing(bus: ScriptedBus, start: Start) -> None:
    client = start(auto_ack=False)
    peer = bus.accept_confirmed()
    for seq in (1, 2):
        peer.push(seq, requires_ack=True)
    messages: Iterator[Message] = iter(client)
    next(messages)
    next(messages).ack()
    assert peer.hear() == said("ack", 2)


def test_plain_messages_are_never_acked(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    peer.push(1)
    message = client.receive(PATIENCE_SECONDS)
    client.ack(message)
    assert message.nack() == "not_needed"
    client.send_nowait("writer", "next")
    assert peer.hear()["type"] == "send"


# ---- repeats, and connections that break


def test_what_was_acked_is_acked_again_and_not_handled_again(bus: ScriptedBus, start: Start) -> None:
    client = start()
    handled = Gathered()
    client.on("task", lambda message: handled((message.seq, message.attempt)))
    first = bus.accept_confirmed()
    first.push(1, type="task", requires_ack=True)
    assert first.hear() == said("ack", 1)
    first.cut()
    second = bus.accept_confirmed()
    second.push(1, type="task", requires_ack=True, redelivered=True)
    second.push(1, type="task", requires_ack=True, redelivered=True, attempt=2)
    second.push(2, type="task", requires_ack=True)
    assert [second.hear() for _ in range(3)] == [said("ack", 1), said("ack", 1, attempt=2), said("ack", 2)]
    assert [handled.next(), handled.next()] == [(1, 1), (2, 1)]
    assert handled.is_empty


def test_what_failed_is_handled_again_as_the_next_attempt_and_refused_again_as_this_one(
    bus: ScriptedBus, start: Start
) -> None:
    client = start()
    handled = Gathered()

    @client.on("task")
    def work(message: Message) -> None:
        handled(message.attempt)
        if message.attempt == 1:
            message.nack(delay=1)

    first = bus.accept_confirmed()
    first.push(1, type="task", requires_ack=True)
    assert first.hear() == said("nack", 1, delay=1)
    first.cut()
    second = bus.accept_confirmed()
    second.push(1, type="task", requires_ack=True, redelivered=True)
    assert second.hear() == said("nack", 1, delay=1)
    second.push(1, type="task", requires_ack=True, redelivered=True, attempt=2)
    assert second.hear() == said("ack", 1, attempt=2)
    assert [handled.next(), handled.next()] == [1, 2]
    assert handled.is_empty


def test_what_was_released_may_come_again_as_the_same_attempt(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    peer.push(1, requires_ack=True)
    client.receive(PATIENCE_SECONDS).release()
    assert peer.hear() == said("release", 1)
    peer.push(1, requires_ack=True, redelivered=True)
    assert client.receive(PATIENCE_SECONDS).redelivered


def test_what_is_being_handled_when_the_connection_breaks_is_not_handled_twice(bus: ScriptedBus, start: Start) -> None:
    client = start()
    handled, leave = Gathered(), threading.Event()

    @client.on("task")
    def work(message: Message) -> None:
        handled(message.seq)
        assert leave.wait(PATIENCE_SECONDS)

    first = bus.accept_confirmed()
    first.push(1, type="task", requires_ack=True)
    assert handled.next() == 1
    first.cut()
    second = bus.accept_confirmed()
    second.push(1, type="task", requires_ack=True, redelivered=True)
    second.push(2)
    assert client.receive(PATIENCE_SECONDS).seq == 2
    leave.set()
    assert second.hear() == said("ack", 1)
    assert handled.is_empty


def test_an_ack_without_a_connection_is_said_on_the_next(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    first.push(1, requires_ack=True, to="queue:jobs")
    message = client.receive(PATIENCE_SECONDS)
    assert message.queue == "jobs"
    first.cut()
    second = bus.accept()
    message.ack()
    second.confirm()
    assert second.hear() == said("ack", 1)


def test_an_attempt_that_waited_while_an_older_one_was_acked_is_acked_and_not_handed_out(
    bus: ScriptedBus, start: Start
) -> None:
    client = start()
    peer = bus.accept_confirmed()
    peer.push(1, requires_ack=True)
    first = client.receive(PATIENCE_SECONDS)
    peer.push(1, requires_ack=True, attempt=2, redelivered=True)
    peer.push(2)
    assert client.receive(PATIENCE_SECONDS, type="message").attempt == 2
    peer.push(1, requires_ack=True, attempt=3, redelivered=True)
    peer.push(3, type="last")
    client.on("last", last := Gathered())
    assert last.next().seq == 3
    first.ack()
    assert client.receive(PATIENCE_SECONDS).seq == 2
    peer.push(4)
    assert client.receive(PATIENCE_SECONDS).seq == 4
    assert [peer.hear(), peer.hear()] == [said("ack", 1), said("ack", 1, attempt=3)]


# ---- leases


def test_leases_are_extended_while_messages_wait_and_while_they_are_handled(
    bus: ScriptedBus, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "KEEP_SECONDS", 0.02)
    client = start()
    leave = threading.Event()
    client.on("task", lambda _: leave.wait(PATIENCE_SECONDS))
    peer = bus.accept_confirmed()
    peer.push(1, type="task", requires_ack=True)
    peer.push(2, type="task", requires_ack=True)
    extended = [peer.hear()]
    while {frame["message_id"] for frame in extended} != {"msg-1", "msg-2"}:
        extended.append(peer.hear())
    assert {frame["type"] for frame in extended} == {"progress"}
    leave.set()
    heard = peer.hear()
    while heard["type"] == "progress":
        heard = peer.hear()
    assert heard == said("ack", 1)


def test_a_lease_is_the_programs_business_after_receive(
    bus: ScriptedBus, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "KEEP_SECONDS", 0.02)
    client = start()
    peer = bus.accept_confirmed()
    peer.push(1, requires_ack=True)
    peer.push(2, requires_ack=True)
    received = client.receive(PATIENCE_SECONDS)
    client.send_nowait("writer", "a mark")
    while peer.hear()["type"] == "progress":
        pass  # What was said before it was taken; one more may be on its way.
    assert {frame["message_id"] for frame in [peer.hear() for _ in range(6)][1:]} == {"msg-2"}
    received.progress()
    heard = peer.hear()
    while heard["message_id"] == "msg-2":
        heard = peer.hear()
    assert heard == said("progress", 1)


def test_holding_keeps_the_lease_of_what_was_received(
    bus: ScriptedBus, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "KEEP_SECONDS", 0.02)
    client = start()
    peer = bus.accept_confirmed()
    peer.push(1, requires_ack=True)
    with client.holding(client.receive(PATIENCE_SECONDS)) as message:
        assert [peer.hear() for _ in range(3)] == [said("progress", 1)] * 3
        assert not message.is_settled
    client.send_nowait("writer", "behind it")
    heard = peer.hear()
    while heard["type"] == "progress":
        heard = peer.hear()
    assert heard["type"] == "send"


# ---- what becomes of sends


def test_a_sender_hears_what_failed(bus: ScriptedBus, start: Start) -> None:
    client = start()
    failures = Gathered()
    client.on_failed(failures)
    bus.accept_confirmed().say(type="failed", message_id="msg-9", recipient="queue:jobs", reason="max_attempts")
    assert failures.next() == Failed("msg-9", "queue:jobs", "max_attempts")
