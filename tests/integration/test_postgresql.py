"""The same bus on PostgreSQL: what it says of its store, and an outage of the database under a running server."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from os import kill

import psycopg
import pytest

from bus.testing import BusServer, eventually
from tests.databases import PostgresServer


@pytest.fixture(scope="module")
def on_postgresql(postgresql: PostgresServer) -> Iterator[BusServer]:
    with BusServer(database_url=postgresql.make()) as server:
        yield server


def send(server: BusServer, n: int, **more: object) -> int:
    body = {"from": "ann", "to": "bob", "payload": n, **more}
    return server.call("POST", "/api/send", body).status


def payloads(server: BusServer) -> list[int]:
    page = server.call("GET", "/api/messages?to=bob&limit=1000").body
    return [message["payload"] for message in page.get("messages", [])]


def test_a_message_is_stored_and_read(on_postgresql: BusServer) -> None:
    assert send(on_postgresql, 1) == 200
    assert payloads(on_postgresql) == [1]


def test_status_health_and_metrics_tell_of_the_store(on_postgresql: BusServer) -> None:
    status = on_postgresql.call("GET", "/api/status").body
    health = on_postgresql.call("GET", "/health/status").body
    metrics = on_postgresql.call("GET", "/metrics").body
    size = next(line for line in metrics.splitlines() if line.startswith('bus_database_bytes{file="main"'))

    assert status["durability"] == health["durability"]
    assert status["durability"]["store"] == "postgresql"
    assert "power loss of the PostgreSQL primary" in status["durability"]["survives"]
    assert float(size.split()[-1]) > 1_000_000


def test_no_secret_of_the_url_is_in_the_log(postgresql: PostgresServer) -> None:
    url = postgresql.make().replace("bus@", "bus:s3cret-word@")
    with BusServer(database_url=url, env={"LOG_LEVEL": "DEBUG"}) as server:
        assert send(server, 1) == 200
        server.terminate()
        assert "s3cret" not in server.log


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A PostgreSQL that a test may stop."""
    server = PostgresServer(durable=True).start()
    yield server
    server.close()


@pytest.mark.full
def test_sends_fail_fast_while_the_database_is_away_and_work_when_it_is_back(own: PostgresServer) -> None:
    with BusServer(database_url=own.make()) as server:
        stored = [n for n in range(20) if send(server, n) == 200]
        own.stop("immediate")
        refused = server.call("POST", "/api/send", {"from": "ann", "to": "bob", "payload": 99}, timeout_seconds=10)
        read = server.call("GET", "/api/messages?to=bob", timeout_seconds=10)
        live = server.call("GET", "/health/live")
        eventually(
            lambda: server.call("GET", "/health/ready").status == 503, within_seconds=30, what="an unready server"
        )
        own.start()
        eventually(lambda: send(server, 100) == 200, within_seconds=5, what="a send's 200")
        wanted = [*stored, 100]
        eventually(lambda: payloads(server) == wanted, within_seconds=5, what="a page")  # whichever reader is asked

        assert stored == list(range(20))
        assert (refused.status, refused.body["code"]) == (503, "unavailable")
        assert "retry-after" in refused.headers
        assert read.status == 503
        assert live.status == 200


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 4])
def test_a_server_whose_database_is_away_ends_in_order(own: PostgresServer, workers: int) -> None:
    with BusServer(database_url=own.make(), workers=workers) as server:
        assert send(server, 1) == 200
        own.stop("immediate")
        eventually(lambda: send(server, 2) == 503, what="a refusal")
        assert server.terminate() == 0
        assert server.log.count("The bus has stopped") == workers
        assert "Traceback" not in server.log


@pytest.mark.full
def test_a_worker_that_can_not_be_replaced_while_the_database_is_away_is_replaced_later(own: PostgresServer) -> None:
    with BusServer(database_url=own.make(), workers=4) as server:
        before = server.worker_pids()
        own.stop("immediate")
        server.kill_worker(before[0])
        eventually(lambda: "A worker can't start for now" in server.log, within_seconds=40, what="an attempt")
        assert server.call("GET", "/health/live").status == 200
        own.start()
        eventually(lambda: send(server, 1) == 200, within_seconds=5, what="a send's 200")
        eventually(
            lambda: server.call("GET", "/api/status").body.get("workers") == 4,
            within_seconds=20,
            what="a fourth worker",
        )
        assert set(before[1:]) < set(server.worker_pids())
        assert "Traceback" not in server.log


@pytest.mark.full
def test_a_writer_that_hangs_in_its_transaction_holds_the_others_up_for_a_bounded_time(own: PostgresServer) -> None:
    """As a node that was frozen: it holds the lock of the head until PostgreSQL ends its idle transaction."""
    with BusServer(database_url=own.make()) as server, closing(psycopg.connect(server.database_url)) as frozen:
        assert send(server, 1) == 200
        frozen.execute("SET idle_in_transaction_session_timeout = 4000")
        frozen.execute("SELECT seq FROM log_head FOR UPDATE")
        eventually(lambda: send(server, 2, idempotency_key="two") == 200, within_seconds=20, what="a send's 200")
        with pytest.raises(psycopg.Error):
            frozen.execute("SELECT 1")
        assert payloads(server) == [1, 2]


@pytest.mark.full
def test_a_database_that_is_frozen_wedges_nothing(own: PostgresServer) -> None:
    with BusServer(database_url=own.make(), env={"DB_STATEMENT_TIMEOUT": "1"}) as server:
        assert send(server, 1) == 200
        backends = [int(pid) for (pid,) in _pids(server)]
        for pid in backends:
            kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        refused = server.call("POST", "/api/send", {"from": "ann", "to": "bob", "payload": 2}, timeout_seconds=60)
        waited = time.monotonic() - began
        for pid in backends:
            kill(pid, signal.SIGCONT)
        eventually(lambda: send(server, 3) == 200, within_seconds=15, what="a send's 200")

        assert refused.status in (200, 503), f"after {waited} s"
        assert payloads(server)[0] == 1
        assert payloads(server)[-1] == 3


def _pids(server: BusServer) -> list[tuple[int]]:
    with psycopg.connect(server.database_url) as connection:
        return connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchall()
