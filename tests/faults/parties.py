"""Who takes part in a crash test: a thread each, which begins its life anew whenever the server broke it."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket as sockets
import threading
import time
from collections.abc import Iterator
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from bus.testing import BusServer
from tests.faults.evidence import Evidence

BROKEN = (OSError, WebSocketException, http.client.HTTPException, EOFError, TimeoutError, ValueError)
LIFE_PAUSE_SECONDS = 0.02
LEFTOVER_SECONDS = 1.0
ANSWER_SECONDS = 10.0


class Died(Exception):
    """A party ends its socket in the middle, without a goodbye."""


class SaidGoodbye(Exception):
    """A party closes its socket with the closing handshake."""


class Stage:
    """What the parties of one server life share.

    `enough` ends the producing, `calm` the trouble that consumers make, `over` everything.
    """

    def __init__(self, server: BusServer) -> None:
        self.server = server
        self.evidence = Evidence()
        self.enough = threading.Event()
        self.calm = threading.Event()
        self.over = threading.Event()


class Party:
    """One thread. `live` is its life on one connection; `is_done` ends it between two lives."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.evidence = stage.evidence
        self.name = name
        self.chance = random.Random()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_done(self) -> bool:
        return self.stage.over.is_set()

    def live(self) -> None:
        raise NotImplementedError

    def leftover(self, frame: dict[str, Any]) -> None:
        """Take a frame that came before the end of a socket, when nothing can be said of it any more."""

    def _run(self) -> None:
        while not self.is_done:
            try:
                self.live()
            except (*BROKEN, Died, SaidGoodbye):
                self.stage.over.wait(LIFE_PAUSE_SECONDS)

    @contextlib.contextmanager
    def socket(self) -> Iterator[ClientConnection]:
        """A WebSocket of this name, confirmed. Only SaidGoodbye closes it cleanly; all else cuts it.

        What the library had read by then goes to `leftover`: it has answered the pings behind it, too.
        """
        url = f"{self.stage.server.ws_url}/ws/{self.name}"
        with connect(url, open_timeout=5, close_timeout=1, ping_interval=None) as socket:
            try:
                confirmation = json.loads(socket.recv(timeout=5))
                if confirmation["type"] != "connection_confirmed":
                    raise ValueError(confirmation)
                yield socket
            except SaidGoodbye:
                socket.close()
                raise
            finally:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sockets.SHUT_RDWR)
                with contextlib.suppress(*BROKEN):
                    while True:
                        self.leftover(json.loads(socket.recv(timeout=LEFTOVER_SECONDS)))


class Rest:
    """One kept connection to the server, made anew after a failure. One thread."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and body of an answer. Raises one of BROKEN when none came: then the outcome is unknown."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = self._connection.getresponse()
            value = json.loads(answer.read())
        except BROKEN:
            self._connection.close()
            raise
        if answer.status >= 500 and answer.status != 503:
            raise ValueError(value)
        return answer.status, value

    def close(self) -> None:
        self._connection.close()


def now() -> float:
    """The moment, in seconds, of the clock that all parties share."""
    return time.monotonic()
