"""Endpoints of webhooks as tests make them, and what becomes of what they are owed."""

from __future__ import annotations

import json
from typing import Any

from bus.testing import BusServer, eventually
from tests.calls import call
from tests.sinks import Hit, Sink

ENV = {"WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8"}
"""Of a server that may call receivers on this machine."""

FAST: dict[str, Any] = {"rate": {"count": 1000}, "schedule_seconds": [0] * 6}


def hook(server: BusServer, sink: Sink, *events: str, **more: Any) -> dict[str, Any]:
    """An endpoint at the sink; every worker knows it."""
    body = {"url": sink.url, "events": events or ("message.sent",), **FAST, **more}
    made: dict[str, Any] = call(server, "POST", "/api/webhooks", body)
    return made


def drop(server: BusServer, *hooks: dict[str, Any]) -> None:
    """Delete endpoints."""
    for made in hooks:
        call(server, "DELETE", f"/api/webhooks/{made['id']}")


def stats(server: BusServer, made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = call(server, "GET", f"/api/webhooks/{made['id']}/stats")
    return found


def settled(server: BusServer, made: dict[str, Any]) -> None:
    """Wait until nothing is due to an endpoint."""
    eventually(lambda: stats(server, made)["pending"] == 0, what="the end of all deliveries")


def data_of(hit: Hit) -> Any:
    """The data of an event, as it came."""
    return json.loads(hit.body)["data"]
