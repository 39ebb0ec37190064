"""What is known of messages that must be acked: states, numbers, and the values that cross the ledger's border.

The words and the numbers are the field's: an ack deadline with progress (NATS: AckWait, +WPI), counted failures
against uncounted releases (RabbitMQ 4.3, Redis XNACK), added jitter on the backoff.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bus.message import Message

WAITING, LEASED, RESTING = 0, 1, 2
ACKED, DEAD = 0, 1

CLIENT_WINDOW = 100
"""Unsettled messages pushed to one client at a time; the rest waits, by priority."""

MAX_FAILURES = 5
BACKOFF_SECONDS = (5, 30, 120, 600)
JITTER = 0.2
"""Rest after the n-th failure, and the part of it that chance adds at most. An expired lease counts as rest."""

AGING_US = 30_000_000
"""What has waited so long is treated as one priority class better."""

LEASE_BYTES = 1024 * 1024
"""Payload that one transaction puts into hands at most (or one message): what a connection may hold in memory."""

SWEEP_BYTES = 8 * 1024 * 1024
"""What one transaction of a sweep copies into dead letters, or puts into the log, before it lets others in."""

MAX_LEASE_US = 86_400_000_000
MAX_HISTORY = 20

_MEND = (
    "UPDATE deliveries SET until = ?1 + (until - leased_at), leased_at = ?1 WHERE state = 1 AND leased_at > ?1",
    f"UPDATE deliveries SET due_key = ?1 + {4 * AGING_US} WHERE due_key > ?1 + {4 * AGING_US}",
)
_RESTING = """
SELECT owner, seq, until, history FROM deliveries WHERE state = 2 AND until > ? AND (owner, seq) > (?, ?)
 ORDER BY owner, seq LIMIT 1000"""


class Delivery(msgspec.Struct):
    """A row of `deliveries`, but for its order. See the migration for the fields."""

    owner: str
    seq: int
    state: int
    until: int | None
    holder: str | None
    attempt: int
    failures: int
    ack_wait: int
    leased_at: int | None
    history: bytes | None
    lease_wait: int | None

    @property
    def client(self) -> str | None:
        """In whose hands it is: a socket's consumer has a name for the socket behind a slash."""
        return None if self.holder is None else self.holder.partition("/")[0]

    def attempts(self) -> list[dict[str, Any]]:
        """Those that have ended, the last MAX_HISTORY of them."""
        return msgspec.json.decode(self.history) if self.history else []

    def consumers(self) -> list[str]:
        """Who had it in hands, in order."""
        return [str(attempt["consumer"]) for attempt in self.attempts()]

    def history_with(self, outcome: str | None, reason: str | None, now_us: int) -> bytes:
        """The JSON of the attempts so far, with the one that ends now; `outcome` None: none was under way."""
        attempts = self.attempts()
        if outcome is not None:
            attempts.append(
                {
                    "attempt": self.attempt,
                    "consumer": self.client or self.owner,
                    "began_us": self.leased_at,
                    "ended_us": now_us,
                    "outcome": outcome,
                    "reason": reason,
                }
            )
        return msgspec.json.encode(attempts[-MAX_HISTORY:])


class Slot(msgspec.Struct, frozen=True):
    """Room for one more delivery in somebody's hands: who, and for how long (None: as the sender said)."""

    holder: str
    ack_wait_us: int | None = None


class Lease(msgspec.Struct):
    """A message in somebody's hands until `until_us`. `again`: the same attempt was pushed before; `due_key` is its rank."""

    message: Message
    owner: str
    holder: str
    attempt: int
    until_us: int
    again: bool = False
    due_key: int = 0


class Failure(msgspec.Struct, frozen=True):
    """A delivery became a dead letter: what its sender is told."""

    message: Message
    message_id: str
    owner: str
    reason: str


class Settled(msgspec.Struct):
    """What came of a Settle. `holder`: whose hands it left; `until_us`: the lease's new end, after `progress`."""

    status: str
    attempt: int
    owner: str = ""
    seq: int = 0
    holder: str | None = None
    until_us: int | None = None
    failure: Failure | None = None


class Swept(msgspec.Struct):
    """What was swept away: owners with something to hand out, hands that were emptied (owner, holder, seq), dead letters."""

    stirred: set[str]
    freed: list[tuple[str, str, int]]
    failures: list[Failure]
    more: bool


class Backlog(msgspec.Struct):
    """How much of an owner waits (resting included) and is leased, and its own cap, if it has one."""

    waiting: int = 0
    leased: int = 0
    capacity: int | None = None
    on_full: str | None = None
    changed: bool = False


def mend(execute: Callable[..., Any], now_us: int) -> None:
    """Bring what begins after now, a moment that has not come, to now: the clock was set back while nobody ran."""
    for statement in _MEND:
        execute(statement, (now_us,))
    place: tuple[str, int] = "", 0
    while page := execute(_RESTING, (now_us, *place)).fetchall():
        for owner, seq, until, history in page:
            since = msgspec.json.decode(history)[-1]["ended_us"]
            if since > now_us:
                moved = now_us + until - since, owner, seq
                execute("UPDATE deliveries SET until = ? WHERE owner = ? AND seq = ?", moved)
        place = page[-1][:2]
