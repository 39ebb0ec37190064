"""kill -9 while the real server sweeps: each message is in the log or the archive, in the end in one only, and counted."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, send_all

KILLS = 10
EXTENSIONS = "tests.faults.kill_archiver,tests.clock_seams"


@pytest.mark.parametrize("workers", [1, 4])
def test_a_kill_between_archive_and_removal_leaves_each_message_in_one_of_them(fresh_server: Any, workers: int) -> None:
    server: BusServer = fresh_server(workers=workers, env={"BUS_EXTENSIONS": EXTENSIONS, "TTL_SWEEP_INTERVAL": "1"})
    call(server, "PUT", "/api/ttl/policies/kept", {"ttl_seconds": 100, "archive_before_delete": True})
    ids = set(send_all(server, [{"to": "bob", "type": "kept", "payload": n} for n in range(500)]))
    trap = server.data_dir / "kill-archiver"
    trap.touch()
    call(server, "PUT", "/seams/clock?bus=200")
    eventually(lambda: _ask(server) and not trap.exists(), within_seconds=20, what="the kill")
    eventually(
        lambda: _ask(server) and _figures(server).get("expired") == 500, within_seconds=30, what="the next sweep"
    )
    figures = _figures(server)
    assert (figures["archived"], figures["archive"]["messages"]) == (500, 500)
    found = [entry["message"]["id"] for entry in call(server, "GET", "/api/archive/messages?limit=1000")["messages"]]
    assert len(found) == len(ids)
    assert set(found) == ids


def test_what_the_store_could_not_take_at_the_start_it_gets_when_it_is_back(fresh_server: Any) -> None:
    env = {"BUS_EXTENSIONS": "tests.faults.away_at_first", "DEFAULT_TTL": "1234"}
    server: BusServer = fresh_server(env=env)

    def default() -> Any:
        policies = call(server, "GET", "/api/ttl/policies")["policies"]
        return next((each["ttl_seconds"] for each in policies if each["type"] == "$default"), None)

    eventually(lambda: default() == 1234, what="the policy of the setting")
    eventually(lambda: call(server, "GET", "/health/status").get("schema"), what="the schema")
    assert "Traceback" not in server.log


@pytest.mark.full
@pytest.mark.timeout(300)
def test_kills_at_any_moment_of_a_sweep_lose_double_and_miscount_nothing(fresh_server: Any) -> None:
    server: BusServer = fresh_server(
        env={"BUS_EXTENSIONS": "tests.clock_seams", "TTL_SWEEP_INTERVAL": "1", "INBOX_LIMIT": "100000"}
    )
    for type_ in ("kept", "brief"):
        policy = {"ttl_seconds": 100, "archive_before_delete": type_ == "kept"}
        call(server, "PUT", f"/api/ttl/policies/{type_}", policy)
    drawn, kept, sent = random.Random(8), set[str](), 0
    for number in range(1, KILLS + 1):
        kept |= set(send_all(server, [{"to": "bob", "type": "kept", "payload": n} for n in range(500)]))
        send_all(server, [{"to": "bob", "type": "brief"}] * 500)
        sent += 1000
        call(server, "PUT", f"/seams/clock?bus={200 * number}")
        _ask(server)
        pids = server.worker_pids()
        time.sleep(drawn.uniform(0, 1.5))  # the moment of the kill
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda pids=pids: _is_anew(server, pids), within_seconds=20, what="new workers")
    eventually(
        lambda: _ask(server) and _figures(server).get("expired") == sent, within_seconds=60, what="the last sweep"
    )
    figures = _figures(server)
    assert (figures["archived"], figures["archive"]["messages"], figures["kept_bytes"]) == (len(kept), len(kept), 0)
    assert call(server, "GET", "/api/log?since=earliest")["messages"] == []
    found: list[str] = []
    cursor, more = "0:0", True
    while more:
        page = call(server, "GET", f"/api/archive/messages?limit=1000&cursor={cursor}")
        found += [entry["message"]["id"] for entry in page["messages"]]
        cursor, more = page["cursor"], page["more"]
    assert len(found) == len(kept)
    assert set(found) == kept


def _is_anew(server: BusServer, killed: list[int]) -> bool:
    with suppress(OSError):
        now = server.worker_pids()
        return bool(now) and not set(now) & set(killed) and server.call("GET", "/health/ready").status == 200
    return False


def _ask(server: BusServer) -> bool:
    """Ask for a sweep; the worker that answers may be the one that dies."""
    with suppress(OSError):
        server.call("POST", "/api/ttl/sweep")
    return True


def _figures(server: BusServer) -> dict[str, Any]:
    try:
        body = server.call("GET", "/api/ttl/stats").body
    except OSError:
        return {}
    return body if isinstance(body, dict) else {}
