"""Signed ingress: webhooks of others come in at `POST /api/v1/integrations/webhook/<id>`, and become messages.

Each is verified over the raw bytes by its integration's scheme (bus.ingress.schemes), taken once, whichever worker gets it,
and answered with 202 and the message's id after the commit. What came of each stands in `integration_events`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bus import ingress
from bus.errors import Malformed, StartRefused
from bus.ingress.gate import Gate
from bus.ingress.integrations import Rows
from bus.ingress.journal import Journal
from bus.ingress.schemes import SCHEMES
from bus.transports.ingress import serve_ingress
from bus.webhooks.vault import Vault

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus
    from bus.nodes.leases import Leases

MIGRATIONS = Path(ingress.__file__).parent / "migrations"


class InboundWebhooks:
    """The parts of one process; started and stopped with the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._journal = Journal(lambda job: bus.writer.call(job, lazy=True), bus.clock.now_us)
        self.gate = Gate(bus, self._journal, bus.settings.webhook_callers())

    def start(self, leases: Leases) -> None:
        """Open the vault, which is that of outgoing webhooks, too, and begin to write the log."""
        self.gate.rows = Rows(Vault.of(self._bus.settings))
        self._bus.write(self.gate.rows.seal_anew)
        self._journal.start(leases)

    def stop(self) -> None:
        """Write what is left of the log."""
        self._journal.stop()


def _check_default(secret: str | None) -> None:
    """Refuse a default secret that some scheme can't use. Raises StartRefused."""
    try:
        for scheme in SCHEMES.values() if secret else ():
            scheme.key(secret or "")
    except Malformed as error:
        raise StartRefused(f"WEBHOOK_SIGNATURE_SECRET can't be used. {error.sentence}") from None


def register(app: Flask, bus: Bus) -> None:
    """Take webhooks in, and serve the integrations and their log over REST."""
    _check_default(bus.settings.webhook_signature_secret)
    inbound = InboundWebhooks(bus)
    app.extensions["inbound_webhooks"] = inbound
    bus.use_tables("ingress", MIGRATIONS)
    bus.add_worker(inbound)
    serve_ingress(app, bus, inbound.gate)
