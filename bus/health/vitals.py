"""What every process of the bus watches of itself, whoever asks: the event loop's pulse, and the room on its disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bus.health import disk
from bus.health.disk import DiskAlarm
from bus.health.pulse import Pulse
from bus.settings import Settings
from bus.worker import Background, Worker


class Vitals:
    """The parts; they are the event loop's."""

    def __init__(self, settings: Settings) -> None:
        self.pulse = Pulse()
        least = (0, 0.0) if settings.is_on_postgresql else (settings.disk_alarm_bytes, settings.disk_alarm_percent)
        self.disk = DiskAlarm(settings.database_path.parent, *least)  # the log's disk; PostgreSQL's is elsewhere

    def workers(self, read: Callable[[Callable[[Any], Any]], Any]) -> list[Background]:
        """What has to run for it; `read` is the bus's."""
        look = partial(self.disk.look, read)
        return [self.pulse, Worker("disk_alarm", look, interval_seconds=disk.INTERVAL_SECONDS)]
