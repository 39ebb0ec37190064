"""A bus whose every word is written by the test: servers on loopback that hand over what arrives.

`ScriptedBus` is its WebSocket, `ScriptedRest` its REST.

with ScriptedBus() as bus:
    client = Client("reader", bus.url)
    client.on(None, print)
    with bus.accept() as peer:
        peer.confirm()
        peer.push(1)
"""

from __future__ import annotations

import http
import http.server
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Self

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from bus.client import Client

Start = Callable[..., Client]
"""Makes a client of the scripted bus, named reader, and sets it off; arguments as for `Client`."""

PATIENCE_SECONDS = 15.0
EPOCH = "0123456789ab"


def at(seq: int, epoch: str = EPOCH) -> str:
    """The cursor behind `seq`."""
    return f"{epoch}:{seq}"


def message(seq: int | None, **fields: Any) -> dict[str, Any]:
    """A message as the bus pushes it."""
    plain = {
        "id": f"msg-{seq}",
        "seq": seq,
        "from": "writer",
        "to": "reader",
        "type": "message",
        "payload": seq,
        "timestamp": "2026-02-21T17:27:21.123456+00:00",
        "requires_ack": False,
    }
    return {**plain, **fields}


class Peer:
    """The server's end of one connection. Leaving it as a context manager closes it with 1000, if it is open."""

    def __init__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.connection = connection
        self.path = connection.request.path
        self.headers = connection.request.headers

    def confirm(self, cursor: str = at(0), *, epoch: str = EPOCH, gap: dict[str, Any] | None = None) -> None:
        """Say `connection_confirmed`."""
        resumed = {"from": cursor, "to": cursor, "expired": 0, **({"gap": gap} if gap else {})}
        self.say(type="connection_confirmed", client_id="reader", epoch=epoch, cursor=cursor, resumed=resumed)

    def say(self, **frame: Any) -> None:
        """Send a frame."""
        self.connection.send(msgspec.json.encode(frame), text=True)

    def push(self, seq: int | None, **fields: Any) -> None:
        """Send a message."""
        self.say(type="message", message=message(seq, **fields))

    def hear(self) -> dict[str, Any]:
        """The next frame of the client."""
        frame: dict[str, Any] = msgspec.json.decode(self.connection.recv(timeout=PATIENCE_SECONDS))
        return frame

    def answer(self, frame: dict[str, Any], seq: int) -> None:
        """Give the receipt of a send that was heard."""
        fate = {"client": frame["to"], "state": "queued"}
        self.say(type="sent", ref=frame["ref"], message_id=f"msg-{seq}", seq=seq, recipients=[fate])

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, with a handshake."""
        self.connection.close(code, reason)

    def cut(self) -> None:
        """End the connection without a word, as a crash does."""
        self.connection.close_socket()

    def closed_with(self) -> int | None:
        """Wait for the client to close, and return its code."""
        try:
            while True:
                self.connection.recv(timeout=PATIENCE_SECONDS)
        except ConnectionClosed as closed:
            return None if closed.rcvd is None else closed.rcvd.code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close(CloseCode.NORMAL_CLOSURE)


class ScriptedBus:
    """Listens on a free loopback port. `accept` gives the next connection; `refuse` answers handshakes with a status."""

    def __init__(self) -> None:
        self._arrived: queue.Queue[Peer] = queue.Queue()
        self._refusals: queue.Queue[tuple[int, str]] = queue.Queue()
        self._server: Server = serve(
            self._handle,
            "127.0.0.1",
            0,
            process_request=self._look,
            compression=None,
            ping_interval=None,
            close_timeout=2,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def accept(self) -> Peer:
        """The next connection of the client; waits for it."""
        return self._arrived.get(timeout=PATIENCE_SECONDS)

    def accept_confirmed(self, cursor: str = at(0)) -> Peer:
        """The next connection, confirmed."""
        peer = self.accept()
        peer.confirm(cursor)
        return peer

    @property
    def is_deserted(self) -> bool:
        """True when no connection arrived that was not accepted."""
        return self._arrived.empty()

    def refuse(self, status: int, sentence: str = "No.") -> None:
        """Answer the next handshake with an HTTP status."""
        self._refusals.put((status, sentence))

    def _look(self, connection: ServerConnection, _request: Request) -> Response | None:
        try:
            status, sentence = self._refusals.get_nowait()
        except queue.Empty:
            return None
        response = connection.respond(http.HTTPStatus(status), msgspec.json.encode({"error": sentence}).decode())
        response.headers["Retry-After"] = "0"
        return response

    def _handle(self, connection: ServerConnection) -> None:
        self._arrived.put(Peer(connection))
        connection.wait_closed()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_SECONDS)


class Gathered:
    """A handler that notes what it is given, and can be waited for."""

    def __init__(self) -> None:
        self._values: queue.Queue[Any] = queue.Queue()

    def __call__(self, value: Any) -> None:
        self._values.put(value)

    def next(self) -> Any:
        """The next value; waits for it."""
        return self._values.get(timeout=PATIENCE_SECONDS)

    @property
    def is_empty(self) -> bool:
        """True when nothing is left."""
        return self._values.empty()


class Exchange:
    """A request that waits for its answer."""

    def __init__(self, method: str, path: str, body: Any) -> None:
        self.method = method
        self.path = path
        self.body = body
        self._answer: queue.Queue[tuple[int, bytes, dict[str, str]]] = queue.Queue()

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        """Answer it with JSON; `Retry_After` is the header Retry-After."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answer.put((status, msgspec.json.encode(body), given))

    def refuse(self, status: int, code: str, sentence: str = "No.", **headers: str) -> None:
        """Answer it with an error of the bus."""
        self.answer({"error": sentence, "code": code}, status, **headers)

    def wait(self) -> tuple[int, bytes, dict[str, str]]:
        """What the test answered; waits for it."""
        return self._answer.get(timeout=PATIENCE_SECONDS)


class ScriptedRest:
    """Listens on a free loopback port. `accept` gives the next request, to be answered by the test."""

    def __init__(self) -> None:
        arrived: queue.Queue[Exchange] = queue.Queue()

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout: ClassVar[float] = PATIENCE_SECONDS

            def do(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                exchange = Exchange(self.command, self.path, msgspec.json.decode(data) if data else None)
                arrived.put(exchange)
                status, body, headers = exchange.wait()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = do

            def log_message(self, *_: Any) -> None:
                pass

        self._arrived = arrived
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def accept(self) -> Exchange:
        """The next request; waits for it."""
        return self._arrived.get(timeout=PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE_SECONDS)
