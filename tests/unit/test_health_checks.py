"""`HealthCheckManager` alone, on any Flask app, and the parts below it. The documented snippets run as they are printed."""

from __future__ import annotations

import json
import queue
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from bus.health import checks
from bus.settings import ROOT
from bus.testing import eventually, free_port
from health_checks import CommonChecks, HealthCheck, HealthCheckManager

PATHS = (
    *("/health", "/health/live", "/health/ready", "/ready", "/health/startup", "/health/status"),
    *("/health/detailed", "/health/info"),
)
SNIPPET = """
from health_checks import HealthCheckManager, HealthCheck, CommonChecks
from flask import Flask

app = Flask(__name__)

# Create health check manager
health = HealthCheckManager(app)

# Add custom liveness check
def check_application_state():
    # Check if app is not deadlocked
    return True, "Application responsive"

health.add_liveness_check(HealthCheck(
    name="application_state",
    check_func=check_application_state,
    critical=True
))

# Add readiness check for database
health.add_readiness_check(HealthCheck(
    name="database",
    check_func=CommonChecks.database_check(db_connection),
    critical=True
))
"""


def well() -> tuple[bool, str]:
    return True, "well"


@pytest.fixture
def app() -> Flask:
    return Flask("alone")


@pytest.fixture
def health(app: Flask) -> Iterator[HealthCheckManager]:
    """A manager whose rounds are the test's own, after the first."""
    manager = HealthCheckManager(app, interval_seconds=3600)
    yield manager
    manager.stop()


def get(app: Flask, path: str, **headers: str) -> tuple[int, Any]:
    answer = app.test_client().get(path, headers=headers)
    return answer.status_code, answer.get_json(force=True)


# ---- the documented use


def test_the_documented_snippet_runs_as_it_is_printed(tmp_path: Path) -> None:
    for where in (tmp_path / "app.db", ":memory:"):
        names: dict[str, Any] = {"__name__": "snippet", "db_connection": sqlite3.connect(where)}
        exec(SNIPPET, names)
        assert (
            get(names["app"], "/health/live")[1]["checks"]["application_state"]["message"] == "Application responsive"
        )
        code, body = get(names["app"], "/health/ready")
        assert (code, body["status"], body["checks"]["database"]["status"]) == (200, "healthy", "healthy")
        assert get(names["app"], "/health/startup")[0] == 200
        assert get(names["app"], "/health/status")[1]["healthy_checks"] == 2
        names["health"].stop()
        names["db_connection"].close()


def test_the_example_shows_it_at_work() -> None:
    done = subprocess.run([sys.executable, "health_checks.py"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "Application responsive" in done.stdout
    assert "No answer within 0.2 s" in done.stdout


@pytest.mark.parametrize("path", PATHS)
def test_all_paths_are_served_alone(app: Flask, health: HealthCheckManager, path: str) -> None:
    code, body = get(app, path)
    assert (code, body["status"]) == (200, "healthy")


def test_the_status_has_the_documented_form(app: Flask, health: HealthCheckManager) -> None:
    health.add_readiness_check(HealthCheck("database", well))
    health.add_readiness_check(HealthCheck("external_apis", lambda: (False, "one is down"), critical=False))
    health.refresh()
    code, body = get(app, "/health/detailed")
    assert (code, body["overall_status"], body["status"]) == (200, "degraded", "degraded")
    assert (body["total_checks"], body["healthy_checks"], body["critical_issues"]) == (2, 1, [])
    assert body["checks"]["external_apis"]["message"] == "one is down"
    assert body["checks"]["database"]["response_time_ms"] >= 0
    assert {"cpu", "memory", "disk"} == set(body["system"])
    form = get(app, "/health/status", Accept="application/health+json")[1]
    assert form["status"] == "warn"
    assert form["checks"]["external_apis"][0]["output"] == "one is down"


# ---- verdicts


@pytest.mark.parametrize(
    ("kind", "critical", "expected"),
    [
        ("liveness", True, {"live": 503, "ready": 200, "startup": 200, "status": 503}),
        ("readiness", True, {"live": 200, "ready": 503, "startup": 200, "status": 503}),
        ("startup", True, {"live": 200, "ready": 200, "startup": 503, "status": 503}),
        ("liveness", False, {"live": 200, "ready": 200, "startup": 200, "status": 200}),
        ("readiness", False, {"live": 200, "ready": 200, "startup": 200, "status": 200}),
    ],
)
def test_what_fails_which_probe(
    app: Flask, health: HealthCheckManager, kind: str, critical: bool, expected: dict[str, int]
) -> None:
    getattr(health, f"add_{kind}_check")(HealthCheck("broken", lambda: (False, "no"), critical=critical))
    assert {name: get(app, f"/health/{name}")[0] for name in expected} == expected


def test_what_has_started_stays_started(app: Flask, health: HealthCheckManager) -> None:
    answers = [(False, "not yet"), (True, "there"), (False, "gone")]
    health.add_startup_check(HealthCheck("migrated", lambda: answers.pop(0)))
    assert get(app, "/health/startup")[0] == 503
    health.refresh()
    assert get(app, "/health/startup")[0] == 200
    health.refresh()
    assert get(app, "/health/startup")[0] == 200


def test_a_disabled_check_is_not_asked(app: Flask, health: HealthCheckManager) -> None:
    health.add_readiness_check(HealthCheck("off", lambda: (False, "no"), enabled=False))
    assert get(app, "/health/ready") == (200, {"status": "healthy", "checks": {}})


def test_rise_and_fall_damp_a_check_that_flutters(app: Flask, health: HealthCheckManager) -> None:
    answers = iter([True, False, True, False, False, True, False, True, True])
    health.add_readiness_check(HealthCheck("flutters", lambda: (next(answers), ""), rise=2, fall=2))
    seen = []
    for _ in range(9):
        if seen:
            health.refresh()
        seen.append(get(app, "/health/ready")[0])
    assert seen == [200, 200, 200, 200, 503, 503, 503, 503, 200]


@pytest.mark.parametrize("kinds", [("liveness", "liveness"), ("liveness", "readiness"), ("readiness", "startup")])
def test_a_taken_name_is_refused(health: HealthCheckManager, kinds: tuple[str, str]) -> None:
    getattr(health, f"add_{kinds[0]}_check")(HealthCheck("database", well))
    with pytest.raises(ValueError, match="named database already"):
        getattr(health, f"add_{kinds[1]}_check")(HealthCheck("database", well))


def test_one_check_may_be_of_two_kinds(app: Flask, health: HealthCheckManager) -> None:
    asked = []
    check = HealthCheck("database", lambda: (asked.append(1) is None, ""))
    health.add_readiness_check(check)
    health.add_startup_check(check)
    assert get(app, "/health/status")[1]["total_checks"] == 1
    assert len(asked) == 1


@pytest.mark.parametrize(("field", "value"), [("timeout", 0), ("name", ""), ("rise", 0), ("check_func", None)])
def test_a_check_that_can_not_work_is_refused(field: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        HealthCheck(**({"name": "x", "check_func": well} | {field: value}))


# ---- rounds


def test_probes_read_what_the_last_round_found(app: Flask, health: HealthCheckManager) -> None:
    asked = []
    health.add_readiness_check(HealthCheck("counted", lambda: (asked.append(1) is None, "")))
    for _ in range(100):
        for path in PATHS:
            assert get(app, path)[0] == 200
    assert len(asked) == 1
    health.refresh()
    assert len(asked) == 2


def test_rounds_are_made_behind_the_probes_back(app: Flask) -> None:
    manager, asked = HealthCheckManager(app, interval_seconds=0.01), []
    manager.add_readiness_check(HealthCheck("counted", lambda: (asked.append(1) is None, "")))
    assert not asked, "Adding a check asks nothing."
    assert manager.is_ready()
    eventually(lambda: len(asked) > 5, what="further rounds")
    manager.stop()


def test_a_timeout_is_kept_and_a_hung_check_holds_nothing_up(app: Flask, health: HealthCheckManager) -> None:
    freed, entered, asked = threading.Event(), [], []

    def hangs() -> tuple[bool, str]:
        entered.append(1)
        freed.wait()
        return True, "free"

    health.add_readiness_check(HealthCheck("hangs", hangs, timeout=0.05))
    health.add_readiness_check(HealthCheck("well", lambda: (asked.append(1) is None, "well")))
    before = threading.active_count()
    code, body = get(app, "/health/ready")
    assert code == 503
    assert "No answer within 0.05 s" in body["checks"]["hangs"]["message"]
    for _ in range(5):
        health.refresh()
    assert len(entered) == 1, "It is not started again before it has returned."
    assert len(asked) == 6, "The others are."
    assert threading.active_count() <= before + 3
    assert health.is_live()
    freed.set()
    eventually(lambda: (health.refresh(), health.is_ready())[1], what="the cure")


def test_a_hung_check_with_a_long_timeout_does_not_hang_a_probe(
    app: Flask, health: HealthCheckManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "FIRST_WAIT_SECONDS", 0.05)
    freed = threading.Event()
    health.add_readiness_check(HealthCheck("hangs", lambda: (freed.wait(), ""), timeout=3600))
    health.add_liveness_check(HealthCheck("hangs too", lambda: (freed.wait(), ""), timeout=3600))
    for _ in range(3):
        code, body = get(app, "/health/ready")
        assert (code, body["checks"]["hangs"]["message"]) == (503, "It has not been checked yet.")
        assert get(app, "/health/live")[0] == 200, "Nobody is killed for what is not known."
    freed.set()
    eventually(lambda: get(app, "/health/ready")[0] == 200, what="the answer")


def test_a_check_that_may_take_longer_than_a_round_holds_no_round_up(app: Flask) -> None:
    manager, asked, freed = HealthCheckManager(app, interval_seconds=0.02), [], threading.Event()
    manager.add_readiness_check(HealthCheck("slow", lambda: (freed.wait(), "at last"), timeout=3600))
    manager.add_readiness_check(HealthCheck("quick", lambda: (asked.append(1) is None, "")))
    get(app, "/health/ready")
    eventually(lambda: len(asked) > 5, what="further rounds")
    freed.set()
    told = eventually(lambda: (a := get(app, "/health/ready"))[0] == 200 and a[1], what="the slow one's answer")
    assert told["checks"]["slow"]["message"] == "at last"
    manager.stop()


def test_what_is_too_old_is_not_believed(
    app: Flask, health: HealthCheckManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    health.add_readiness_check(HealthCheck("database", well, timeout=1))
    assert get(app, "/health/ready")[0] == 200
    now = time.monotonic()
    monkeypatch.setattr(checks.time, "monotonic", lambda: now + 3 * 3600 + 2)
    code, body = get(app, "/health/ready")
    assert code == 503
    assert "last checked" in body["checks"]["database"]["message"]


def test_a_process_that_was_forked_makes_rounds_of_its_own() -> None:
    code = (
        "import os; from flask import Flask; from health_checks import *\n"
        "app = Flask('forked'); health = HealthCheckManager(app, interval_seconds=0.02)\n"
        "pids = []; health.add_readiness_check(HealthCheck('pid', lambda: (pids.append(os.getpid()) is None, '')))\n"
        "assert app.test_client().get('/ready').status_code == 200\n"
        "if child := os.fork(): raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "import time\n"
        "while os.getpid() not in pids: assert app.test_client().get('/ready').status_code == 200; time.sleep(0.01)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("show_errors", [True, False])
def test_the_text_of_an_exception_is_shown_where_it_was_asked_for(app: Flask, show_errors: bool) -> None:
    manager = HealthCheckManager(app, show_errors=show_errors)
    manager.add_readiness_check(HealthCheck("crashes", lambda: 1 / 0))  # type: ignore[arg-type,return-value]
    for accept in ("application/json", "application/health+json"):
        code, body = get(app, "/health/status", Accept=accept)
        assert code == 503
        assert ("division" in json.dumps(body)) is show_errors
    manager.stop()


def test_a_check_that_returns_something_else_has_failed(app: Flask) -> None:
    manager = HealthCheckManager(app, show_errors=True)
    manager.add_readiness_check(HealthCheck("odd", lambda: True))  # type: ignore[arg-type,return-value]
    code, body = get(app, "/ready")
    assert (code, body["checks"]["odd"]["error"]) == (503, "TypeError: it returned bool; a check returns (bool, str)")
    manager.stop()


# ---- common checks


class Borrowed:
    """A connection that counts what is given back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection_, self.given_back = connection, 0

    def getconn(self) -> sqlite3.Connection:
        return self.connection_

    def putconn(self, _: object) -> None:
        self.given_back += 1


class Engine:
    """As SQLAlchemy's: `connect()` gives what has no cursor."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connect(self) -> Any:
        engine = self

        @contextmanager
        def connection() -> Iterator[Any]:
            class Rows:
                def fetchone(self) -> None: ...

            class Connection:
                def exec_driver_sql(self, text: str) -> Rows:
                    engine.asked.append(text)
                    return Rows()

            yield Connection()

        return connection()


def test_a_database_is_asked_by_connection_pool_engine_or_factory(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    connection = sqlite3.connect(path)
    pool, engine = Borrowed(connection), Engine()
    for database in (connection, pool, engine, lambda: sqlite3.connect(path)):
        assert CommonChecks.database_check(database)() == (True, "The database answers.")
    assert pool.given_back == 1
    assert engine.asked == ["SELECT 1"]
    connection.close()
    with pytest.raises(sqlite3.ProgrammingError):
        CommonChecks.database_check(connection)()
    with pytest.raises(TypeError):
        CommonChecks.database_check(object())()


def test_a_sqlite_connection_of_another_thread_is_asked_by_one_to_its_file(app: Flask, tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    manager = HealthCheckManager(app, interval_seconds=3600)
    manager.add_readiness_check(HealthCheck("database", CommonChecks.database_check(connection)))
    assert manager.is_ready()
    path.unlink()
    manager.refresh()
    assert not manager.is_ready()
    manager.stop()
    connection.close()


def test_redis_is_pinged() -> None:
    class Redis:
        answer = True

        def ping(self) -> bool:
            return self.answer

    client = Redis()
    check = CommonChecks.redis_check(client)
    assert check()[0]
    client.answer = False
    assert not check()[0]


class Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_service_is_well_below_400() -> None:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    assert CommonChecks.external_api_check(f"{url}/204")() == (True, "It answers 204.")
    for status in (404, 500):
        assert CommonChecks.external_api_check(f"{url}/{status}")() == (False, f"It answers {status}.")
    server.shutdown()
    server.server_close()
    healthy, message = CommonChecks.external_api_check(f"http://127.0.0.1:{free_port()}", timeout=1)()
    assert (healthy, "refused" in message) == (False, True), message
    with pytest.raises(ValueError, match="http"):
        CommonChecks.external_api_check("file:///etc/passwd")


@pytest.mark.parametrize(("size", "waiting", "healthy"), [(10, 8, True), (10, 9, False), (0, 5000, True)])
def test_a_queue_is_too_full_at_nine_tenths_of_its_size(size: int, waiting: int, healthy: bool) -> None:
    jobs: queue.Queue[int] = queue.Queue(size)
    for n in range(waiting):
        jobs.put(n)
    assert CommonChecks.message_queue_check(jobs)()[0] is healthy


def test_connections_are_counted_and_not_guessed() -> None:
    assert CommonChecks.websocket_connections_check(2, lambda: 3)() == (
        False,
        "3 connections are open; at most 2 may be.",
    )
    check = CommonChecks.websocket_connections_check(1000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = check()[1]
        with socket.create_connection(listener.getsockname()), listener.accept()[0]:
            assert check()[1] != before


def test_room_on_a_disk(tmp_path: Path) -> None:
    assert CommonChecks.file_system_check(str(tmp_path), min_free_gb=0.000001)()[0]
    assert not CommonChecks.file_system_check(str(tmp_path), min_free_gb=10**9)()[0]
    with pytest.raises(OSError, match="No such file"):
        CommonChecks.file_system_check(str(tmp_path / "missing"))()
