"""What nodes say to one another goes over a channel: a broadcast medium that may lose anything at any time.

A load is a head of fixed form and frames (bus.backplane.frames). The head names the sender's node and process, and numbers
what it sends to all, so whoever hears the next load notices that one is missing. `Outbox` is the bounded queue before it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from bus.backplane.frames import HINT, decode, encode

VERSION = 1
"""Of the head and of how frames stand behind it. A load of another version is passed over: the log tells what it said."""

MAX_QUEUED_BYTES = 8 * 1024 * 1024
"""What may wait for the channel. Past it rows become a hint, ephemeral messages go, and the rest is told anew as a whole."""

MAX_LOAD_BYTES = 256 * 1024
"""A load is closed once it is so large; a single frame may be larger."""

_HEAD = struct.Struct("!BB8s8sQ")
_TO_ONE = 1


class Head(NamedTuple):
    """Who sent a load. `number`: of a load to all, its own; of one to a single member, that of the last one to all."""

    node: bytes
    member: bytes
    number: int
    to_one: bool


class Load(NamedTuple):
    """What is sent at once: to one member, by its id, or to all."""

    to: bytes | None
    data: bytes


class Channel(Protocol):
    """Event loop only. `connects` counts connections made; `problem` says why there is none, or is empty."""

    name: str
    carries_rows: bool
    connects: int
    problem: str

    def start(self, member: bytes, take: Callable[[], list[Load]], heard: Callable[[bytes], None]) -> None:
        """Connect, now and again. `take()` gives what is to be sent; `heard(data)` gets every load to `member` or to all,
        one's own included."""
        ...

    def kick(self) -> None:
        """There may be something to take."""
        ...

    def reset(self) -> None:
        """Drop the connections, and make new ones: nothing has come for too long."""
        ...

    def stop(self) -> None:
        """Send what can be taken, if that needs no waiting, and end."""
        ...


class Outbox:
    """Frames that wait for the channel, in order. Event loop only."""

    def __init__(self, node: bytes, member: bytes) -> None:
        self._node = node
        self._member = member
        self._waiting: deque[tuple[bytes | None, bytes]] = deque()
        self._bytes = 0
        self._number = 0
        self._owed_head = 0
        self.is_overfull = False
        """Something was dropped that can't be sent later: whoever knows has to tell all anew."""

    def put(self, frame: bytes, to: bytes | None = None) -> None:
        """Queue a frame that has to arrive."""
        if self._bytes > MAX_QUEUED_BYTES:
            self.is_overfull = True
            return
        self._waiting.append((to, frame))
        self._bytes += len(frame)

    def put_rows(self, frame: bytes, last: int) -> bool:
        """Queue the rows of a commit, or, when too much waits, note that the log reaches `last`. False: noted."""
        if self._bytes > MAX_QUEUED_BYTES:
            self.hint(last)
            return False
        self.put(frame)
        return True

    def put_if_room(self, frame: bytes) -> bool:
        """Queue what nobody misses."""
        if self._bytes > MAX_QUEUED_BYTES:
            return False
        self.put(frame)
        return True

    def hint(self, head: int) -> None:
        """The log reaches `head`. However often it is said, one frame waits."""
        self._owed_head = max(head, self._owed_head)

    def skip(self) -> None:
        """Something was not said: who hears the next load to all shall notice."""
        self._number += 1

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self._bytes = self._owed_head = 0
        self.is_overfull = False
        self.skip()

    def beat(self) -> None:
        """Have a load to all go out, and be it empty."""
        if not self._waiting:
            self._waiting.append((None, b""))

    def take(self) -> list[Load]:
        """Everything that waits, in loads."""
        loads: list[Load] = []
        if self._owed_head:
            self._waiting.append((None, encode([HINT, self._owed_head])))
            self._owed_head = 0
        while self._waiting:
            to = self._waiting[0][0]
            frames: list[msgspec.Raw] = []
            size = 0
            while self._waiting and self._waiting[0][0] == to and size < MAX_LOAD_BYTES:
                _, frame = self._waiting.popleft()
                if frame:
                    frames.append(msgspec.Raw(frame))
                    size += len(frame)
            self._number += to is None
            head = _HEAD.pack(VERSION, 0 if to is None else _TO_ONE, self._node, self._member, self._number)
            loads.append(Load(to, head + encode(frames)))
        self._bytes = 0
        return loads


def head_of(data: bytes) -> Head | None:
    """Who sent a load, or None for what is none of this version."""
    if len(data) < _HEAD.size or data[0] != VERSION:
        return None
    _, flags, node, member, number = _HEAD.unpack_from(data)
    return Head(node, member, number, bool(flags & _TO_ONE))


def frames_of(data: bytes) -> list[list[object]]:
    """The frames of a load. Raises msgspec.DecodeError."""
    frames: list[list[object]] = decode(memoryview(data)[_HEAD.size :])
    return frames
