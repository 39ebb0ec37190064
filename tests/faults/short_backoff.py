"""Rests after a failure that are over in a second, so that a test sees all five attempts. Loaded through BUS_EXTENSIONS."""

from __future__ import annotations

from flask import Flask

from bus.bus import Bus
from bus.storage import ledger

BACKOFF_SECONDS = (0.2, 0.4, 0.6, 0.8)


def register(app: Flask, bus: Bus) -> None:
    """Shorten every rest."""
    ledger.BACKOFF_SECONDS = BACKOFF_SECONDS  # type: ignore[attr-defined,assignment]
