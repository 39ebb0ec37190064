"""An extension for tests that counts: by the bus's own metrics, and by the collector that every extension finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from flask import Flask

from bus.events import MessageSent
from bus.families import counter, gauge, histogram
from bus.metrics import Detail

if TYPE_CHECKING:
    from bus.bus import Bus

EXTENSION = "tests.counting"


def register(app: Flask, bus: Bus) -> None:
    """Count parcels: the messages that are stored."""
    collector, metrics = app.extensions["enhanced_metrics"], bus.metrics
    metrics.declare(counter("test_parcels_total", "Parcels.", kind=("large", "other")))
    metrics.declare(histogram("test_parcel_bytes", "Sizes.", (10.0, 100.0)))
    metrics.declare(gauge("test_shelves", "Said by one for all.", across="once"))
    metrics.read("test_shelves", lambda: 7)
    metrics.detail(
        "parcel", lambda asked, limit: [Detail("test_parcel_weight", "One.", {"parcel": asked["id"]}, limit)]
    )

    def sent(event: MessageSent) -> None:
        metrics.count("test_parcels_total", event.message.type)
        metrics.observe("test_parcel_bytes", len(event.message.payload))
        collector.counter("own_parcels", "By the collector.").inc(labels={"to": event.message.address})
        collector.counter("own_words", 'Of payloads: "quoted", \\ and\nlines.').inc(
            labels={"said": msgspec.json.decode(event.message.payload)}
        )
        collector.gauge("own_level").inc()
        collector.histogram("own_bytes", [10, 100]).observe(len(event.message.payload))
        collector.summary("own_times").observe(1)

    bus.on(MessageSent, sent)
