"""A client on a WebSocket, as a test plays it: it asks and is answered, takes messages, and ends well or badly."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from bus.testing import BusServer
from tests.rawws import CLOSE, WAIT_SECONDS, RawWebSocket

Value = dict[str, Any]


class Peer(RawWebSocket):
    """A connection of `client`. `hello` is its first frame; frames that nobody asked for yet are kept, in order.

    Leaving a `with` block cuts the connection; `leave` says goodbye.
    """

    def __init__(self, server: BusServer, client: str, query: str = "", **how: Any) -> None:
        """Connect; `query` begins with a question mark, `how` is as for RawWebSocket."""
        super().__init__(server.port, f"/ws/{client}{query}", **how)
        self.client = client
        self._unread: list[Value] = []
        self._refs = itertools.count(1)
        self.hello = self.read_json()

    def ask(self, type_: str, **members: object) -> Value:
        """Send a frame with a ref, and return the frame that answers it."""
        ref = next(self._refs)
        self.send_json({"type": type_, "ref": ref, **members})
        return self._take_frame(lambda frame: frame.get("ref") == ref, WAIT_SECONDS)

    def settle(self, verb: str, message: Value | str, **said: object) -> Value:
        """Say ack, nack, progress, release or reject of a message, and return what came of it."""
        message_id = message if isinstance(message, str) else message["id"]
        return self.ask(verb, message_id=message_id, **said)

    def subscribe(self, *queues: str, **how: object) -> Value:
        """Take items of queues."""
        answer = self.ask("subscribe", queues=queues, **how)
        assert answer["type"] == "subscribed", answer
        return answer

    def expect(self, type_: str, within_seconds: float = WAIT_SECONDS) -> Value:
        """The next frame of this type; others are kept."""
        return self._take_frame(lambda frame: frame["type"] == type_, within_seconds)

    def message(self, within_seconds: float = WAIT_SECONDS) -> Value:
        """The next message."""
        found: Value = self.expect("message", within_seconds)["message"]
        return found

    def messages(self, count: int, within_seconds: float = WAIT_SECONDS) -> list[Value]:
        """The next messages, so many."""
        deadline = time.monotonic() + within_seconds
        return [self.message(deadline - time.monotonic()) for _ in range(count)]

    def has_no_message(self) -> bool:
        """True when no message came before the answer to a ping."""
        self.send_json({"type": "ping"})
        self.expect("pong")
        return all(frame["type"] != "message" for frame in self._unread)

    def leave(self) -> None:
        """Say goodbye, wait for the answer, and close."""
        self.send_close()
        while self.read_frame().opcode != CLOSE:
            pass
        self.close()

    def _take_frame(self, is_it: Callable[[Value], bool], within_seconds: float) -> Value:
        for at, frame in enumerate(self._unread):
            if is_it(frame):
                return self._unread.pop(at)
        deadline = time.monotonic() + within_seconds
        while True:
            frame = self.read_json(max(deadline - time.monotonic(), 0.001))
            if is_it(frame):
                return frame
            self._unread.append(frame)
