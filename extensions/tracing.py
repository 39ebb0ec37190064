"""OpenTelemetry, off by default: with ENABLE_TRACING, each message of a sampled trace gets a span for its way into the log.

A message belongs to the trace that its header `traceparent` names (bus.trace_context). The span is a child of the sender's:
it begins when the send was received and ends with its commit. The header goes on unchanged, so what a receiver does is
a child of the sender's span, too. An exporter that is slow or away costs spans, never messages.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bus.errors import StartRefused
from bus.events import BusStarted, BusStopping, MessageSent

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus
    from bus.spans import Spans

FLUSH_MS = 1500
"""What a stop waits for the last spans."""


class Tracing:
    """The spans of this process, while it serves."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._spans: Spans | None = None

    def start(self, _: BusStarted) -> None:
        """Begin to gather and export."""
        self._spans = _spans_class()()

    def heard(self, event: MessageSent) -> None:
        """A message has entered the log."""
        if self._spans is not None:
            self._spans.sent(event.message, self._bus.epochs)

    def flush(self, _: BusStopping) -> None:
        """Export what is gathered, before it is too late."""
        if self._spans is not None:
            self._spans.flush(FLUSH_MS)


def _spans_class() -> type[Spans]:
    """Raises StartRefused where OpenTelemetry is not installed."""
    try:
        found: type[Spans] = import_module("bus.spans").Spans
    except ImportError:
        raise StartRefused(
            "ENABLE_TRACING needs OpenTelemetry, which is not installed; run pip install -r requirements-tracing.txt,"
            " or turn it off."
        ) from None
    return found


def register(app: Flask, bus: Bus) -> None:
    """Trace if ENABLE_TRACING is set."""
    tracing = Tracing(bus)
    app.extensions["tracing"] = tracing
    if bus.settings.enable_tracing:
        _spans_class()
        bus.on(BusStarted, tracing.start, wait=True)
        bus.on(MessageSent, tracing.heard)
        bus.on(BusStopping, tracing.flush, wait=True)
