"""A broken bus, to test the crash test with: an ack sometimes settles what waits beside it, too.

Loaded through BUS_EXTENSIONS.
"""

from __future__ import annotations

import random

from flask import Flask

from bus.bus import Bus
from bus.protocol import Settle
from bus.storage import ledger
from bus.storage.deliveries import ACKED, Delivery, Settled
from bus.storage.ledger import Ledger

TAKEN_ALONG = 0.2
"""The part of the acks."""


def register(app: Flask, bus: Bus) -> None:
    """Have an ack take along the oldest delivery that the same owner has in nobody's hands."""
    ack = Ledger._ack

    def greedy(self: Ledger, delivery: Delivery, said: Settle) -> Settled:
        settled = ack(self, delivery, said)
        neighbour = self.oldest_waiting(delivery.owner)
        if neighbour is not None and random.random() < TAKEN_ALONG:
            self._close(neighbour, ACKED, neighbour.attempt, said.client)
        return settled

    ledger._VERBS["ack"] = greedy
