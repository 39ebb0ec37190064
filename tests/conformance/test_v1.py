"""Every path under /api/ stands under /api/v1/, too; and what a v1.1 client counts on is there."""

from __future__ import annotations

from tests.conformance.remote import Remote


def test_the_twins_do_the_same(remote: Remote) -> None:
    name, sender = remote.name(), remote.name("sender")
    receipts = [
        remote.post(f"{prefix}/send", {"from": sender, "to": name, "payload": prefix}) for prefix in ("/api", "/api/v1")
    ]
    assert [set(receipt.body) for receipt in receipts] == [set(receipts[0].body)] * 2
    for path in ("messages", "clients", "queues", f"messages/{receipts[0].body['message_id']}", f"clients/{sender}"):
        query = {"to": name} if path == "messages" else {"limit": 1}
        plain, twin = (remote.get(f"{prefix}/{path}", **query) for prefix in ("/api", "/api/v1"))
        assert (plain.status, plain.body) == (twin.status, twin.body) == (200, twin.body)


def test_the_description_holds_both(remote: Remote) -> None:
    paths = set(remote.get("/openapi.json").body["paths"])
    plain = {path for path in paths if path.startswith("/api/") and not path.startswith("/api/v1/")}
    assert {path.replace("/api/", "/api/v1/", 1) for path in plain} == {p for p in paths if p.startswith("/api/v1/")}
    assert "/api/send" in plain


def test_the_status_is_that_of_v11_and_more(remote: Remote) -> None:
    status = remote.get("/api/status").body
    assert status["status"] in ("running", "draining")
    assert {"total_messages", "total_connections", "active_connections", "errors", "messages_per_minute"} <= set(
        status["metrics"]
    )
    assert {"active", "by_client"} == set(status["connections"])
    assert {"durability", "epoch", "cursor", "workers", "pending_acks", "version", "mode"} <= set(status)
    assert status["cursor"].startswith(status["epoch"] + ":")


def test_the_health_is_told_to_anybody(remote: Remote) -> None:
    answer = remote.call("GET", "/health", headers={"X-API-Key": ""})
    assert (answer.status, answer.body["status"]) == (200, "healthy")


def test_the_frames_of_a_v11_client_are_enough(remote: Remote) -> None:
    with remote.connect(remote.name()) as one, remote.connect(remote.name()) as two:
        assert {"type", "client_id", "timestamp"} <= set(one.hello)
        one.send("subscribe", topics=[])
        assert one.expect("subscribed")["topics"] == []
        one.send("send", to=two.client, msg_type="command", payload={"action": "go"}, require_ack=True)
        message = two.message()
        assert (message["from"], message["type"], message["payload"]) == (one.client, "command", {"action": "go"})
        two.send("ack", message_id=message["id"])
        two.send("ping")
        assert two.expect("pong")["timestamp"]
