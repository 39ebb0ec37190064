"""Kills the process between the archive's file and the removal, once, if the data folder says so. For BUS_EXTENSIONS."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

from flask import Flask

from bus.bus import Bus
from bus.retention.archiver import Archiver


def register(app: Flask, bus: Bus) -> None:
    """Lie in wait: the file `kill-archiver` in DATA_DIR is used up by the kill."""
    begin = Archiver._begin_removal
    trap = bus.settings.data_path / "kill-archiver"
    app.extensions["kill_archiver"] = trap

    def begin_or_die(self: Archiver, rows: Sequence[Any], reason: str) -> None:
        if trap.exists():
            trap.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, rows, reason)

    Archiver._begin_removal = begin_or_die  # type: ignore[method-assign]
