"""Every SQL statement of the bus is one that SQLite and PostgreSQL understand, as are the migrations.

Statements are found in the source (tests/statements.py) and prepared on both, so one that only SQLite knows is found
before anything runs it. What is put together while running is gathered from the functions that do so (EXAMPLES), and a
statement that no example shows fails, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import apsw
import apsw.ext
import psycopg
import pytest

from bus.audit import trail
from bus.delivery import dead_letters
from bus.delivery import replays as bus_replays
from bus.identity import keys
from bus.ingress import journal
from bus.message import Kind
from bus.retention import archive, sweep
from bus.search.index import INSERT_SIZES
from bus.search.postgres_index import POSTGRESQL
from bus.search.sqlite_index import SQLITE
from bus.storage import dialect, eviction, log_reader
from bus.transports import delivery as routes
from bus.webhooks import claims, deliveries, replays
from tests.databases import PostgresServer
from tests.statements import ROOT, Statement, statements_of

ONE_DIALECT = re.compile(
    r"bus\.storage\.(sqlite|postgres|copying|dialect)\w*:|bus\.search\.(sqlite_|postgres_)?index:|bus\.cli\."
)
"""Modules that speak to one of the two alone."""

MIGRATIONS = sorted(ROOT.glob("bus/*/migrations/[0-9]*.sql"), key=lambda file: ("storage" not in file.parts, file))
_NOTED = "CREATE TABLE migrations (owner TEXT, number INTEGER, checksum TEXT, applied_at INTEGER)"

FILES = [
    file
    for pattern in ("bus/**/*.py", "extensions/*.py", "*.py")
    for file in sorted(ROOT.glob(pattern))
    if file.name != "gunicorn.conf.py"
]
STATEMENTS = [one for file in FILES for one in statements_of(file) if not ONE_DIALECT.match(one.place)]


class Recorder:
    """A reader and a transaction of an empty log, which notes what it is asked."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.asked: list[str] = []
        self.ledger: Any = SimpleNamespace(now=1, outlive=lambda *_: [], evict=lambda *_: None, ahead=None)

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self.asked.append(statement)
        return self._connection.execute(statement, bindings).fetchall()


def _of_evictions(store: Recorder) -> None:
    eviction.evict(store, 0, 0)
    store.execute("INSERT INTO messages VALUES (1, ?, '', 'a', 'b', 1, 1, 0, ?, ?)", (Kind.ALL, b"", b""))
    eviction.remove(store, [1], eviction.EXPIRED)


def _of_dead_letters(store: Recorder) -> None:
    for choice in (dead_letters.Choice(), dead_letters.Choice("a", "expired", "b", "c")):
        dead_letters.page(store, choice, dead_letters.START, 1)  # type: ignore[arg-type]
        dead_letters.count(store, choice)  # type: ignore[arg-type]


def _of_webhooks(store: Recorder) -> None:
    for choice in (deliveries.Choice(), deliveries.Choice(1, "dead", "e", 1, 2)):
        deliveries.page(store, choice, None, 1)  # type: ignore[arg-type]
        deliveries.count(store, choice)  # type: ignore[arg-type]
        replays.matching(store, choice, 1)  # type: ignore[arg-type]
        replays.begin(store, choice, 0, 1)  # type: ignore[arg-type]
        replays.next_batch(store, 1)  # type: ignore[arg-type]
    replays.latest(store, 1)  # type: ignore[arg-type]
    for gone in ("false", "holder = 1 OR holder NOT IN (SELECT slot FROM webhook_processes)"):
        store.execute(claims._LAPSED.format(gone=gone), (1, 1))


def _of_the_journal(store: Recorder) -> None:
    journal.page(store, "a", "accepted", 1, 1)  # type: ignore[arg-type]
    journal.page(store, None, None, None, 1)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "MAX_TAKEN", -1)
        patch.setattr(journal, "MAX_REFUSED", -1)
        journal.forget(store, 1)  # type: ignore[arg-type]


def _of_retention(store: Recorder) -> None:
    archive.page(store, 1, 1, None, None)  # type: ignore[arg-type]
    archive.entries(store, "complete = 0", ())
    for narrow, types in (("", []), ("AND type IN", ["a"]), ("AND type NOT IN", ["a"])):
        store.execute(*sweep._own(1, 1, narrow, types))
    for membership in ("IN", "NOT IN"):
        store.execute(sweep._BY_POLICY.format(membership), (1, 1, "[]", 1))


def _of_the_trail(store: Recorder) -> None:
    for wanted in (trail.Wanted("a", "b.*", "done", 1, 2), trail.Wanted(action="b"), trail.Wanted()):
        trail.newest(store, wanted, 1, 1)  # type: ignore[arg-type]
        trail.following(store.execute, 1, wanted)


def _of_routes(store: Recorder) -> None:
    for table in ("messages", "deliveries"):
        store.execute(f"DELETE FROM {table}")
    routes._queue_rows(store, after="", limit=1, clock=lambda: 1)  # type: ignore[arg-type]
    routes._queue_rows(store, after=None, limit=1, clock=lambda: 1, owner="queue:a")  # type: ignore[arg-type]


def _of_keys(store: Recorder) -> None:
    keys.read_keys(store.execute)
    keys.read_keys(store.execute, "id = ?", ("a",))
    for where in ("id = ?", "true ORDER BY created_at DESC, id LIMIT ?"):
        bus_replays._select(store, where, (1,))  # type: ignore[arg-type]


EXAMPLES: list[Callable[[Any], None]] = [
    _of_evictions, _of_dead_letters, _of_webhooks, _of_the_journal, _of_retention, _of_the_trail, _of_routes, _of_keys,
]  # fmt: skip


@pytest.fixture(scope="module")
def sqlite() -> Iterator[apsw.Connection]:
    """An empty log."""
    connection = apsw.Connection(":memory:")
    connection.execute(_NOTED)
    for file in MIGRATIONS:
        connection.execute(file.read_text(encoding="utf-8"))
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def database(postgresql: PostgresServer) -> Iterator[psycopg.Connection]:
    """The same on PostgreSQL."""
    with psycopg.connect(postgresql.make(), autocommit=True) as connection:
        connection.execute(dialect.translate_script(_NOTED).encode())
        for file in MIGRATIONS:
            connection.execute(dialect.script_of(file).encode())
        yield connection


@pytest.fixture(scope="module")
def examples(sqlite: apsw.Connection) -> list[Statement]:
    """What the functions that put statements together make."""
    store = Recorder(sqlite)
    for make in EXAMPLES:
        sqlite.execute("SAVEPOINT example")
        make(store)
        sqlite.execute("ROLLBACK TO example; RELEASE example")
    return [Statement("EXAMPLES", text, whole=True) for text in dict.fromkeys(store.asked)]


def test_statements_are_found() -> None:
    """Should the search be broken, the tests below would test nothing."""
    assert len(STATEMENTS) > 250
    assert {one.place.split(":")[0].split(".")[1] for one in STATEMENTS if one.place.startswith("bus.")} >= {
        "audit", "delivery", "identity", "ingress", "retention", "storage", "transports", "webhooks",
    }  # fmt: skip


def test_each_statement_that_is_put_together_has_an_example(examples: list[Statement]) -> None:
    known = [one for one in STATEMENTS if one.whole] + examples
    unseen = [one for one in STATEMENTS if not one.whole and not any(one.fits(made.text) for made in known)]
    assert not unseen, f"Let EXAMPLES show what these become: {unseen}"


def test_sqlite_understands_every_statement(sqlite: apsw.Connection, examples: list[Statement]) -> None:
    _all_are_understood(partial(apsw.ext.query_info, sqlite), examples)


def test_postgresql_understands_every_statement(database: psycopg.Connection, examples: list[Statement]) -> None:
    _all_are_understood(partial(_prepare, database), examples)


def test_each_store_understands_the_search_in_its_own_words(
    sqlite: apsw.Connection, database: psycopg.Connection
) -> None:
    for index, prepare in ((SQLITE, partial(apsw.ext.query_info, sqlite)), (POSTGRESQL, partial(_prepare, database))):
        for text in (index.newest, index.ranked, index.gone, index.oldest, index.forget, index.forget_all):
            prepare(text)
        for rows in INSERT_SIZES:
            prepare(index.insert(rows))


def _prepare(database: psycopg.Connection, text: str) -> None:
    result = database.pgconn.prepare(b"", dialect.translate(text).text)
    if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
        raise psycopg.ProgrammingError(f"{result.get_error_message('utf-8')}: {text}")


def _all_are_understood(prepare: Callable[[str], object], examples: list[Statement]) -> None:
    findings = []
    whole = [one for one in STATEMENTS if one.whole]
    for one in [*whole, *examples]:
        module = one.place.partition(":")[0] + ":"
        if any(one.text in each.text and one.text != each.text for each in whole if each.place.startswith(module)):
            continue  # a part of another: it need not stand alone
        try:
            prepare(one.text)
        except (apsw.Error, psycopg.Error) as error:
            findings.append(f"{one.place}: {error}\n{one.text.strip()}")
    assert not findings, "\n\n".join(findings)


@pytest.mark.parametrize("statement", ["INBOX", "LOG_OF_CLIENT"])
def test_a_page_of_a_long_inbox_reads_little_more_than_itself(database: psycopg.Connection, statement: str) -> None:
    with database.transaction(force_rollback=True):
        database.execute(
            "INSERT INTO messages SELECT seq, seq % 3, CASE seq % 3 WHEN 0 THEN 'bob' ELSE '' END, 'ann', 'message', seq,"
            " NULL, 0, '', '1' FROM generate_series(1, 6000) AS seq WHERE seq % 3 <> 1"
        )
        for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin"):  # as bus.storage.postgres has it
            database.execute(f"SET LOCAL enable_{way} = off".encode())
        marks = b"PREPARE page (text, bigint, bigint, bigint, text, text, bigint, bigint) AS "
        database.execute(marks + dialect.translate(getattr(log_reader, statement)).text)
        explained = database.execute(
            "EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE page ('bob', 0, 6000, 50, NULL, NULL, NULL, NULL)"
        ).fetchone()
        database.execute("DEALLOCATE page")
    assert explained is not None
    (plan,) = explained[0]
    assert sum(_rows_of_scans(plan["Plan"])) < 500


def _rows_of_scans(node: dict[str, Any]) -> Iterator[float]:
    if node.get("Relation Name") == "messages":
        yield node["Actual Rows"] * node["Actual Loops"]
    for below in node.get("Plans", []):
        yield from _rows_of_scans(below)
