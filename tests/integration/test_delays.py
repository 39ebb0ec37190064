"""Delayed messages wait outside the log and enter it once, when due; what outlives its ttl is not delivered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, claim, dead_letters, inbox, payloads, pending_acks, send, settle, standing, state
from tests.peer import Peer
from tests.workers import wait_until_known

Start = Callable[..., BusServer]
HOUR = 3600


def moment(text: str) -> datetime:
    """A time as the bus writes it."""
    return datetime.fromisoformat(text)


def at(seconds: float) -> str:
    """The time so many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


# ---- delays


@pytest.mark.parametrize("how", ["delay", "deliver_at"])
def test_a_delayed_message_has_an_id_at_once_and_a_seq_when_due(each_server: BusServer, how: str) -> None:
    name = f"patient-{how}"
    with Peer(each_server, name) as patient:
        terms: dict[str, Any] = {"delay": 0.5} if how == "delay" else {"deliver_at": at(0.5)}
        receipt = send(each_server, name, {"n": 1}, correlation_id="c", **terms)
        assert (receipt["status"], receipt["seq"]) == ("scheduled", None)
        assert receipt["recipients"] == [{"client": name, "state": "scheduled"}]
        assert moment(receipt["deliver_at"]) > moment(receipt["timestamp"])
        later = send(each_server, name, "sent later")
        first, second = patient.messages(2)
        assert first["id"] == later["message_id"]
        assert (second["id"], second["payload"], second["correlation_id"]) == (receipt["message_id"], {"n": 1}, "c")
        assert second["seq"] > later["seq"]
    found = call(each_server, "GET", f"/api/messages/{receipt['message_id']}")
    assert found["message"] == second


def test_a_message_that_waits_for_its_time_is_found_by_its_id_and_read_by_nobody(each_server: BusServer) -> None:
    receipt = send(each_server, ["soon", "later"], "x", delay=HOUR, require_ack=True)
    found = call(each_server, "GET", f"/api/messages/{receipt['message_id']}")
    assert abs(moment(found["deliver_at"]) - moment(receipt["deliver_at"])) < timedelta(seconds=1)
    assert (found["message"]["id"], found["message"]["seq"]) == (receipt["message_id"], None)
    assert [recipient["state"] for recipient in found["recipients"]] == ["scheduled"] * 2
    assert inbox(each_server, "soon", since="earliest")["count"] == 0
    answer = each_server.call("POST", f"/api/messages/{receipt['message_id']}/ack", {"client": "soon"})
    assert (answer.status, answer.body["code"]) == (404, "unknown_message")


def test_a_receipt_over_a_socket_tells_when_it_is_due(each_server: BusServer) -> None:
    with Peer(each_server, "self") as peer:
        receipt = peer.ask("send", to="self", payload=1, delay=0.3)
        assert (receipt["type"], receipt["seq"]) == ("sent", None)
        assert receipt["recipients"] == [{"client": "self", "state": "scheduled"}]
        assert receipt["deliver_at"]
        assert peer.message()["id"] == receipt["message_id"]


@pytest.mark.parametrize("terms", [{"delay": 0}, {"deliver_at": "2020-01-01T00:00:00Z"}], ids=["no delay", "past"])
def test_what_is_due_already_is_sent_at_once(each_server: BusServer, terms: dict[str, Any]) -> None:
    with Peer(each_server, "now", "?since=latest") as now:
        receipt = send(each_server, "now", 1, **terms)
        assert receipt["status"] == "sent"
        assert receipt["seq"] > 0
        message = now.message()
        assert (message["id"], message["seq"]) == (receipt["message_id"], receipt["seq"])
    assert call(each_server, "GET", f"/api/messages/{receipt['message_id']}")["message"] == message
    assert inbox(each_server, "now", since="earliest")["messages"][-1] == message


def test_delayed_messages_come_in_the_order_in_which_they_are_due(each_server: BusServer) -> None:
    together = at(0.6)
    for number, delay in ((2, 0.4), (0, 0.2), (1, 0.3)):
        send(each_server, "ordered", number, delay=delay)
    for number in (3, 4, 5):
        send(each_server, "ordered", number, deliver_at=together)
    with Peer(each_server, "ordered") as ordered:
        assert payloads(ordered.messages(6)) == list(range(6))


def test_a_delayed_item_reaches_its_queue(each_server: BusServer) -> None:
    receipt = send(each_server, "queue:morning", 1, delay=0.3)
    assert receipt["recipients"] == [{"client": "queue:morning", "state": "scheduled"}]
    (item,) = claim(each_server, "morning", "early", wait=20)
    assert item["id"] == receipt["message_id"]
    assert settle(each_server, "ack", item, "early")["status"] == "acked"


def test_a_delayed_message_may_need_an_ack_and_wakes_a_long_poll(each_server: BusServer) -> None:
    receipt = send(each_server, "sleeper", 1, delay=0.3, require_ack=True, ack_wait=60)
    (message,) = inbox(each_server, "sleeper", wait=20)["messages"]
    assert message["id"] == receipt["message_id"]
    assert settle(each_server, "ack", message, "sleeper")["status"] == "acked"
    assert state(each_server, receipt["message_id"]) == "acked"


def test_what_waits_can_be_taken_back_until_it_is_due(each_server: BusServer) -> None:
    receipt = send(each_server, "regret", 1, delay=HOUR)
    path = f"/api/messages/{receipt['message_id']}"
    assert call(each_server, "DELETE", path) == {"status": "cancelled", "message_id": receipt["message_id"]}
    assert each_server.call("GET", path).status == 404
    again = each_server.call("DELETE", path)
    assert (again.status, again.body["code"]) == (404, "unknown_message")
    sent = send(each_server, "regret", 2)["message_id"]
    due = send(each_server, "regret", 3, delay=0.1)["message_id"]
    inbox(each_server, "regret", since=call(each_server, "GET", "/api/status")["cursor"], wait=20)
    for message_id in (sent, due):
        eventually(
            lambda message_id=message_id: "deliver_at" not in call(each_server, "GET", f"/api/messages/{message_id}")
        )
        late = each_server.call("DELETE", f"/api/messages/{message_id}")
        assert (late.status, late.body["code"]) == (409, "already_sent")
    assert payloads(inbox(each_server, "regret", since="earliest")["messages"]) == [2, 3]


def test_a_repeated_delayed_send_is_one_message(each_server: BusServer) -> None:
    first = send(each_server, "once", 1, delay=0.4, idempotency_key="k")
    again = send(each_server, "once", 1, delay=0.4, idempotency_key="k")
    assert again["duplicate"] is True
    same = ("status", "message_id", "seq", "timestamp", "recipients")
    assert [again[name] for name in same] == [first[name] for name in same]
    other = each_server.call(
        "POST", "/api/send", {"from": "giver", "to": "once", "payload": 1, "delay": 9, "idempotency_key": "k"}
    )
    assert (other.status, other.body["code"]) == (422, "idempotency_key_reused")
    assert inbox(each_server, "once", wait=20)["count"] == 1
    late = send(each_server, "once", 1, delay=0.4, idempotency_key="k")
    assert (late["message_id"], late["duplicate"]) == (first["message_id"], True)
    marker = send(each_server, "once", "marker")
    with Peer(each_server, "once") as once:
        assert [message["id"] for message in once.messages(2)] == [first["message_id"], marker["message_id"]]


def test_delays_survive_a_kill_and_come_once(fresh_server: Start) -> None:
    server = fresh_server(workers=2)
    past = send(server, "dawn", "past", delay=0.2)["message_id"]
    soon = send(server, "dawn", "soon", deliver_at=at(1.5), require_ack=True)["message_id"]
    far = send(server, "dawn", "far", deliver_at=at(HOUR))
    server.kill()
    server.start()
    with Peer(server, "dawn", "?since=earliest") as dawn:
        assert [dawn.message()["id"] for _ in range(2)] == [past, soon]
        assert dawn.settle("ack", soon)["status"] == "acked"
    server.restart()
    assert payloads(inbox(server, "dawn", since="earliest")["messages"]) == ["past"]
    found = call(server, "GET", f"/api/messages/{far['message_id']}")
    assert found["deliver_at"] == far["deliver_at"]
    total = call(server, "GET", "/api/status")["metrics"]["total_messages"]
    assert total == 2


# ---- ttl


def test_expiry_is_shown_when_the_sender_set_it(each_server: BusServer) -> None:
    with Peer(each_server, "shown") as shown:
        send(each_server, "shown", 1)
        send(each_server, "shown", 2, ttl=HOUR)
        forever, brief = shown.messages(2)
    assert "expires_at" not in forever
    lives = moment(brief["expires_at"]) - moment(brief["timestamp"])
    assert timedelta(seconds=HOUR - 60) < lives < timedelta(seconds=HOUR + 60)


def test_what_has_expired_is_not_read_and_is_counted(each_server: BusServer) -> None:
    send(each_server, "stale", "kept")
    gone = send(each_server, "stale", "gone", ttl=0.2)["message_id"]
    send(each_server, "stale", "kept, too")
    page = eventually(lambda: (found := inbox(each_server, "stale"))["expired"] and found, what="the expiry")
    assert (page["expired"], payloads(page["messages"])) == (1, ["kept", "kept, too"])
    assert "gap" not in page
    assert each_server.call("GET", f"/api/messages/{gone}").status == 404
    with Peer(each_server, "stale", "?since=earliest") as stale:
        assert payloads(stale.messages(2)) == ["kept", "kept, too"]
        assert stale.has_no_message()


def test_a_tracked_message_that_expires_is_a_dead_letter_and_its_sender_is_told(each_server: BusServer) -> None:
    with Peer(each_server, "hasty") as hasty:
        wait_until_known(each_server, ["hasty"])
        sent = hasty.ask("send", to="absent", payload=1, require_ack=True, ttl=0.2)
        failed = hasty.expect("failed")
    assert (failed["message_id"], failed["recipient"], failed["reason"]) == (sent["message_id"], "absent", "expired")
    (letter,) = dead_letters(each_server, owner="absent")
    assert (letter["id"], letter["reason"], letter["attempts"]) == (sent["message_id"], "expired", [])
    assert inbox(each_server, "absent", since="earliest")["messages"] == []
    assert settle(each_server, "ack", sent["message_id"], "absent")["status"] == "dead"


def test_an_expired_item_is_given_to_nobody(each_server: BusServer) -> None:
    old = send(each_server, "queue:dairy", "milk", ttl=0.2)["message_id"]
    fresh = send(each_server, "queue:dairy", "cheese")["message_id"]
    eventually(lambda: dead_letters(each_server, owner="queue:dairy"), what="the dead letter")
    assert [letter["id"] for letter in dead_letters(each_server, owner="queue:dairy")] == [old]
    assert [message["id"] for message in claim(each_server, "dairy", "shopper", limit=5)] == [fresh]


def test_what_is_in_hands_when_it_expires_may_still_be_acked(each_server: BusServer) -> None:
    with Peer(each_server, "slow") as slow:
        message_id = send(each_server, "slow", 1, require_ack=True, ttl=0.3, ack_wait=60)["message_id"]
        message = slow.message()
        other = send(each_server, "elsewhere", 1, require_ack=True, ttl=0.3)["message_id"]
        eventually(lambda: dead_letters(each_server, owner="elsewhere"), what="the expiry of what nobody has")
        assert slow.settle("ack", message)["status"] == "acked"
    assert dead_letters(each_server, owner="slow") == []
    assert settle(each_server, "ack", message_id, "slow")["status"] == "acked"
    assert settle(each_server, "ack", other, "elsewhere")["status"] == "dead"


def test_a_ttl_counts_from_the_moment_a_delayed_message_is_due(each_server: BusServer) -> None:
    with Peer(each_server, "reborn") as reborn:
        send(each_server, "reborn", 1, delay=0.5, ttl=0.4, require_ack=True, ack_wait=60)
        message = reborn.message()
        assert message["expires_at"] > message["timestamp"]
        assert standing(each_server, message["id"])["state"] == "leased"
        assert reborn.settle("ack", message)["status"] == "acked"


def test_nothing_expired_is_pending(fresh_server: Start) -> None:
    server = fresh_server()
    for to in (["one", "two"], "queue:jobs", "three"):
        send(server, to, 1, require_ack=True, ttl=0.3)
    assert pending_acks(server) == 4
    eventually(lambda: pending_acks(server) == 0, what="no pending acks")
    assert len(dead_letters(server, reason="expired")) == 4
