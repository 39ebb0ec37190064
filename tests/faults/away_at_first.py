"""A bus whose store goes away between its opening and the first use that health and retention make of it.

Loaded through BUS_EXTENSIONS.
"""

from __future__ import annotations

from typing import Any

from flask import Flask

from bus.bus import Bus
from bus.errors import Unavailable
from bus.retention.retention import Retention

AWAY_CALLS = 1


def register(app: Flask, bus: Bus) -> None:
    """Refuse the first calls."""
    read, suggest = bus.read, Retention.suggest
    refused = {"read": 0, "suggest": 0}

    def refuse(what: str) -> None:
        if bus.running and refused[what] < AWAY_CALLS:
            refused[what] += 1
            raise Unavailable("The store is away for now.")

    def read_later(job: Any) -> Any:
        if job.__name__ == "_schema":
            refuse("read")
        return read(job)

    def suggest_later(self: Retention, policy: Any) -> None:
        refuse("suggest")
        suggest(self, policy)

    bus.read = read_later  # type: ignore[method-assign]
    Retention.suggest = suggest_later  # type: ignore[method-assign]
    app.extensions["away_at_first"] = refused
