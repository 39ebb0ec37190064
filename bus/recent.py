"""The end of the log as this process saw it, so that a connection can catch up with a busy tail without the store."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from bus.connection import Connection
from bus.message import REQUIRES_ACK, Kind, Message, is_for

RECENT_BYTES, RECENT_MESSAGES = 8 * 1024 * 1024, 4096
RECENT_SECONDS = 1.0
"""What came before is read from the store, which knows what has expired: no policy is shorter."""


class Block(NamedTuple):
    """The messages of one commit, the bytes that they keep alive, and when they came, by the monotonic clock."""

    messages: Sequence[Message]
    size: int
    came: float


class Recent:
    """Event loop only. `_blocks` are the last ones, without a hole, up to RECENT_BYTES, _MESSAGES and _SECONDS of them."""

    def __init__(self) -> None:
        self._blocks: deque[Block] = deque()
        self._bytes = self._count = 0

    def keep(self, messages: Sequence[Message]) -> None:
        """The log's next messages came, at least one."""
        block = Block(messages, sum(len(m.payload) or len(m.rendered) for m in messages), time.monotonic())
        self._blocks.append(block)
        self._bytes += block.size
        self._count += len(messages)
        while self._bytes > RECENT_BYTES or self._count > RECENT_MESSAGES:
            self._drop_first()
        self._drop_old()

    def clear(self) -> None:
        """Messages were passed over: what is kept would have a hole."""
        self._blocks.clear()
        self._bytes = self._count = 0

    def missed(self, connection: Connection, max_bytes: int) -> list[Message] | None:
        """What a connection is due behind its position. None when that is not all here, or more than `max_bytes`."""
        self._drop_old()
        blocks, position = self._blocks, connection.position
        if not blocks or blocks[0].messages[0].seq > position + 1:
            return None
        missed = [m for block in blocks for m in block.messages if m.seq > position and _is_due(m, connection)]
        if len(missed) > 1 and sum(map(_size, missed)) > max_bytes:
            return None
        if any(m.terms is not None and m.terms.ttl_us is not None for m in missed):
            return None  # the store knows whether it has expired
        return missed

    def _drop_old(self) -> None:
        since = time.monotonic() - RECENT_SECONDS
        while self._blocks and self._blocks[0].came < since:
            self._drop_first()

    def _drop_first(self) -> None:
        block = self._blocks.popleft()
        self._bytes -= block.size
        self._count -= len(block.messages)


def _is_due(message: Message, connection: Connection) -> bool:
    if message.flags & REQUIRES_ACK:
        return False  # it comes by its own state; see bus.delivery
    if message.kind == Kind.ALL:
        return is_for(message, connection.client)
    if message.kind == Kind.TOPIC:
        return connection.topics is not None and connection.topics.matches(message.address)
    return connection.client in message.names


def _size(message: Message) -> int:
    """The bytes it keeps alive. A neighbour's message comes rendered, without its payload."""
    return len(message.payload) or len(message.rendered)
