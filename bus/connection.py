"""One push connection: a socket taken over from the HTTP server, driven by callbacks of the event loop.

There is no greenlet and no lock: libev watchers read, and write when the kernel's buffer was full. Everything that
leaves goes through `write`, so frames never interleave. At most MAX_HELD_BYTES or MAX_HELD_MESSAGES (or one message, if
that is larger) are held in memory for a slow reader; past that it is *lagging*: the hub leaves it out, and feeds it
from the store at its own pace. One that asks without reading the answers is not read any more, until it has.

WebSocket and SSE are two `Encoding`s of the same thing.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent.monkey import get_original

if TYPE_CHECKING:
    from bus.delivery.takers import Consumer
    from bus.hub import Hub
    from bus.identity.caller import Caller
    from bus.limits.limits import Allowance, Seat
    from bus.message import Message
    from bus.room import Room
    from bus.topics import TopicSet

MAX_HELD_BYTES = 1024 * 1024
MAX_HELD_MESSAGES = 1000
READ_BYTES = 256 * 1024
READS_A_TURN = 4
BUSY_BYTES = 1024
"""A read that brought at least so much is followed by another in the same turn of the loop, up to READS_A_TURN."""

WRITE_BYTES = 512 * 1024
CLOSE_WAIT_SECONDS = 2.0
"""How long the peer may take to answer a close frame before the socket is closed all the same."""

UNSENT_BYTES = 1024 * 1024
"""What the kernel may keep for a peer beyond what is on its way: without it, 4 MB for each stuck one (Linux)."""

_READ, _WRITE = 1, 2  # libev's EV_READ and EV_WRITE

_Socket = get_original("socket", "socket")  # only to ask; gevent's would make watchers of its own
_TCP_INFO = getattr(socket, "TCP_INFO", 0) if sys.platform == "linux" else 0
_BYTES_ACKED = 120
"""Where Linux keeps how much the peer has acknowledged, a counter of 64 bits, in what it tells of a TCP socket."""


class Encoding(Protocol):
    """How messages look on the wire. One instance a transport, shared by its connections; hashable by identity."""

    name: str
    answers: bool
    """Whether its peers answer pings, and a close."""
    takes_messages: bool
    """Whether its connections get every message that is due to them; if not, they have no part in leases."""
    keeps_place: bool
    """Whether they move the cursor that is kept for their client."""
    beat_seconds: float
    """How often a peer that does not answer gets a ping."""

    def messages(self, messages: Sequence[Message], texts: Sequence[bytes]) -> list[bytes]:
        """Messages of the log, or ephemeral ones, rendered. No bytes: this encoding leaves that one out."""
        ...

    def leased(self, rendered: bytes) -> bytes:
        """A message that needs an ack, apart from the order of the log."""
        ...

    def control(self, text: bytes) -> bytes:
        """A frame of the protocol that is no message (`sent`, `error`, `goaway`, …)."""
        ...

    def ping(self, seq: int) -> bytes: ...

    def close(self, code: int, reason: str) -> bytes: ...


class Connection:
    """One socket of one client.

    `position`: everything due up to that seq was written or is held; of a live connection the hub's `delivered` stands
    for it. `pinged` / `confirmed`: the seq of the last ping, and of the last pong. Of a peer that does not answer:
    `next_beat` is when it gets the next ping (none rides behind messages), `unsure` says that something was written
    which its kernel may not have taken. All attributes belong to the event loop's thread.
    """

    __slots__ = (
        "__weakref__",
        "allowance",
        "caller",
        "client",
        "close_code",
        "closing",
        "confirmed",
        "consumer",
        "descriptor",
        "dropped",
        "encoding",
        "ending",
        "feeding",
        "fragments",
        "held",
        "held_bytes",
        "held_messages",
        "held_replies",
        "hub",
        "joined",
        "last_ping",
        "last_progress",
        "last_read",
        "live",
        "next_beat",
        "on_data",
        "opened_us",
        "partial",
        "partial_need",
        "paused",
        "pinged",
        "position",
        "read_watcher",
        "replies",
        "room",
        "seat",
        "taken",
        "topics",
        "unsure",
        "write_watcher",
    )

    room: Room | None
    caller: Caller | None
    allowance: Allowance | None
    seat: Seat | None

    def __init__(
        self, descriptor: int, client: str, encoding: Encoding, hub: Hub, on_data: Callable[..., None]
    ) -> None:
        """Owns `descriptor` from here on. `on_data(connection, bytes)` gets what is read."""
        self.descriptor = descriptor
        self.client = client
        self.encoding = encoding
        self.hub = hub
        self.on_data = on_data
        # Whose credential opened it, once one has; what its frames take from, and its share in caps on connections, if any.
        self.room = self.caller = self.allowance = self.seat = None
        self.topics: TopicSet | None = None  # what it subscribed to; set before it joins, then by the audience
        self.fragments: bytearray | None = None  # a message that comes in several frames, as far as it is there
        self.consumer: Consumer | None = None  # its share in queues, once it asked for one
        self.joined = False  # it was welcomed: its end is an event
        self.live = False
        self.feeding = False
        self.position = 0
        self.pinged = 0
        self.confirmed = 0
        self.dropped = 0
        self.held: deque[bytes | memoryview] | None = None
        self.held_bytes = 0
        self.held_messages = 0
        self.taken = 0  # what the peer's kernel had taken when ours was last asked
        self.held_replies = 0  # the bytes among them that are no messages
        self.replies: list[bytes] | None = None
        self.partial: bytearray | None = None
        self.partial_need = 0
        self.paused = False
        self.closing = False  # a close frame was queued: nothing follows it
        self.ending = False  # both sides have closed: the socket goes when the queue is empty
        self.close_code = 1006
        self.opened_us = time.time_ns() // 1000
        self.last_read = self.last_progress = time.monotonic()
        self.last_ping = -math.inf if encoding.answers else math.inf
        self.next_beat = self.last_progress + encoding.beat_seconds
        self.unsure = False
        os.set_blocking(descriptor, False)
        self.read_watcher = gevent.get_hub().loop.io(descriptor, _READ)
        self.write_watcher: Any = None
        self.read_watcher.start(self._readable)
        hub.connections.add(self)
        hub.written.messages.setdefault(encoding.name, 0)

    # ---- reading

    def _readable(self) -> None:
        """Read what there is; of a busy peer also what came meanwhile, so that more leaves in one write."""
        for _ in range(READS_A_TURN):
            if self.held_replies > MAX_HELD_BYTES:
                self.pause()
                return
            try:
                data = os.read(self.descriptor, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.lose()
                return
            self.last_read = self.hub.now = time.monotonic()
            self._take(data)
            if len(data) < BUSY_BYTES or self.descriptor < 0 or self.paused:
                return

    def _take(self, data: bytes) -> None:
        partial = self.partial
        if partial is not None:
            partial += data
            if len(partial) < self.partial_need:
                return
            self.partial = None
            data = bytes(partial)
        self.on_data(self, data)

    def keep(self, rest: bytes, need: int) -> None:
        """Keep the beginning of a frame until `need` bytes are there."""
        self.partial = bytearray(rest)
        self.partial_need = need

    def pause(self) -> None:
        """Stop reading: the kernel's window fills, and the peer has to wait."""
        self.paused = True
        if self.descriptor >= 0:
            self.read_watcher.stop()

    def resume(self) -> None:
        self.paused = False
        if self.descriptor >= 0:
            self.read_watcher.start(self._readable)

    # ---- writing

    def reply(self, text: bytes) -> None:
        """Queue a control frame; it leaves at the end of this turn of the loop, in one write with all else."""
        if self.closing or self.descriptor < 0:
            return
        if self.replies is None:
            self.replies = []
            self.hub.touch(self)
        self.replies.append(self.encoding.control(text))

    def reply_framed(self, texts: list[bytes]) -> None:
        """As `reply`, of texts that are encoded already."""
        if self.closing or self.descriptor < 0:
            return
        if self.replies is None:
            self.replies = texts
            self.hub.touch(self)
        else:
            self.replies += texts

    def write(self, data: bytes, messages: int) -> None:
        """Write now, or hold what the kernel does not take. The one way out."""
        if self.held is not None:
            self._hold(data, messages)
            return
        try:
            written = os.write(self.descriptor, data)
        except BlockingIOError:
            written = 0
        except OSError:
            self.lose()
            return
        if written != len(data):
            self.hold_rest(data, written, messages)

    def hold_rest(self, data: bytes, written: int, messages: int) -> None:
        """The kernel took only `written` bytes: hold the rest until the socket is writable again."""
        # The deadline for progress begins when the peer first falls behind.
        self.last_progress = time.monotonic()
        self.held = deque()
        self._hold(memoryview(data)[written:], messages)
        self.write_watcher = gevent.get_hub().loop.io(self.descriptor, _WRITE)
        self.write_watcher.start(self._writable)

    def has_room(self, size: int, messages: int) -> bool:
        """True when `size` more bytes may be held. An empty queue takes one piece of any size."""
        return self.held is None or (
            self.held_bytes + size <= MAX_HELD_BYTES and self.held_messages + messages <= MAX_HELD_MESSAGES
        )

    def _hold(self, data: bytes | memoryview, messages: int) -> None:
        assert self.held is not None
        self.held.append(data)
        self.held_bytes += len(data)
        self.held_messages += messages
        if not messages:
            self.held_replies += len(data)

    def _writable(self) -> None:
        held = self.held
        assert held is not None
        try:
            written = os.writev(self.descriptor, _head(held))
        except BlockingIOError:
            return
        except OSError:
            self.lose()
            return
        self.last_progress = time.monotonic()
        self.held_bytes -= written
        while held and written >= len(held[0]):
            written -= len(held.popleft())
        if held:
            if written:
                held[0] = memoryview(held[0])[written:]
            return
        self.held = None
        if self.held_replies > MAX_HELD_BYTES:
            self.resume()
        self.held_bytes = self.held_messages = self.held_replies = 0
        self.write_watcher.stop()
        self.write_watcher.close()
        self.write_watcher = None
        self._emptied()

    def look_for_progress(self, now: float) -> None:
        """Ask the kernel whether the peer took anything: `_writable` hears of it only when a good part has gone."""
        taken = self.count_taken()
        if taken > self.taken:
            self.last_progress = now
        self.taken = taken

    def count_taken(self) -> int:
        """How much the peer's kernel has taken: it rises with it. Where TCP does not tell, it falls as more waits."""
        sock = _Socket(socket.AF_INET, socket.SOCK_STREAM, fileno=self.descriptor)
        try:
            known = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_ACKED + 8)
            return int(struct.unpack_from("Q", known, _BYTES_ACKED)[0])
        except (OSError, struct.error):
            return -self.count_unsent()
        finally:
            sock.detach()

    def count_unsent(self) -> int:
        """How many bytes the peer's kernel has not taken yet. 0 where that can't be asked."""
        with contextlib.suppress(OSError):
            return int(struct.unpack("i", fcntl.ioctl(self.descriptor, termios.TIOCOUTQ, bytes(4)))[0])
        return 0

    def _emptied(self) -> None:
        if self.ending:
            self.lose()
        elif not self.closing:
            self.hub.emptied(self)

    # ---- ending

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake: what is queued goes first. The socket ends when the peer answers, or soon after.

        Where peers do not answer, it ends when the queue is empty.
        """
        if self.closing or self.descriptor < 0:
            return
        self.hub.flush()
        if self.descriptor < 0:
            return
        if not self.encoding.answers:
            self.hub.confirm_taken(self)
            self.ending = True
        self.closing = True
        self.close_code = code
        self.hub.leave(self)
        self.write(self.encoding.close(code, reason), 0)
        if self.ending and self.held is None:
            self.lose()
            return
        self.hub.later(CLOSE_WAIT_SECONDS, self.lose)

    def finish(self, code: int, echo: bytes | None) -> None:
        """The peer closed with `code`: answer with `echo` unless we closed first, then end when the queue is empty."""
        if self.closing:
            self.lose()
            return
        self.closing = self.ending = True
        self.close_code = code
        self.hub.leave(self)
        if echo is not None:
            self.write(echo, 0)
        if self.held is None:
            self.lose()
        else:
            self.hub.later(CLOSE_WAIT_SECONDS, self.lose)

    def lose(self) -> None:
        """End it now. Idempotent."""
        if self.descriptor < 0:
            return
        self.hub.leave(self)
        self.read_watcher.stop()
        self.read_watcher.close()
        if self.write_watcher is not None:
            self.write_watcher.stop()
            self.write_watcher.close()
        os.close(self.descriptor)
        self.descriptor = -1
        self.held = None
        self.partial = self.fragments = None
        self.replies = None
        if self.seat is not None:
            self.seat.leave()
        self.hub.lost(self)


def bound_unsent(sock: Any) -> None:
    """Have the kernel take no more than UNSENT_BYTES ahead of what a socket's peer lets it send."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT") and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def _head(held: deque[bytes | memoryview]) -> list[bytes | memoryview]:
    """The first pieces of a queue, up to what one write should carry."""
    pieces = []
    size = 0
    for piece in held:
        pieces.append(piece)
        size += len(piece)
        if size >= WRITE_BYTES or len(pieces) == 64:
            break
    return pieces
