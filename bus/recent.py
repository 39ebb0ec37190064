"""The end of the log as this process saw it, so that a connection can catch up with a busy tail without the store."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from bus.connection import Connection
from bus.message import REQUIRES_ACK, Kind, Message, is_for

RECENT_BYTES, RECENT_MESSAGES = 8 * 1024 * 1024, 4096
RECENT_SECONDS = 1.0
"""What came before is read from the store, which knows what has expired: no policy is shorter."""


class Recent:
    """Event loop only. `_messages` are the last ones, without a hole; RECENT_BYTES or RECENT_MESSAGES of them."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._came: deque[tuple[int, float]] = deque()  # the first seq of each block, and when it came

    def keep(self, messages: Sequence[Message]) -> None:
        """The log's next messages came."""
        kept, size = self._messages, self._bytes
        if messages:
            self._came.append((messages[0].seq, time.monotonic()))
        for message in messages:
            kept.append(message)
            size += len(message.payload) or len(message.rendered)
        while size > RECENT_BYTES or len(kept) > RECENT_MESSAGES:
            size -= _size(kept.popleft())
        self._bytes = size
        since = time.monotonic() - RECENT_SECONDS
        while self._came and self._came[0][1] < since:
            self._came.popleft()

    def clear(self) -> None:
        """Messages were passed over: what is kept would have a hole."""
        self._messages.clear()
        self._bytes = 0

    def missed(self, connection: Connection, max_bytes: int) -> list[Message] | None:
        """What a connection is due behind its position. None when that is not all here, or more than `max_bytes`."""
        messages, position = self._messages, connection.position
        if not messages or messages[0].seq > position + 1 or self._is_old(position + 1):
            return None
        missed = [m for m in messages if m.seq > position and _is_due(m, connection)]
        if len(missed) > 1 and sum(map(_size, missed)) > max_bytes:
            return None
        if any(m.terms is not None and m.terms.ttl_us is not None for m in missed):
            return None  # the store knows whether it has expired
        return missed

    def _is_old(self, seq: int) -> bool:
        """True when the message at `seq` came so long ago that it may have expired."""
        since = time.monotonic() - RECENT_SECONDS
        return next((first for first, at in self._came if at >= since), seq + 1) > seq


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
