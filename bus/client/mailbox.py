"""The client's local queue: bounded, taken from by type, and the place that the cursor is made of.

The reader puts messages in, in the order of the wire; handlers and `receive` take them out. When it is full, `put`
waits: the reader stops reading, the socket fills, and the server holds the rest in the log. Nothing is dropped.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container

import msgspec

from bus.client.errors import BacklogFull
from bus.client.received import Message

MAX_BYTES = 16 * 1024 * 1024
"""Of raw JSON that wait in a mailbox, whatever their number; one message fits always."""


class Entry(msgspec.Struct, eq=False, gc=False):
    """A message that waits, the epoch of its seq, and its place in the order of arrival."""

    message: Message
    epoch: str
    arrival: int

    @property
    def moves_cursor(self) -> bool:
        """True for plain messages: those that need an ack and those without a seq stand outside the cursor."""
        return self.message.seq is not None and not self.message.requires_ack

    def cursor_before(self) -> str:
        """The cursor that stands just before this message."""
        return f"{self.epoch}:{(self.message.seq or 1) - 1}"


class Mailbox:
    """Messages between the socket and the application. Thread-safe: one condition guards everything in here.

    Bounded by `limit` messages and MAX_BYTES. `received` is the cursor behind the last plain message that was put
    in; `handed` the cursor behind the last one before which everything was taken out and, where a handler took it,
    handled.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._arrivals = 0
        # By arrival: what was taken and is not done. As many as there are threads that take.
        self._in_hand: dict[int, Entry] = {}
        # Correlation ids whose messages stay inside, with the number of requests that wait for them.
        self._reserved: Counter[str] = Counter()
        self._received: str | None = None
        self._closed = False

    @property
    def received(self) -> str | None:
        """Where to resume: behind the last plain message that was put in. None before the first confirmation."""
        with self._changed:
            return self._received

    @property
    def handed(self) -> str | None:
        """Where the application stands: everything before this cursor was handed out, and handled."""
        with self._changed:
            waiting = next((entry for entry in self._entries if entry.moves_cursor), None)
            held = [entry for entry in self._in_hand.values() if entry.moves_cursor]
            oldest = min([*held, waiting] if waiting else held, key=lambda entry: entry.arrival, default=None)
            return oldest.cursor_before() if oldest else self._received

    def stand_at(self, cursor: str | None) -> None:
        """Begin, or after a gap go on, at `cursor`."""
        with self._changed:
            self._received = cursor

    @property
    def is_full(self) -> bool:
        """True when `put` would wait."""
        with self._changed:
            return self._has_no_room()

    @property
    def waiting(self) -> int:
        """How many messages were received and not yet taken."""
        with self._changed:
            return len(self._entries)

    def put(self, message: Message, epoch: str, *, timeout: float, unless: Callable[[], bool] = lambda: False) -> bool:
        """Add a message; wait for room up to `timeout` seconds, and not while `unless` holds. False when it was not added.

        After `close` it is discarded (and True returned): the cursor stays before it, so it comes again. `unless` runs
        with the lock held, whenever something changes here or `wake` is called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._has_no_room() or unless(), timeout)
            if self._has_no_room() and not self._closed:
                return False
            if self._closed:
                return True
            self._arrivals += 1
            entry = Entry(message, epoch, self._arrivals)
            self._entries.append(entry)
            self._bytes += len(message.raw)
            if entry.moves_cursor:
                self._received = f"{epoch}:{message.seq}"
            self._changed.notify_all()
            return True

    def take(
        self,
        wanted: Callable[[Message], bool],
        *,
        timeout: float | None,
        until_closed: bool = False,
        others_take: Callable[[Message], bool] | None = None,
    ) -> Entry | None:
        """Remove and return the oldest message that `wanted` accepts; it counts as in hand until `done`.

        Waits up to `timeout` seconds (None: for ever), then returns None. After `close` it returns what is left, then
        None; with `until_closed` None at once. With `others_take`, raises BacklogFull when the mailbox is full of
        messages that are neither wanted here nor taken by others, since then none can come. Both functions run with
        the lock held: they must not wait.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not (self._closed and until_closed):
                entry = self._pop(wanted)
                if entry is not None or self._closed:
                    return entry
                if others_take is not None:
                    self._check_flow(others_take)
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return None
                self._changed.wait(remaining)
            return None

    def done(self, entry: Entry) -> None:
        """The application has the message (or its handler ended): it no longer holds the cursor back."""
        with self._changed:
            self._in_hand.pop(entry.arrival, None)

    def reserve(self, correlation_id: str) -> None:
        """Keep messages with this correlation id inside: a request waits for them. `unreserve` ends it."""
        with self._changed:
            self._reserved[correlation_id] += 1

    def unreserve(self, correlation_id: str, taken: Container[str]) -> None:
        """End what `reserve` began. Messages whose ids are in `taken` were had otherwise; the others can be taken now."""
        with self._changed:
            self._reserved[correlation_id] -= 1
            if self._reserved[correlation_id] <= 0:
                del self._reserved[correlation_id]
            left = [e for e in self._entries if e.message.correlation_id != correlation_id or e.message.id not in taken]
            self._entries = deque(left)
            self._bytes = sum(len(entry.message.raw) for entry in left)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let everybody who waits look again, because what is wanted has changed."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Put nothing in any more; what is inside can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_no_room(self) -> bool:
        return len(self._entries) >= self._limit or (bool(self._entries) and self._bytes >= MAX_BYTES)

    def _is_reserved(self, entry: Entry) -> bool:
        return bool(self._reserved) and entry.message.correlation_id in self._reserved

    def _check_flow(self, others_take: Callable[[Message], bool]) -> None:
        will_go = any(self._is_reserved(entry) or others_take(entry.message) for entry in self._entries)
        if self._has_no_room() and not will_go:
            raise BacklogFull(
                f"{len(self._entries)} messages of other types fill the local queue, so nothing more is read; receive"
                " those, or register handlers for them."
            )

    def _pop(self, wanted: Callable[[Message], bool]) -> Entry | None:
        for index, entry in enumerate(self._entries):
            if not self._is_reserved(entry) and wanted(entry.message):
                del self._entries[index]
                self._bytes -= len(entry.message.raw)
                self._in_hand[entry.arrival] = entry
                self._changed.notify_all()
                return entry
        return None
