"""What a client says over REST, against a bus that the test scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from bus.client import Calls, Client, Offline
from bus.client.reconnection import Backoff
from bus.errors import Conflict, InboxFull, Malformed
from tests.unit.scripted_bus import PATIENCE_SECONDS, ScriptedRest, message

Background = Callable[..., Future[Any]]


@pytest.fixture
def rest() -> Iterator[ScriptedRest]:
    with ScriptedRest() as scripted:
        yield scripted


@pytest.fixture
def calls(rest: ScriptedRest) -> Calls:
    return Calls("asker", rest.url)


@pytest.fixture
def background() -> Iterator[Background]:
    """A function that calls another one on a thread of its own."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def answered(*replies: dict[str, Any], missing: tuple[str, ...] = ()) -> dict[str, Any]:
    """The body of a request that was answered, by all or by some."""
    status = "pending" if not replies else "partial" if missing else "answered"
    body = {"status": status, "request_id": "msg-1", "correlation_id": "c", "replies": replies, "missing": missing}
    return {**body, "reply": replies[0]} if replies else body


def test_claimed_jobs_are_settled_over_rest_with_their_attempt(
    rest: ScriptedRest, calls: Calls, background: Background
) -> None:
    claiming = background(calls.claim, "jobs", limit=2, wait=5, ack_wait=60)
    asked = rest.accept()
    assert (asked.method, asked.path) == ("POST", "/api/queues/jobs/claim")
    assert asked.body == {"client": "asker", "limit": 2, "wait": 5, "ack_wait": 60}
    asked.answer({"messages": [message(7, to="queue:jobs", requires_ack=True, attempt=2)]})
    (job,) = claiming.result(PATIENCE_SECONDS)
    assert (job.queue, job.attempt) == ("jobs", 2)
    for call, path, more, status in (
        (lambda: job.progress(90), "progress", {"ack_wait": 90}, "extended"),
        (lambda: job.nack(delay=3, reason="busy"), "nack", {"delay": 3, "reason": "busy"}, "nacked"),
        (job.ack, "ack", {}, "superseded"),
    ):
        saying = background(call)
        asked = rest.accept()
        assert (asked.path, asked.body) == (f"/api/messages/msg-7/{path}", {"client": "asker", "attempt": 2, **more})
        asked.answer({"message_id": "msg-7", "status": status, "attempt": 2})
        assert saying.result(PATIENCE_SECONDS) == status
    assert job.is_settled


def test_a_request_brings_its_replies(rest: ScriptedRest, calls: Calls, background: Background) -> None:
    asking = background(calls.request, ["a", "b"], {"q": 1}, wait=5, type="question", ttl=60)
    asked = rest.accept()
    assert asked.path == "/api/request"
    assert (asked.body["from"], asked.body["to"], asked.body["payload"]) == ("asker", ["a", "b"], {"q": 1})
    assert (asked.body["type"], asked.body["ttl"], asked.body["require_online"]) == ("question", 60, False)
    assert asked.body["correlation_id"] != asked.body["idempotency_key"]
    asked.answer(answered(message(2, **{"from": "a"}), missing=("b",)))
    reply = asking.result(PATIENCE_SECONDS)
    assert (reply.status, reply.request_id, reply.missing) == ("partial", "msg-1", ("b",))
    assert [each.sender for each in reply.replies] == ["a"]
    assert reply.reply == reply.replies[0]


def test_a_request_that_waits_for_nobody_is_pending(rest: ScriptedRest, calls: Calls, background: Background) -> None:
    asking = background(calls.request, "a", 1, wait=0)
    rest.accept().answer(answered(missing=("a",)), 202)
    reply = asking.result(PATIENCE_SECONDS)
    assert (reply.status, reply.reply, reply.replies, reply.missing) == ("pending", None, (), ("a",))
    fetching = background(calls.fetch_reply, reply.request_id, wait=3)
    asked = rest.accept()
    assert asked.path == "/api/requests/msg-1?wait=3"
    asked.answer(answered(message(2)))
    assert fetching.result(PATIENCE_SECONDS).status == "answered"


def test_a_request_is_asked_again_with_its_key_while_there_is_time(
    rest: ScriptedRest, calls: Calls, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "pause", lambda *_: 0.0)
    asking = background(calls.request, "a", 1, wait=PATIENCE_SECONDS)
    first = rest.accept()
    first.refuse(503, "unavailable")
    second = rest.accept()
    second.refuse(409, "request_in_flight", Retry_After="1")
    third = rest.accept()
    assert len({each.body["idempotency_key"] for each in (first, second, third)}) == 1
    assert first.body["wait"] > second.body["wait"] > third.body["wait"]
    third.answer(answered(message(2)))
    assert asking.result(PATIENCE_SECONDS).status == "answered"


def test_refusals_of_a_request_are_raised(rest: ScriptedRest, calls: Calls, background: Background) -> None:
    asking = background(calls.request, "a", 1, require_online=True)
    rest.accept().refuse(409, "recipient_offline", "Nobody is there.")
    with pytest.raises(Conflict, match="Nobody is there") as refused:
        asking.result(PATIENCE_SECONDS)
    assert refused.value.code == "recipient_offline"
    asking = background(calls.request, "queue:jobs", 1)
    rest.accept().refuse(429, "queue_full")
    with pytest.raises(InboxFull):
        asking.result(PATIENCE_SECONDS)
    with pytest.raises(Offline):
        Calls("asker", "http://127.0.0.1:1").request("a", 1, wait=0)


def test_dead_letters_are_read_page_by_page(rest: ScriptedRest, calls: Calls, background: Background) -> None:
    def letter(number: int) -> dict[str, Any]:
        tries = [
            {"attempt": 1, "consumer": "w", "began_at": None, "ended_at": None, "outcome": "nacked", "reason": "x"}
        ]
        about = {"owner": "queue:jobs", "reason": "rejected", "detail": None, "died_at": None, "attempts": tries}
        return {"id": f"msg-{number}", **about, "message": message(number)}

    listing = background(lambda: list(calls.dead_letters(owner="queue:jobs")))
    first = rest.accept()
    assert first.path == "/api/dead-letters?owner=queue%3Ajobs&limit=100"
    first.answer({"dead_letters": [letter(1)], "cursor": "c1", "more": True})
    second = rest.accept()
    assert second.path.endswith("&cursor=c1")
    second.answer({"dead_letters": [letter(2)], "cursor": "c2", "more": False})
    letters = listing.result(PATIENCE_SECONDS)
    assert [(each.id, each.message.seq, each.attempts[0].consumer) for each in letters] == [
        ("msg-1", 1, "w"),
        ("msg-2", 2, "w"),
    ]


def test_redriving_more_than_one_portion_goes_on_until_all_that_matched_are_done(
    rest: ScriptedRest, calls: Calls, background: Background
) -> None:
    redriving = background(calls.redrive, reason="max_attempts")
    rest.accept().answer({"matched": 2500, "redriven": 1000})
    rest.accept().answer({"matched": 1500, "redriven": 1000})
    last = rest.accept()
    assert last.body["reason"] == "max_attempts"
    last.answer({"matched": 500, "redriven": 500})
    done = redriving.result(PATIENCE_SECONDS)
    assert (done.matched, done.redriven) == (2500, 2500)


def test_what_only_was_looked_at_can_not_be_settled(rest: ScriptedRest, calls: Calls, background: Background) -> None:
    reading = background(calls.thread, "t/1")
    asked = rest.accept()
    assert asked.path == "/api/threads/t%2F1?limit=100"
    page = {"thread_id": "t/1", "count": 1, "participants": ["writer"], "messages": [message(1, requires_ack=True)]}
    asked.answer({**page, "started_at": None, "last_activity": None, "cursor": None, "more": False})
    thread = reading.result(PATIENCE_SECONDS)
    with pytest.raises(ValueError, match="only looked at"):
        thread.messages[0].ack()


def test_calls_of_a_client_open_no_connection(rest: ScriptedRest, background: Background) -> None:
    client = Client("asker", rest.url)
    claiming = background(client.claim, "jobs")
    rest.accept().answer({"messages": []})
    assert claiming.result(PATIENCE_SECONDS) == []
    assert not client.is_connected
    assert client.cursor is None
    assert client.close() == 0


@pytest.mark.parametrize("key", ["bus_…", "bus_dev\n", "bus_dev\r\nX-Other: 1"])
def test_what_can_be_no_key_is_refused_before_anything_is_sent(key: str) -> None:
    with pytest.raises(Malformed, match="copy it anew"):
        Calls("asker", api_key=key)
