"""A log moves from SQLite to PostgreSQL: every table, whole, in one transaction that is verified before its commit.

Epochs, cursors, leases, what waits and what was settled go along, so clients go on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg
from psycopg import sql

from bus.backplane.local import Slot
from bus.errors import StartRefused
from bus.storage.dialect import script_of
from bus.storage.postgres import OWN, PostgresStore

Migrations = Sequence[tuple[str, Path]]
Progress = Callable[[str, int], None]

ROWS_A_STEP = 5000
_OWN_TABLES = ("migrations", "commits", "identity")
_DERIVED = "search_"
"""Tables of the index of words begin so: it is another on each side, and is built anew."""

_TYPES = {"bigint": "int8", "text": "text", "bytea": "bytea", "double precision": "float8"}


class Table(msgspec.Struct, frozen=True):
    """A table of both: its columns, with their PostgreSQL types."""

    name: str
    columns: tuple[tuple[str, str], ...]
    numbered: str | None
    """The column that PostgreSQL numbers by itself, if there is one."""


class Copied(msgspec.Struct, frozen=True):
    """What was copied: rows by table, and the last seq."""

    rows: dict[str, int]
    seq: int


def copy(source: Path, store: PostgresStore, migrations: Migrations, lock_folder: Path, progress: Progress) -> Copied:
    """Copy the log at `source` into the empty database of `store`; `progress(table, rows)` hears how it goes.

    Raises StartRefused: a server has the source open, the source lacks migrations, the database holds a log, or what
    arrived differs from what was sent. Then the database is as it was.
    """
    done: list[Copied] = []
    if not source.is_file():
        raise StartRefused(f"There is no log at {source}.")
    slot = Slot(lock_folder, lambda: done.append(_copy(source, store, migrations, progress)))
    slot.release()
    if not slot.alone:
        raise StartRefused(f"A server has {source} open; stop it first.")
    return done[0]


def _copy(source: Path, store: PostgresStore, migrations: Migrations, progress: Progress) -> Copied:
    with contextlib.closing(apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)) as log:
        log.execute("BEGIN")
        _check_source(log, source, migrations)
        try:
            with psycopg.connect(store.conninfo) as target:
                return _fill(log, target, store, migrations, progress)
        except psycopg.Error as error:
            text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise StartRefused(f"PostgreSQL refuses the copy ({text}); nothing was changed.") from None


def _check_source(log: apsw.Connection, source: Path, migrations: Migrations) -> None:
    try:
        done = set(log.execute("SELECT owner, number FROM migrations"))
    except apsw.Error as error:
        raise StartRefused(f"{source} is no log ({error}).") from None
    wanted = {
        (owner, int(file.name.split("_")[0])) for owner, folder in migrations for file in folder.glob("[0-9]*.sql")
    }
    if done != wanted:
        raise StartRefused(
            f"{source} was written by another version of the bus; start this one on it once, then stop it."
        )


def _fill(
    log: apsw.Connection,
    target: psycopg.Connection[Any],
    store: PostgresStore,
    migrations: Migrations,
    progress: Progress,
) -> Copied:
    with target.cursor() as cursor:
        if cursor.execute("SELECT to_regclass('log_head')").fetchone() != (None,):
            raise StartRefused("The database holds a log already; name an empty one, or drop that one's tables.")
        cursor.execute(
            "SET LOCAL statement_timeout = 0; SET LOCAL synchronous_commit = on; SET LOCAL enable_seqscan = on"
        )
        core, *others = migrations
        for _, folder in (core, OWN, *others):
            for file in sorted(folder.glob("[0-9]*.sql")):
                cursor.execute(script_of(file).encode())
        tables = _tables(cursor, log)
        rows: dict[str, int] = {}
        sums: dict[str, int] = {}
        for table in tables:
            cursor.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(sql.Identifier(table.name)))
            cursor.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))  # what a migration put in
            rows[table.name], sums[table.name] = _copy_table(log, cursor, table, progress)
            if table.numbered is not None:
                _number_on(log, cursor, table)
            cursor.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(sql.Identifier(table.name)))
        for table in tables:
            if _found(cursor, table) != (rows[table.name], sums[table.name]):
                raise StartRefused(f"What arrived of {table.name} differs from what was sent; nothing was changed.")
        store.note_migrations(cursor.execute, migrations)
        head = cursor.execute("SELECT seq FROM log_head").fetchone()
        target.commit()
        target.autocommit = True
        cursor.execute("ANALYZE")
    return Copied(rows, head[0] if head else 0)


def _tables(cursor: psycopg.Cursor[Any], log: apsw.Connection) -> list[Table]:
    """Those that PostgreSQL has now. Raises StartRefused where SQLite's differ: an extension's tables are not known."""
    cursor.execute(
        "SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position),"
        " array_agg(data_type::text ORDER BY ordinal_position), max(column_name) FILTER (WHERE is_identity = 'YES')"
        " FROM information_schema.columns WHERE table_schema = current_schema() GROUP BY 1 ORDER BY 1"
    )
    tables = [
        Table(name, tuple(zip(columns, types, strict=True)), numbered)
        for name, columns, types, numbered in cursor.fetchall()
        if _is_copied(name)
    ]
    here = {table.name: {column for column, _ in table.columns} for table in tables}
    there: dict[str, set[str]] = {}
    for (name,) in log.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"):
        if _is_copied(str(name)):
            there[str(name)] = {str(row[1]) for row in log.execute(f'PRAGMA table_info("{name}")')}
    if here != there:
        differing = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
        raise StartRefused(
            f"The tables {', '.join(differing)} are not the same on both sides; switch on the extensions that the log was"
            " written with."
        )
    return tables


def _is_copied(name: str) -> bool:
    return name not in _OWN_TABLES and not name.startswith(_DERIVED)


def _copy_table(log: apsw.Connection, cursor: psycopg.Cursor[Any], table: Table, progress: Progress) -> tuple[int, int]:
    """(rows, sum of their digests)."""
    columns = [name for name, _ in table.columns]
    readers = [_READ[kind] for _, kind in table.columns]
    into = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    names = ", ".join(f'"{name}"' for name in columns)
    count = total = 0
    with cursor.copy(into) as copying:
        copying.set_types([_TYPES[kind] for _, kind in table.columns])
        for row in log.execute(f'SELECT {names} FROM "{table.name}"'):
            values = [None if value is None else read(value) for read, value in zip(readers, row, strict=True)]
            copying.write_row(values)
            total += _digest(values)
            count += 1
            if count % ROWS_A_STEP == 0:
                progress(table.name, count)
    progress(table.name, count)
    return count, total


def _found(cursor: psycopg.Cursor[Any], table: Table) -> tuple[int, int]:
    """What PostgreSQL has of a table, read back."""
    names = sql.SQL(", ").join(sql.Identifier(name) for name, _ in table.columns)
    count = total = 0
    with cursor.connection.cursor(name="verify", binary=True) as reading:
        reading.itersize = ROWS_A_STEP
        reading.execute(sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(table.name)))
        for row in _values(reading):
            total += _digest(row)
            count += 1
    return count, total


def _values(reading: Iterator[tuple[Any, ...]]) -> Iterator[list[Any]]:
    for row in reading:
        yield [bytes(value) if isinstance(value, memoryview) else value for value in row]


def _digest(values: Sequence[Any]) -> int:
    """Of a row; sums of them do not depend on the order of the rows."""
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(list(values)), digest_size=16).digest())


def _number_on(log: apsw.Connection, cursor: psycopg.Cursor[Any], table: Table) -> None:
    """Go on with the numbers that SQLite gave, also to rows that are gone."""
    given = 0
    if log.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchall():
        given = log.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table.name,)).get
    last = log.execute(f'SELECT coalesce(max("{table.numbered}"), 0) FROM "{table.name}"').get
    if most := max(given, last):
        cursor.execute("SELECT setval(pg_get_serial_sequence(%s, %s), %s)", (table.name, table.numbered, most))


def _text(value: Any) -> str:
    """SQLite keeps what it is given; a text holds no NUL in PostgreSQL."""
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.replace("\0", "\u2400")


_READ: dict[str, Callable[[Any], Any]] = {
    "bigint": int,
    "text": _text,
    "bytea": lambda value: value.encode() if isinstance(value, str) else bytes(value),
    "double precision": float,
}
