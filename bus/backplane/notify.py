"""The channel between nodes over PostgreSQL's LISTEN and NOTIFY, where there is no Redis. Two native threads.

A notification holds less than 8,000 bytes of text. So commits are told as hints, and the rows are read from the store;
larger loads go in parts. The connections are apart from the store's, and must reach the server itself: a pooler in between
that lends connections by the transaction would swallow LISTEN.
"""

from __future__ import annotations

import base64
import os
import time
from _queue import SimpleQueue
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.monkey import get_original
from psycopg import pq

from bus.backplane.channel import Load
from bus.threads import Mailbox, start_native

PART_BYTES = 5_800
"""Of a load, before they become text: 4 characters for 3 bytes, and the head."""

CONNECT_SECONDS = 5.0
PAUSE_SECONDS = 1.0
LISTEN_SECONDS = 0.5
"""How long a thread waits before it looks whether it has to end."""

_POLLIN, _POLLOUT = 1, 4
_TELL = b"SELECT pg_notify(c, p) FROM unnest($1::text[], $2::text[]) AS t(c, p)"
_SETTINGS = b"SET synchronous_commit = off; SET statement_timeout = '5s'; SET application_name = 'agent-bus backplane'"

_sleep = get_original("time", "sleep")
_poll = get_original("select", "poll")


class NotifyChannel:
    """See `bus.backplane.channel.Channel`. One part of all loads is under way to the telling thread at a time."""

    name = "notify"
    carries_rows = False

    def __init__(self, conninfo: str, bus: str, mailbox: Mailbox) -> None:
        """`conninfo` is libpq's. `bus` names the log: a database may hold several, in schemas."""
        self._conninfo = conninfo
        self._all = f"agent_bus_{bus}"
        self._mailbox = mailbox
        self._queue: Any = SimpleQueue()
        self._is_telling = False
        self._stopping = False
        self._running = 0
        self._parts: dict[str, tuple[str, list[str]]] = {}  # by sender: the load that is coming in, and what is there
        self._life = 0
        self._count = 0
        self.connects = 0
        self.problem = ""

    def start(self, member: bytes, take: Callable[[], list[Load]], heard: Callable[[bytes], None]) -> None:
        self._member, self._take, self._heard = member.hex(), take, heard
        self._begin()

    def kick(self) -> None:
        if self._is_telling:
            return
        loads = self._take()
        if loads:
            self._is_telling = True
            self._queue.put([part for load in loads for part in self._parted(load)])

    def reset(self) -> None:
        self._queue.put(None)
        self._queue = SimpleQueue()
        self._is_telling = False
        self._begin()

    def stop(self) -> None:
        self.kick()
        self._stopping = True
        self._queue.put(None)
        for _ in range(100):
            if not self._running:
                return
            gevent.sleep(0.01)

    def _begin(self) -> None:
        self._life += 1
        self._running += 2
        start_native(partial(self._run, self._life, partial(self._tell, self._life, self._queue)))
        start_native(partial(self._run, self._life, partial(self._listen, self._life)))

    # ---- parts

    def _parted(self, load: Load) -> list[tuple[str, str]]:
        to = self._all if load.to is None else f"{self._all}_{load.to.hex()}"
        self._count += 1
        pieces = [load.data[at : at + PART_BYTES] for at in range(0, len(load.data), PART_BYTES)]
        head = f"{self._member}{self._count % 2**32:08x}"
        return [
            (to, f"{head}{number:06x}{len(pieces):06x}{base64.b64encode(piece).decode()}")
            for number, piece in enumerate(pieces)
        ]

    def _noted(self, payload: str) -> None:
        """A part came. One that is missing leaves the whole load out."""
        sender, load, number, count = payload[:16], payload[16:24], int(payload[24:30], 16), int(payload[30:36], 16)
        if count == 1:
            self._heard(base64.b64decode(payload[36:]))
            return
        known, there = self._parts.get(sender, ("", []))
        if number == 0:
            known, there = load, []
        if known == load and len(there) == number:
            there.append(payload[36:])
            self._parts[sender] = (known, there)
        else:
            self._parts.pop(sender, None)
            return
        if len(there) == count:
            del self._parts[sender]
            self._heard(b"".join(map(base64.b64decode, there)))

    # ---- on the event loop, from the threads

    def _told(self, life: int) -> None:
        if life == self._life:
            self._is_telling = False
            if not self._stopping:
                self.kick()

    def _connected(self) -> None:
        self.connects += 1
        self.problem = ""
        self._parts.clear()

    def _failed(self, error: BaseException) -> None:
        self.problem = str(error).strip().partition("\n")[0] or type(error).__name__

    def _ended(self) -> None:
        self._running -= 1

    # ---- on the threads

    def _run(self, life: int, work: Callable[[Any], None]) -> None:
        """Do it again and again, each time with a new connection."""
        while not self._stopping and life == self._life:
            connection = None
            try:
                connection = _connect(self._conninfo)
                work(connection)
            except Exception as error:  # noqa: BLE001  # told on the loop; logging is not for native threads
                self._mailbox.post(self._failed, error)
                self._mailbox.post(self._told, life)
                _sleep(PAUSE_SECONDS)
            finally:
                if connection is not None:
                    connection.finish()
        self._mailbox.post(self._ended)

    def _tell(self, life: int, queue: Any, connection: Any) -> None:
        _execute(connection, _SETTINGS)
        while True:
            parts = queue.get()
            if parts is None:
                return
            names = _array([name for name, _ in parts])
            _execute(connection, _TELL, [names, _array([payload for _, payload in parts])])
            self._mailbox.post(self._told, life)

    def _listen(self, life: int, connection: Any) -> None:
        _execute(connection, f'LISTEN "{self._all}"; LISTEN "{self._all}_{self._member}"'.encode())
        self._mailbox.post(self._connected)
        waiting = _poll()
        waiting.register(connection.socket, _POLLIN)
        while not self._stopping and life == self._life:
            if waiting.poll(LISTEN_SECONDS * 1000):
                connection.consume_input()
                while (note := connection.notifies()) is not None:
                    self._mailbox.post(self._noted, note.extra.decode())


def _connect(conninfo: str) -> Any:
    """A connection of libpq's, whose calls block: psycopg's own waits would look for gevent's loop on this thread."""
    connection = pq.PGconn.connect_start(conninfo.encode())
    ends = time.monotonic() + CONNECT_SECONDS
    status: int = pq.PollingStatus.WRITING
    while status not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
        waiting = _poll()
        waiting.register(connection.socket, _POLLIN if status == pq.PollingStatus.READING else _POLLOUT)
        if not waiting.poll(max(ends - time.monotonic(), 0.0) * 1000):
            connection.finish()
            raise TimeoutError(f"PostgreSQL does not answer within {CONNECT_SECONDS:g} s")
        status = connection.connect_poll()
    if status == pq.PollingStatus.FAILED:
        message = connection.error_message.decode(errors="replace")
        connection.finish()
        raise OSError(message)
    os.set_inheritable(connection.socket, False)
    return connection


def _execute(connection: Any, statement: bytes, bindings: list[bytes] | None = None) -> None:
    result = connection.exec_params(statement, bindings) if bindings else connection.exec_(statement)
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise OSError(result.error_message.decode(errors="replace") or "PostgreSQL has closed the connection")


def _array(texts: list[str]) -> bytes:
    """PostgreSQL's form of an array of texts that need no quotes."""
    return ("{" + ",".join(f'"{text}"' for text in texts) + "}").encode()
