"""An event stream as a test reads it: the head, every block as it came, and what an EventSource would make of it.

Every wait is bounded. It reads only when it is told to, so it may be as slow as a test wants it.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from bus.testing import BusServer
from tests.closing import Closing

WAIT_SECONDS = 10.0


class Event(NamedTuple):
    """An event as a browser dispatches it. `id` is the last event id then."""

    event: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        """What its data says."""
        return json.loads(self.data)

    @property
    def payload(self) -> Any:
        """The payload of a `message_received`."""
        return self.json["payload"]


class Ended(Exception):
    """The server ended the stream."""


class EventSource(Closing):
    """One connection. `status`, `headers` and, of a refusal, `body` are the answer's; `raw` is all behind the head.

    `id` and `retry_ms` are what a browser would know.
    """

    def __init__(
        self,
        server: BusServer,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        *,
        path: str = "/stream/events",
        method: str = "GET",
        version: str = "1.1",
        receive_buffer_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Ask for a stream; `query` follows the question mark. A small `receive_buffer_bytes` makes a slow reader."""
        self.raw = b""
        self.id = ""
        self.retry_ms: int | None = None
        self.comments: list[str] = []
        self._unread = bytearray()
        asked = {"Host": f"127.0.0.1:{server.port}", "Accept": "text/event-stream", **(headers or {})}
        lines = [f"{method} {path}{'?' + query if query else ''} HTTP/{version}"]
        lines += [f"{name}: {value}" for name, value in asked.items()]
        self.socket = socket.socket()
        try:
            if receive_buffer_bytes is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            self.socket.settimeout(WAIT_SECONDS)
            self.socket.connect(("127.0.0.1", server.port))
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
            self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
            self._read_head(time.monotonic() + WAIT_SECONDS)
        except BaseException:
            self.socket.close()
            raise

    def _read_head(self, deadline: float) -> None:
        while b"\r\n\r\n" not in self._unread:
            self._receive(deadline)
        self.head, _, rest = bytes(self._unread).partition(b"\r\n\r\n")
        self._unread = bytearray(rest)
        self.raw = rest
        first, *fields = self.head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, value in (field.split(":", 1) for field in fields)}
        self.body = self._whole_body(deadline) if "content-length" in self.headers else None

    # ---- in

    def read(self, within_seconds: float = WAIT_SECONDS) -> Event:
        """The next event. Raises TimeoutError, or Ended."""
        deadline = time.monotonic() + within_seconds
        while True:
            event = self._read_block(deadline)
            if event is not None:
                return event

    def read_until(self, name: str, within_seconds: float = WAIT_SECONDS) -> Event:
        """The next event of this name; others are dropped."""
        deadline = time.monotonic() + within_seconds
        while (event := self.read(max(deadline - time.monotonic(), 0.001))).event != name:
            pass
        return event

    def take(self, count: int, within_seconds: float = WAIT_SECONDS) -> list[Event]:
        """The next events, so many."""
        deadline = time.monotonic() + within_seconds
        return [self.read(max(deadline - time.monotonic(), 0.001)) for _ in range(count)]

    def payloads(self, count: int, within_seconds: float = WAIT_SECONDS) -> list[Any]:
        """What the next messages hold."""
        return [event.payload for event in self.take(count, within_seconds)]

    def read_comment(self, within_seconds: float = WAIT_SECONDS) -> str:
        """The next comment; events on the way are dropped."""
        deadline, before = time.monotonic() + within_seconds, len(self.comments)
        while len(self.comments) == before:
            self._read_block(deadline)
        return self.comments[-1]

    def read_end(self, within_seconds: float = WAIT_SECONDS) -> list[Event]:
        """Wait for the end of the stream; the events on the way."""
        deadline = time.monotonic() + within_seconds
        events = []
        try:
            while True:
                event = self._read_block(deadline)
                events += [event] if event is not None else []
        except Ended:
            return events

    def is_silent(self, for_seconds: float) -> bool:
        """True when no event comes for that long."""
        try:
            self.read(for_seconds)
        except TimeoutError:
            return True
        return False

    # ---- the end

    def close(self) -> None:
        self.socket.close()

    # ---- inside

    def _read_block(self, deadline: float) -> Event | None:
        """One block, by the rules of the standard; None when nothing is dispatched."""
        while b"\n\n" not in self._unread:
            self._receive(deadline)
        text, _, rest = bytes(self._unread).partition(b"\n\n")
        self._unread = bytearray(rest)
        name, data = "message", []
        for line in text.decode().split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not field:
                self.comments.append(value)
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                self.id = value
            elif field == "retry":
                self.retry_ms = int(value)
        return Event(name, "\n".join(data), self.id) if data else None

    def _whole_body(self, deadline: float) -> Any:
        while len(self._unread) < int(self.headers["content-length"]):
            self._receive(deadline)
        return json.loads(self._unread) if self.headers["content-type"] == "application/json" else None

    def _receive(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("Nothing more came in time.")
        self.socket.settimeout(remaining)
        try:
            data = self.socket.recv(65536)
        except ConnectionError as error:
            raise Ended(str(error)) from None
        if not data:
            raise Ended("The server ended the stream.")
        self._unread += data
        self.raw += data
