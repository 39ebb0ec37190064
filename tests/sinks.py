"""A receiver of HTTP requests on loopback that records what it gets, and answers well, badly, or not at all. For tests.

    with Sink() as sink:                            # answers 200 to everything
        … have something post to sink.url …
        hit, = sink.wait_for(1)
        assert hit.headers["content-type"] == "application/json" and hit.body == b"{}"

    with Sink(in_turn(answer(500), silent, answer(200))) as sink: …
    sink.mode = answer(429, {"Retry-After": "30"})  # may be changed at any time; the next request sees it

A mode is a function of a `Visit` (one request and its connection), on a thread of the connection. It sends what it
likes; afterwards the connection is closed, or, when it returns True and the caller did not ask for `close`, kept.
What waits in a mode waits for `visit.sink.closing`, so `Sink.close` ends it at once.
"""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from tests.closing import Closing

WAIT_SECONDS = 10.0
LOOPBACK = "127.0.0.1"


class Hit(NamedTuple):
    """One request as it came. `raw` are all of its bytes; names of headers are in lower case, repeated ones joined."""

    raw: bytes
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    """When its last byte came, by `time.monotonic()`."""
    unix: float
    """The same by the wall's clock."""
    sni: str | None
    """The name that the caller's TLS asked for."""


class Visit(NamedTuple):
    """One request and the connection that it came by."""

    sink: Sink
    socket: socket.socket
    hit: Hit

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes, *, every: float) -> None:
        """Send one byte each `every` seconds, until all are sent or the sink closes."""
        for byte in data:
            self.send(bytes([byte]))
            if self.sink.closing.wait(every):
                return

    def reset(self) -> None:
        """End the connection by an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Mode = Callable[[Visit], bool | None]


class Sink(Closing):
    """`with Sink(mode) as sink`. Thread-safe; everything that it started has ended after `close`.

    `hits` are the requests that came whole, in order; `connections` counts accepted connections, with or without a
    request. With `tls` (a server's context) it speaks HTTPS. With `accepts=False` nobody gets a connection: the queue
    of the kernel is full. `name` is the host in `url`.
    """

    def __init__(
        self,
        mode: Mode | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        name: str | None = None,
        accepts: bool = True,
    ) -> None:
        self.mode: Mode = mode or answer()
        self.hits: list[Hit] = []
        self.connections = 0
        self.closing = threading.Event()
        self._tls = tls
        self._asked: dict[object, str | None] = {}
        if tls is not None:
            tls.sni_callback = lambda sock, name, _: self._asked.update({sock: name})
        self._news = threading.Condition()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=1024 if accepts else 0)
        self.host, self.port = self._listener.getsockname()[:2]
        shown = name or (f"[{host}]" if ":" in host else host)
        self.url = f"{'https' if tls else 'http'}://{shown}:{self.port}/hook"
        if accepts:
            self._start(self._accept)
        else:
            self._fill()

    def wait_for(self, count: int, *, seconds: float = WAIT_SECONDS) -> list[Hit]:
        """The hits, once there are `count` of them. Fails after `seconds`."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.hits) >= count, seconds):
                raise AssertionError(f"{len(self.hits)} of {count} requests came in {seconds} s.")
            return list(self.hits)

    def wait_for_connections(self, count: int, *, seconds: float = WAIT_SECONDS) -> None:
        """Return once `count` connections were accepted. Fails after `seconds`."""
        with self._news:
            if not self._news.wait_for(lambda: self.connections >= count, seconds):
                raise AssertionError(f"{self.connections} of {count} connections came in {seconds} s.")

    def close(self) -> None:
        """Stop listening, cut every connection, end every thread."""
        self.closing.set()
        cut(self._listener)
        with self._news:
            for sock in self._open:
                cut(sock)
        for thread in list(self._threads):
            thread.join(WAIT_SECONDS)
        self._listener.close()
        for sock in self._open:
            sock.close()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _fill(self) -> None:
        """Take the places in the kernel's queue: whoever connects now gets no answer to its SYN."""
        for _ in range(4):
            sock = socket.socket(self._listener.family)
            sock.setblocking(False)
            sock.connect_ex((self.host, self.port))
            self._open.add(sock)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._news:
                self._open.add(sock)
                self.connections += 1
                self._news.notify_all()
            if self.closing.is_set():
                cut(sock)
            self._start(self._serve, sock)

    def _serve(self, plain: socket.socket) -> None:
        sock = self._wrap(plain)
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            sni = self._asked.pop(sock, None)
            while (hit := read_request(sock, sni)) is not None:
                with self._news:
                    self.hits.append(hit)
                    self._news.notify_all()
                if not self.mode(Visit(self, sock, hit)) or hit.headers.get("connection") == "close":
                    return
        except OSError:
            return  # the caller left, or the sink is closing
        finally:
            with self._news:
                self._open.discard(sock)
            sock.close()

    def _wrap(self, plain: socket.socket) -> socket.socket:
        """The connection as it is read and written: over TLS, if the sink speaks that."""
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return plain
        sock = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        with self._news:
            self._open.discard(plain)
            self._open.add(sock)
        return sock


def cut(sock: socket.socket) -> None:
    """Have every thread that waits on a socket see its end."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended already


def read_request(sock: socket.socket, sni: str | None) -> Hit | None:
    """The next request of a connection, or None at its end."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        data = sock.recv(65536)
        if not data:
            return None
        raw += data
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    parts = [body]
    missing = int(headers.get("content-length", "0")) - len(body)
    while missing > 0:
        data = sock.recv(min(missing, 65536))
        if not data:
            return None
        parts.append(data)
        missing -= len(data)
    body = b"".join(parts)
    method, path, _ = first.split(" ", 2)
    return Hit(head + b"\r\n\r\n" + body, method, path, headers, body, time.monotonic(), time.time(), sni)


# ---- modes of one who answers


def answer(status: int = 200, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Mode:
    """Answer properly. Keeps the connection."""
    data = head(status, {"Content-Length": str(len(body)), **(headers or {})}) + body

    def mode(visit: Visit) -> bool:
        visit.send(data)
        return True

    return mode


def redirect(location: str, status: int = 302) -> Mode:
    """Send the caller elsewhere."""
    return answer(status, {"Location": location})


def in_turn(*modes: Mode) -> Mode:
    """The first request gets the first mode, and so on; from the last on, the last."""
    waiting = list(modes)
    lock = threading.Lock()

    def mode(visit: Visit) -> bool | None:
        with lock:
            chosen = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return chosen(visit)

    return mode


def raw(*parts: bytes) -> Mode:
    """Send these bytes, each part in a packet of its own, whatever they are, and end the connection."""

    def mode(visit: Visit) -> None:
        for part in parts:
            visit.send(part)

    return mode


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The head of an answer as bytes."""
    known = {member.value: member.phrase for member in HTTPStatus}
    lines = [
        f"HTTP/1.1 {status} {known.get(status, 'Status')}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# ---- modes of one who is ill, or means ill


def silent(visit: Visit) -> None:
    """Take the request and never say a word."""
    visit.sink.closing.wait()


def early_end(visit: Visit) -> None:
    """Take the request and end the connection without an answer."""


def half_answer(visit: Visit) -> None:
    """Announce 100 bytes, send 10, end."""
    visit.send(head(200, {"Content-Length": "100"}) + b"ten bytes.")


def reset(visit: Visit) -> None:
    """Take the request and reset the connection."""
    visit.reset()


def garbage(visit: Visit) -> None:
    """Answer with what is not HTTP."""
    visit.send(b"\x00\x17\xff<html>\r\n\r\nSSH-2.0-OpenSSH_9.6\r\n")


def slow_head(visit: Visit) -> None:
    """One byte of the head a second."""
    visit.drip(head(200, {"Content-Length": "0", "X-Padding": "a" * 1000}), every=1)


def slow_body(visit: Visit) -> None:
    """200 at once, then one byte of the body a second."""
    visit.send(head(200, {"Content-Length": "10000"}))
    visit.drip(b"a" * 10_000, every=1)


def huge_body(visit: Visit) -> None:
    """200 with 10 GB."""
    visit.send(head(200, {"Content-Length": str(10 * 1024**3)}))
    repeat(visit, b"a" * 65536)


def gzip_bomb(visit: Visit) -> None:
    """10 KB that inflate to 10 MB, over and over, in one chunked body."""
    bomb = gzip.compress(bytes(10 * 1024**2))
    visit.send(head(200, {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}))
    repeat(visit, b"%x\r\n%s\r\n" % (len(bomb), bomb))


def endless_informational(visit: Visit) -> None:
    """`100 Continue` without end."""
    repeat(visit, b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def slow_informational(visit: Visit) -> None:
    """`103 Early Hints` each tenth of a second, without end."""
    while not visit.sink.closing.wait(0.1):
        visit.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def endless_head(visit: Visit) -> None:
    """Header fields without end."""
    visit.send(b"HTTP/1.1 200 OK\r\n")
    repeat(visit, b"X-Field: value\r\n" * 1000)


def endless_line(visit: Visit) -> None:
    """A header field without end."""
    visit.send(b"HTTP/1.1 200 OK\r\nX-Field: ")
    repeat(visit, b"a" * 65536)


def endless_chunk_size(visit: Visit) -> None:
    """A chunk whose size line does not end."""
    visit.send(head(200, {"Transfer-Encoding": "chunked"}) + b"1;")
    repeat(visit, b"a" * 65536)


def endless_trailer(visit: Visit) -> None:
    """Fields without end after a chunked body."""
    visit.send(head(200, {"Transfer-Encoding": "chunked"}) + b"0\r\n")
    repeat(visit, b"X-Field: value\r\n" * 1000)


def repeat(visit: Visit, data: bytes) -> None:
    """Send the same again and again, until the caller leaves or the sink closes."""
    while not visit.sink.closing.is_set():
        visit.send(data)
