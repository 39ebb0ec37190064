"""What was delivered to a client, and what it said about it: repeats are dropped, acks repeated, leases kept alive.

The bus delivers at least once. A delivery is a message and an attempt of it; one that came before is a repeat. What
the client has acked is acked again when it comes again, as whatever attempt, and not handled a second time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

import msgspec

from bus.client.received import Message, Verb

KEEP_SECONDS = 10.0
"""How often a lease is extended while its message waits its turn or is handled: a third of the default lease."""
LONGEST_WAIT_SECONDS = 3600.0
"""What nobody has taken for so long is let go, so that the bus makes it a dead letter and its sender hears of it."""

K = TypeVar("K")
V = TypeVar("V")

Life = tuple[str, int]
"""A message from its first delivery to its last: a redrive keeps the id, and begins another life with another seq."""


class _Held(msgspec.Struct):
    """A lease that is kept alive: when to extend it next, and until when at the latest (monotonic seconds)."""

    message: Message
    due: float
    until: float


class Deliveries:
    """Thread-safe: one lock guards everything in here, and nothing waits while holding it.

    Of what came and of what was said the last `limit` are remembered. Leases held are as many as the bus pushes without
    an ack; frames that could not be said are kept up to `limit`, and the oldest dropped, whose messages come again.
    """

    def __init__(self, limit: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        # Deliveries that came, with the frame that gave them back, if one did.
        self._came: OrderedDict[tuple[Life, int], bytes | None] = OrderedDict()
        # Messages that were acked.
        self._acked: OrderedDict[Life, None] = OrderedDict()
        # Leases that are kept alive.
        self._held: dict[tuple[Life, int], _Held] = {}
        # No lease is due before this (monotonic seconds), so that asking costs nothing.
        self._next_due = float("inf")
        # What was said while there was no connection.
        self._unsaid: deque[bytes] = deque(maxlen=limit)

    # ---- what comes

    def is_repeat(self, message: Message) -> bool:
        """Remember `message`; True when it came before. What was replayed or redriven only is when the bus says so."""
        life, delivery = _life(message), _delivery(message)
        with self._lock:
            if (message.replayed or message.redriven) and not message.redelivered:
                self._acked.pop(life, None)
            elif delivery in self._came or life in self._acked:
                return True
            _remember(self._came, delivery, None, self._limit)
            if message.requires_ack:
                self._hold(message, LONGEST_WAIT_SECONDS)
            return False

    def answer_again(self, message: Message) -> bytes | None:
        """What to say to a repeat: the ack, or what gave this delivery back. None while it is still being dealt with."""
        with self._lock:
            if message.requires_ack and _life(message) in self._acked:
                return _frame(message, "ack", {})
            return self._came.get(_delivery(message))

    def is_done(self, message: Message) -> bool:
        """True when an older attempt of it was acked since it came."""
        with self._lock:
            return _life(message) in self._acked

    # ---- what is said

    def settle(self, message: Message, verb: Verb, fields: dict[str, object]) -> bytes:
        """Note what is said about a message; returns the frame that says it."""
        frame, life, delivery = _frame(message, verb, fields), _life(message), _delivery(message)
        with self._lock:
            if verb == "progress":
                return frame
            self._held.pop(delivery, None)
            if verb == "ack":
                _remember(self._acked, life, None, self._limit)
            elif verb == "release":
                self._came.pop(delivery, None)
            elif delivery in self._came:
                self._came[delivery] = frame
        return frame

    def keep(self, frame: bytes) -> None:
        """There is no connection: keep what was to be said for the next one."""
        with self._lock:
            self._unsaid.append(frame)

    def take_unsaid(self) -> list[bytes]:
        """What was kept, oldest first; it is kept no longer."""
        with self._lock:
            frames = list(self._unsaid)
            self._unsaid.clear()
            return frames

    # ---- leases

    def hold(self, message: Message) -> None:
        """Keep its lease alive, for as long as it is handled."""
        if message.requires_ack:
            with self._lock:
                self._hold(message, float("inf"))

    def let_go(self, message: Message) -> None:
        """Keep its lease no longer."""
        with self._lock:
            self._held.pop(_delivery(message), None)

    @property
    def next_due(self) -> float:
        """No lease wants to be extended before this, in monotonic seconds."""
        return self._next_due

    def extensions(self) -> list[bytes]:
        """The frames that extend the leases which are due."""
        now = self._clock()
        frames: list[bytes] = []
        if now < self._next_due:
            return frames
        with self._lock:
            for delivery, held in list(self._held.items()):
                if held.until <= now:
                    del self._held[delivery]
                elif held.due <= now:
                    held.due = now + KEEP_SECONDS
                    frames.append(_frame(held.message, "progress", {}))
            self._next_due = min((held.due for held in self._held.values()), default=float("inf"))
        return frames

    def _hold(self, message: Message, seconds: float) -> None:
        """Call with the lock held."""
        now, delivery = self._clock(), _delivery(message)
        held = self._held.setdefault(delivery, _Held(message, now + KEEP_SECONDS, now))
        held.until = now + seconds
        self._next_due = min(self._next_due, held.due)


def _life(message: Message) -> Life:
    return message.id, (message.seq or 0) if message.redriven else 0


def _delivery(message: Message) -> tuple[Life, int]:
    return _life(message), message.attempt


def _frame(message: Message, verb: Verb, fields: dict[str, object]) -> bytes:
    return msgspec.json.encode({"type": verb, "message_id": message.id, "attempt": message.attempt, **fields})


def _remember(where: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Note, and forget the oldest past the limit."""
    where[key] = value
    if len(where) > limit:
        where.popitem(last=False)
