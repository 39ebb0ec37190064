"""Probes and status of the real server: one worker and four, each dependency broken in turn, nothing asked of the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bus import __version__
from bus.settings import ROOT
from bus.testing import Answer, BusServer, eventually
from tests.calls import call, claim, inbox, send, settle
from tests.follower import Follower
from tests.rawws import CLOSE, RawWebSocket
from tests.refusals import KEY
from tests.stored import no_commits

pytestmark = pytest.mark.one_node("each tells of its own health")

LEVERS = {"BUS_EXTENSIONS": "tests.faults.health_levers"}
PATHS = ("/health", "/health/live", "/health/ready", "/ready", "/health/startup", "/health/status", "/health/detailed")
ALL_PATHS = (*PATHS, "/health/info")
PROBES = ("live", "ready", "startup", "status")
Start = Callable[..., BusServer]


def probe(server: BusServer, name: str, **headers: str) -> Answer:
    return server.call(
        "GET", f"/health/{name}", headers={key.replace("_", "-"): value for key, value in headers.items()}
    )


def codes(server: BusServer) -> dict[str, int]:
    return {name: probe(server, name).status for name in PROBES}


def status(server: BusServer) -> dict[str, Any]:
    return probe(server, "status").body  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def levers() -> Iterator[BusServer]:
    """One worker, whose dependencies can be broken."""
    with BusServer(env=LEVERS | {"MAX_CONNECTIONS": "20", "LOG_LEVEL": "ERROR"}) as running:
        yield running


@contextmanager
def pulled(server: BusServer, name: str) -> Iterator[None]:
    assert server.call("PUT", f"/levers/{name}").status == 200
    try:
        yield
    finally:
        assert server.call("DELETE", f"/levers/{name}").status == 200


@contextmanager
def many_connections(server: BusServer) -> Iterator[None]:
    with ExitStack() as stack:
        for n in range(19):
            stack.enter_context(RawWebSocket(server.port, f"/ws/crowd-{n}")).read_json()
        yield


# ---- every path, every form


@pytest.mark.parametrize("path", ALL_PATHS)
def test_every_path_of_the_four_vocabularies_says_that_it_is_well(each_server: BusServer, path: str) -> None:
    answer = eventually(lambda: (a := each_server.call("GET", path)).status == 200 and a, what=f"a healthy {path}")
    assert answer.body["status"] == "healthy"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    # Another worker may answer this one, which began its rounds later.
    eventually(lambda: each_server.call("HEAD", path).status == 200, what=f"a healthy {path} without a body")
    assert each_server.call("POST", path, {}).status == 405


def test_the_plain_answer_is_what_it_always_was_and_live_is_small(each_server: BusServer) -> None:
    assert each_server.call("GET", "/health").body == {"status": "healthy"}
    live = probe(each_server, "live")
    assert int(live.headers["content-length"]) < 200
    assert set(live.body["checks"]) == {"event_loop"}


def test_aliases_are_one_implementation(server: BusServer) -> None:
    for one, other in (("/ready", "/health/ready"), ("/health/detailed", "/health/status")):
        first, second = (server.call("GET", path).body for path in (one, other))
        assert set(first) == set(second)
        assert set(first["checks"]) == set(second["checks"])


def test_the_status_has_the_seeds_form_and_true_figures(each_server: BusServer) -> None:
    eventually(lambda: "system" in status(each_server), what="figures")
    with RawWebSocket(each_server.port, "/ws/counted") as counted:
        counted.read_json()
        body = status(each_server)
    assert body["status"] == body["overall_status"] == "healthy"
    assert body["total_checks"] == body["healthy_checks"] == len(body["checks"])
    assert body["critical_issues"] == []
    assert body["version"] == __version__
    assert body["schema"]["core"] >= 1
    assert body["durability"]["setting"] == "full"
    system = body["system"]
    assert 0 < system["memory"]["process_bytes"] <= system["memory"]["limit_bytes"]
    assert 0 < system["memory"]["percent"] <= 100
    assert 0 < system["disk"]["free_bytes"] < system["disk"]["total_bytes"]
    assert system["event_loop"]["lag_ms"] <= system["event_loop"]["max_lag_ms"]
    assert body["load"]["max_connections"] == 10_000
    if each_server.workers == 1:
        assert body["load"]["connections"] == 1


def test_each_worker_tells_of_all(server4: BusServer) -> None:
    def told() -> list[dict[str, Any]]:
        return status(server4)["workers"]  # type: ignore[no-any-return]

    eventually(lambda: [each["status"] for each in told()] == ["healthy"] * 4, what="word from all workers")
    assert [each["worker"] for each in told()] == [0, 1, 2, 3]
    eventually(lambda: len({next(e["worker"] for e in told() if e["this"]) for _ in range(20)}) > 1, what="two answers")


def test_who_prefers_health_json_gets_it(server: BusServer) -> None:
    eventually(lambda: "system" in status(server), what="figures")
    answer = probe(server, "status", Accept="application/health+json")
    assert answer.headers["content-type"] == "application/health+json"
    assert (answer.body["status"], answer.body["releaseId"]) == ("pass", __version__)
    for checks in answer.body["checks"].values():
        for check in checks:
            assert check.get("status", "pass") == "pass"
            assert {"observedValue", "observedUnit", "time"} <= set(check)
    assert answer.body["checks"]["memory:utilization"][0]["observedUnit"] == "percent"
    assert probe(server, "live", Accept="application/health+json").body["status"] == "pass"
    assert probe(server, "status", Accept="*/*").headers["content-type"] == "application/json"


# ---- who sees what


@pytest.mark.parametrize("path", ALL_PATHS)
def test_strangers_see_the_status_and_nothing_else(locked_server: BusServer, path: str) -> None:
    eventually(lambda: locked_server.call("GET", "/ready").status == 200, within_seconds=10, what="the first checks")
    for headers in ({}, {"X-API-Key": "wrong-but-long-enough"}):
        assert locked_server.call("GET", path, headers=headers).body == {"status": "healthy"}
    form = {"Accept": "application/health+json"}
    assert locked_server.call("GET", path, headers=form).body == {"status": "pass"}
    if path != "/health":
        assert len(locked_server.call("GET", path, headers={"X-API-Key": KEY}).body) > 1


def test_an_exceptions_text_is_for_insiders(fresh_server: Start) -> None:
    server = fresh_server(env=LEVERS | {"API_KEY": KEY})
    key = {"X-API-Key": KEY}
    assert server.call("PUT", "/levers/crash", headers=key).status == 200
    eventually(lambda: "a secret" in str(server.call("GET", "/health/status", headers=key).body), what="the failure")
    for accept in ("application/json", "application/health+json"):
        told = server.call("GET", "/health/status", headers={**key, "Accept": accept})
        assert "a secret" in json.dumps(told.body)
        assert "secret" not in json.dumps(probe(server, "status", Accept=accept).body)
    assert "a secret" in server.log


def test_a_foreign_host_is_answered_without_exceptions_texts(levers: BusServer) -> None:
    with pulled(levers, "crash"):
        eventually(lambda: "secret" in json.dumps(status(levers)), what="the failure")
        foreign = probe(levers, "status", Host="10.1.2.3:5001")
        assert foreign.status == 503
        assert "crashes" in foreign.body["checks"]
        assert "secret" not in json.dumps(foreign.body)
    eventually(lambda: probe(levers, "ready").status == 200, what="the cure")


# ---- every dependency broken in turn


BROKEN: dict[str, tuple[Callable[[BusServer], Any], dict[str, int], str]] = {
    "store": (no_commits, {"live": 200, "ready": 503, "startup": 200, "status": 503}, "store"),
    "disk": (lambda s: pulled(s, "disk"), {"live": 200, "ready": 503, "startup": 200, "status": 503}, "disk"),
    "connections": (many_connections, {"live": 200, "ready": 503, "startup": 200, "status": 503}, "connections"),
    "fan-out": (lambda s: pulled(s, "fan_out"), {"live": 200, "ready": 200, "startup": 200, "status": 200}, "canary"),
    "a hung check": (lambda s: pulled(s, "check"), {"live": 200, "ready": 503, "startup": 200, "status": 503}, "hangs"),
    "a crash": (lambda s: pulled(s, "crash"), {"live": 200, "ready": 503, "startup": 200, "status": 503}, "crashes"),
    "webhooks": (
        lambda s: pulled(s, "optional"),
        {"live": 200, "ready": 200, "startup": 200, "status": 200},
        "optional",
    ),
    "own liveness": (
        lambda s: pulled(s, "liveness"),
        {"live": 503, "ready": 200, "startup": 200, "status": 503},
        "liveness",
    ),
}
"""How it is broken, what the probes answer then, and the check that says so."""


@pytest.mark.parametrize("what", BROKEN)
def test_what_the_probes_say_when_something_is_broken(levers: BusServer, what: str) -> None:
    breaks, expected, check = BROKEN[what]
    well = dict.fromkeys(PROBES, 200)
    eventually(lambda: codes(levers) == well and status(levers)["status"] == "healthy", what="health before")
    with breaks(levers):
        eventually(lambda: status(levers)["checks"][check]["status"] != "healthy", what=f"{check} to notice")
        assert codes(levers) == expected
        body = status(levers)
        assert [name for name, told in body["checks"].items() if told["status"] != "healthy"] in (
            [check],
            [check, "canary"],
        )
        if 503 in expected.values():
            assert body["status"] == "unhealthy"
            assert body["critical_issues"][0].startswith(f"{check}: ")
        else:
            assert (body["status"], body["critical_issues"]) == ("degraded", [])
        assert levers.call("GET", "/health").status == expected["live"]
    eventually(lambda: codes(levers) == well and status(levers)["status"] == "healthy", what="health after")


def test_a_worker_that_stands_still_is_missed_by_the_others(fresh_server: Start) -> None:
    server = fresh_server(workers=2, env=LEVERS)
    eventually(lambda: [e["status"] for e in status(server)["workers"]] == ["healthy"] * 2, what="word from both")
    stopped = server.worker_pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:  # the other one takes a connection, sooner or later: the stopped one has taken none since

        def degraded() -> bool:
            try:
                return (
                    server.call("GET", "/health/status", timeout_seconds=1).body["checks"]["workers"]["status"]
                    == "degraded"
                )
            except TimeoutError:
                return False

        eventually(degraded, within_seconds=20, what="the other one to notice")
    finally:
        os.kill(stopped, signal.SIGCONT)
    eventually(lambda: {probe(server, "ready").body["checks"]["workers"]["status"] for _ in range(8)} == {"healthy"})


# ---- the disk alarm


def test_while_the_disk_has_too_little_room_sends_are_refused_and_all_else_goes_on(levers: BusServer) -> None:
    tracked = send(levers, "worker", 1, require_ack=True)["message_id"]
    send(levers, "queue:jobs", 2)
    slow = {"to": "copies", "since": "earliest", "source": "log", "rate": 0.1}
    replay = call(levers, "POST", "/api/replay", slow)["replay_id"]
    with Follower(levers.port, "reader") as reader, pulled(levers, "disk"):
        refused = eventually(
            lambda: (a := levers.call("POST", "/api/send", {"from": "a", "to": "reader"})).status != 200 and a,
            what="the alarm",
        )
        assert (refused.status, refused.body["code"]) == (507, "disk_low")
        assert "Make room" in refused.body["error"]
        assert int(refused.headers["retry-after"]) > 0
        batch = {"messages": [{"from": "a", "to": "reader"}] * 2}
        results = levers.call("POST", "/api/send/batch", batch).body["results"]
        assert [result["code"] for result in results] == ["disk_low"] * 2
        assert levers.call("POST", "/api/send/batch", {**batch, "atomic": True}).status == 507
        assert levers.call("POST", "/stream/broadcast", {"event": "news"}).status == 507
        assert levers.call("POST", "/api/replay", {"to": "reader", "since": "earliest"}).status == 507
        assert call(levers, "GET", f"/api/replays/{replay}")["status"] == "running"
        with RawWebSocket(levers.port, "/ws/giver") as giver:
            giver.send_json({"type": "send", "to": "reader", "ref": "r"})
            assert giver.read_until("error")["code"] == "disk_low"
            giver.send_json({"type": "send", "to": "reader", "ephemeral": True, "payload": "passes"})
        eventually(lambda: "passes" in reader.payloads(), what="the ephemeral message")

        # Consuming, acking and deleting go on.
        assert inbox(levers, "worker")["count"] == 1
        assert settle(levers, "ack", tracked, "worker")["status"] == "acked"
        (item,) = claim(levers, "jobs", "taker")
        assert settle(levers, "ack", item, "taker")["status"] == "acked"
        assert call(levers, "GET", "/api/status")["pending_acks"] == 0
    eventually(lambda: levers.call("POST", "/api/send", {"from": "a", "to": "reader"}).status == 200, what="its end")
    call(levers, "DELETE", f"/api/replays/{replay}")


@pytest.mark.usefixtures("on_sqlite")  # whose disk the alarm looks at
def test_a_disk_with_too_little_room_is_noticed_at_the_start(fresh_server: Start) -> None:
    server = fresh_server(workers=2, env={"DISK_ALARM_BYTES": str(10**18)})
    for _ in range(8):
        assert server.call("POST", "/api/send", {"from": "a", "to": "b"}).body["code"] == "disk_low"
    eventually(lambda: probe(server, "ready").status == 503, what="a verdict")
    assert status(server)["system"]["disk"]["alarm"] is True
    assert codes(server) == {"live": 200, "ready": 503, "startup": 200, "status": 503}
    assert server.call("POST", "/api/clear").status == 200


# ---- room for connections


def test_beyond_the_cap_sockets_are_refused_and_probes_are_answered(fresh_server: Start) -> None:
    server = fresh_server(env={"MAX_CONNECTIONS": "10"})
    with ExitStack() as stack:
        for n in range(10):
            stack.enter_context(RawWebSocket(server.port, f"/ws/c{n}")).read_json()
        with RawWebSocket(server.port, "/ws/late") as late:
            assert (late.status, late.headers["retry-after"]) == (503, "30")
        assert server.call("GET", "/stream/events").headers["retry-after"] == "30"
        assert probe(server, "live").status == 200
        send(server, "c1", "still served")
    eventually(lambda: status(server)["load"]["connections"] == 0, what="the end of all")
    with RawWebSocket(server.port, "/ws/late") as late:
        late.read_json()


def test_a_storm_of_handshakes_does_not_get_past_the_cap(fresh_server: Start) -> None:
    server = fresh_server(env={"MAX_CONNECTIONS": "10"})

    def shake(n: int) -> RawWebSocket:
        return RawWebSocket(server.port, f"/ws/c{n}")

    with ThreadPoolExecutor(40) as pool, ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in pool.map(shake, range(80))]
        confirmed = refused = 0
        for each in sockets:
            if not each.is_open:
                assert each.status == 503
                refused += 1
            elif (first := each.read_frame()).opcode == CLOSE:
                assert first.close_code == 1013
                refused += 1
            else:
                confirmed += 1
        assert (confirmed, refused) == (10, 70)
        assert probe(server, "live").status == 200


def test_few_files_mean_few_connections_and_room_for_probes(fresh_server: Start) -> None:
    command = ["sh", "-c", 'ulimit -n 256 && exec "$0" server_ws.py', sys.executable]
    server = fresh_server(command=command)
    most = status(server)["load"]["max_connections"]
    assert 64 <= most <= 256 - 128
    assert "raise `ulimit -n`" in server.log
    with ExitStack() as stack:
        for n in range(most):
            stack.enter_context(RawWebSocket(server.port, f"/ws/c{n}")).read_json()
        with RawWebSocket(server.port, "/ws/late") as late:
            assert late.status == 503
        assert probe(server, "live").status == 200
        send(server, "c1", "still served")


# ---- what probes cost, and what the canary leaves behind


def test_a_thousand_probes_ask_nothing_of_the_store(levers: BusServer) -> None:
    for path in ALL_PATHS:
        levers.call("GET", path)
    before = levers.call("GET", "/levers").body["by_requests"]
    lines = levers.log.count("\n")

    def ask() -> None:
        for n in range(250):
            assert levers.call("GET", ALL_PATHS[n % len(ALL_PATHS)]).status == 200

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert levers.call("GET", "/levers").body["by_requests"] == before
    assert levers.log.count("\n") == lines
    levers.call("GET", "/api/log")
    assert levers.call("GET", "/levers").body["by_requests"] > before, "The counter counts."


def test_the_canary_flies_and_leaves_nothing_behind(levers: BusServer) -> None:
    def flights() -> int:
        return int(status(levers)["canary"]["latency_ms"] is not None) and levers.call("GET", "/levers").body["by_all"]

    send(levers, "someone", "first")
    total, clients = levers.call("GET", "/levers").body["total"], call(levers, "GET", "/api/clients")
    metrics = call(levers, "GET", "/api/status")["metrics"]
    with Follower(levers.port, "listener") as listener:
        first = eventually(flights, what="a flight")
        eventually(lambda: flights() > first + 40, what="more flights")
        assert listener.payloads() == []
    assert levers.call("GET", "/levers").body["total"] == total
    after = call(levers, "GET", "/api/status")["metrics"]
    assert after["total_messages"] == metrics["total_messages"]
    assert after["last_message_time"] == metrics["last_message_time"]
    names = {client["client"] for client in call(levers, "GET", "/api/clients")["clients"]}
    assert names == {client["client"] for client in clients["clients"]} | {"listener"}
    assert not any(name.startswith("$") for name in names)


# ---- the command


def test_the_commands_exit_code_tells(levers: BusServer) -> None:
    def asked(*arguments: str, url: str = "") -> tuple[int, str, str]:
        command = [sys.executable, "-m", "bus", "health", "--url", url or levers.url, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout, done.stderr

    eventually(lambda: probe(levers, "ready").status == 200, what="health")
    code, out, _ = asked()
    assert (code, out.splitlines()[0]) == (0, "healthy")
    with pulled(levers, "crash"):
        eventually(lambda: probe(levers, "ready").status == 503, what="the failure")
        assert asked("--live")[0] == 0
        code, out, _ = asked("--ready")
        assert (code, out.splitlines()[0]) == (1, "unhealthy")
        code, out, _ = asked("--json")
        assert (code, json.loads(out)["status"]) == (1, "unhealthy")
    eventually(lambda: probe(levers, "ready").status == 200, what="the cure")
    code, _, err = asked(url="http://127.0.0.1:9")
    assert code == 2
    assert "can't be reached" in err


# ---- life


def test_at_sigterm_ready_says_no_at_once_and_the_door_stays_open(fresh_server: Start) -> None:
    server = fresh_server(env={"DRAIN_NOTICE_SECONDS": "2"})
    eventually(lambda: codes(server) == dict.fromkeys(PROBES, 200), what="health")
    with Follower(server.port, "anna") as anna:
        os.kill(server.pid, signal.SIGTERM)
        eventually(lambda: probe(server, "ready").status == 503, within_seconds=2, what="the verdict")
        anna.wait_for_frame("goaway")
        assert codes(server) == {"live": 200, "ready": 503, "startup": 200, "status": 503}
        assert send(server, "anna", "late but taken")["seq"]
        anna.wait_for(1)
        with Follower(server.port, "newcomer") as newcomer:
            assert server.wait(10) == 0
            assert newcomer.wait_for_end() == 1012
        assert anna.wait_for_end() == 1012


@pytest.mark.parametrize("second", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGQUIT])
def test_a_second_signal_ends_the_notice(fresh_server: Start, second: int) -> None:
    server = fresh_server(workers=2, env={"DRAIN_NOTICE_SECONDS": "60"})
    with Follower(server.port, "anna") as anna:
        eventually(lambda: server.log.count("The bus serves") == 2, what="both to serve")
        send(server, "anna", "kept")
        anna.wait_for(1)
        os.kill(server.pid, signal.SIGTERM)
        anna.wait_for_frame("goaway")
        os.kill(server.pid, second)
        assert server.wait(10) == 0
    assert "SIGKILL" not in server.log
    assert server.log.count("The bus has stopped") == 2
    server.workers = 1
    server.start()
    assert [m["payload"] for m in call(server, "GET", "/api/log")["messages"]] == ["kept"]


@pytest.mark.usefixtures("on_sqlite")  # whose disk the alarm looks at
def test_without_the_module_the_plain_path_is_left(fresh_server: Start) -> None:
    server = fresh_server(env={"DISABLED_EXTENSIONS": "health_checks", "DISK_ALARM_BYTES": str(10**18)})
    assert server.call("GET", "/health").body == {"status": "healthy"}
    for path in set(ALL_PATHS) - {"/health"}:
        assert server.call("GET", path).status == 404
    assert server.call("POST", "/api/send", {"from": "a", "to": "b"}).body["code"] == "disk_low"


def test_without_rest_the_module_serves_the_plain_path(fresh_server: Start) -> None:
    server = fresh_server(env={"DISABLED_EXTENSIONS": "rest,lane,streaming"})
    assert server.call("GET", "/health").body == {"status": "healthy"}
    assert probe(server, "live").status == 200
