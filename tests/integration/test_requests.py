"""Request and reply: a question waits for its answer, or the answer for whoever fetches it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, claim, inbox, payloads, send, settle
from tests.peer import Peer
from tests.workers import only, wait_until_known

Start = Callable[..., BusServer]


def ask(server: BusServer, to: object, payload: object = None, *, wait: float = 30, **more: object) -> Any:
    """Ask over REST; the answer's body."""
    return call(server, "POST", "/api/request", {"from": "asker", "to": to, "payload": payload, "wait": wait, **more})


def reply(server: BusServer, question: dict[str, Any], payload: object, *, sender: str) -> Any:
    """Answer a question that came as a message."""
    return send(server, question["from"], payload, sender=sender, correlation_id=question["correlation_id"])


def asked(pool: ThreadPoolExecutor, server: BusServer, to: object, **more: Any) -> Future[Any]:
    """Ask in another thread."""
    return pool.submit(ask, server, to, **more)


# ---- one asks one


@pytest.mark.parametrize("over", ["rest", "websocket"])
def test_a_question_is_answered_by_whoever_was_asked(each_server: BusServer, over: str) -> None:
    name = f"oracle-{over}"
    with Peer(each_server, name) as oracle, Peer(each_server, "asker") as asker, ThreadPoolExecutor() as pool:
        if over == "rest":
            waiting = asked(pool, each_server, name, payload=6)
        else:
            waiting = pool.submit(asker.ask, "request", to=name, payload=6, wait=8)
        question = oracle.message()
        assert (question["from"], question["payload"]) == ("asker", 6)
        receipt = oracle.ask(
            "send", to=question["from"], payload=7 * question["payload"], correlation_id=question["correlation_id"]
        )
        answer = waiting.result()
    assert answer["status"] == "answered"
    assert (answer["request_id"], answer["correlation_id"]) == (question["id"], question["correlation_id"])
    assert (answer["reply"]["payload"], answer["reply"]["from"]) == (42, name)
    assert (answer["replies"], answer["missing"]) == ([answer["reply"]], [])
    assert answer["reply"]["id"] == receipt["message_id"]
    assert answer.get("type") == (None if over == "rest" else "reply")
    assert answer["reply"] in inbox(each_server, "asker", since="earliest")["messages"]


def test_an_answer_crosses_workers(server4: BusServer) -> None:
    with ExitStack() as stack:
        here, there = server4.worker_pids()[:2]
        with only(server4, here):
            asker = stack.enter_context(Peer(server4, "crossing-asker"))
        with only(server4, there):
            oracle = stack.enter_context(Peer(server4, "crossing-oracle"))
        pool = stack.enter_context(ThreadPoolExecutor())
        for number in range(5):
            waiting = pool.submit(asker.ask, "request", to="crossing-oracle", payload=number, wait=9)
            question = oracle.message()
            oracle.send_json(
                {
                    "type": "send",
                    "to": question["from"],
                    "payload": number,
                    "correlation_id": question["correlation_id"],
                }
            )
            assert waiting.result()["reply"]["payload"] == number


def test_what_is_not_answered_in_time_is_pending_and_fetched_later(each_server: BusServer) -> None:
    answer = each_server.call("POST", "/api/request", {"from": "asker", "to": "sleepy", "payload": 1, "wait": 0.1})
    assert answer.status == 202
    body = answer.body
    assert (body["status"], body["replies"], body["missing"]) == ("pending", [], ["sleepy"])
    path = f"/api/requests/{body['request_id']}"
    assert each_server.call("GET", path)[:2] == (202, body)
    assert call(each_server, "GET", path, wait=0.1) == body
    (question,) = inbox(each_server, "sleepy")["messages"]
    assert question["id"] == body["request_id"]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(each_server.call, "GET", f"{path}?wait=30")
        reply(each_server, question, "at last", sender="sleepy")
        found = waiting.result()
    assert (found.status, found.body["status"], found.body["reply"]["payload"]) == (200, "answered", "at last")
    assert call(each_server, "GET", path) == found.body


def test_a_question_over_a_socket_is_answered_pending_at_its_deadline(each_server: BusServer) -> None:
    with Peer(each_server, "impatient") as impatient:
        answer = impatient.ask("request", to="nobody-home", payload=1, wait=0.1)
        assert (answer["type"], answer["status"], answer["missing"]) == ("reply", "pending", ["nobody-home"])
        (question,) = inbox(each_server, "nobody-home")["messages"]
        reply(each_server, question, "late", sender="nobody-home")
        assert impatient.message()["payload"] == "late"
        found = call(each_server, "GET", f"/api/requests/{answer['request_id']}")
        assert (found["status"], found["reply"]["payload"]) == ("answered", "late")


def test_a_question_and_its_answer_survive_a_kill(fresh_server: Start) -> None:
    server = fresh_server(workers=2)
    open_ = ask(server, "oracle", 1, wait=0)
    done = ask(server, "oracle", 2, wait=0)
    questions = inbox(server, "oracle")["messages"]
    reply(server, questions[1], "before", sender="oracle")
    server.kill()
    server.start()
    assert call(server, "GET", f"/api/requests/{done['request_id']}")["reply"]["payload"] == "before"
    assert call(server, "GET", f"/api/requests/{open_['request_id']}") == open_
    reply(server, questions[0], "after", sender="oracle")
    found = call(server, "GET", f"/api/requests/{open_['request_id']}", wait=10)
    assert (found["status"], found["reply"]["payload"]) == ("answered", "after")


def test_a_reply_counts_only_from_whom_was_asked(each_server: BusServer) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = asked(pool, each_server, "expert")
        question = eventually(lambda: inbox(each_server, "expert")["messages"], what="the question")[0]
        reply(each_server, question, "I know better", sender="intruder")
        found = call(each_server, "GET", f"/api/requests/{question['id']}")
        assert (found["status"], found["replies"]) == ("pending", [])
        reply(each_server, question, "the truth", sender="expert")
        assert payloads(waiting.result()["replies"]) == ["the truth"]
    assert payloads(inbox(each_server, "asker", since=f"{question['id'][4:16]}:{question['seq']}")["messages"]) == [
        "I know better",
        "the truth",
    ]


def test_the_askers_own_correlation_id_is_kept(each_server: BusServer) -> None:
    body = ask(each_server, "named", wait=0, correlation_id="my-own")
    assert body["correlation_id"] == "my-own"
    (question,) = inbox(each_server, "named")["messages"]
    assert question["correlation_id"] == "my-own"
    send(each_server, "elsewhere", "not to the asker", sender="named", correlation_id="my-own")
    assert call(each_server, "GET", f"/api/requests/{body['request_id']}")["status"] == "pending"
    reply(each_server, question, "yes", sender="named")
    assert call(each_server, "GET", f"/api/requests/{body['request_id']}")["status"] == "answered"


def test_a_question_may_need_an_ack_and_its_reply_too(each_server: BusServer) -> None:
    with Peer(each_server, "formal") as formal, ThreadPoolExecutor() as pool:
        waiting = asked(pool, each_server, "formal", require_ack=True)
        question = formal.message()
        assert question["requires_ack"] is True
        receipt = formal.ask(
            "send", to="asker", payload="done", correlation_id=question["correlation_id"], require_ack=True
        )
        assert formal.settle("ack", question)["status"] == "acked"
        assert waiting.result()["reply"]["id"] == receipt["message_id"]
    assert settle(each_server, "ack", receipt["message_id"], "asker")["status"] == "acked"


def test_a_question_to_a_queue_is_answered_by_whoever_takes_it(each_server: BusServer) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = asked(pool, each_server, "queue:questions", payload="?")
        (item,) = claim(each_server, "questions", "clerk", wait=20)
        reply(each_server, item, "!", sender="clerk")
        settle(each_server, "ack", item, "clerk")
        answer = waiting.result()
    assert (answer["status"], answer["reply"]["payload"], answer["missing"]) == ("answered", "!", [])


# ---- one asks many


def test_many_are_asked_and_all_must_answer(each_server: BusServer) -> None:
    names = ["anna", "ben", "carl"]
    with ThreadPoolExecutor() as pool:
        waiting = asked(pool, each_server, names, payload="who?")
        question = eventually(lambda: inbox(each_server, "carl")["messages"], what="the question")[-1]
        for name in ("carl", "anna"):
            reply(each_server, question, name, sender=name)
        reply(each_server, question, "anna, again", sender="anna")
        found = call(each_server, "GET", f"/api/requests/{question['id']}")
        assert (found["status"], found["missing"], found["reply"]["payload"]) == ("partial", ["ben"], "carl")
        assert not waiting.done()
        reply(each_server, question, "ben", sender="ben")
        answer = waiting.result()
    assert (answer["status"], answer["missing"]) == ("answered", [])
    assert payloads(answer["replies"]) == ["carl", "anna", "anna, again", "ben"]


def test_who_is_missing_at_the_deadline_is_told(each_server: BusServer) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(
            each_server.call, "POST", "/api/request", {"from": "asker", "to": ["quick", "slow"], "wait": 1}
        )
        question = eventually(lambda: inbox(each_server, "quick")["messages"], what="the question")[-1]
        reply(each_server, question, "here", sender="quick")
        answer = waiting.result()
    assert (answer.status, answer.body["status"], answer.body["missing"]) == (200, "partial", ["slow"])
    assert payloads(answer.body["replies"]) == ["here"]


# ---- refusals


@pytest.mark.parametrize("over", ["rest", "websocket"])
def test_nobody_who_is_away_is_asked_when_somebody_must_be_there(each_server: BusServer, over: str) -> None:
    away, here = f"away-{over}", f"here-{over}"
    with Peer(each_server, here) as present, Peer(each_server, "asker") as asker:
        question = {"to": [away, "gone"], "payload": 1, "require_online": True, "wait": 0.1}
        if over == "rest":
            answer = each_server.call("POST", "/api/request", {"from": "asker", **question})
            assert (answer.status, answer.body["code"], answer.body["field"]) == (409, "recipient_offline", "to")
        else:
            error = asker.ask("request", **question)
            assert (error["type"], error["code"], error["field"]) == ("error", "recipient_offline", "to")
        assert inbox(each_server, away)["count"] == 0
        wait_until_known(each_server, [here])
        found = asker.ask("request", to=[away, here], wait=0, require_online=True)
        assert (found["status"], present.message()["id"]) == ("pending", found["request_id"])


def test_a_repeated_question_is_asked_once(each_server: BusServer) -> None:
    with Peer(each_server, "asker") as asker:
        for more in ({"correlation_id": "c"}, {}):
            key = {"idempotency_key": f"ask once {more}"}
            first = ask(each_server, "once", "?", wait=0, **key, **more)
            assert ask(each_server, "once", "?", wait=0, **key, **more) == first
            again = asker.ask("request", to="once", payload="?", wait=0, **key, **more)
            assert {**first, "type": "reply", "ref": again["ref"]} == again
    questions = inbox(each_server, "once")["messages"]
    assert len(questions) == 2
    reply(each_server, questions[1], "!", sender="once")
    assert ask(each_server, "once", "?", wait=20, **key)["reply"]["payload"] == "!"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "from"),
        ({"from": "asker"}, "to"),
        ({"from": "all", "to": "x"}, "from"),
        ({"from": "asker", "to": "x", "wait": 50.1}, "wait"),
        ({"from": "asker", "to": "x", "wait": -1}, "wait"),
        ({"from": "asker", "to": "x", "wait": "long"}, "wait"),
        ({"from": "asker", "to": "x", "require_online": "yes"}, "require_online"),
        ({"from": "asker", "to": "x", "ephemeral": True}, "ephemeral"),
        ({"from": "asker", "to": "x", "delay": 5}, "delay"),
        ({"from": "asker", "to": "x", "deliver_at": "2020-01-01T00:00:00Z"}, "delay"),
        ({"from": "asker", "to": "x", "correlation_id": ""}, "correlation_id"),
        ({"from": "asker", "to": "all", "require_ack": True}, "require_ack"),
    ],
)
def test_a_wrong_question_is_refused_and_asks_nobody(server: BusServer, body: dict[str, Any], field: str) -> None:
    before = call(server, "GET", "/api/status")["metrics"]["total_messages"]
    answer = server.call("POST", "/api/request", body)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert call(server, "GET", "/api/status")["metrics"]["total_messages"] == before


def test_a_request_that_is_not_there_is_answered_so(server: BusServer) -> None:
    plain = send(server, "x")["message_id"]
    for request_id in ("nothing", plain, "msg-0123456789ab-000000000001"):
        answer = server.call("GET", f"/api/requests/{request_id}")
        assert (answer.status, answer.body["code"]) == (404, "unknown_request")
