"""One HTTP connection as a test drives it, byte by byte if it likes, and who served each request (tests.seams)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NamedTuple

from bus.testing import HOST, BusServer
from tests.refusals import sending

SEAMS = {"BUS_EXTENSIONS": "tests.seams"}
TO_FLASK = {"Cookie": "by=flask"}
"""A header that is out of the ordinary for a send, and changes nothing about it."""

LANE, FLASK = "lane", "flask"


class Answer(NamedTuple):
    """A whole answer; headers in order, names as they came."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: Any

    @property
    def by(self) -> str:
        return FLASK if "X-Served-By" in dict(self.headers) else LANE


class Line:
    """One connection, on which bytes are sent and answers read."""

    def __init__(self, where: BusServer | Path | int, host: str = HOST) -> None:
        if isinstance(where, Path):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(where))
        else:
            port = where if isinstance(where, int) else where.port
            self.sock = socket.create_connection((host, port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(10)
        self.file = self.sock.makefile("rb")

    def send(self, data: bytes | memoryview) -> None:
        self.sock.sendall(data)

    def read(self) -> Answer:
        """The next answer. Raises EOFError when the server ends the connection before one."""
        first = self.file.readline()
        if not first:
            raise EOFError
        _, status, reason = first.decode().strip().split(" ", 2)
        fields = []
        while (text := self.file.readline().decode().strip()) != "":
            name, _, value = text.partition(": ")
            fields.append((name, value))
        size = int({name.lower(): value for name, value in fields}["content-length"])
        return Answer(int(status), reason, fields, json.loads(self.file.read(size)))

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.read()

    def has_ended(self) -> bool:
        """Wait for the end of the connection."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()


def post(body: bytes | None = None, *, path: str = "/api/send", announced: int | None = None, **headers: str) -> bytes:
    """A send as bytes, a good one without `body`; `announced` lies about its length. `X_A="b"` is the header X-A."""
    body = sending() if body is None else body
    fields = {"Host": "localhost", "Content-Type": "application/json"}
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    if "Transfer-Encoding" not in fields:
        fields["Content-Length"] = str(len(body) if announced is None else announced)
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path: str = "/api/status", **headers: str) -> bytes:
    """A GET as bytes; of this path, Flask's."""
    fields = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
