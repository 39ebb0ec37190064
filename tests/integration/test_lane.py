"""The lane for sends gives the answers that Flask gives, field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from bus.testing import BusServer
from tests.calls import call
from tests.integration.test_bad_requests import NOT_JSON, WRONG_BATCHES, WRONG_FIELDS
from tests.line import FLASK, LANE, SEAMS, TO_FLASK, Answer, Line, post
from tests.refusals import GOOD, KEY, LEAK, sending

Start = Callable[..., BusServer]

VARYING = re.compile(
    r'"message_id": "[^"]+"|"seq": \d+|"timestamp": "[^"]+"|"deliver_at": "[^"]+"|"state": "(?:unknown|queued)"'
)


def comparable(answer: Answer) -> tuple[int, str, list[tuple[str, str]], str]:
    """An answer without what two answers to the same question never share."""
    passing = {"Date", "X-Served-By", "Content-Length"}
    fields = [(name, "" if name in passing else value) for name, value in answer.headers if name != "X-Served-By"]
    return answer.status, answer.reason, fields, VARYING.sub("*", json.dumps(answer.body))


def check_both(server: BusServer, body: bytes, path: str = "/api/send", **headers: str) -> Answer:
    """Ask the lane, then Flask; their answers must be the same. Returns the lane's."""
    with Line(server) as line:
        named = {"X_Request_ID": "one-id-for-both", **headers}
        first = line.ask(post(body, path=path, **named))
        second = line.ask(post(body, path=path, **named, **TO_FLASK))
        assert (first.by, second.by) == (LANE, FLASK)
        assert comparable(first) == comparable(second)
        return first


TAKEN: dict[str, bytes] = {
    "to one": sending(),
    "with all that may be said": sending(
        payload={"é": [1.50, "\n"]}, priority="high", ttl=60, correlation_id="c", thread_id="t", headers={"a": "b"}
    ),
    "to a list": sending(to=["one", "two"]),
    "to all": sending(to="all"),
    "to a topic": sending(to="topic:builds.linux"),
    "to a queue": sending(to="queue:jobs"),
    "ephemeral": sending(ephemeral=True),
    "delayed": sending(delay=3600),
    "to be acked": sending(require_ack=True),
}


@pytest.mark.parametrize("path", ["/api/send", "/api/v1/send"])
@pytest.mark.parametrize("name", TAKEN)
def test_a_send_is_answered_as_by_flask(seams: BusServer, name: str, path: str) -> None:
    assert check_both(seams, TAKEN[name], path).status == 200


@pytest.mark.parametrize("path", ["/api/send/batch", "/api/v1/send/batch"])
@pytest.mark.parametrize("atomic", [False, True])
def test_a_batch_is_answered_as_by_flask(seams: BusServer, path: str, atomic: bool) -> None:
    good = [json.loads(text) for name, text in TAKEN.items() if name != "ephemeral" or not atomic]
    members = good if atomic else [*good, "x", {}, {**GOOD, "to": 5}, {**GOOD, "delay": -1}]
    assert check_both(seams, json.dumps({"messages": members, "atomic": atomic}).encode(), path).status == 200
    assert check_both(seams, b'{"messages": []}', path).body == {"count": 0, "results": []}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_no_json_is_refused_as_by_flask(seams: BusServer, name: str) -> None:
    body, code = NOT_JSON[name]
    assert check_both(seams, body).body["code"] == code
    assert check_both(seams, body, "/api/send/batch").status == 400


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_wrong_field_is_refused_as_by_flask(seams: BusServer, name: str) -> None:
    body, status, code, _ = WRONG_FIELDS[name]
    answer = check_both(seams, body)
    assert (answer.status, answer.body["code"]) == (status, code)


@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_a_wrong_batch_is_refused_as_by_flask(seams: BusServer, name: str) -> None:
    call(seams, "POST", "/api/send", {**GOOD, "payload": 1, "idempotency_key": "taken"})
    body, status, code, _ = WRONG_BATCHES[name]
    answer = check_both(seams, json.dumps(body).encode(), "/api/send/batch")
    assert (answer.status, answer.body["code"]) == (status, code)


def test_an_idempotency_key_in_the_header_is_the_fields_equal(seams: BusServer) -> None:
    first = call(seams, "POST", "/api/send", {**GOOD, "idempotency_key": "once"})
    answer = check_both(seams, sending(), Idempotency_Key="once")
    assert (answer.body["message_id"], answer.body["duplicate"]) == (first["message_id"], True)
    assert check_both(seams, sending(payload=2), Idempotency_Key="once").status == 422
    assert check_both(seams, sending(), Idempotency_Key="k" * 256).body["field"] == "idempotency_key"


def test_a_request_id_is_kept_if_it_is_sane(seams: BusServer) -> None:
    with Line(seams) as line:
        assert dict(line.ask(post(X_Request_ID="mine")).headers)["X-Request-ID"] == "mine"
        for odd in ("two words", "x" * 65, ""):
            answer = line.ask(post(b"{}", X_Request_ID=odd))
            assert answer.by == LANE
            assert dict(answer.headers)["X-Request-ID"] == answer.body["request_id"] != odd


def test_an_overloaded_bus_says_when_to_come_back(seams: BusServer) -> None:
    assert seams.call("PUT", "/seams/overload").status == 200
    try:
        answer = check_both(seams, sending())
    finally:
        seams.call("DELETE", "/seams/overload")
    assert (answer.status, dict(answer.headers)["Retry-After"]) == (503, "1")


def test_our_own_fault_is_answered_told_in_the_log_and_ends_that_connection_only(seams: BusServer) -> None:
    with Line(seams) as other, Line(seams) as line:
        body = sending(type="unanswerable")
        flask, lane = (line.ask(post(body, X_Request_ID=f"a-fault-{n}", **h)) for n, h in enumerate((TO_FLASK, {})))
        assert (flask.by, lane.by) == (FLASK, LANE)
        assert (lane.status, lane.reason) == (flask.status, flask.reason) == (500, "INTERNAL SERVER ERROR")
        assert {**lane.body, "request_id": ""} == {**flask.body, "request_id": ""}
        assert not LEAK.search(str(lane))
        assert dict(lane.headers)["Connection"] == "close"
        assert line.has_ended()
        assert other.ask(post()).status == 200
    for number in range(2):
        assert re.search(rf"A request failed .*path=/api/send request_id=a-fault-{number}", seams.log)


@pytest.mark.parametrize("key", [{"X_API_Key": KEY}, {"Authorization": f"bearer  {KEY} "}])
def test_with_auth_on_the_lane_is_for_holders_of_the_key(fresh_server: Start, key: dict[str, str]) -> None:
    locked = fresh_server(env={"API_KEY": KEY, **SEAMS})
    assert check_both(locked, sending(), **key).status == 200
    with Line(locked) as line:
        for wrong in ({}, {"X_API_Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            answer = line.ask(post(**wrong))
            assert (answer.by, answer.status) == (FLASK, 401)
        assert [line.ask(post(**key)).by for _ in range(3)] == [FLASK, LANE, LANE]  # first a body is left to be skipped
