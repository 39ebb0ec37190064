"""Delays, and what may be taken back; times to live."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.conformance.remote import TIME, Remote, eventually


def test_a_delayed_message_has_its_id_at_once_and_its_place_when_it_is_due(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        receipt = remote.send(remote.name("sender"), socket.client, "late", delay=1)
        assert (receipt["status"], receipt["seq"]) == ("scheduled", None)
        assert receipt["recipients"] == [{"client": socket.client, "state": "scheduled"}]
        assert re.fullmatch(TIME, receipt["deliver_at"])
        found = remote.get(f"/api/messages/{receipt['message_id']}").body
        assert found["message"]["seq"] is None
        told, kept = (datetime.fromisoformat(answer["deliver_at"]) for answer in (receipt, found))
        assert abs(told - kept) < timedelta(seconds=0.1)
        between = remote.send(remote.name("sender"), socket.client, "between")
        assert socket.message()["payload"] == "between"
        late = socket.message()
        assert datetime.now(UTC) >= datetime.fromisoformat(receipt["deliver_at"]) - timedelta(seconds=0.05)
    assert (late["id"], late["payload"]) == (receipt["message_id"], "late")
    assert late["seq"] > between["seq"]


def test_a_delay_over_the_socket_is_told_in_its_receipt(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        sent = socket.ask("send", to=remote.name(), delay=30)
        assert (sent["type"], sent["seq"]) == ("sent", None)
        assert sent["recipients"][0]["state"] == "scheduled"
        assert re.fullmatch(TIME, sent["deliver_at"])
    assert remote.call("DELETE", f"/api/messages/{sent['message_id']}").status == 200


def test_a_moment_may_be_named_and_one_that_is_past_is_now(remote: Remote) -> None:
    name, soon = remote.name(), datetime.now(UTC) + timedelta(seconds=60)
    receipt = remote.send(remote.name("sender"), name, deliver_at=soon.isoformat())
    assert datetime.fromisoformat(receipt["deliver_at"]) == soon
    assert remote.call("DELETE", f"/api/messages/{receipt['message_id']}").status == 200
    assert remote.send(remote.name("sender"), name, deliver_at="2020-01-01T00:00:00Z")["status"] == "sent"


def test_a_delayed_message_can_be_taken_back_and_a_sent_one_can_not(remote: Remote) -> None:
    name, sender = remote.name(), remote.name("sender")
    delayed = remote.send(sender, name, delay=60)["message_id"]
    assert remote.call("DELETE", f"/api/messages/{delayed}").body == {"status": "cancelled", "message_id": delayed}
    again = remote.call("DELETE", f"/api/messages/{delayed}")
    assert (again.status, again.body["code"]) == (404, "unknown_message")
    sent = remote.send(sender, name)["message_id"]
    refused = remote.call("DELETE", f"/api/messages/{sent}")
    assert (refused.status, refused.body["code"]) == (409, "already_sent")


def test_a_delayed_message_that_needs_an_ack_is_leased_when_it_comes(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        sent = remote.send(remote.name("sender"), socket.client, require_ack=True, delay=0.3)
        message = socket.message()
        assert (message["id"], message["requires_ack"]) == (sent["message_id"], True)
        assert socket.settle("ack", message)["status"] == "acked"


def test_what_outlived_its_time_unacked_is_a_dead_letter_and_its_sender_is_told(admin: Remote) -> None:
    name = admin.name()
    with admin.connect(admin.name("sender")) as sender:
        sent = sender.ask("send", to=name, require_ack=True, ttl=0.3)
        failed = sender.expect("failed")
    assert failed == {"type": "failed", "message_id": sent["message_id"], "recipient": name, "reason": "expired"}
    assert admin.read(name, since=admin.start)["count"] == 0
    eventually(lambda: admin.get("/api/dead-letters", owner=name).body["dead_letters"])


@pytest.mark.parametrize(
    ("beside", "field"),
    [
        ({"delay": 1, "deliver_at": "2100-01-01T00:00:00Z"}, "deliver_at"),
        ({"delay": -1}, "delay"),
        ({"delay": 1e9}, "delay"),
        ({"deliver_at": "tomorrow"}, "deliver_at"),
        ({"ttl": 0}, "ttl"),
        ({"ack_wait": 0}, "ack_wait"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": 2}, "priority"),
    ],
)
def test_terms_that_can_not_be_met_are_refused(remote: Remote, beside: dict[str, object], field: str) -> None:
    refused = remote.post("/api/send", {"from": remote.name(), "to": remote.name(), **beside})
    assert (refused.status, refused.body["field"]) == (400, field)
