"""A connection to a stranger, plain or TLS, on which no step outlasts the one deadline of the call.

TLS is spoken through memory, over our own socket, so that the deadline holds for a peer that sends one byte at a time
(the timeouts of `ssl` sockets begin anew with each packet under gevent), and the code is the same in greenlets and
threads. Close a wire when done; nothing else is to be shut down.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

RECEIVE_BYTES = 4 * 1024
"""Taken at a time. Most answers are shorter; a hostile one in tiny chunks is worked on for some milliseconds a turn."""

MOST_DIALLED = 4
"""Addresses of a name that are tried, one after the other; all of them are vetted."""

T = TypeVar("T")


class Deadline:
    """A moment `seconds` from now, by the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, most: float = float("inf")) -> float:
        """Seconds until then, or `most` if that is less. Raises TimeoutError when it has passed."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, most)


class Wire(Protocol):
    """Each call raises TimeoutError when the deadline passes, and OSError when the connection breaks."""

    def send(self, data: bytes) -> None: ...

    def receive(self) -> bytes:
        """The next bytes, b"" at the end."""
        ...


def dial(addresses: Sequence[str], port: int, deadline: Deadline, seconds: float) -> tuple[socket.socket, str]:
    """Connect to the first address that answers, and say which. No name is resolved. Raises OSError of the last."""
    connecting = Deadline(deadline.left(seconds))
    tried = addresses[:MOST_DIALLED]
    for others in range(len(tried) - 1, -1, -1):
        address = tried[-1 - others]
        try:
            return connected(address, port, connecting.left() / (others + 1)), address
        except OSError:
            if not others:
                raise
    raise OSError("there is no address to connect to")


def connected(address: str, port: int, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect((address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class PlainWire:
    """Bytes as they are. Not thread-safe."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket = sock
        self._deadline = deadline

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._socket.settimeout(self._deadline.left())
            view = view[self._socket.send(view) :]

    def receive(self) -> bytes:
        self._socket.settimeout(self._deadline.left())
        return self._socket.recv(RECEIVE_BYTES)


class SecureWire:
    """TLS over a plain wire; `host` is what SNI asks for and the certificate must name. Not thread-safe."""

    def __init__(self, wire: PlainWire, context: ssl.SSLContext, host: str) -> None:
        self._wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake_hands(self) -> None:
        """Raises ssl.SSLError when the peer is not who it should be, or speaks no TLS."""
        try:
            self._step(self._tls.do_handshake)
        except ssl.SSLError:
            with contextlib.suppress(OSError):  # the peer is told why, if it still listens
                self._flush()
            raise

    def send(self, data: bytes) -> None:
        self._step(lambda: self._tls.write(data))

    def receive(self) -> bytes:
        try:
            return self._step(lambda: self._tls.read(RECEIVE_BYTES))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    def _step(self, act: Callable[[], T]) -> T:
        """Do what TLS wants to do, and carry its records to and fro until it can."""
        while True:
            try:
                done = act()
            except ssl.SSLWantReadError:
                self._flush()
                if data := self._wire.receive():
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._wire.send(self._outgoing.read())
