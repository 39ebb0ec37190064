"""Retention over REST and sockets, on the real server with one worker and with four."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.sync.client import connect

from bus.settings import ROOT
from bus.testing import BusServer, eventually
from tests.calls import call, send
from tests.event_source import EventSource
from tests.refusals import KEY
from tests.scraped import scrape

SEAMS = {"BUS_EXTENSIONS": "tests.clock_seams", "TTL_SWEEP_INTERVAL": "1", "HEAR_EXPIRY": "1"}


@pytest.fixture(scope="module", params=[1, 4], ids=["one worker", "four workers"])
def bus(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    """A server whose clocks a test sets."""
    with BusServer(workers=request.param, env=SEAMS) as running:
        yield running


@pytest.fixture
def name() -> str:
    """A client of this test's own."""
    return f"c-{secrets.token_hex(4)}"


def put(bus: BusServer, type_: str, **policy: Any) -> dict[str, Any]:
    return call(bus, "PUT", f"/api/ttl/policies/{type_}", policy)


def stats(bus: BusServer) -> dict[str, Any]:
    return call(bus, "GET", "/api/ttl/stats")


def inbox(bus: BusServer, name: str, more: str = "") -> list[str]:
    return [m["id"] for m in call(bus, "GET", f"/api/messages?to={name}&since=earliest{more}")["messages"]]


def status_of(bus: BusServer, message_id: str) -> int:
    return bus.call("GET", f"/api/messages/{message_id}").status


def sweep(bus: BusServer, condition: Callable[[], Any], what: str) -> None:
    """Ask for sweeps until a condition holds."""
    eventually(lambda: bus.call("POST", "/api/ttl/sweep").status == 202 and condition(), within_seconds=20, what=what)


def heard(bus: BusServer, *entry: Any) -> bool:
    return list(entry) in call(bus, "GET", "/seams/events")["heard"]


# ---- lives


def test_a_message_is_gone_from_every_read_at_its_moment(bus: BusServer, name: str) -> None:
    put(bus, "brief", ttl_seconds=1)
    plain = send(bus, name, type="brief", thread_id=name)["message_id"]
    tracked = send(bus, name, type="brief", require_ack=True)["message_id"]
    queued = send(bus, f"queue:{name}", type="brief")["message_id"]
    topical = send(bus, f"topic:{name}", type="brief")["message_id"]
    lasting = send(bus, name)["message_id"]
    assert set(inbox(bus, name)) == {plain, tracked, lasting}
    eventually(lambda: status_of(bus, plain) == 404, what="the end of a life")
    eventually(lambda: status_of(bus, topical) == 404, what="the end of the last")
    assert [status_of(bus, gone) for gone in (plain, tracked, queued)] == [404] * 3
    assert inbox(bus, name) == [lasting]
    assert inbox(bus, name, "&wait=0.1&type=brief") == []
    assert call(bus, "GET", f"/api/log?topic={name}")["messages"] == []
    assert bus.call("GET", f"/api/threads/{name}").status == 404
    assert call(bus, "POST", f"/api/queues/{name}/claim", {"client": name})["messages"] == []
    with connect(f"{bus.ws_url}/ws/{name}?since=earliest&topics={name}") as socket:
        assert json.loads(socket.recv())["type"] == "connection_confirmed"
        assert json.loads(socket.recv())["message"]["id"] == lasting
    sweep(bus, lambda: {"id": tracked, "owner": name}.items() <= _letter(bus, tracked).items(), "a dead letter")
    assert _letter(bus, tracked)["reason"] == _letter(bus, queued)["reason"] == "expired"


def _letter(bus: BusServer, message_id: str) -> dict[str, Any]:
    letters = bus.call("GET", f"/api/dead-letters/{message_id}").body.get("dead_letters")
    return letters[0] if letters else {}


def test_a_policy_holds_in_every_worker_from_its_answer_on(bus: BusServer, name: str) -> None:
    for number in range(12):
        type_ = f"{name}.{number}"
        put(bus, type_, ttl_seconds=1000 + number)
        message = send(bus, name, type=type_)
        shown = call(bus, "GET", f"/api/messages/{message['message_id']}")["message"]
        assert shown["expires_at"] > shown["timestamp"]
        assert "expires_at" not in call(bus, "GET", f"/api/messages/{send(bus, name)['message_id']}")["message"]


def test_policies_are_listed_changed_and_given_back(bus: BusServer, name: str) -> None:
    known = {p["type"]: p["policy"] for p in call(bus, "GET", "/api/ttl/policies")["policies"]}
    standard = {"error": "short", "log": "medium", "command": "long", "notification": "immediate", "audit": "permanent"}
    assert known.items() >= {**standard, "$default": "medium"}.items()
    changed = put(bus, name, policy="long", archive_before_delete=True, apply_to_stored=False)
    assert changed["stored"] == "untouched"
    assert (changed["policy"]["ttl_seconds"], changed["policy"]["origin"]) == (604800, "admin")
    assert call(bus, "DELETE", f"/api/ttl/policies/{name}")["stored"] == "applied"
    assert name not in {p["type"] for p in call(bus, "GET", "/api/ttl/policies")["policies"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "policies/x", {}, 400),
        ("PUT", "policies/x", {"ttl_seconds": 0}, 400),
        ("PUT", "policies/x", {"policy": "forever"}, 400),
        ("PUT", "policies/x", {"policy": "short", "ttl_seconds": 5}, 400),
        ("PUT", "policies/$archive", {"policy": "immediate"}, 400),
        ("PUT", "policies/$other", {"policy": "long"}, 400),
        ("DELETE", "policies/$default", None, 409),
        ("DELETE", "policies/none-such", None, 404),
        ("GET", "expiring?within=-1", None, 400),
        ("GET", "expiring?cursor=x", None, 400),
    ],
)
def test_what_means_nothing_is_refused(bus: BusServer, method: str, path: str, body: Any, status: int) -> None:
    assert bus.call(method, f"/api/ttl/{path}", body).status == status


def test_a_changed_policy_reaches_what_is_stored(bus: BusServer, name: str) -> None:
    stored = send(bus, name, type=name)["message_id"]
    own = send(bus, name, type=name, ttl=3600)["message_id"]
    assert put(bus, name, ttl_seconds=1)["stored"] == "applied"
    eventually(lambda: status_of(bus, stored) == 404, what="the policy's work")
    assert status_of(bus, own) == 200


def test_more_time_is_added_to_what_is_left(bus: BusServer, name: str) -> None:
    put(bus, "brief", ttl_seconds=1)
    message_id = send(bus, name, type="brief", require_ack=True)["message_id"]
    extended = call(bus, "POST", f"/api/messages/{message_id}/extend", {"additional_seconds": 100})
    assert extended["status"] == "extended"
    other = send(bus, name, type="brief")["message_id"]
    eventually(lambda: status_of(bus, other) == 404, what="the end of one that was not extended")
    assert inbox(bus, name) == [message_id]
    ever = send(bus, name, type="audit")["message_id"]
    answer = call(bus, "POST", f"/api/messages/{ever}/extend", {"additional_seconds": 1})
    assert (answer["status"], answer["expires_at"]) == ("permanent", None)
    assert bus.call("POST", f"/api/messages/{other}/extend", {"additional_seconds": 1}).status == 404
    soon = call(bus, "GET", "/api/ttl/expiring?within=200&limit=1000")["messages"]
    assert message_id in {entry["message"]["id"] for entry in soon}


def test_an_immediate_one_goes_once_the_socket_has_confirmed_it(bus: BusServer, name: str) -> None:
    message_id = send(bus, name, type="notification")["message_id"]
    assert inbox(bus, name) == inbox(bus, name) == [message_id], "A read is no delivery."
    with connect(f"{bus.ws_url}/ws/{name}") as socket:
        socket.recv()
        assert json.loads(socket.recv())["message"]["id"] == message_id
        eventually(lambda: status_of(bus, message_id) == 404, what="the end after the delivery")
    assert inbox(bus, name) == []


# ---- events


@pytest.mark.one_node("callbacks of one process")
def test_events_and_callbacks_come_after_the_fact_and_their_trouble_stops_nothing(bus: BusServer, name: str) -> None:
    first, second = (send(bus, name, type="called")["message_id"] for _ in range(2))
    sweep(bus, lambda: heard(bus, "on_expire", first) and heard(bus, "on_expire", second), "two callbacks")
    assert heard(bus, "message.expired", "called", "expired")
    assert "called" in {row["policy"] for row in stats(bus)["removed"]}
    eventually(lambda: "failed" in bus.log, what="a word in the log")


def opened(bus: BusServer, query: str) -> EventSource:
    """A stream that was welcomed."""
    source = EventSource(bus, query)
    assert source.read().event == "connected"
    return source


def told(source: EventSource, count: int) -> list[dict[str, Any]]:
    """What a stream was told of until it heard of so many messages; nothing else came."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        event = source.read(20)
        assert event.event == "message.expired"
        assert event.json["count"] == len(event.json["messages"])
        assert not event.json["more"]
        found += event.json["messages"]
    return sorted(found, key=lambda message: str(message["id"]))


def test_streams_that_ask_are_told_what_they_may_see_has_gone(bus: BusServer, name: str) -> None:
    subscribe = f"subscribe=message.expired&types={name}"
    with ExitStack() as streams:
        mine = [streams.enter_context(opened(bus, f"client_id={name}&{subscribe}")) for _ in range(4)]
        senders = streams.enter_context(opened(bus, f"client_id={name}-sender&{subscribe}"))
        listener = streams.enter_context(opened(bus, f"{subscribe}&topics={name}.*"))
        silent = streams.enter_context(opened(bus, f"client_id={name}-2&types={name}&subscribe=message_received"))
        to = [name, [name, f"{name}-2"], f"{name}-2", f"topic:{name}.a", "all"]
        ids = [send(bus, each, type=name, ttl=1, sender=f"{name}-sender")["message_id"] for each in to]
        send(bus, name, type=f"{name}-other", ttl=1)
        sweep(bus, lambda: stats(bus)["expired"] and all(status_of(bus, each) == 404 for each in ids), "the sweep")
        shown = [
            {"id": i, "type": name, "from": f"{name}-sender", "to": t, "reason": "expired"}
            for i, t in zip(ids, to, strict=True)
        ]
        for stream in mine:
            assert told(stream, 3) == [shown[0], shown[1], shown[4]]
        assert told(senders, 5) == shown
        assert told(listener, 2) == shown[3:]
        assert [event.event for event in silent.take(3)] == ["message_received"] * 3
        assert silent.is_silent(1.0)


def test_many_that_go_at_once_are_told_in_few_events(bus: BusServer, name: str) -> None:
    with opened(bus, f"client_id={name}&subscribe=message.expired") as source:
        for _ in range(3):
            batch = [{"from": "ann", "to": name, "type": name, "ttl": 1} for _ in range(1000)]
            call(bus, "POST", "/api/send/batch", {"messages": batch})
        events, heard_of, more = 0, 0, False
        while heard_of < 3000 and not more:
            event = source.read(30).json
            assert len(event["messages"]) == min(event["count"], 100)
            events, heard_of, more = events + 1, heard_of + event["count"], event["more"]
        assert events <= 10
        assert heard_of <= 3000


# ---- the archive


@pytest.mark.one_node("each has the archives that it wrote")
def test_what_is_archived_is_listed_found_and_restored(bus: BusServer, name: str) -> None:
    put(bus, name, ttl_seconds=1, archive_before_delete=True)
    texts = [secrets.token_hex(8) for _ in range(5)]
    ids = [send(bus, name, type=name, payload=text)["message_id"] for text in texts]
    path = f"/api/archive/messages?type={name}"
    sweep(bus, lambda: len(call(bus, "GET", path)["messages"]) == 5, "an archive")
    found = call(bus, "GET", path)["messages"]
    assert [(entry["message"]["id"], entry["message"]["payload"]) for entry in found] == list(
        zip(ids, texts, strict=True)
    )
    since = found[2]["message"]["timestamp"].replace("+00:00", "Z")
    assert len(call(bus, "GET", f"{path}&since={since}")["messages"]) == 3
    files = call(bus, "GET", f"/api/archive/files?since={since}")["files"]
    assert sum(file["messages"] for file in files) >= 3
    assert inbox(bus, name) == []
    done = call(bus, "POST", "/api/archive/restore", {"type": name, "since": since})
    assert done == {"found": 3, "restored": 3, "elsewhere": []}
    assert inbox(bus, name) == ids[2:]
    assert call(bus, "GET", f"/api/messages/{ids[3]}")["message"]["restored"] is True


@pytest.mark.one_node("each has the archives that it wrote")
def test_the_command_line_lists_searches_and_restores(bus: BusServer, name: str) -> None:
    put(bus, name, ttl_seconds=1, archive_before_delete=True)
    message_id = send(bus, name, type=name)["message_id"]
    sweep(bus, lambda: call(bus, "GET", f"/api/archive/messages?id={message_id}")["messages"], "an archive")
    assert "messages" in _bus(bus, "archive", "list")
    lines = [json.loads(line) for line in _bus(bus, "archive", "search", "--type", name, "--json").splitlines()]
    assert [line["message"]["id"] for line in lines] == [message_id]
    done = _bus(bus, "archive", "restore", "--id", message_id, "--to", f"{name}-2", "--yes")
    assert "1 message restored, of 1 found" in done
    assert inbox(bus, f"{name}-2") == [message_id]


def _bus(bus: BusServer, *arguments: str) -> str:
    command = [sys.executable, "-m", "bus", *arguments, "--url", bus.url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout


# ---- who may


def test_only_an_administrator_changes_or_looks_into_it(locked_server: BusServer) -> None:
    assert locked_server.call("GET", "/api/ttl/policies").status == 401
    for method, path in (("PUT", "policies/x"), ("POST", "sweep"), ("GET", "expiring")):
        assert locked_server.call(method, f"/api/ttl/{path}", {} if method != "GET" else None).status == 401
    headers = {"X-API-Key": KEY}
    assert locked_server.call("PUT", "/api/ttl/policies/x", {"policy": "long"}, headers=headers).status == 200


# ---- life


def test_policies_and_lives_outlast_a_restart_and_the_default_is_a_setting(fresh_server: Any, name: str) -> None:
    bus = fresh_server(env={"DEFAULT_TTL": "3600"})
    eventually(lambda: _default(bus)["ttl_seconds"] == 3600, what="the setting's default")
    put(bus, name, ttl_seconds=50)
    message_id = send(bus, name, type=name)["message_id"]
    before = call(bus, "GET", f"/api/messages/{message_id}")["message"]["expires_at"]
    bus.restart()
    assert call(bus, "GET", f"/api/messages/{message_id}")["message"]["expires_at"] == before
    assert name in {p["type"] for p in call(bus, "GET", "/api/ttl/policies")["policies"]}
    assert _default(bus)["origin"] == "setting"


def _default(bus: BusServer) -> dict[str, Any]:
    return next(p for p in call(bus, "GET", "/api/ttl/policies")["policies"] if p["type"] == "$default")


def test_without_the_module_nothing_expires_but_by_a_ttl(fresh_server: Any, name: str) -> None:
    bus = fresh_server(env={"DISABLED_EXTENSIONS": "message_ttl"})
    assert bus.call("GET", "/api/ttl/policies").status == 404
    message_id = send(bus, name, type="error")["message_id"]
    assert "expires_at" not in call(bus, "GET", f"/api/messages/{message_id}")["message"]


@pytest.mark.one_node("sets the clock of one process")
def test_steps_of_the_clock_expire_nothing_and_time_that_passes_does(fresh_server: Any, name: str) -> None:
    bus = fresh_server(env=SEAMS, workers=2)
    ids = [send(bus, name, type=type_)["message_id"] for type_ in ("message", "error", "command")]
    for step in (10, 3600, 0, -3600, 365 * 86400, -1_000_000_000):
        assert bus.call("PUT", f"/seams/clock?wall={step}").status == 200
        assert inbox(bus, name) == ids
    eventually(lambda: any(entry[0] == "ClockJumped" for entry in call(bus, "GET", "/seams/events")["heard"]))
    bus.call("PUT", "/seams/clock?bus=4000")
    assert inbox(bus, name) == [ids[0], ids[2]]
    sweep(bus, lambda: stats(bus)["expired"] == 1, "the sweep of what has expired")
    assert inbox(bus, name) == [ids[0], ids[2]]


@pytest.mark.slow
@pytest.mark.one_node("each counts for itself")
def test_while_messages_come_in_the_counts_of_log_stats_metrics_and_archive_agree(fresh_server: Any, name: str) -> None:
    bus = fresh_server(env=SEAMS, workers=4)
    put(bus, "kept", ttl_seconds=1, archive_before_delete=True)
    put(bus, "brief", ttl_seconds=1)
    sent: list[str] = []

    def publish() -> None:
        for _ in range(20):
            types = ["kept", "brief", "message", "audit"] * 25
            batch = [{"from": "ann", "to": name, "type": type_} for type_ in types]
            sent.extend(
                item["message_id"] for item in call(bus, "POST", "/api/send/batch", {"messages": batch})["results"]
            )

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    sweep(bus, lambda: stats(bus)["expired"] > 100, "a sweep under load")
    for thread in threads:
        thread.join()
    assert len(sent) == 4000
    sweep(bus, lambda: stats(bus)["expired"] == len(sent) // 2, "the last sweep")
    found = stats(bus)
    assert found["total_messages"] == len(sent)
    assert found["archived"] == found["archive"]["messages"] == len(sent) // 4
    metrics = {"bus_retention_deleted_total": found["expired"], "bus_retention_archived_total": found["archived"]}
    eventually(
        lambda: {name: scrape(bus).total(name) for name in metrics} == metrics, what="the metrics of all workers"
    )
    left = [m["type"] for m in _whole_log(bus)]
    assert (left.count("message"), left.count("audit"), len(left)) == (len(sent) // 4, len(sent) // 4, len(sent) // 2)


def _whole_log(bus: BusServer) -> Iterator[dict[str, Any]]:
    cursor, more = "earliest", True
    while more:
        page = call(bus, "GET", f"/api/log?limit=1000&since={cursor}")
        yield from page["messages"]
        cursor, more = page["cursor"], page["more"]
