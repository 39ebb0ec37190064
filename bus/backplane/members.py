"""What a process knows of one on another node: who is connected there, and to which topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from bus.backplane import Presence
from bus.topics import TopicIndex


class Member:
    """A process of another node. Event loop only. `slot`: the number that it has here. `number`: the last load heard.

    `synced`: all that it told of itself is known. `heard_at`, `asked_at`: by the monotonic clock, in seconds.
    """

    def __init__(self, key: bytes, node: bytes, slot: int, heard_at: float, live: Counter[str]) -> None:
        """`live` counts, for all members together, how many have a client connected that keeps up."""
        self.key = key
        self.node = node
        self.slot = slot
        self.heard_at = heard_at
        self.asked_at = 0.0
        self.number = 0
        self.synced = False
        self.present: dict[str, Presence] = {}
        self.topics: TopicIndex[int] = TopicIndex()
        self._live = live

    def forget(self) -> None:
        """Nothing is connected there, as far as is known."""
        for name, presence in self.present.items():
            if presence.live:
                self._count(name, -1)
        self.present = {}
        self.topics = TopicIndex()

    def has(self, said: Any) -> None:
        """A client's connections there changed."""
        presence = msgspec.convert(said, Presence)
        before = self.present.pop(presence.name, None)
        self._count(presence.name, (presence.live > 0) - (before is not None and before.live > 0))
        if presence.connections:
            self.present[presence.name] = presence
        elif presence.live:
            self._count(presence.name, -1)

    def hears(self, number: int, patterns: Iterable[str], *, added: bool) -> None:
        """A connection there subscribed to patterns, or unsubscribed."""
        for pattern in patterns:
            (self.topics.add if added else self.topics.discard)(pattern, number)

    def _count(self, name: str, change: int) -> None:
        self._live[name] += change
        if not self._live[name]:
            del self._live[name]
