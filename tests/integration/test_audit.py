"""The audit trail of a real server: written by every worker, read over REST and the command line, kept over crashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import apsw
import pytest

from bus.testing import BusServer, eventually
from tests.auditing import AUDITING
from tests.integration.test_cli import run
from tests.refusals import KEY, check


@pytest.fixture(scope="module")
def audited() -> Iterator[BusServer]:
    with BusServer(workers=4, env=AUDITING) as running:
        yield running


def emit(server: BusServer, **fields: Any) -> None:
    event = {"actor": "admin", "target": "things:1", "outcome": "done", **fields}
    assert server.call("GET", f"/tests/audit?event={quote(json.dumps(event))}").status == 200


def records(server: BusServer, query: str = "") -> list[dict[str, Any]]:
    answer = server.call("GET", f"/api/audit?{query}")
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.body["records"]
    return found


def test_what_any_worker_hears_stands_in_one_chain(audited: BusServer) -> None:
    action = f"test.{uuid4().hex}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: emit(audited, action=action, target=f"things:{n}"), range(60)))
    found = eventually(lambda: (r := records(audited, f"action={action}")) and len(r) == 60 and r, what="60 records")
    assert {record["record_id"] for record in found} == {str(n) for n in range(60)}
    numbers = [record["number"] for record in found]
    assert numbers == sorted(numbers, reverse=True)
    verified = run(audited.url, "audit", "verify")
    assert (verified.returncode, "unbroken" in verified.stdout) == (0, True), verified


def test_filters_and_pages_narrow_what_is_listed(audited: BusServer) -> None:
    mine = uuid4().hex
    for number in range(5):
        emit(audited, action=f"{mine}.{number}", actor=f"key:{mine}", detail={"old.state": "a", "state": "b"})
    emit(audited, action=f"{mine}x.0", outcome="failed", actor=f"key:{mine}")
    eventually(lambda: len(records(audited, f"actor=key:{mine}")) == 6, what="six records")
    assert len(records(audited, f"action={mine}.*")) == 5
    (failed,) = records(audited, f"actor=key:{mine}&outcome=failed")
    one, *_ = records(audited, f"action={mine}.3")
    assert (one["old_values"], one["new_values"], one["table_name"]) == ({"state": "a"}, {"state": "b"}, "things")
    page = audited.call("GET", f"/api/audit?actor=key:{mine}&limit=4").body
    rest = audited.call("GET", f"/api/v1/audit?actor=key:{mine}&limit=4&cursor={page['cursor']}").body
    assert (len(page["records"]), page["more"], len(rest["records"]), rest["more"]) == (4, True, 2, False)
    assert len(records(audited, f"actor=key:{mine}&since={failed['timestamp']}")) == 1
    assert len(records(audited, f"actor=key:{mine}&until={one['timestamp']}")) == 4
    for query, code, field in (
        ("outcome=x", "bad_field", "outcome"),
        ("since=x", "bad_time", "since"),
        ("cursor=x", "bad_cursor", "cursor"),
        ("limit=1001", "bad_field", "limit"),
    ):
        check(audited.call("GET", f"/api/audit?{query}"), 400, code, field)


def test_equal_refusals_are_one_record_with_a_count(audited: BusServer) -> None:
    action = f"test.{uuid4().hex}"
    emit(audited, action=action, outcome="refused", actor="anybody", address="192.0.2.1", repeat=500)
    (record,) = eventually(lambda: records(audited, f"action={action}"), what="the record")
    assert (record["times"], record["address"], record["outcome"]) == (500, "192.0.2.1", "refused")


def test_an_export_can_be_verified_away_from_the_server(audited: BusServer, tmp_path: Path) -> None:
    emit(audited, action="test.export")
    eventually(lambda: records(audited, "action=test.export"), what="the record")
    exported = run(audited.url, "audit", "export")
    assert exported.returncode == 0
    lines = exported.stdout.splitlines()
    assert json.loads(lines[0])["anchor"]["number"] == 0
    file = tmp_path / "audit.jsonl"
    file.write_text(exported.stdout)
    verified = run(audited.url, "audit", "verify", "--file", str(file))
    assert f"{len(lines) - 1} record" in verified.stdout
    noted = verified.stdout.split()[-1]
    assert run(audited.url, "audit", "verify", "--expect", noted).returncode == 0
    file.write_text(exported.stdout.replace("test.export", "test.forged"))
    forged = run(audited.url, "audit", "verify", "--file", str(file))
    assert (forged.returncode, "was changed" in forged.stderr) == (1, True)
    listed = run(audited.url, "audit", "list", "--action", "test.export")
    assert "test.export" in listed.stdout


@pytest.mark.usefixtures("on_sqlite")  # tests/integration/test_postgresql_operations.py does it there
def test_records_outlive_a_kill_and_are_verified_at_rest(fresh_server) -> None:
    server = fresh_server(env=AUDITING)
    emit(server, action="test.before")
    eventually(lambda: records(server), what="the record")
    server.kill()
    database = server.data_dir / "bus.db"
    assert "1 record," in run(server.url, "audit", "verify", "--database", str(database)).stdout
    server.start()
    emit(server, action="test.after", outcome="refused")
    assert server.terminate() == 0
    said = run(server.url, "audit", "verify", "--database", str(database)).stdout
    assert "2 records, unbroken" in said, "A stop writes what is gathered."
    connection = apsw.Connection(str(database))
    connection.execute("DROP TRIGGER audit_logs_stay_as_written; UPDATE audit_logs SET user_id = 'x' WHERE number = 1")
    connection.close()
    broken = run(server.url, "audit", "verify", "--database", str(database))
    assert (broken.returncode, "Record 1" in broken.stderr) == (1, True)


def test_retention_moves_the_start_and_the_chain_holds(fresh_server) -> None:
    server = fresh_server(env={**AUDITING, "TTL_SWEEP_INTERVAL": "1"})
    for number in range(3):
        emit(server, action=f"test.{number}")
    eventually(lambda: len(records(server, "action=test.*")) == 3, what="three records")
    assert server.call("PUT", "/api/ttl/policies/$audit", {"ttl_seconds": 1}).status == 200
    eventually(lambda: not records(server, "action=test.*"), what="the end of the records")
    trimmed = eventually(lambda: records(server, "action=audit.trimmed"), what="the record of the retention")
    assert int(trimmed[-1]["record_id"]) >= 1
    assert run(server.url, "audit", "verify").returncode == 0
    assert '"audit_stands"' in server.log or "audit_stands" in server.log


def test_the_trail_is_for_administrators(fresh_server) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    for path in ("/api/audit", "/api/audit/export"):
        check(server.call("GET", path), 401, "unauthenticated")
        assert server.call("GET", path, headers={"X-API-Key": KEY}).status == 200


def test_left_out_nothing_is_written_and_all_else_works(fresh_server) -> None:
    server = fresh_server(env={**AUDITING, "DISABLED_EXTENSIONS": "audit"})
    emit(server, action="test.nobody")
    assert server.call("GET", "/api/audit").status == 404
    assert server.call("POST", "/api/send", {"from": "a", "to": "b"}).status == 200
