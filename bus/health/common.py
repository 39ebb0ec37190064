"""Ready-made health checks: a database, Redis, an HTTP service, a queue, connections, room on a disk.

Each method returns a function for `HealthCheck`. What raises when it is asked has failed, and insiders see its text.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil

from bus.health.checks import Found
from bus.outbound import Guard, Outbound

GIB = 1024**3
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
"""A check's URL is the operator's own, and what it depends on is mostly in a private network."""

NEARLY_FULL = 0.9
"""A queue is too full from this share of its size on."""

Check = Callable[[], Found]


class CommonChecks:
    """Functions for checks. Building one connects to nothing."""

    @staticmethod
    def database_check(database: Any) -> Check:
        """`SELECT 1` by a DB-API connection, a pool (`connection()`, or `getconn()` and `putconn()`), a SQLAlchemy engine,
        or a function that returns a connection, which is closed afterwards."""
        path = _path_of(database) if isinstance(database, sqlite3.Connection) else ""
        return lambda: _ask_database(database, path)

    @staticmethod
    def redis_check(client: Any) -> Check:
        """`PING` by a client of redis-py, or any other that has `ping()`."""

        def check() -> Found:
            answered = bool(client.ping())
            return answered, "Redis answers." if answered else "Redis does not answer PING."

        return check

    @staticmethod
    def external_api_check(url: str, timeout: float = 5) -> Check:
        """A GET of an http or https URL, wherever it is: well with a status below 400, within `timeout` seconds in all."""
        if urlsplit(url).scheme not in ("http", "https") or timeout <= 0:
            raise ValueError(
                "external_api_check needs a URL that begins with http:// or https://, and a timeout above 0."
            )

        outbound = Outbound(Guard(EVERYWHERE))

        def check() -> Found:
            answer = outbound.request("GET", url, headers={}, body=b"", timeout_seconds=timeout)
            if answer.status is None:
                return False, answer.detail
            return answer.status < 400, f"It answers {answer.status}."

        return check

    @staticmethod
    def message_queue_check(queue: Any) -> Check:
        """Room in a queue with `qsize()`. It is too full at 90 % of its `maxsize`; without a size, never."""

        def check() -> Found:
            waiting, size = int(queue.qsize()), int(getattr(queue, "maxsize", 0) or 0)
            if size <= 0:
                return True, f"{waiting} wait; the queue has no bound."
            return waiting < NEARLY_FULL * size, f"{waiting} of {size} places are taken."

        return check

    @staticmethod
    def websocket_connections_check(max_connections: int, count: Callable[[], int] | None = None) -> ConnectionsCheck:
        """At most so many connections, by `count()`. Without it: on a bus, its open WebSockets and streams; alone, all TCP
        connections that this process has accepted."""
        return ConnectionsCheck(max_connections, count)

    @staticmethod
    def file_system_check(path: str, min_free_gb: float = 1.0) -> Check:
        """Room on the disk of `path`, in GiB."""

        def check() -> Found:
            free = shutil.disk_usage(path).free / GIB
            return free >= min_free_gb, f"{free:.1f} GiB are free; {min_free_gb:g} are needed."

        return check


class ConnectionsCheck:
    """See `CommonChecks.websocket_connections_check`. `count` may be set by who knows better."""

    def __init__(self, max_connections: int, count: Callable[[], int] | None) -> None:
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1.")
        self.max_connections = max_connections
        self.count = count

    def __call__(self) -> Found:
        open_now = accepted_connections() if self.count is None else self.count()
        return (
            open_now <= self.max_connections,
            f"{open_now} connections are open; at most {self.max_connections} may be.",
        )


def accepted_connections() -> int:
    """TCP connections of this process that came in at a port it listens on."""
    found = psutil.Process().net_connections("tcp")
    ports = {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}
    return sum(1 for each in found if each.status == psutil.CONN_ESTABLISHED and each.laddr.port in ports)


# ---- databases


def _ask_database(database: Any, path: str) -> Found:
    if isinstance(database, sqlite3.Connection):
        return _ask_sqlite(database, path)
    if hasattr(database, "getconn") and hasattr(database, "putconn"):
        connection = database.getconn()
        try:
            return _select_one(connection)
        finally:
            database.putconn(connection)
    if hasattr(database, "cursor"):
        return _select_one(database)
    for name in ("connection", "connect"):  # a pool of psycopg, an engine of SQLAlchemy
        if hasattr(database, name):
            return _ask_borrowed(getattr(database, name)())
    if not callable(database):
        raise TypeError(f"{type(database).__name__} is neither a connection, nor a pool, nor an engine")
    with closing(database()) as connection:
        return _select_one(connection)


def _ask_borrowed(borrowed: Any) -> Found:
    if not isinstance(borrowed, AbstractContextManager):
        with closing(borrowed) as connection:
            return _select_one(connection)
    with borrowed as connection:
        return _select_one(connection)


def _select_one(connection: Any) -> Found:
    if not hasattr(connection, "cursor"):  # SQLAlchemy's; its text() comes with it
        connection.exec_driver_sql("SELECT 1").fetchone()
        return True, "The database answers."
    info = getattr(connection, "info", None)
    was_idle = getattr(info, "transaction_status", None) == 0
    with closing(connection.cursor()) as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()
    if was_idle:  # psycopg began a transaction for us, and nobody else would end it
        connection.rollback()
    return True, "The database answers."


def _path_of(connection: sqlite3.Connection) -> str:
    """The file of a connection; empty for one in memory, or when another thread than its own asks."""
    try:
        rows = connection.execute("PRAGMA database_list").fetchall()
    except sqlite3.Error:
        return ""
    return next((cast("str", path) for _, name, path in rows if name == "main"), "")


def _ask_sqlite(connection: sqlite3.Connection, path: str) -> Found:
    """By the connection itself, if it may be used in this thread; else by another one to its file."""
    try:
        return _select_one(connection)
    except sqlite3.ProgrammingError as error:
        if "same thread" not in str(error):
            raise
    if not path:
        return True, "The database is in this process's memory, and only the thread that made it may ask it."
    with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True)) as other:
        return _select_one(other)
