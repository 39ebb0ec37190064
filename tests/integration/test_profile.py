"""`POST /api/profile` and `python -m bus profile`: what messages pass is timed, in all workers, when asked."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from bus.profile import WAITS, Profile, Table
from bus.testing import HOST, Answer, BusServer, eventually
from tests.integration.test_cli import run
from tests.rawws import RawWebSocket
from tests.refusals import check

pytestmark = pytest.mark.one_node("a profile is of one machine's workers")

SENT = 20
TRACED = {"BUS_EXTENSIONS": "tests.traced"}


@pytest.fixture(scope="module", params=[1, 4], ids=["one worker", "four workers"])
def traced(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    with BusServer(workers=request.param, env=TRACED) as running:
        yield running


def workers_of(server: BusServer) -> int:
    """How many workers there are, once each knows all others."""

    def known() -> bool:
        return bool(server.call("GET", "/api/status").body["workers"] == len(server.worker_pids()))

    eventually(known, what="the mesh")
    return len(server.worker_pids())


def switched(server: BusServer, *, on: bool) -> None:
    """Wait until the points of every worker are on, or off, and all alike."""
    seen: set[int] = set()

    def all_alike() -> bool:
        answer = server.call("GET", "/traced").body
        if set(answer["points"].values()) == {on} and bool(answer["shadows"]) == on:
            seen.add(answer["worker"])
        else:
            seen.clear()
        return len(seen) == len(server.worker_pids())

    eventually(all_alike, what="the tracing points")


def ask(server: BusServer, seconds: object) -> Answer:
    return server.call("POST", f"/api/profile?seconds={seconds}")


@contextmanager
def profiled(server: BusServer, seconds: float = 2.0) -> Iterator[Future[Answer]]:
    """A profile that is being taken, by all workers."""
    workers_of(server)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, seconds)
        switched(server, on=True)
        yield asked


def load(server: BusServer) -> None:
    """SENT messages over each way in, to a socket and a stream; returns when all have been written."""
    body = {"from": "writer", "to": "all", "payload": "x"}
    stream = http.client.HTTPConnection(HOST, server.port, timeout=10)
    stream.request("GET", "/stream/events?client_id=viewer")
    events = stream.getresponse()
    with RawWebSocket(server.port, "/ws/reader") as reader, RawWebSocket(server.port, "/ws/writer") as writer:
        reader.read_until("connection_confirmed")
        writer.read_until("connection_confirmed")
        for number in range(SENT):
            writer.send_json({"type": "send", "to": "all", "payload": "x", "ref": number})
        for _ in range(SENT):
            assert server.call("POST", "/api/send", body).status == 200
        assert server.call("POST", "/api/send/batch", {"messages": [body] * SENT}).status == 200
        queued = {"type": "send", "to": "queue:jobs", "payload": "x", "ref": "job"}
        writer.send_json(queued)
        writer.send_json({**queued, "to": "reader", "ephemeral": True})
        for _ in range(3 * SENT + 1):
            reader.read_until("message")
        lines = 0
        while lines < 3 * SENT:
            lines += events.readline().startswith(b"event: message_received")
    stream.close()
    assert server.call("GET", "/api/messages?to=away&since=earliest").status == 200


def found(table: Table) -> dict[str, tuple[int, int]]:
    """(calls, messages) by stage."""
    return {each.stage: (each.calls, each.messages) for each in table.stages}


def test_the_table_names_only_what_is_there(traced: BusServer) -> None:
    answer = traced.call("GET", "/traced").body
    assert answer["missing"] == [], "POINTS in bus/transports/profile.py names what was renamed."
    assert len(answer["points"]) > 40


def test_every_stage_that_messages_pass_is_timed_and_then_nothing_is(traced: BusServer) -> None:
    workers = workers_of(traced)
    with profiled(traced) as asked:
        load(traced)
        assert not asked.done(), "the load took longer than the profile"
        answer = asked.result(30)
    assert answer.status == 200, answer
    profile = msgspec.convert(answer.body, Profile)
    assert ([table.worker for table in profile.workers], profile.missing) == (list(range(workers)), [])
    stored, total = 3 * SENT + 1, profile.total
    assert total.messages == stored + 1  # an ephemeral one has no commit
    assert sum(table.messages for table in profile.workers) == total.messages
    stages = found(total)
    for stage in ("validate", "accept"):
        assert stages[stage][1] == stored + 1, stage
    for stage in ("admit", "commit", "share", "answer"):
        assert stages[stage][1] >= stored, stage  # a client's row, say, goes the same way
    assert stages["tail"][1] >= stored + 1
    assert stages["write"][1] == 6 * SENT + 1  # to the reader, and all but the last to the viewer
    for stage in ("encode", "frames", "queue"):
        assert stages[stage][1] > 0, stage
    for stage in ("read", "gather", "lock", "insert", "fan-out", "http", "deliveries", "pages"):
        assert stages[stage][0] > 0, stage
    assert ("mesh" in stages) == (workers > 1)
    assert 0 < total.commits.count <= stored
    assert [wait.wait for wait in total.waits] == list(WAITS)
    for table in [total, *profile.workers]:
        loop = [each for each in table.stages if each.thread == "loop"]
        assert sum(each.share for each in loop) == pytest.approx(1, abs=0.01)
        assert {"other", "tracing"} <= {each.stage for each in loop}
        assert sum(each.seconds for each in loop) <= table.seconds * len(profile.workers) * 1.01
    switched(traced, on=False)


def test_one_profile_at_a_time_is_taken(traced: BusServer) -> None:
    with profiled(traced, 1.5) as asked:
        refused = [ask(traced, 1) for _ in range(8)]
        assert asked.result(30).status == 200
    for answer in refused:
        check(answer, 409, "profile_running")
    assert ask(traced, 0.05).status == 200, "the next one may come"


@pytest.mark.parametrize("seconds", ["60.1", "0", "-1", "nan", "inf", "1e999", "", "soon", "%00", "0.1&seconds=x"])
def test_a_length_that_is_none_is_refused(traced: BusServer, seconds: str) -> None:
    answer = ask(traced, seconds)
    if seconds == "0.1&seconds=x":
        assert answer.status == 200, "the first is taken, as everywhere"
    else:
        check(answer, 400, "bad_field", "seconds")


def test_it_ends_though_nobody_waits_for_it(traced: BusServer) -> None:
    workers_of(traced)
    with socket.create_connection((HOST, traced.port)) as connection:
        connection.sendall(b"POST /api/profile?seconds=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        switched(traced, on=True)
    switched(traced, on=False)
    eventually(lambda: ask(traced, 0.05).status == 200, what="the next profile")


def test_a_worker_that_does_not_answer_is_named(fresh_server: Any) -> None:
    server: BusServer = fresh_server(workers=2)
    workers_of(server)
    stopped = server.worker_pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        profile = msgspec.convert(ask(server, 0.1).body, Profile)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert (len(profile.workers), len(profile.missing)) == (1, 1)
    assert "in time" in profile.missing[0].reason
    assert profile.missing[0].worker != profile.workers[0].worker


def test_a_server_that_stops_does_not_wait_for_it(fresh_server: Any) -> None:
    server: BusServer = fresh_server(env=TRACED)
    with profiled(server, 60) as asked:
        assert server.terminate() == 0
        answer = asked.result(30)
    assert answer.status == 200
    assert msgspec.convert(answer.body, Profile).total.seconds < 60


def test_it_needs_the_key(locked: BusServer) -> None:
    check(ask(locked, 0.1), 401, "unauthenticated")


def test_the_command_prints_a_table(traced: BusServer) -> None:
    done = run(traced.url, "profile", "--seconds", "0.3", "--workers")
    assert (done.returncode, done.stderr) == (0, "")
    assert "us/message" in done.stdout
    assert done.stdout.count("\nloop, ") == workers_of(traced) + 1
    told = run(traced.url, "profile", "--seconds", "0.1", "--json")
    assert msgspec.convert(json.loads(told.stdout), Profile).missing == []
    bad = run(traced.url, "profile", "--seconds", "61")
    assert (bad.returncode, bad.stdout) == (2, "")
