"""A bus whose outbox of webhooks holds five deliveries, to test what happens beyond. Loaded through BUS_EXTENSIONS."""

from __future__ import annotations

from flask import Flask

from bus.bus import Bus
from bus.webhooks import engine


def register(app: Flask, bus: Bus) -> None:
    """Lower the cap."""
    engine.MAX_PENDING = 5
    app.extensions["small_outbox"] = engine
