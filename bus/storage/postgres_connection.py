"""A connection to PostgreSQL for one native thread, with the face that apsw's has for the store's code.

It speaks libpq (psycopg.pq) and waits by the system's own poll: what psycopg's higher floors wait and lock with may be
patched by gevent, which a native thread must not touch. Statements go into a pipeline and are sent when somebody looks at an
answer, or at `flush`: what needs no answer costs no round trip. So an error may show at a later statement.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
import psycopg
from gevent.monkey import get_original
from psycopg import pq
from psycopg.adapt import AdaptersMap, Loader, Transformer

from bus.storage.dialect import translate
from bus.storage.postgres_connecting import NotOpened, opened

_poll = get_original("select", "poll")

QUEUED_MOST: Final = 400
"""Statements in one flight. What they bring waits in memory, on both sides."""

STATEMENTS: Final = 500
"""Prepared statements that a connection keeps; beyond, all are forgotten."""

GRACE_SECONDS: Final = 2.0
"""After the time that the server gives a statement: no answer by then, and the connection is given up."""

_BINARY: Final = pq.Format.BINARY
_INT8, _TEXT, _BYTEA, _FLOAT8 = 20, 25, 17, 701
_NOTHING: Final[Any] = object()


class PostgresError(Exception):
    """A statement failed. `state` is its SQLSTATE; the text is the server's, and no secret of ours."""

    def __init__(self, text: str, state: str = "") -> None:
        super().__init__(text)
        self.state = state


class ConnectionLost(PostgresError):
    """The connection is gone. What was sent and not answered may have been done, or not."""


class Answer:
    """What a statement gives, fetched with the first look at it."""

    __slots__ = ("_connection", "_next", "rows")

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection
        self.rows: Any = _NOTHING
        self._next = 0

    def load(self) -> None:
        """Have the rows here. Raises what the statement, or one before it, failed by."""
        if self.rows is _NOTHING:
            self._connection.flush()

    def peek(self) -> list[tuple[Any, ...]]:
        """All rows; they stay."""
        self.load()
        return self.rows  # type: ignore[no-any-return]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        self.load()
        rows, self._next = self.rows[self._next :] if self._next else self.rows, len(self.rows)
        return rows  # type: ignore[no-any-return]

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row."""
        self.load()
        if self._next >= len(self.rows):
            return None
        self._next += 1
        return self.rows[self._next - 1]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    @property
    def get(self) -> Any:
        """The value of the first row; a tuple if it has several. None: there is no row."""
        row = self.fetchone()
        return row if row is None or len(row) > 1 else row[0]

    def close(self, force: bool = False) -> None:
        """There is nothing to close: the rows are here."""


class PostgresConnection:
    """Opened at once; raises ConnectionLost with libpq's sentence. Not thread-safe: one thread owns it."""

    def __init__(self, conninfo: str, *, statement_seconds: float | None) -> None:
        """`conninfo` is libpq's, whole. `statement_seconds` is how long the server lets a statement run (None: for ever)."""
        self._seconds = statement_seconds
        self._queue: list[Answer | tuple[bytes, tuple[int, ...]]] = []
        self._prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self._named = 0
        self._transformer = Transformer(_Context())
        try:
            self._pg = opened(conninfo)
        except (NotOpened, psycopg.Error) as error:
            raise ConnectionLost(str(error)) from None
        self.version = self._pg.server_version
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        self._poll = _poll()
        self._socket = self._pg.socket
        self._events = select.POLLIN
        self._poll.register(self._socket, self._events)

    # ---- statements

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> Answer:
        """Queue a statement of the common dialect. What it answers, or its error, comes with the first look at an answer."""
        translated = translate(statement)
        values, types, formats = _encoded(bindings, translated.lists) if bindings else (None, (), None)
        key = translated.text, types
        try:
            name = self._prepared.get(key)
            if name is None:
                name = self._prepare(key)
            self._pg.send_query_prepared(name, values, formats, _BINARY)
        except psycopg.Error as error:
            raise self._lost(error) from None
        answer = Answer(self)
        if not translated.answers:
            answer.rows = []
        self._queue.append(answer)
        if len(self._queue) >= QUEUED_MOST:
            self.flush()
        return answer

    def run(self, script: str) -> None:
        """Run several statements without marks, one after the other."""
        for statement in _statements(script):
            try:
                self._pg.send_query_params(statement.encode(), None, result_format=_BINARY)
            except psycopg.Error as error:
                raise self._lost(error) from None
            self._queue.append(Answer(self))
            self.flush()

    def flush(self) -> None:
        """Send what is queued and take in what it gives. Raises the first error among it."""
        queue, self._queue = self._queue, []
        if not queue:
            return
        failed: PostgresError | None = None
        deadline = None if self._seconds is None else time.monotonic() + self._seconds + GRACE_SECONDS
        try:
            self._pg.pipeline_sync()
            for entry in queue:
                result = self._result(deadline)
                if result is None:
                    raise psycopg.OperationalError("the server's answer ended early")
                status = result.status
                if type(entry) is tuple:
                    if status != pq.ExecStatus.COMMAND_OK:
                        self._prepared.pop(entry, None)
                elif status == pq.ExecStatus.TUPLES_OK:
                    entry.rows = self._rows(result)  # type: ignore[union-attr]
                elif status == pq.ExecStatus.COMMAND_OK:
                    entry.rows = []  # type: ignore[union-attr]
                if status == pq.ExecStatus.FATAL_ERROR and failed is None:
                    state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
                    failed = PostgresError(_clean(result.get_error_message()), state.decode())
                self._result(deadline)  # each answer ends with a None
            self._result(deadline)  # the pipeline's end has none
        except psycopg.Error as error:
            raise self._lost(failed or error) from None
        if failed is not None:
            if self._pg.status != pq.ConnStatus.OK or failed.state[:3] == "57P":
                raise self._lost(failed)
            raise failed

    @property
    def in_transaction(self) -> bool:
        """True inside a transaction, also a failed one, as of the last flush."""
        return self._pg.status == pq.ConnStatus.OK and self._pg.transaction_status != pq.TransactionStatus.IDLE

    @property
    def is_open(self) -> bool:
        """False once it was lost or closed."""
        return self._pg.status == pq.ConnStatus.OK

    @property
    def descriptor(self) -> int:
        """Of the socket."""
        return self._socket

    def close(self) -> None:
        """Close. What is queued may still be sent: only a COMMIT among it counts."""
        self._queue.clear()
        self._pg.finish()

    # ---- below

    def _prepare(self, key: tuple[bytes, tuple[int, ...]]) -> bytes:
        if len(self._prepared) >= STATEMENTS:
            self.flush()
            self._prepared.clear()
            self._pg.send_query_params(b"DEALLOCATE ALL", None)
            self._queue.append(Answer(self))
        self._named += 1
        name = self._prepared[key] = b"s%d" % self._named
        self._pg.send_prepare(name, key[0], key[1])
        self._queue.append(key)
        return name

    def _result(self, deadline: float | None) -> pq.abc.PGresult | None:
        pg = self._pg
        while pg.is_busy():
            self._wait(deadline)
        return pg.get_result()

    def _wait(self, deadline: float | None) -> None:
        """Until there is something to read, or room for what is to be sent."""
        wanted = select.POLLIN | (select.POLLOUT if self._pg.flush() else 0)
        if wanted != self._events:
            self._events = wanted
            self._poll.modify(self._socket, wanted)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not self._poll.poll(left):
            raise psycopg.OperationalError("the server did not answer in time")
        self._pg.consume_input()

    def _rows(self, result: pq.abc.PGresult) -> list[Any]:
        count = result.ntuples
        if not count:
            return []
        transformer = self._transformer
        transformer.set_pgresult(result, format=_BINARY)
        return transformer.load_rows(0, count, tuple)

    def _lost(self, error: Exception) -> ConnectionLost:
        self._queue.clear()
        self._pg.finish()
        return ConnectionLost(str(error), getattr(error, "state", ""))


def _encoded(bindings: Sequence[Any], lists: frozenset[int]) -> tuple[list[bytes | None], tuple[int, ...], list[int]]:
    """Values, their types and formats. An int is an int8, whatever its size: so a statement is prepared once."""
    values: list[bytes | None] = []
    types: list[int] = []
    for value in bindings:
        kind = type(value)
        if kind is int or kind is bool:
            values.append(value.to_bytes(8, "big", signed=True))
            types.append(_INT8)
        elif kind is bytes:
            values.append(value)
            types.append(_BYTEA)
        elif kind is str:
            values.append(_text(value))
            types.append(_TEXT)
        elif value is None:
            values.append(None)
            types.append(0)
        elif kind is float:
            values.append(repr(value).encode())
            types.append(_FLOAT8)
        elif isinstance(value, int):  # an IntEnum or IntFlag
            values.append(int(value).to_bytes(8, "big", signed=True))
            types.append(_INT8)
        elif isinstance(value, str):
            values.append(_text(str(value)))
            types.append(_TEXT)
        else:
            values.append(bytes(value))
            types.append(_BYTEA)
    formats = [0 if kind == _FLOAT8 else 1 for kind in types]
    for at in lists:
        values[at] = _array(bindings[at])
        types[at] = formats[at] = 0
    return values, tuple(types), formats


def _text(value: str) -> bytes:
    """PostgreSQL's texts hold no NUL: it is kept, and looked for, as its picture."""
    encoded = value.encode()
    return encoded if b"\0" not in encoded else encoded.replace(b"\0", "\u2400".encode())


def _array(listed: str | bytes) -> bytes:
    """A JSON array as PostgreSQL writes one; of which type, the statement says."""
    quoted = [
        str(item) if type(item) is int else '"' + str(item).replace("\\", "\\\\").replace('"', '\\"') + '"'
        for item in msgspec.json.decode(listed)
    ]
    return _text("{" + ",".join(quoted) + "}")


def _statements(script: str) -> list[str]:
    """The statements of a script; a function's body between $$ may hold semicolons."""
    found, part = [], ""
    for piece in re.sub(r"--[^\n]*", "", script).split(";"):
        part += piece
        if part.count("$$") % 2:
            part += ";"
            continue
        if part.strip():
            found.append(part)
        part = ""
    return found


def _clean(text: str) -> str:
    return text.strip().replace("\n", " ")


class _Number(Loader):
    """What a sum of integers is in PostgreSQL: an int where it is whole."""

    format = _BINARY

    def __init__(self, oid: int, context: Any = None) -> None:
        super().__init__(oid, context)
        self._inner = psycopg.adapters.get_loader(1700, _BINARY)(oid, context)  # type: ignore[misc]

    def load(self, data: Any) -> Any:
        number: Decimal = self._inner.load(data)
        return int(number) if number == number.to_integral_value() else float(number)


class _Truth(Loader):
    """1 or 0, as SQLite has it."""

    format = _BINARY

    def load(self, data: Any) -> int:
        return int(bytes(data) != b"\x00")


class _Plain(Loader):
    """JSON as text; jsonb has a byte of version before it."""

    format = _BINARY

    def load(self, data: Any) -> str:
        return bytes(data).removeprefix(b"\x01").decode()


class _Context:
    """How values are read: as SQLite gives them."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)
        self.adapters.register_loader("numeric", _Number)
        self.adapters.register_loader("bool", _Truth)
        self.adapters.register_loader("json", _Plain)
        self.adapters.register_loader("jsonb", _Plain)
