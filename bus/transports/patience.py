"""How long clients may take over their requests and answers: a moment, and as much longer as a slow line needs.

gunicorn bounds the wait for a head, and nothing else: a body that comes byte by byte, or an answer that is never read, would
hold its greenlet for ever. Heads may take as long as a connection may idle (gunicorn.conf.py, keepalive).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, Self

import gevent
import gevent.socket

from bus.errors import TooSlow

MOMENT_SECONDS = 30.0
SLOWEST_BYTES_A_SECOND = 16 * 1024
"""A body or an answer may take so long, and as much longer as what has passed of it takes at this rate."""

PIECE_BYTES = 128 * 1024


def seconds_for(size: int) -> float:
    """What so many bytes add to the moment that a client has."""
    return size / SLOWEST_BYTES_A_SECOND


def read_in_time(read: Callable[[int], bytes], most: int) -> bytes:
    """Read to the end, but at most `most` bytes; `read(n)` waits for n. In a greenlet. Raises TooSlow."""
    pieces: list[bytes] = []
    deadline, left = time.monotonic() + MOMENT_SECONDS, most
    while left > 0:
        piece = None
        with gevent.Timeout(max(deadline - time.monotonic(), 0.0), False):  # type: ignore[arg-type]  # the stubs know no False
            piece = read(min(left, PIECE_BYTES))
        if piece is None:
            raise too_slow()
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
        deadline += seconds_for(len(piece))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_slow() -> TooSlow:
    """The refusal of a body that does not come."""
    return TooSlow(
        f"The body did not come in time; begin it at once, and send at least {SLOWEST_BYTES_A_SECOND} bytes a second."
    )


class PatientSocket(gevent.socket.socket):
    """A client's socket for gunicorn, in which an answer that is not read in time ends the connection."""

    @classmethod
    def of(cls, client: Any) -> Self:
        """The same connection, taken out of another socket of gevent's."""
        if isinstance(client, cls):
            return client
        return cls(client.family, client.type, client.proto, fileno=client.detach())

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it, or raise ConnectionResetError when the peer does not take it in time."""
        left = memoryview(data).cast("B")
        deadline = time.monotonic() + MOMENT_SECONDS
        while left:
            sent = None
            with gevent.Timeout(max(deadline - time.monotonic(), 0.0), False):  # type: ignore[arg-type]  # the stubs know no False
                sent = self.send(left, flags)
            if sent is None:
                raise ConnectionResetError(errno.ECONNRESET, "the answer was not read in time")
            left = left[sent:]
            deadline += seconds_for(sent)
