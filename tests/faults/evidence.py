"""What the parties of a crash test write down: what they sent, what was put into their hands, what they said of it.

Moments are of the monotonic clock, which this machine's processes share. A moment is taken before a thing is done
where it begins something, and after it where an answer ends it, so a judge may compare moments of different parties.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

QUEUE = "queue:"


@dataclass
class Sent:
    """One thing that a producer means to send once: `body` is as REST takes it, and holds its idempotency key.

    `kind`: plain, later (plain, and delayed), tracked, item, request or reply. `began` is the moment of the first try.
    `message_id` is set by an answer, `refusal` by an error that says that nothing was stored; neither: unknown.
    """

    key: str
    kind: str
    sender: str
    owners: tuple[str, ...]
    number: int
    body: dict[str, Any]
    began: float
    began_wall: float
    message_id: str | None = None
    refusal: str | None = None

    @property
    def delay_seconds(self) -> float:
        """How long it was to wait outside the log."""
        return float(self.body.get("delay", 0.0))

    @property
    def ttl_seconds(self) -> float | None:
        """How long it may wait for a recipient."""
        return self.body.get("ttl")

    @property
    def is_tracked(self) -> bool:
        """True when each recipient owes an ack."""
        return bool(self.body.get("require_ack")) or self.kind == "item"


@dataclass
class Said:
    """A verdict: when it was sent off, and its answer, if one came: a status, or an error's code."""

    verb: str
    at: float
    status: str | None = None
    error: str | None = None
    answered_at: float | None = None


@dataclass
class Taken:
    """A message in somebody's hands. `holder` names the socket, or the client that claimed over REST.

    `opened` is a moment before which it can't have been handed over: the socket's beginning, or the claim's.
    """

    owner: str
    holder: str
    message_id: str
    key: str
    attempt: int
    at: float
    opened: float
    lease_seconds: float
    seq: int | None
    said: list[Said] = field(default_factory=list)


class Evidence:
    """Everything written down over a server's life. Any thread adds; a judge reads when all have ended.

    `sent`: by key. `taken`: in the order of each party. `left`: when a socket began to close cleanly. `replied`: the
    keys of requests by their ids, once the bus had acknowledged the reply. `answered`: what askers were answered.
    `repeats`: (key, id) of sends that were answered and then sent once more.
    """

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.taken: list[Taken] = []
        self.left: dict[str, float] = {}
        self.replied: dict[str, str] = {}
        self.answered: list[tuple[str, dict[str, Any]]] = []
        self.repeats: list[tuple[str, str]] = []
        self._numbers: dict[Any, int] = defaultdict(int)
        self._lock = threading.Lock()  # guards `_numbers`

    def next_number(self, *about: str) -> int:
        """Count from 1, for each `about` by itself."""
        with self._lock:
            self._numbers[about] += 1
            return self._numbers[about]

    def acknowledged(self) -> list[Sent]:
        """What the bus has answered for."""
        return [sent for sent in list(self.sent.values()) if sent.message_id is not None]

    def by_owner(self) -> dict[tuple[str, str], list[Taken]]:
        """What was taken, by owner and message, in the order of attempts, then of moments."""
        hands: dict[tuple[str, str], list[Taken]] = defaultdict(list)
        for taken in self.taken:
            hands[taken.owner, taken.message_id].append(taken)
        for takes in hands.values():
            takes.sort(key=lambda taken: (taken.attempt, taken.at))
        return hands


def said_of(takes: Iterable[Taken], verb: str) -> list[Said]:
    """What was said with this verb."""
    return [said for taken in takes for said in taken.said if said.verb == verb]
