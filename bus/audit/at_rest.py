"""The trail read from where it lies: a log's file or database, running or not, or the lines of an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec

from bus.audit import trail
from bus.audit.record import Anchor, Record


class NoTrail(Exception):
    """There is none to read. The text is a sentence."""


class Line(msgspec.Struct):
    """A line of an export: the anchor first, then records."""

    anchor: Anchor | None = None
    record: Record | None = None


_decode = msgspec.json.Decoder(Line).decode


def exported(lines: Iterable[bytes]) -> tuple[Anchor, Iterator[Record]]:
    """The anchor and the records of an export. Raises NoTrail, also half-way."""
    every = iter(lines)
    first = _read(next(every, b"{}"))
    if first.anchor is None:
        raise NoTrail("The first line is no anchor of an audit trail; give an export that was not filtered or cut.")
    return first.anchor, (_record(line) for line in every)


def _record(line: bytes) -> Record:
    record = _read(line).record
    if record is None:
        raise NoTrail("A line of the export holds no record.")
    return record


def _read(line: bytes) -> Line:
    try:
        return _decode(line)
    except msgspec.DecodeError:
        raise NoTrail("A line of the export can't be read; it is damaged, or no export.") from None


@contextlib.contextmanager
def stored(path: Path) -> Iterator[tuple[Anchor, Iterator[Record]]]:
    """The anchor and the records in a log's file, in one snapshot. Raises NoTrail."""
    if not path.exists():
        raise NoTrail(f"There is no log at {path}; name it, or set DATA_DIR or DATABASE_URL as the bus has them.")
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)

    def execute(statement: str, bindings: Any) -> list[Any]:
        return connection.execute(statement, bindings).fetchall()

    try:
        connection.execute("BEGIN")
        yield trail.anchor(execute), (record for page in trail.pages(execute) for record in page)
    except (apsw.SQLError, apsw.NotADBError, apsw.CorruptError):
        raise NoTrail(f"{path} holds no audit trail that can be read.") from None
    finally:
        connection.close()


@contextlib.contextmanager
def stored_in(url: str) -> Iterator[tuple[Anchor, Iterator[Record]]]:
    """The same of a log on PostgreSQL; `url` is DATABASE_URL. Raises NoTrail."""
    from bus.storage.postgres_connection import PostgresConnection, PostgresError  # noqa: PLC0415  # its driver is an extra

    try:
        connection = PostgresConnection(url.replace("+psycopg:", ":", 1), statement_seconds=None)
    except PostgresError as error:
        raise NoTrail(f"The database of the log does not answer: {error}") from None

    def execute(statement: str, bindings: Any) -> list[Any]:
        return connection.execute(statement, bindings).fetchall()

    try:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield trail.anchor(execute), (record for page in trail.pages(execute) for record in page)
    except PostgresError as error:
        raise NoTrail(f"The database holds no audit trail that can be read: {error}") from None
    finally:
        connection.close()
