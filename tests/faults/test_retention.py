"""kill -9 between archive and removal, on the real server: each message is in one of the two, and in the end in one only."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, send_all

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
