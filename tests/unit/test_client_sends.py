"""What a client sends, against a bus that the test scripts: each once, in order, and nothing behind the caller's back."""

from __future__ import annotations

from typing import Any

import pytest

from bus.client import Offline, QueueFull, ReceiptTimeout
from bus.errors import InboxFull, Malformed, TooLarge
from tests.unit.scripted_bus import PATIENCE_SECONDS, Gathered, Peer, ScriptedBus, Start


def refs(peer: Peer, count: int) -> list[dict[str, Any]]:
    """The next `count` frames that the client sends."""
    return [peer.hear() for _ in range(count)]


def test_a_send_returns_the_receipt_that_carries_its_ref(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    futures = [client.send_nowait("writer", n, type="note", thread_id="t") for n in range(2)]
    heard = refs(peer, 2)
    assert [(f["to"], f["msg_type"], f["payload"], f["thread_id"]) for f in heard] == [
        ("writer", "note", 0, "t"),
        ("writer", "note", 1, "t"),
    ]
    peer.answer(heard[1], 8)
    peer.answer(heard[0], 7)
    assert [future.result(PATIENCE_SECONDS).seq for future in futures] == [7, 8]


def test_what_has_no_receipt_is_sent_again_in_order_with_the_same_keys(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    futures = [client.send_nowait("writer", n) for n in range(4)]
    heard = refs(first, 4)
    first.answer(heard[1], 1)
    assert futures[1].result(PATIENCE_SECONDS).message_id == "msg-1"
    first.cut()
    again = refs(second := bus.accept_confirmed(), 3)
    keys = [frame["idempotency_key"] for frame in heard]
    assert len(set(keys)) == 4
    assert [frame["idempotency_key"] for frame in again] == [keys[0], keys[2], keys[3]]
    assert [frame["payload"] for frame in again] == [0, 2, 3]
    for seq, frame in enumerate(again, 2):
        second.answer(frame, seq)
    assert [future.result(PATIENCE_SECONDS).seq for future in futures] == [2, 1, 3, 4]
    assert client.flush(0) == 0


def test_offline_sends_are_queued_and_leave_before_later_ones(bus: ScriptedBus, start: Start) -> None:
    client = start()
    futures = [client.send_nowait("writer", n) for n in range(3)]
    assert not client.is_connected
    assert not any(future.done() for future in futures)
    peer = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    client.send_nowait("writer", 3)
    assert [frame["payload"] for frame in refs(peer, 4)] == [0, 1, 2, 3]


def test_offline_sends_are_refused_where_that_was_chosen(bus: ScriptedBus, start: Start) -> None:
    client = start(offline="raise")
    with pytest.raises(Offline, match="nothing was sent"):
        client.send("writer", 1)
    first = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    future = client.send_nowait("writer", 2)
    key = first.hear()["idempotency_key"]
    first.cut()
    with pytest.raises(Offline, match="may be stored") as lost:
        future.result(PATIENCE_SECONDS)
    assert lost.value.idempotency_key == key
    second = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    client.send_nowait("writer", 3, idempotency_key=key)
    assert second.hear()["payload"] == 3


def test_the_queue_is_bounded(start: Start) -> None:
    client = start(max_queued=2)
    client.send_nowait("writer", 1)
    client.send_nowait("writer", 2)
    with pytest.raises(QueueFull, match="2 sends"):
        client.send_nowait("writer", 3)


def test_a_send_that_timed_out_is_not_sent_behind_the_callers_back(bus: ScriptedBus, start: Start) -> None:
    client = start()
    with pytest.raises(ReceiptTimeout, match="Nothing was sent"):
        client.send("writer", 1, timeout=0)
    client.send_nowait("writer", 2)
    peer = bus.accept_confirmed()
    heard = peer.hear()
    assert heard["payload"] == 2
    client.connect(PATIENCE_SECONDS)
    with pytest.raises(ReceiptTimeout, match="may be stored") as late:
        client.send("writer", 3, timeout=0)
    assert late.value.idempotency_key == peer.hear()["idempotency_key"]
    peer.cut()
    assert refs(bus.accept_confirmed(), 1) == [heard]


def test_refusals_come_as_the_errors_of_the_tree(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    futures = [client.send_nowait("writer", n) for n in range(2)]
    first, second = refs(peer, 2)
    peer.say(type="error", ref=first["ref"], code="inbox_full", error="The inbox is full.", retry_after_seconds=2)
    peer.say(type="error", ref=second["ref"], code="bad_name", error="A bad name.", field="to")
    with pytest.raises(InboxFull, match="inbox is full") as full:
        futures[0].result(PATIENCE_SECONDS)
    assert full.value.retry_after_seconds == 2
    with pytest.raises(Malformed, match="bad name") as bad:
        futures[1].result(PATIENCE_SECONDS)
    assert (bad.value.code, bad.value.field) == ("bad_name", "to")


def test_what_the_server_can_not_store_now_is_sent_again_on_the_same_connection(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    future = client.send_nowait("writer", 1)
    heard = peer.hear()
    peer.say(type="error", ref=heard["ref"], code="unavailable", error="Not now.", retry_after_seconds=0)
    assert peer.hear() == heard
    peer.answer(heard, 1)
    assert future.result(PATIENCE_SECONDS).seq == 1


def test_a_message_too_large_fails_alone(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    small, large = client.send_nowait("writer", 1), client.send_nowait("writer", "x" * 1000)
    refs(first, 2)
    first.close(1009, "A message may have at most 500 bytes.")
    with pytest.raises(TooLarge, match="500 bytes"):
        large.result(PATIENCE_SECONDS)
    second = bus.accept_confirmed()
    second.answer(second.hear(), 1)
    assert small.result(PATIENCE_SECONDS).seq == 1


def test_an_ephemeral_send_has_no_key_is_not_repeated_and_is_dropped_offline(bus: ScriptedBus, start: Start) -> None:
    client = start()
    receipt = client.send("writer", "typing", ephemeral=True)
    assert (receipt.message_id, receipt.seq, receipt.recipients[0].state) == (None, None, "dropped")
    first = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    lost, kept = client.send_nowait("writer", "typing", ephemeral=True), client.send_nowait("writer", "text")
    ephemeral, durable = refs(first, 2)
    assert ephemeral["ephemeral"] is True
    assert "idempotency_key" not in ephemeral
    first.cut()
    with pytest.raises(Offline, match="not sent again"):
        lost.result(PATIENCE_SECONDS)
    assert bus.accept_confirmed().hear() == durable
    assert not kept.done()


def test_payloads_that_are_no_json_and_unknown_options_are_refused_before_anything_is_sent(start: Start) -> None:
    client = start()
    with pytest.raises(TypeError, match="object"):
        client.send("writer", object())
    with pytest.raises(TypeError, match="prioritty"):
        client.send("writer", 1, prioritty=1)  # type: ignore[call-arg]
    assert client.flush(0) == 0


def test_waiting_for_a_receipt_on_the_readers_thread_is_an_error(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    errors = Gathered()

    def send_again(_: object) -> None:
        with pytest.raises(RuntimeError, match="send_nowait") as error:
            client.send("writer", 2)
        errors(error.value)

    client.send_nowait("writer", 1).add_done_callback(send_again)
    peer.answer(peer.hear(), 1)
    assert "own thread" in str(errors.next())
