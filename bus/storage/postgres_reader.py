"""The read side of the PostgreSQL store: one connection, made anew when it was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bus.storage import Page
from bus.storage.log_reader import LogReader
from bus.storage.postgres_connection import ConnectionLost, PostgresConnection
from bus.storage.postgres_link import Reading, out_of_reach

FIRST_ROWS = 64
CHUNK_BYTES = 4 * 1024 * 1024
"""A page is fetched in chunks: rows that its limit of bytes will leave out need not come over the wire."""

VERSION = "CAST(CAST(xmin AS text) AS BIGINT)"
"""In `log_head`: which transaction wrote last."""


class PostgresReader(LogReader):
    """See `bus.storage.Reader`. Not thread-safe: one thread owns it."""

    def __init__(
        self, connect: Callable[[], PostgresConnection], clock: Callable[[], int], *, inbox_limit: int
    ) -> None:
        """`clock()` is the bus's (bus.clock), in microseconds."""
        self._reading = Reading(connect)
        super().__init__(self._reading, clock, inbox_limit=inbox_limit)
        self._version = 0

    def changed(self) -> bool:
        """See `bus.storage.Reader.changed`."""
        version = self._one(f"SELECT {VERSION} FROM log_head")[0]
        changed = bool(version != self._version)
        self._version = version
        return changed

    def size_bytes(self) -> int:
        """What the database takes on its disk."""
        return int(self._one("SELECT pg_database_size(current_database())")[0])

    # ---- below

    def _page(self, *arguments: Any) -> Page:
        try:
            return super()._page(*arguments)
        except ConnectionLost:
            self._reading.in_snapshot = False
        try:
            return super()._page(*arguments)
        except ConnectionLost as error:
            self._reading.in_snapshot = False
            raise out_of_reach() from error

    def _begin(self) -> None:
        self._reading.link.get().execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self._reading.in_snapshot = True

    def _end(self) -> None:
        self._reading.in_snapshot = False
        connection = self._reading.link.get()
        if connection.in_transaction:
            connection.execute("COMMIT")
            connection.flush()

    def _rows(self, statement: str, bindings: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        name, after, upto, limit, *rest = bindings
        size = FIRST_ROWS
        while limit > 0:
            wanted = min(limit, size)
            rows = self._connection.execute(statement, (name, after, upto, wanted, *rest)).fetchall()
            yield from rows
            if len(rows) < wanted:
                return
            limit, after = limit - wanted, rows[-1][0]
            size = max(FIRST_ROWS // 4, CHUNK_BYTES * wanted // (sum(len(row[9]) for row in rows) + 250 * wanted))
