"""What has left for the connections of a process, counted where it is written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bus.message import now_us
from bus.metrics import SAMPLE_SECONDS, Histogram

if TYPE_CHECKING:
    from bus.connection import Encoding
    from bus.message import Message

BLANK_LINE = b"\n\n"
"""The end of each message where an encoding may leave some out: event streams alone do."""


class Written:
    """Event loop only. `messages`: written to a connection or held for it, by transport; `http` is whoever reads
    over REST.

    `held`, when somebody wants it, gets how many bytes are held for a slow reader. `next_look`: from when on, by the
    monotonic clock, a write tells how old its oldest message is; off: never.
    """

    def __init__(self) -> None:
        self.messages = {"http": 0}
        self.fallen_behind = 0
        self.held: Callable[[int], None] | None = None
        self.next_look = math.inf
        self._ages: dict[str, Histogram] = {}
        self._seen = ""  # the transport whose age was told last
        self._others = 0  # what had gone to connections of others by then

    def start(self, ages: dict[str, Histogram], held: Callable[[int], None]) -> None:
        """Observe ages, in seconds, by transport, and tell what is held."""
        self._ages, self.held = ages, held
        self.next_look = 0

    def of(self, transport: str) -> int:
        """How many messages went to connections of a transport."""
        return self.messages.get(transport, 0)

    def count(self, encoding: Encoding, data: bytes, messages: int) -> None:
        """`data`, which holds so many messages, went to a connection."""
        self.messages[encoding.name] += messages if encoding.takes_messages else data.count(BLANK_LINE)

    def look(self, encoding: Encoding, due: Sequence[Message]) -> None:
        """Some of `due` was written just now. Where several transports are written to, they have their turns: else what
        always comes behind another's write would never be seen."""
        now, name = time.monotonic(), encoding.name
        others = sum(self.messages.values()) - self.messages[name] - self.messages["http"]
        if name == self._seen and others > self._others and now < self.next_look + SAMPLE_SECONDS:
            return
        self._seen, self._others = name, others
        self.next_look = now + SAMPLE_SECONDS
        self._ages[name].observe(max(0, now_us() - due[0].stamp_us) / 1e6)
