"""The disk alarm: while the disk of the log has too little room, sends are refused, so that what frees room still works.

Reading, acks, expiry and deletes go on: they need a little room, and give some back. The alarm ends by itself, a tenth above
where it began, so that it does not flutter.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus.errors import DiskFull

log = logging.getLogger("bus.disk")

INTERVAL_SECONDS = 5.0
CLEARS_ABOVE = 1.1
"""The alarm ends when so many times the threshold is free."""


class DiskAlarm:
    """`is_on` is what a send looks at. Event loop only, but for building it and `measure`.

    `free_bytes`, `total_bytes`: as of the last look, 0 before the first.
    """

    def __init__(self, folder: Path, free_bytes: int, free_percent: float) -> None:
        """On while less than the larger of `free_bytes` and `free_percent` of the disk is free; never if both are 0."""
        self._folder = folder
        self._least_bytes = free_bytes
        self._least_percent = free_percent
        self.is_on = False
        self.free_bytes = 0
        self.total_bytes = 0

    @property
    def threshold_bytes(self) -> int:
        """Below so many free bytes the alarm is raised."""
        return max(self._least_bytes, int(self.total_bytes * self._least_percent / 100))

    def measure(self) -> tuple[int, int]:
        """(free, total) bytes, as this user may use them. Any thread."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def take(self, measured: tuple[int, int]) -> None:
        """Raise or end the alarm by what was measured."""
        self.free_bytes, self.total_bytes = measured
        threshold = self.threshold_bytes
        was_on = self.is_on
        self.is_on = self.free_bytes < threshold * (CLEARS_ABOVE if was_on else 1)
        if self.is_on != was_on:
            say = log.error if self.is_on else log.info
            say(
                "The disk of the log has %s: %d MB are free, the alarm is set at %d MB",
                "too little room, so sends are refused" if self.is_on else "room again, so sends are taken",
                self.free_bytes // 1_000_000,
                threshold // 1_000_000,
                extra={"action": "disk_alarm", "on": self.is_on},
            )

    def measure_now(self) -> None:
        """Measure here, then judge: at the start, when nobody is held up."""
        self.take(self.measure())

    def look(self, read: Callable[[Callable[[Any], tuple[int, int]]], tuple[int, int]]) -> None:
        """Measure on a thread of `read` (a disk may hang), then judge. In a greenlet."""
        self.take(read(lambda _: self.measure()))

    def refusal(self) -> DiskFull:
        """What a send is answered with."""
        return DiskFull(
            f"The disk of the log has {self.free_bytes // 1_000_000} MB free, and sends stop below"
            f" {self.threshold_bytes // 1_000_000} MB; nothing was stored. Make room: the bus goes on by itself.",
            code="disk_low",
            retry_after_seconds=10,
        )
