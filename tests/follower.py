"""A client that listens: a WebSocket read by a thread of its own, so that a test can look at what came so far."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

from bus.testing import eventually
from tests.closing import Closing
from tests.rawws import CLOSE, TEXT, Disconnected, RawWebSocket

LONG_SECONDS = 300.0
"""What a follower waits for a frame: longer than any test takes, since a wait that ends inside a frame loses the rest."""

NO_CLOSE_FRAME = 1006


class Follower(Closing):
    """One connection. It answers pings and, unless told otherwise, the closing handshake.

    `messages` and `others` (all other JSON frames) are what came, in order; `close_code` is set when it ended.
    """

    def __init__(self, port: int, client: str, query: str = "", *, answers_close: bool = True, **how: Any) -> None:
        """Connect as `client` and begin to read; `query` is what follows the question mark, `how` as for RawWebSocket."""
        self.socket = RawWebSocket(port, f"/ws/{client}" + (f"?{query}" if query else ""), **how)
        self.client = client
        try:
            self.hello = self.socket.read_json()
        except BaseException:
            self.socket.close()
            raise
        self.messages: list[dict[str, Any]] = []
        self.others: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self._answers_close = answers_close
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def seqs(self) -> list[int]:
        """The seqs of the messages that came."""
        return [message["seq"] for message in list(self.messages)]

    def payloads(self, sender: str | None = None) -> list[Any]:
        """The payloads that came, of one sender or of all."""
        return [message["payload"] for message in list(self.messages) if sender in (None, message["from"])]

    def wait_for(self, count: int, within_seconds: float = 10.0) -> list[dict[str, Any]]:
        """Wait until `count` messages are there, and return all of them."""
        eventually(
            lambda: len(self.messages) >= count,
            within_seconds=within_seconds,
            what=f"{self.client}'s message {count} (it has {len(self.messages)} now)",
        )
        return self.messages

    def wait_for_frame(self, type_: str, within_seconds: float = 10.0) -> dict[str, Any]:
        """Wait until a frame of this type is there, and return the first."""
        return eventually(
            lambda: next((frame for frame in list(self.others) if frame["type"] == type_), None),
            within_seconds=within_seconds,
            what=f"{self.client}'s frame {type_}",
        )

    def wait_for_end(self, within_seconds: float = 10.0) -> int:
        """Wait until the connection has ended, and return its close code."""
        self._thread.join(within_seconds)
        if self.close_code is None:
            raise TimeoutError(f"{self.client}'s connection is still open after {within_seconds} s.")
        return self.close_code

    def close(self) -> None:
        """Cut the connection, and wait for the thread. Safe to call twice."""
        with contextlib.suppress(OSError):
            self.socket.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self.socket.close()

    def _read(self) -> None:
        code = NO_CLOSE_FRAME
        try:
            while True:
                frame = self.socket.read_frame(LONG_SECONDS)
                if frame.opcode == TEXT:
                    value = json.loads(frame.payload)
                    if value["type"] == "message":
                        self.messages.append(value["message"])
                    else:
                        self.others.append(value)
                elif frame.opcode == CLOSE:
                    code = frame.close_code
                    if self._answers_close:
                        self.socket.send_frame(CLOSE, frame.payload[:2])
        except (Disconnected, OSError):
            self.close_code = code


class Returner(Closing):
    """A client that connects again whenever its connection ends, from the cursor that the bus keeps for it.

    `lives` are its connections, one after the other.
    """

    def __init__(self, port: int, client: str) -> None:
        """Begin to connect; `wait_for_life` waits for the first connection."""
        self.client = client
        self.lives: list[Follower] = []
        self._port = port
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._return, daemon=True)
        self._thread.start()

    def wait_for_life(self, number: int = 1, within_seconds: float = 10.0) -> Follower:
        """Wait until it has connected so many times, and return its last connection."""
        eventually(
            lambda: len(self.lives) >= number,
            within_seconds=within_seconds,
            what=f"{self.client}'s connection {number}",
        )
        return self.lives[-1]

    def first_deliveries(self) -> list[dict[str, Any]]:
        """What came, without what came again. Raises AssertionError when a connection repeats or disorders anything."""
        messages: list[dict[str, Any]] = []
        for follower in self.lives:
            seqs = follower.seqs
            assert seqs == sorted(set(seqs)), f"{self.client} got {seqs}"
            last = messages[-1]["seq"] if messages else 0
            messages += [message for message in follower.messages[: len(seqs)] if message["seq"] > last]
        return messages

    def close(self) -> None:
        """Disconnect for good. Safe to call twice."""
        self._enough.set()
        self._thread.join(20)
        for follower in self.lives:
            follower.close()

    def _return(self) -> None:
        while not self._enough.is_set():
            try:
                follower = Follower(self._port, self.client)
            except (OSError, Disconnected, AssertionError):  # nobody listens, or it goes down just now
                self._enough.wait(0.02)
                continue
            self.lives.append(follower)
            while follower.close_code is None and not self._enough.is_set():
                self._enough.wait(0.02)
