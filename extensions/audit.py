"""The audit trail: every administrative act and every refused credential, in an append-only, hash-chained table.

It hears `Audited`, whoever tells it, and writes within a fraction of a second; refusals within the second after. Records
live as the policy `$audit` says, 90 days unless it was changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.audit import trail
from bus.audit.recorder import Recorder, Retention
from bus.events import Audited
from bus.transports.audit import serve_audit
from bus.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus


def register(app: Flask, bus: Bus) -> None:
    """Keep the trail, and serve it to administrators."""
    recorder = Recorder(bus.write, bus.clock.now_us)
    retention = Retention(bus.read, bus.write, bus.clock.now_us)
    bus.use_tables("audit", trail.MIGRATIONS)
    bus.on(Audited, recorder.hear)
    bus.add_worker(recorder)
    seconds = bus.settings.ttl_sweep_interval
    bus.add_worker(Worker("audit", retention.tick, interval_seconds=seconds, exclusive=True))
    serve_audit(app, bus)
    app.extensions["audit"] = recorder
