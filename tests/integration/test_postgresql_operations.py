"""What an operator does otherwise on PostgreSQL: copies are its own tools', and the trail at rest is in a database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from bus.settings import ROOT
from bus.testing import BusServer, eventually
from tests.auditing import AUDITING
from tests.databases import PostgresServer
from tests.integration.test_audit import emit, records
from tests.integration.test_cli import environment, run

Start = Callable[..., BusServer]
NOWHERE = "postgresql://bus:secret@127.0.0.1:1/bus"


@pytest.mark.parametrize(
    "command", [("backup", "copy.db"), ("restore", "copy.db", "--yes")], ids=lambda given: given[0]
)
def test_copies_are_left_to_postgresql(tmp_path: Path, command: tuple[str, ...]) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "bus", *command],
        cwd=ROOT,
        env=environment(DATABASE_URL=NOWHERE, DATA_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "pg_dump" in refused.stderr
    assert "docs/postgresql.md" in refused.stderr
    assert "secret" not in refused.stderr
    assert not list(tmp_path.iterdir())


def test_the_trail_is_verified_at_rest_and_forgery_found(postgresql: PostgresServer, fresh_server: Start) -> None:
    url = postgresql.make()
    server = fresh_server(env=AUDITING, database_url=url)
    for number in range(3):
        emit(server, action=f"test.{number}")
    eventually(lambda: len(records(server, "action=test.*")) == 3, what="three records")
    server.kill()
    verified = run("", "audit", "verify", "--at-rest", DATABASE_URL=url)
    assert "3 records, unbroken" in verified.stdout, verified
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_logs DISABLE TRIGGER audit_logs_stay_as_written")
        connection.execute("UPDATE audit_logs SET user_id = 'x' WHERE number = 2")
    forged = run("", "audit", "verify", "--at-rest", DATABASE_URL=url)
    assert (forged.returncode, "Record 2" in forged.stderr) == (1, True)
    unreached = run("", "audit", "verify", "--at-rest", DATABASE_URL=NOWHERE)
    assert (unreached.returncode, "does not answer" in unreached.stderr) == (1, True)
    assert "secret" not in unreached.stderr


def test_the_trail_takes_nothing_but_what_is_appended(postgresql: PostgresServer, fresh_server: Start) -> None:
    url = postgresql.make()
    server = fresh_server(env=AUDITING, database_url=url)
    emit(server, action="test.first")
    eventually(lambda: records(server), what="the record")
    with psycopg.connect(url, autocommit=True) as connection:
        for statement, sentence in (
            ("UPDATE audit_logs SET user_id = 'x'", "can not be changed"),
            ("DELETE FROM audit_logs", "only retention takes records"),
            ("TRUNCATE audit_logs", "only retention takes records"),
            ("INSERT INTO audit_logs SELECT number + 2, timestamp, table_name, record_id, operation, outcome, old_values,"
             " new_values, user_id, org_id, address, request_id, times, hash FROM audit_logs", "one number after another"),
            ("INSERT INTO audit_anchor VALUES (1, 0, '')", "has one row"),
            ("DELETE FROM audit_anchor", "can not be removed"),
            ("TRUNCATE audit_anchor", "can not be removed"),
            ("UPDATE audit_anchor SET number = 1", "moves forwards"),
        ):  # fmt: skip
            with pytest.raises(psycopg.Error, match=sentence):
                connection.execute(statement)
