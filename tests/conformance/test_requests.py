"""Request and reply, and threads."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conformance.remote import Remote, Socket


@contextmanager
def answering(socket: Socket) -> Iterator[None]:
    """Have a connection answer the next question that it gets."""

    def answer() -> None:
        asked = socket.message()
        reply = {"to": asked["from"], "payload": f"re: {asked['payload']}", "correlation_id": asked["correlation_id"]}
        socket.send("send", **reply)

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    thread.join(timeout=10)


def test_a_request_brings_its_answer(remote: Remote) -> None:
    asker = remote.name("asker")
    with remote.connect(remote.name()) as responder, answering(responder):
        answer = remote.post("/api/request", {"from": asker, "to": responder.client, "payload": "?", "wait": 10})
    body = answer.body
    assert (answer.status, body["status"], body["missing"]) == (200, "answered", [])
    assert (body["reply"]["payload"], body["reply"]["from"]) == ("re: ?", responder.client)
    assert body["replies"] == [body["reply"]]
    assert body["reply"]["correlation_id"] == body["correlation_id"]
    assert remote.read(asker)["messages"] == body["replies"]  # it stands in the inbox, too


def test_a_request_over_the_socket_is_answered_with_one_frame(remote: Remote) -> None:
    with remote.connect(remote.name()) as responder, remote.connect(remote.name()) as asker, answering(responder):
        frame = asker.ask("request", to=responder.client, payload="?", wait=10, correlation_id="mine")
    assert (frame["type"], frame["status"], frame["correlation_id"]) == ("reply", "answered", "mine")
    assert frame["reply"]["payload"] == "re: ?"


def test_a_request_that_is_not_answered_in_time_is_pending_and_can_be_fetched_later(remote: Remote) -> None:
    asker, asked = remote.name("asker"), remote.name()
    answer = remote.post("/api/request", {"from": asker, "to": asked, "wait": 0.2})
    body = answer.body
    assert (answer.status, body["status"], body["replies"], body["missing"]) == (202, "pending", [], [asked])
    path = f"/api/requests/{body['request_id']}"
    assert remote.get(path).status == 202
    remote.send(remote.name("stranger"), asker, "not asked", correlation_id=body["correlation_id"])
    assert remote.get(path).body["status"] == "pending"
    remote.send(asked, asker, "late", correlation_id=body["correlation_id"])
    later = remote.get(path, wait=5)
    assert (later.status, later.body["status"], later.body["reply"]["payload"]) == (200, "answered", "late")


def test_a_request_to_several_is_partial_until_all_have_answered(remote: Remote) -> None:
    asker, one, two = remote.name("asker"), remote.name(), remote.name()
    asked = remote.post("/api/request", {"from": asker, "to": [one, two], "wait": 0}).body
    remote.send(one, asker, 1, correlation_id=asked["correlation_id"])
    partial = remote.get(f"/api/requests/{asked['request_id']}")
    assert (partial.status, partial.body["status"], partial.body["missing"]) == (200, "partial", [two])
    remote.send(two, asker, 2, correlation_id=asked["correlation_id"])
    whole = remote.get(f"/api/requests/{asked['request_id']}").body
    assert (whole["status"], [reply["payload"] for reply in whole["replies"]]) == ("answered", [1, 2])


def test_a_request_may_insist_that_somebody_is_there(remote: Remote) -> None:
    asked = remote.name()
    refused = remote.post("/api/request", {"from": remote.name("asker"), "to": asked, "require_online": True})
    assert (refused.status, refused.body["code"]) == (409, "recipient_offline")
    assert remote.read(asked, since=remote.start)["count"] == 0
    with remote.connect(remote.name()) as asker:
        assert asker.ask("request", to=asked, require_online=True)["code"] == "recipient_offline"


def test_an_unknown_request_is_told(remote: Remote) -> None:
    refused = remote.get("/api/requests/msg-none")
    assert (refused.status, refused.body["code"]) == (404, "unknown_request")


def test_a_thread_holds_its_messages_in_order(remote: Remote) -> None:
    thread, one, two = remote.name("thread"), remote.name(), remote.name()
    for number, (sender, to) in enumerate([(one, two), (two, one), (one, [one, two])]):
        remote.send(sender, to, number, thread_id=thread)
    first = remote.get(f"/api/threads/{thread}", limit=2).body
    assert (first["thread_id"], first["count"], first["participants"]) == (thread, 3, sorted([one, two]))
    assert ([m["payload"] for m in first["messages"]], first["more"]) == ([0, 1], True)
    assert first["started_at"] <= first["last_activity"]
    rest = remote.get(f"/api/threads/{thread}", cursor=first["cursor"]).body
    assert ([m["payload"] for m in rest["messages"]], rest["more"]) == ([2], False)
    unknown = remote.get(f"/api/threads/{remote.name('thread')}")
    assert (unknown.status, unknown.body["code"]) == (404, "unknown_thread")
    assert re.fullmatch(r"[0-9a-f]{12}:\d+", rest["cursor"])
