"""A broken bus, to test the crash test with: it answers an ack before its commit. Loaded through BUS_EXTENSIONS."""

from __future__ import annotations

import gevent
from flask import Flask

from bus.bus import Bus
from bus.delivery.courier import Courier, Heard
from bus.protocol import Settle
from bus.storage.deliveries import Settled

DELAY_SECONDS = 0.2


def register(app: Flask, bus: Bus) -> None:
    """Answer each ack at once, and commit it a little later."""
    settle = Courier.settle

    def hasty(self: Courier, said: Settle, heard: Heard) -> None:
        if said.verb != "ack":
            settle(self, said, heard)
            return
        heard(Settled("acked", said.attempt or 1))
        gevent.spawn_later(DELAY_SECONDS, settle, self, said, lambda answer: None)

    Courier.settle = hasty  # type: ignore[method-assign]
