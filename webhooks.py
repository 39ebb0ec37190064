"""Webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from bus.outbound import Guard, Outbound
from bus.transports.webhooks import serve_webhooks
from bus.webhooks.engine import Host, Webhooks
from bus.webhooks.upkeep import workers

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus


def register(app: Flask, bus: Bus) -> None:
    """Serve webhooks."""
    settings = bus.settings
    guard = Guard(settings.targets(), https_only=settings.webhook_https_only, extra_ports=settings.target_ports())
    outbound = Outbound(guard, now_us=bus.clock.now_us)
    webhooks = Webhooks(cast("Host", bus), outbound)
    webhooks.attach()
    bus.add_worker(webhooks)
    for worker in workers(webhooks):
        bus.add_worker(worker)
    serve_webhooks(app, bus, webhooks, outbound)
    app.extensions["webhooks"] = webhooks
