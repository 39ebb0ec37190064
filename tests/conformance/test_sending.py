"""Sending and receiving: receipts, what recipients see, order, batches, idempotency, ephemeral messages."""

from __future__ import annotations

import re
import time

import pytest

from tests.conformance.remote import CURSOR, MESSAGE_ID, TIME, Frame, Remote, eventually

ALWAYS = {"id", "seq", "from", "to", "type", "payload", "timestamp", "requires_ack"}
PAYLOADS = [None, True, 0, -1.5, 1e300, 2**63, "", "שלום 🌍 <b>'; DROP TABLE</b> \u0000", [], {}, {"a": [{"b": None}]}]


def states(receipt: Frame) -> dict[str, str]:
    """What happens to a message, by recipient."""
    return {entry["client"]: entry["state"] for entry in receipt["recipients"]}


def test_a_send_is_answered_with_a_receipt(remote: Remote) -> None:
    receipt = remote.send(remote.name(), remote.name("nobody"), 1)
    assert receipt["status"] == "sent"
    assert re.fullmatch(MESSAGE_ID, receipt["message_id"])
    assert re.fullmatch(TIME, receipt["timestamp"])
    assert receipt["seq"] > 0


def test_the_receipt_says_what_happens_for_each_recipient(remote: Remote) -> None:
    sender, online, offline, unknown = (remote.name(what) for what in ("sender", "online", "offline", "unknown"))
    remote.connect(offline).close()
    eventually(lambda: not remote.get(f"/api/clients/{offline}").body["online"])
    with remote.connect(online):
        # Another process of the bus may hear of the connection a moment later.
        eventually(lambda: states(remote.send(sender, online)) == {online: "delivered"})
        fate = states(remote.send(sender, [online, offline, unknown]))
    assert fate in ({online: state, offline: "queued", unknown: "unknown"} for state in ("delivered", "queued"))


def test_a_send_over_the_socket_is_answered_when_it_carries_a_ref(remote: Remote) -> None:
    recipient = remote.name()
    with remote.connect(remote.name()) as socket:
        sent = socket.ask("send", to=recipient, msg_type="note", payload=1)
        assert (sent["type"], sent["recipients"]) == ("sent", [{"client": recipient, "state": "unknown"}])
        socket.send("send", to=recipient, payload=2)
        socket.send("ping")
        assert socket.read()["type"] == "pong"  # and nothing before it
    eventually(lambda: remote.read(recipient)["count"] == 2)
    one, two = remote.read(recipient)["messages"]
    assert (one["id"], one["type"], one["from"]) == (sent["message_id"], "note", socket.client)
    assert (two["payload"], two["type"]) == (2, "message")


def test_a_ref_may_be_a_number_or_a_text_and_comes_back_as_it_was(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        for ref in (0, -5, "", "a b", "🌍"):
            socket.send("send", to=socket.client, ref=ref)
            assert socket.expect("sent")["ref"] == ref


def test_every_recipient_sees_the_same_message_over_every_transport(remote: Remote) -> None:
    sender, here, there = remote.name("sender"), remote.name(), remote.name()
    with remote.connect(here) as socket:
        receipt = remote.send(sender, [here, there], {"a": 1}, type="order")
        pushed = socket.message()
    (read,) = remote.read(there)["messages"]
    assert pushed == read == remote.get(f"/api/messages/{receipt['message_id']}").body["message"]
    assert pushed == {
        "id": receipt["message_id"],
        "seq": receipt["seq"],
        "from": sender,
        "to": [here, there],
        "type": "order",
        "payload": {"a": 1},
        "timestamp": receipt["timestamp"],
        "requires_ack": False,
    }


def test_a_payload_arrives_as_it_was_sent(remote: Remote) -> None:
    name = remote.name()
    with remote.connect(name) as socket:
        for payload in PAYLOADS:
            remote.send(name, name, payload)
        assert [message["payload"] for message in socket.messages(len(PAYLOADS))] == PAYLOADS


def test_what_a_sender_sets_beside_comes_along_and_nothing_else(remote: Remote) -> None:
    beside = {
        "priority": "high",
        "correlation_id": "c",
        "reply_to": "r",
        "thread_id": remote.name("thread"),
        "headers": {"trace": "1"},
    }
    name = remote.name()
    forged = {"id": "msg-mine", "seq": 1, "timestamp": "1970-01-01T00:00:00+00:00", "verified": True}
    receipt = remote.send(remote.name(), name, **beside, **forged)
    (message,) = remote.read(name)["messages"]
    assert set(message) == ALWAYS | set(beside)
    assert {field: message[field] for field in beside} == beside
    assert (message["id"], message["timestamp"]) == (receipt["message_id"], receipt["timestamp"])


def test_a_list_is_one_message_and_nobody_gets_it_twice(remote: Remote) -> None:
    one, two = remote.name(), remote.name()
    receipt = remote.send(remote.name(), [one, two, one])
    assert [entry["client"] for entry in receipt["recipients"]] == [one, two]
    assert [m["seq"] for name in (one, two) for m in remote.read(name)["messages"]] == [receipt["seq"]] * 2


def test_messages_come_in_the_order_of_the_log_from_all_senders_over_all_transports(remote: Remote) -> None:
    name, count = remote.name(), 60
    with remote.connect(name) as reader, remote.connect(remote.name()) as one, remote.connect(remote.name()) as two:
        for number in range(count):
            one.send("send", to=name, payload=number)
            two.send("send", to=name, payload=number)
            if number % 20 == 0:
                remote.send(remote.name(), name, number)
        messages = reader.messages(2 * count + 3)
    seqs = [message["seq"] for message in messages]
    assert seqs == sorted(set(seqs))
    for sender in (one.client, two.client):
        assert [m["payload"] for m in messages if m["from"] == sender] == list(range(count))
    assert remote.read(name, since=remote.start, limit=1000)["messages"] == messages


def test_a_batch_answers_for_each_message_in_its_place(remote: Remote) -> None:
    sender, name = remote.name(), remote.name()
    good = {"from": sender, "to": name}
    answer = remote.post("/api/send/batch", {"messages": [good, {"from": sender}, good, "x"]})
    assert (answer.status, answer.body["count"]) == (200, 4)
    assert [result.get("code") for result in answer.body["results"]] == [
        None,
        "missing_field",
        None,
        "not_an_object",
    ]
    assert len(remote.read(name)["messages"]) == 2


def test_an_atomic_batch_is_stored_whole_or_not_at_all(remote: Remote) -> None:
    sender, name = remote.name(), remote.name()
    good = {"from": sender, "to": name}
    refused = remote.post("/api/send/batch", {"messages": [good, {"from": sender}], "atomic": True})
    assert (refused.status, refused.body["code"]) == (400, "missing_field")
    assert remote.read(name)["count"] == 0
    whole = remote.post("/api/send/batch", {"messages": [good, good], "atomic": True}).body["results"]
    assert whole[1]["seq"] == whole[0]["seq"] + 1
    assert remote.read(name)["count"] == 2


# ---- idempotency


@pytest.mark.parametrize("place", ["field", "header"])
def test_a_repeat_is_the_same_message(remote: Remote, place: str) -> None:
    sender, name = remote.name(), remote.name()
    body = {"from": sender, "to": name, "payload": 1}
    headers = {"Idempotency-Key": "k"} if place == "header" else {}
    if place == "field":
        body["idempotency_key"] = "k"
    first, second = (remote.call("POST", "/api/send", body, headers).body for _ in range(2))
    assert "duplicate" not in first
    assert second["duplicate"] is True
    assert (second["message_id"], second["seq"]) == (first["message_id"], first["seq"])
    assert remote.read(name)["count"] == 1


def test_a_key_is_the_senders_own_and_belongs_to_one_body(remote: Remote) -> None:
    sender, other, name = remote.name(), remote.name(), remote.name()
    remote.send(sender, name, 1, idempotency_key="k")
    assert "duplicate" not in remote.send(other, name, 1, idempotency_key="k")
    refused = remote.post("/api/send", {"from": sender, "to": name, "payload": 2, "idempotency_key": "k"})
    assert (refused.status, refused.body["code"]) == (422, "idempotency_key_reused")
    with remote.connect(sender) as socket:
        assert socket.ask("send", to=name, payload=1, idempotency_key="k")["duplicate"] is True
    assert remote.read(name)["count"] == 2


# ---- ephemeral


def test_an_ephemeral_message_reaches_who_is_there_and_nobody_later(remote: Remote) -> None:
    here, away = remote.name(), remote.name()
    with remote.connect(here) as socket:
        receipt: Frame = {}

        def is_heard() -> bool:
            nonlocal receipt
            receipt = remote.send(remote.name(), [here, away], "now", ephemeral=True)
            assert receipt["seq"] is None
            return states(receipt) == {here: "delivered", away: "dropped"}

        eventually(is_heard)  # another process of the bus may hear of the connection a moment later
        message = socket.message()
        while message["id"] != receipt["message_id"]:
            message = socket.message()
        assert (message["seq"], message["payload"]) == (None, "now")
    for name in (here, away):
        assert remote.read(name, since=remote.start)["count"] == 0


@pytest.mark.parametrize(
    "beside", [{"require_ack": True}, {"delay": 1}, {"idempotency_key": "k"}, {"deliver_at": "2100-01-01T00:00:00Z"}]
)
def test_what_skips_the_log_can_not_be_kept(remote: Remote, beside: dict[str, object]) -> None:
    body = {"from": remote.name(), "to": remote.name(), "ephemeral": True, **beside}
    refused = remote.post("/api/send", body)
    assert (refused.status, refused.body["code"]) == (400, "ephemeral_conflict")
    assert [refused.body["field"]] == list(beside)


# ---- everybody


@pytest.mark.parametrize("address", ["all", "*"])
def test_all_reaches_everybody_but_the_sender(own: Remote, address: str) -> None:
    with own.connect(own.name()) as one, own.connect(own.name()) as two:
        (entry,) = own.send(one.client, address, "hear")["recipients"]
        assert (entry["client"], entry["state"]) == ("all", "sent")
        assert entry["online"] >= 0
        message = two.message()
        assert (message["to"], message["payload"]) == ("all", "hear")
        assert one.is_quiet()


# ---- the socket's own frames


def test_a_ping_is_answered_with_a_pong_and_the_time(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        socket.send("ping")
        assert re.fullmatch(TIME, socket.expect("pong")["timestamp"])


def test_a_websocket_ping_is_answered_with_its_payload(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        assert socket.connection.ping(b"anything").wait(timeout=5)


def test_a_client_that_answers_pings_is_pushed_to_and_confirmed_within_seconds(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        receipt = remote.send(remote.name(), socket.client)
        socket.message()
        began = time.monotonic()
        eventually(lambda: remote.state(receipt["message_id"])[socket.client]["state"] == "confirmed")
        assert time.monotonic() - began < 5


def test_a_cursor_is_the_epoch_and_the_seq_of_the_last_message(remote: Remote) -> None:
    name = remote.name()
    receipt = remote.send(remote.name(), name)
    page = remote.read(name)
    assert re.fullmatch(CURSOR, page["cursor"])
    epoch, _, seq = page["cursor"].partition(":")
    assert int(seq) >= receipt["seq"]
    with remote.connect(name, since=f"{epoch}:{receipt['seq'] - 1}") as socket:
        assert socket.message()["id"] == receipt["message_id"]
