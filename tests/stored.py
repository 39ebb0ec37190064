"""What a server's log holds, and its writers' lock, wherever the log is: a file of SQLite's, or a database on PostgreSQL."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from bus.testing import BusServer


def side_folder(server: BusServer) -> Path:
    """Where the workers of a node meet: its locks, its shared tables, its samples."""
    return server.data_dir / ("postgresql.workers" if server.database_url else "bus.db.workers")


def rows(server: BusServer, statement: str) -> list[tuple[Any, ...]]:
    """Ask the log. One statement that both understand."""
    if server.database_url:
        with psycopg.connect(server.database_url) as database:
            return database.execute(statement.encode()).fetchall()
    with closing(sqlite3.connect(f"file:{server.data_dir / 'bus.db'}?mode=ro", uri=True)) as file:
        return file.execute(statement).fetchall()


def dumped(server: BusServer) -> bytes:
    """All rows of a log that is not in files; empty where it is."""
    if not server.database_url:
        return b""
    with psycopg.connect(server.database_url) as database:
        tables = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
        found = [database.execute(f'SELECT * FROM "{table}"'.encode()).fetchall() for (table,) in tables]
    return repr(found).encode()


@contextmanager
def no_commits(server: BusServer) -> Iterator[None]:
    """Hold the writers' lock of the log: every commit of every worker waits."""
    if server.database_url:
        with psycopg.connect(server.database_url) as database:
            database.execute("SELECT 1 FROM log_head FOR UPDATE")
            yield
        return
    with _lock_file(server).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def nobody_commits(server: BusServer) -> bool:
    """Whether nobody holds the writers' lock at this moment."""
    if server.database_url:
        with psycopg.connect(server.database_url) as database:
            return bool(database.execute("SELECT 1 FROM log_head FOR UPDATE SKIP LOCKED").fetchall())
    with _lock_file(server).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _lock_file(server: BusServer) -> Path:
    return side_folder(server) / "writers.lock"
