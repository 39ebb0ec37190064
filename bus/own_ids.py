"""Ids for what has no seq yet, or never will: delayed messages, and ephemeral ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bus.message import Message


class OwnIds:
    """The ids that one process gives. They sort as they were given, by all workers. Event loop only."""

    def __init__(self, now_us: Callable[[], int], slot: int) -> None:
        """`now_us()` is the bus's clock; `slot` the worker's."""
        self._now_us = now_us
        self._slot = slot
        self._given = 0
        self._stamp_us = -1
        self._beginning = ""
        self._ephemerals = 0

    def scheduled(self) -> str:
        """For a message that enters the log later."""
        return self._new("s")

    def ephemeral(self, messages: Sequence[Message]) -> None:
        """For messages that never do. What came at one time shares the beginning of its ids."""
        for message in messages:
            if message.stamp_us != self._stamp_us:
                self._stamp_us, self._beginning, self._ephemerals = message.stamp_us, self._new("e"), 0
            self._ephemerals += 1
            message.own_id = f"{self._beginning}-{self._ephemerals:04x}"

    def _new(self, sort: str) -> str:
        self._given += 1
        return f"msg-{self._now_us():014x}-{self._slot:02d}{sort}{self._given:010x}"
