"""The store on a real PostgreSQL, without a server: connections that are lost, commits whose answer is lost, refusals."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bus.bus import MIGRATIONS
from bus.clock import Clock
from bus.errors import StartRefused, Unavailable
from bus.message import Kind, Message, now_us
from bus.storage import Group, Item, Job, Pending, postgres, postgres_writer
from bus.storage.postgres import Pool, PostgresStore
from bus.storage.postgres_connection import ConnectionLost, PostgresConnection, PostgresError
from bus.storage.postgres_writer import PostgresWriter
from tests.databases import PostgresServer

CORE = [("core", MIGRATIONS)]


def store_at(url: str, **pool: Any) -> PostgresStore:
    return PostgresStore(url, Clock(Path()), durability="full", inbox_limit=100, queue_limit=100, pool=Pool(**pool))


def sending(to: str, text: bytes = b"1", key: str | None = None) -> Pending:
    message = Message(Kind.CLIENT, to, (to,), "ann", "message", text, now_us())
    return Pending(message, lambda _: None, key=key)


@pytest.fixture
def url(postgresql: PostgresServer) -> str:
    """Of an empty database."""
    return postgresql.make()


@pytest.fixture
def store(url: str) -> PostgresStore:
    """Opened."""
    made = store_at(url)
    made.open(CORE)
    return made


@pytest.fixture
def writer(store: PostgresStore) -> Iterator[PostgresWriter]:
    made = store.writer()
    yield made
    made.close()


@pytest.fixture
def connection(url: str) -> Iterator[PostgresConnection]:
    made = PostgresConnection(url, statement_seconds=5)
    yield made
    made.close()


def texts(store: PostgresStore, name: str) -> list[bytes]:
    with contextlib.closing(store.reader()) as reader:
        return [message.payload for message in reader.inbox(name, 0, None, 1000, 1 << 30).messages]


def end_connections(url: str) -> None:
    """As an operator would: all of the database but this one."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


# ---- a connection


def test_values_come_back_as_sqlite_gives_them(connection: PostgresConnection) -> None:
    values = (1, -(2**62), "é", "a\0b", b"\0\xff", None, 0.1, True)
    marks = ", ".join("?" * len(values))
    row = connection.execute(
        f"SELECT {marks}, sum(x), 1 = 1 FROM (VALUES (CAST(1 AS BIGINT)), (2)) AS v(x)", values
    ).get

    assert row == (1, -(2**62), "é", "a\u2400b", b"\0\xff", None, 0.1, 1, 3, 1)
    assert [type(value) for value in row[-3:]] == [int, int, int]


@pytest.mark.parametrize("item", ["plain", 'qu"ote', "back\\slash", "{brace},", "NULL", ""])
def test_membership_takes_any_text(connection: PostgresConnection, item: str) -> None:
    listed = '["other", ' + json.dumps(item) + "]"

    assert connection.execute("SELECT 1 WHERE ? IN (SELECT value FROM json_each(?))", (item, listed)).get == 1
    assert connection.execute("SELECT 1 WHERE 'x' IN (SELECT value FROM json_each(?))", (listed,)).get is None


def test_an_error_shows_at_the_next_look_and_the_connection_goes_on(connection: PostgresConnection) -> None:
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(PostgresError) as caught:
        connection.flush()

    assert caught.value.state == "23505"
    assert not connection.in_transaction
    assert connection.execute("SELECT 5").get == 5


def test_a_statement_that_takes_too_long_is_ended(url: str) -> None:
    with contextlib.closing(store_at(url, statement_seconds=0.2).connect(0.2)) as connection:
        with pytest.raises(PostgresError) as caught:
            connection.execute("SELECT pg_sleep(20)").load()
        assert caught.value.state == "57014"
        assert connection.execute("SELECT 1").get == 1


def test_many_statements_are_prepared_and_forgotten(connection: PostgresConnection) -> None:
    for n in range(600):
        assert connection.execute(f"SELECT ? + {n}", (1,)).get == 1 + n


# ---- a writer and readers


def test_what_two_writers_commit_is_one_log(store: PostgresStore) -> None:
    with contextlib.closing(store.writer()) as one, contextlib.closing(store.writer()) as other:
        for n in range(6):
            (one, other)[n % 2].commit([sending("bob", str(n).encode())])

    assert texts(store, "bob") == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_reader_hears_that_others_wrote(store: PostgresStore, writer: PostgresWriter) -> None:
    with contextlib.closing(store.reader()) as reader:
        reader.changed()
        assert not reader.changed()
        writer.commit([Job(lambda transaction: None, lambda _: None)])
        assert reader.changed()
        assert not reader.changed()


def test_a_job_that_fails_takes_back_its_own_alone(store: PostgresStore, writer: PostgresWriter) -> None:
    def breaks(transaction: Any) -> None:
        transaction.execute("DELETE FROM messages")
        transaction.execute("INSERT INTO no_such_table VALUES (1)")

    job = Job(breaks, lambda _: None)
    items: list[Item] = [sending("bob", b"before"), job, sending("bob", b"behind")]
    writer.commit(items)

    assert isinstance(job.error, PostgresError)
    assert texts(store, "bob") == [b"before", b"behind"]


def test_a_group_is_stored_whole_or_not(store: PostgresStore, writer: PostgresWriter) -> None:
    writer.commit([sending("bob", b"1", key="k")])
    group = Group([sending("bob", b"2"), sending("bob", b"other", key="k")])
    writer.commit([group])

    assert group.members[0].error is not None
    assert texts(store, "bob") == [b"1"]


def test_a_large_page_comes_in_chunks(store: PostgresStore, writer: PostgresWriter) -> None:
    for _ in range(3):
        writer.commit([sending("bob", b"7" * 100) for _ in range(30)])
    with contextlib.closing(store.reader()) as reader:
        page = reader.inbox("bob", 0, None, 1000, 1 << 30)
        short = reader.inbox("bob", 0, None, 70, 1 << 30)
        small = reader.inbox("bob", 0, None, 1000, 5 * 350)

    assert (len(page.messages), page.more) == (90, False)
    assert (len(short.messages), short.more) == (70, True)
    assert small.more
    assert 1 <= len(small.messages) <= 5


def test_connections_that_were_ended_are_made_anew(store: PostgresStore, url: str, writer: PostgresWriter) -> None:
    with contextlib.closing(store.reader()) as reader:
        writer.commit([sending("bob", b"1")])
        reader.head()
        end_connections(url)
        writer.commit([sending("bob", b"2")])
        assert len(reader.inbox("bob", 0, None, 10, 1000).messages) == 2
        end_connections(url)
        assert reader.head().seq == 2


@pytest.mark.parametrize("arrived", [True, False])
def test_a_lost_answer_to_commit_is_found_out(
    store: PostgresStore, writer: PostgresWriter, url: str, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    writer.commit([sending("bob", b"1")])
    flush = PostgresConnection.flush

    def lose(connection: PostgresConnection) -> None:
        if len(connection._queue) > 3:  # the flight of the commit
            monkeypatch.setattr(PostgresConnection, "flush", flush)
            if not arrived:
                end_connections(url)
            connection.flush()
            connection.close()
            raise ConnectionLost("the answer is lost")
        flush(connection)

    item = sending("bob", b"2")
    monkeypatch.setattr(PostgresConnection, "flush", lose)
    if arrived:
        assert writer.commit([item])[0] == 2
    else:
        with pytest.raises(Unavailable) as refused:
            writer.commit([item])
        assert refused.value.code == "unavailable"
    assert texts(store, "bob") == ([b"1", b"2"] if arrived else [b"1"])


def test_who_can_not_find_out_says_so(
    store: PostgresStore, writer: PostgresWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.commit([sending("bob")])
    monkeypatch.setattr(postgres_writer, "RESOLVE_SECONDS", 0.0)
    commit = PostgresConnection.execute

    def execute(connection: PostgresConnection, statement: str, bindings: Any = ()) -> Any:
        if statement == "COMMIT":
            connection.close()
            raise ConnectionLost("gone")
        return commit(connection, statement, bindings)

    monkeypatch.setattr(PostgresConnection, "execute", execute)
    with pytest.raises(Unavailable) as refused:
        writer.commit([sending("bob")])
    assert refused.value.code == "outcome_unknown"


def test_another_primary_ends_the_process(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby that was promoted may lack the end of the log: whoever knew that end begins anew."""
    ended: list[int] = []
    monkeypatch.setattr(postgres.os, "kill", lambda _, number: ended.append(number))
    store._identity = store._identity.replace("/00000001/", "/00000002/")
    with contextlib.closing(store.writer()) as writer, pytest.raises(Unavailable):
        writer.commit([sending("bob")])
    with contextlib.closing(store.reader()) as reader, pytest.raises(Unavailable):
        reader.execute("SELECT 1")

    assert set(ended) == {signal.SIGTERM}


# ---- opening


def test_opening_twice_changes_nothing_and_keeps_the_epoch(store: PostgresStore, url: str) -> None:
    again = store_at(url)
    assert again.due(CORE) == []
    again.open(CORE)
    assert again.epochs.current == store.epochs.current


def test_a_copy_begins_a_new_epoch(
    store: PostgresStore, writer: PostgresWriter, url: str, postgresql: PostgresServer
) -> None:
    writer.commit([sending("bob")])
    writer.close()
    name = url.rpartition("/")[2]
    with psycopg.connect(postgresql.url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE copied_{name} TEMPLATE {name}")
    copied = store_at(postgresql.url(f"copied_{name}"))
    copied.open(CORE)

    assert copied.epochs.current != store.epochs.current
    assert copied.epochs.id_of(1) == store.epochs.id_of(1)
    assert copied.epochs.id_of(2) != store.epochs.id_of(2)


def test_a_file_that_changed_and_a_newer_version_are_refused(store: PostgresStore, url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_core.sql").write_text("SELECT 1;")
    with pytest.raises(StartRefused, match="newer version"):
        store_at(url).open([("core", tmp_path)])
    for number in range(2, 8):
        (tmp_path / f"000{number}_more.sql").write_text("SELECT 1;")
    with pytest.raises(StartRefused, match="was changed"):
        store_at(url).open([("core", tmp_path)])


def test_start_is_refused_with_the_cure(postgresql: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "START_SECONDS", 0.0)
    there = postgresql.url("postgres")
    for url, words in (
        (there.replace("/postgres", "/nowhere"), "has no database nowhere; create it"),
        (there.replace("bus@", "stranger:s3cret@"), "knows no user stranger"),
        (there.replace(str(postgresql.port), "1"), "does not answer"),
        (there.replace("127.0.0.1", "no-such-host.invalid"), "no address"),
    ):
        with pytest.raises(StartRefused, match=words) as refused:
            store_at(url).check()
        assert "s3cret" not in str(refused.value)
    with pytest.raises(StartRefused, match="connections left"):
        store_at(there, connections=10_000).check()
    with pytest.raises(StartRefused, match="can't be read"):
        store_at("postgresql://bus@[half/x")
    store_at(there).check()
