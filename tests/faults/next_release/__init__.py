"""A bus as the next release may be: a column more, a table more, and words to other nodes that this one does not know.

Loaded through BUS_EXTENSIONS.
"""

from __future__ import annotations

from pathlib import Path

from flask import Flask

from bus.bus import Bus
from bus.worker import Worker

EVERY_SECONDS = 0.05


def register(app: Flask, bus: Bus) -> None:
    """Add the tables, and keep talking."""
    bus.use_tables("next_release", Path(__file__).parent)
    bus.add_worker(Worker("next_release", lambda: talk(bus), interval_seconds=EVERY_SECONDS))
    app.extensions["next_release"] = bus


def talk(bus: Bus) -> None:
    """A kind of note that nobody knows, and known ones with a part more."""
    bus.backplane.note(["next_release", {"n": 1}, [2]])
    bus.backplane.note(["health", "healthy", {"since": "the next release"}])
