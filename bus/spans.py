"""Messages as OpenTelemetry spans: each message of a sampled trace, from its receipt to its commit.

Imported only where OpenTelemetry is installed and wanted (extensions/tracing.py). Spans are gathered and exported by its
SDK, as its own settings (OTEL_…) say.
"""

from __future__ import annotations

import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bus import __version__
from bus.message import Epochs, Message, audience_of
from bus.trace_context import parent_in

SYSTEM = "multi-agent-bridge"
SAMPLED = 1
"""The bit of a traceparent's flags."""


class Spans:
    """The spans of one process, from its building on: it starts the SDK's thread (a greenlet, under gevent)."""

    def __init__(self) -> None:
        resource = Resource.create({"service.name": SYSTEM, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(SYSTEM, __version__)
        self._propagator = TraceContextTextMapPropagator()

    def sent(self, message: Message, epochs: Epochs) -> None:
        """A message was committed. Waits for nothing."""
        parent = parent_in(message.extras)
        if parent is None or not int(parent[-2:], 16) & SAMPLED:
            return
        self._tracer.start_span(
            f"send {message.type}",
            context=self._propagator.extract({"traceparent": parent}),
            kind=SpanKind.PRODUCER,
            start_time=message.stamp_us * 1000,
            attributes={
                "messaging.system": SYSTEM,
                "messaging.operation.type": "send",
                "messaging.destination.name": message.address if message.names else audience_of(message),
                "messaging.message.id": message.own_id or epochs.id_of(message.seq).decode(),
                "messaging.client.id": message.sender,
                "messaging.message.body.size": len(message.payload),
            },
        ).end(end_time=time.time_ns())

    def flush(self, timeout_ms: int) -> None:
        """Export what is gathered, in the calling greenlet."""
        self._provider.force_flush(timeout_ms)
