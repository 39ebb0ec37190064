"""Streams with a heartbeat that a test need not wait for. Loaded through BUS_EXTENSIONS."""

from __future__ import annotations

from flask import Flask

from bus.bus import Bus

HEARTBEAT_SECONDS = 1.0


def register(app: Flask, bus: Bus) -> None:
    """Shorten the heartbeat of the streams."""
    app.extensions["streaming"].heartbeat_interval = HEARTBEAT_SECONDS
