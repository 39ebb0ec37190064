"""One connection of the lane (bus.transports.lane): plain sends over HTTP, read and answered in callbacks of the event loop.

`MSG_PEEK` shows what came, and nothing is taken before it is known to be a plain head; what is not goes to gunicorn with
the descriptor. One request at a time: what is pipelined behind it waits in the kernel, so answers keep their order, and a
client that does not take its answers is not read.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent.monkey import get_original
from gunicorn import SERVER
from werkzeug.http import HTTP_STATUS_CODES

from bus.connection import bound_unsent
from bus.errors import BusError
from bus.events import Audited
from bus.limits.limits import lines_of
from bus.logs import request_id
from bus.protocol import encode, error_body
from bus.transports import patience
from bus.transports.edge import FIXED_HEADERS, cut_short, headers_of, id_of_request, our_fault
from bus.transports.heads import Head
from bus.transports.sends import Asked

if TYPE_CHECKING:
    from bus.identity.caller import Caller
    from bus.limits.buckets import Grant
    from bus.limits.limits import Allowance
    from bus.transports.lane import Lane, LaneServer

READ_BYTES = 256 * 1024
LEAVING_SECONDS = 5.0
"""How long a client may take for a body or an answer once the server is about to stop."""

_READ, _WRITE = 1, 2  # libev's EV_READ and EV_WRITE
_PLAIN_SOCKET: Any = get_original("socket", "socket")
_FIXED = "".join(f"{name}: {value}\r\n" for name, value in FIXED_HEADERS.items())
_ANSWER = (
    f"HTTP/1.1 %b\r\nServer: {SERVER}\r\nDate: %b\r\nConnection: %b\r\nContent-Type: application/json\r\n"
    f"Content-Length: %d\r\n%bX-Request-ID: %b\r\n{_FIXED}\r\n%b"
).encode()


class LaneConnection:
    """One connection, between or in requests that are the lane's. Callbacks of the event loop only."""

    __slots__ = (
        "_address",
        "_allowance",
        "_body",
        "_caller",
        "_deadline",
        "_ends",
        "_grants",
        "_head",
        "_held",
        "_lane",
        "_peeked",
        "_request_id",
        "_server",
        "_sock",
        "_watcher",
    )

    def __init__(self, lane: Lane, server: LaneServer, client: Any, address: Any) -> None:
        """Takes the descriptor out of `client`, a socket of gevent's."""
        self._lane = lane
        self._server = server
        self._address = address
        self._head: Head | None = None  # of the request under way
        self._caller: Caller | None = None
        self._allowance: Allowance | None = None  # what the request takes from
        self._grants: Sequence[Grant] | None = None  # what it took
        self._body: bytearray | None = None  # as far as it has come, while some is missing
        self._held: memoryview | None = None  # what the kernel did not take of the answer
        self._ends = False  # nothing follows the answer
        self._request_id = ""
        self._peeked = 0  # how much of an unfinished head was seen; the kernel wakes us for more only
        self._sock = _PLAIN_SOCKET(client.family, client.type, client.proto, client.detach())
        self._sock.setblocking(False)
        bound_unsent(self._sock)
        self._watcher: Any = gevent.get_hub().loop.io(self._sock.fileno(), _READ)
        self._deadline = 0.0
        self._rest()

    def _rest(self) -> None:
        """Wait for the next request."""
        self._head = self._body = None
        self._deadline = time.monotonic() + self._lane.idle_seconds
        if not self._watcher.active:
            self._watcher.start(self.look)

    # ---- reading

    def look(self) -> None:
        """Take what is there to read."""
        try:
            if self._head is None:
                self._look()
            elif self._body is not None:
                self._read_body(self._body)
            else:
                self._watcher.stop()  # pipelined, or the end: seen to when the answer is written
        except BlockingIOError:
            return
        except OSError:
            self.close()
        except Exception as error:  # noqa: BLE001  # logged, and answered
            self._crashed(error)

    def _look(self) -> None:
        lane = self._lane
        peeked = self._sock.recv(lane.heads.max_bytes, socket.MSG_PEEK)
        if not peeked:
            self.close()
            return
        end = peeked.find(b"\r\n\r\n") + 4
        if end < 4:
            self._look_again(peeked)
            return
        head = lane.heads.find(peeked[:end])
        caller = lane.caller(head) if head is not None else None
        if head is None or caller is None:
            self._give_away()
            return
        if self._peeked:
            self._wake_for(1)
        whole = end + head.length
        data = self._sock.recv(min(whole, READ_BYTES))
        self._head, self._caller = head, caller
        self._allowance = lane.allowance(caller, self._address, head) if lane.bus.limits.on else None
        self._grants = None
        self._request_id = id_of_request(head.get("X-Request-ID"))
        if head.read is not None:
            lane.bus.counters.add("rest_requests")
        if len(data) == whole:
            self._serve(data[end:])
        else:
            self._body = bytearray(data[end:])
            self._deadline = time.monotonic() + patience.MOMENT_SECONDS + patience.seconds_for(len(self._body))

    def _look_again(self, peeked: bytes) -> None:
        """Wait for the rest of a head, or give it away: it is no send's, or nothing came, or the kernel can't wait."""
        if len(peeked) > self._peeked and self._lane.heads.may_become(peeked):
            self._wake_for(len(peeked) + 1)
            self._peeked = len(peeked)
        else:
            self._give_away()

    def _wake_for(self, size: int) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        self._peeked = 0

    def _read_body(self, body: bytearray) -> None:
        assert self._head is not None
        data = self._sock.recv(min(self._head.length - len(body), READ_BYTES))
        body += data
        self._deadline += patience.seconds_for(len(data))
        if not data:
            self._refuse(cut_short(), ends=True)
        elif len(body) == self._head.length:
            self._body = None
            self._serve(bytes(body))

    def _give_away(self) -> None:
        """Let gunicorn have the connection, with all that was sent and not yet read."""
        if self._peeked:
            self._wake_for(1)
        sock = self._sock
        self._leave()
        client = patience.PatientSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._server.give_to_gunicorn(client, self._address)

    # ---- serving

    def _serve(self, body: bytes) -> None:
        head = self._head
        caller = self._caller
        assert head is not None
        assert caller is not None
        self._deadline = math.inf
        token = request_id.set(self._request_id)
        try:
            if head.read is None:
                self._answer_probe(head)
                return
            self._spend(1)
            asked = head.read(body, head.get, caller)
            self._spend(asked.cost - 1)
            self._lane.sends.publish(asked, partial(self._settled, asked))
        except BusError as refusal:
            self._refuse(refusal)
        finally:
            request_id.reset(token)

    def _answer_probe(self, head: Head) -> None:
        assert head.probe is not None
        status, text = head.probe(head)
        self._answer(_status(status), text)

    def _spend(self, cost: int) -> None:
        """Take from what the caller may ask. Raises RateLimited."""
        if self._allowance is not None and cost:
            self._grants = self._allowance.take(cost)

    def _settled(self, asked: Asked, outcomes: Sequence[Any]) -> None:
        if self._sock is None or self._ends:  # it hung up, or was answered with an error of ours
            return
        try:
            answer = asked.answer(outcomes, self._request_id)
            if isinstance(answer, BusError):
                self._refuse(answer)
            else:
                more = b"" if self._grants is None else lines_of(tuple(self._grants))
                self._answer(b"200 OK", answer, more)
        except Exception as error:  # noqa: BLE001  # logged, and answered
            self._crashed(error)

    def _refuse(self, refusal: BusError, *, ends: bool = False) -> None:
        self._lane.bus.counters.add("errors")
        if refusal.status == 403 and self._head is not None and self._caller is not None:
            detail, address = {"code": refusal.code}, str(self._address[0]) if self._address else ""
            told = Audited("POST", self._caller.name, self._head.path, "refused", address, self._request_id, detail)
            self._lane.bus.emit(told)
        more = _lines(headers_of(refusal))
        self._answer(_status(refusal.status), encode(error_body(refusal, self._request_id)), more.encode(), ends=ends)

    def _crashed(self, error: Exception) -> None:
        """Our own fault: whatever was asked is answered with it, and the connection ends."""
        if self._sock is None:
            return
        token = request_id.set(self._request_id)
        try:
            refusal = our_fault(error, self._head.path if self._head is not None else "")
            if self._head is None or self._held is not None:
                self.close()
            else:
                self._refuse(refusal, ends=True)
        finally:
            request_id.reset(token)

    # ---- writing

    def _answer(self, status: bytes, text: bytes, more: bytes = b"", *, ends: bool = False) -> None:
        head, lane = self._head, self._lane
        assert head is not None
        self._ends = ends or not head.keep_alive or lane.is_leaving
        mode = b"close" if self._ends else b"keep-alive"
        if lane.answered is not None:
            lane.answered[head.path, int(status[:1])] += 1
        answer = _ANSWER % (status, lane.date(), mode, len(text), more, self._request_id.encode(), text)
        try:
            sent = self._sock.send(answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent == len(answer):
            self._answered()
            return
        self._held = memoryview(answer)[sent:]
        self._deadline = time.monotonic() + patience.MOMENT_SECONDS
        self._watcher.stop()
        self._watcher.close()
        self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), _WRITE)
        self._watcher.start(self._writable)

    def _writable(self) -> None:
        assert self._held is not None
        try:
            sent = self._sock.send(self._held)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._held = self._held[sent:]
        self._deadline += patience.seconds_for(sent)
        if not self._held:
            self._held = None
            self._watcher.stop()
            self._watcher.close()
            self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), _READ)
            self._answered()

    def _answered(self) -> None:
        if self._ends:
            self.close()
        else:
            self._rest()

    # ---- ending

    def hurry(self, now: float) -> None:
        """The server is about to stop: wait only shortly for a request, which may be on its way, or for its rest."""
        if self._deadline < math.inf:
            patience = self._lane.idle_seconds if self._head is None else LEAVING_SECONDS
            self._deadline = min(self._deadline, now + patience)

    def look_at_deadline(self, now: float) -> None:
        """End it if it was waited for in vain."""
        if now <= self._deadline:
            return
        if self._body is not None:
            self._body = None
            self._refuse(patience.too_slow(), ends=True)
        else:
            self.close()

    def _leave(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._sock = None
        self._body = self._held = None
        self._server.left(self)

    def close(self) -> None:
        """End it now. Idempotent."""
        sock = self._sock
        if sock is not None:
            self._leave()
            sock.close()


def _status(code: int) -> bytes:
    return f"{code} {HTTP_STATUS_CODES[code].upper()}".encode()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
