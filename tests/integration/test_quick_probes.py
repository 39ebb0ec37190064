"""Probes in the lane: the answers that Flask gives, and Flask's for whatever asks for more."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from bus.testing import BusServer, eventually
from tests.follower import Follower
from tests.line import FLASK, LANE, SEAMS, TO_FLASK, Answer, Line, get, post
from tests.refusals import KEY

Start = Callable[..., BusServer]
PATHS = ("/health", "/health/live", "/health/ready", "/health/startup", "/ready")


def comparable(answer: Answer) -> tuple[int, str, list[tuple[str, str]], str]:
    """An answer without what passes."""
    passing = {"Date", "Content-Length"}
    fields = sorted((k, "" if k in passing else v) for k, v in answer.headers if k != "X-Served-By")
    body = re.sub(r"It has not flown yet\.", "It took 1 ms.", json.dumps(answer.body))
    return answer.status, answer.reason, fields, re.sub(r"\d+(\.\d+)?", "*", body)


def check_both(server: BusServer, path: str, **headers: str) -> Answer:
    """Probe by the lane, then by Flask; the answers must be the same. Returns the lane's.

    Two workers may be asked, which have met their neighbours a moment apart; then once more.
    """
    named = {"X_Request_ID": "one-id-for-both", **headers}

    def asked() -> tuple[Answer, Answer]:
        with Line(server) as one, Line(server) as other:
            first, second = one.ask(get(path, **named)), other.ask(get(path, **named, **TO_FLASK))
        assert (first.by, second.by) == (LANE, FLASK)
        return first, second

    def are_the_same() -> Answer | None:
        first, second = asked()
        return first if comparable(first) == comparable(second) else None

    return eventually(are_the_same, within_seconds=3, what="the same answer of both")


def wait_for_rounds(server: BusServer) -> None:
    """Each worker has judged itself, and has said so to the others."""

    def all_healthy() -> bool:
        workers = server.call("GET", "/health/status", headers={"X-API-Key": KEY}).body["workers"]
        return len(workers) >= server.workers and {worker["status"] for worker in workers} == {"healthy"}

    eventually(all_healthy, what="the first rounds of all workers")


@pytest.mark.parametrize("path", PATHS)
def test_a_probe_is_answered_as_by_flask(each_seams: BusServer, path: str) -> None:
    wait_for_rounds(each_seams)
    answer = check_both(each_seams, path, Accept="*/*", Connection="close", User_Agent="kube-probe/1.31")
    assert (answer.status, answer.body["status"]) == (200, "healthy")
    assert ("checks" in answer.body) == (path != "/health")
    check_both(each_seams, path, Host="10.1.2.3:5001")


def test_whatever_asks_for_more_is_flasks(seams: BusServer) -> None:
    with Line(seams) as line:
        for asked in (
            get("/health/live", Accept="application/health+json"),
            get("/health/live?verbose"),
            get("/health/live", Content_Length="0"),
            get("/health/status"),
            get("/health/live", Origin="http://localhost"),
        ):
            assert (line.ask(asked).by, asked) == (FLASK, asked)
        assert line.ask(post(path="/health/live")).status == 405


def test_probes_and_sends_share_a_connection_in_order(seams: BusServer) -> None:
    with Line(seams) as line:
        line.send(get("/health/live") + post() + get("/ready") + get() + get("/health"))
        answers = [line.read() for _ in range(5)]
    assert [answer.by for answer in answers[:3]] == [LANE] * 3
    assert ["checks" in answer.body for answer in answers] == [True, False, True, False, False]
    assert "message_id" in answers[1].body
    assert answers[4].body == {"status": "healthy"}


@pytest.mark.parametrize("path", PATHS)
def test_with_auth_on_strangers_and_false_keys_see_the_status_alone(seams_locked: BusServer, path: str) -> None:
    wait_for_rounds(seams_locked)
    for wrong in ({}, {"X_API_Key": "wrong"}, {"Authorization": "Bearer wrong"}):
        assert check_both(seams_locked, path, **wrong).body == {"status": "healthy"}
    assert ("checks" in check_both(seams_locked, path, X_API_Key=KEY).body) == (path != "/health")


@pytest.fixture(scope="module")
def seams_locked() -> Iterator[BusServer]:
    """A server with auth on, and seams."""
    with BusServer(env={"API_KEY": KEY, **SEAMS}) as running:
        yield running


@pytest.mark.slow
@pytest.mark.one_node("signals to one master")
def test_during_the_notice_it_is_not_ready_and_answered_all_the_same(fresh_server: Start) -> None:
    server = fresh_server(env={**SEAMS, "DRAIN_NOTICE_SECONDS": "3"})
    with Follower(server.port, "anna") as anna:
        os.kill(server.pid, signal.SIGTERM)
        anna.wait_for_frame("goaway")

        def not_ready() -> bool:
            return check_both(server, "/health/ready").status == 503

        eventually(not_ready, within_seconds=2, what="the verdict")
        assert check_both(server, "/ready").reason == "SERVICE UNAVAILABLE"
        assert check_both(server, "/health/live").status == 200
        assert server.wait(15) == 0


def test_without_the_module_there_are_none(fresh_server: Start) -> None:
    server = fresh_server(env={**SEAMS, "DISABLED_EXTENSIONS": "health_checks"})
    with Line(server) as line:
        assert (line.ask(get("/health")).by, line.ask(get("/ready")).status) == (FLASK, 404)
