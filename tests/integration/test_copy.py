"""`python -m bus migrate`, `copy` and `new-epoch`: a log moves from SQLite to PostgreSQL, and its clients go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.settings import ROOT
from bus.testing import BusServer
from tests.databases import PostgresServer


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bus", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def moved(postgresql: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, BusServer]]:
    """What the server on SQLite said last, the command that copies its log, and the server on the copy."""
    folder = tmp_path_factory.mktemp("moved")
    with BusServer(data_dir=folder / "data", database_url="") as server:
        for n in range(30):
            sent = {"from": "ann", "to": ["bob", "cy"] if n % 2 else "bob", "payload": n, "requires_ack": n == 7}
            assert server.call("POST", "/api/send", {**sent, "idempotency_key": f"key-{n}"}).status == 200
        server.call("POST", "/api/send", {"from": "ann", "to": "queue:jobs", "payload": "a\0b"})
        said = {
            "read": server.call("GET", "/api/messages?to=bob&limit=10").body,
            "status": server.call("GET", "/api/status").body,
        }
        server.terminate()
    source, url = f"sqlite:///{folder}/data/bus.db", postgresql.make()
    copied = run("copy", source, url)
    assert copied.returncode == 0, copied.stderr
    with BusServer(data_dir=folder / "other", database_url=url) as server:
        yield said, source, server


@pytest.mark.full
def test_clients_go_on_where_they_were(moved: tuple[Any, str, BusServer]) -> None:
    said, _, server = moved
    before, after = said["status"], server.call("GET", "/api/status").body
    page = server.call("GET", f"/api/messages?to=bob&since={said['read']['cursor']}").body

    assert [after[name] for name in ("epoch", "cursor", "pending_acks")] == [
        before[name] for name in ("epoch", "cursor", "pending_acks")
    ]
    assert [message["payload"] for message in page["messages"]] == list(range(10, 30))
    assert page["messages"][0]["id"].startswith(f"msg-{before['epoch']}")


@pytest.mark.full
def test_keys_and_queues_go_along(moved: tuple[Any, str, BusServer]) -> None:
    _, _, server = moved
    again = {"from": "ann", "to": "bob", "payload": 8, "idempotency_key": "key-8", "requires_ack": False}
    claimed = server.call("POST", "/api/queues/jobs/claim", {"client": "worker"}).body

    assert server.call("POST", "/api/send", again).body["duplicate"]
    assert [message["payload"] for message in claimed["messages"]] == ["a\0b"]


@pytest.mark.full
def test_a_log_is_not_copied_over_another(moved: tuple[Any, str, BusServer]) -> None:
    _, source, server = moved

    refused = run("copy", source, server.database_url)

    assert refused.returncode == 1
    assert "holds a log already" in refused.stderr


@pytest.mark.full
def test_a_new_epoch_is_begun_by_hand(postgresql: PostgresServer) -> None:
    with BusServer(database_url=postgresql.make()) as server:
        server.call("POST", "/api/send", {"from": "ann", "to": "bob", "payload": 1})
        before = server.call("GET", "/api/status").body["epoch"]
        server.terminate()
        begun = run("new-epoch", "--yes", DATABASE_URL=server.database_url, DATA_DIR=str(server.data_dir))
        server.start()

        assert begun.returncode == 0, begun.stderr
        assert server.call("GET", "/api/status").body["epoch"] not in ("", before)
        assert server.call("GET", "/api/messages?to=bob").body["count"] == 1


def test_migrations_are_told_and_applied(postgresql: PostgresServer, tmp_path: Path) -> None:
    settings = {"DATABASE_URL": postgresql.make(), "DATA_DIR": str(tmp_path)}

    due = run("migrate", "--check", **settings)
    done = run("migrate", **settings)
    left = run("migrate", "--check", **settings)

    assert due.returncode == 1
    assert "core 1" in due.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert (left.returncode, left.stdout) == (0, "Nothing is due.\n")
