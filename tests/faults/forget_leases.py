"""A broken bus, to test the crash test with: it forgets some leases on items of queues, and so hands them out twice.

Loaded through BUS_EXTENSIONS.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from flask import Flask

from bus.bus import Bus
from bus.storage.deliveries import Lease, Slot
from bus.storage.ledger import Ledger

FORGOTTEN = 0.1
"""The part of the leases."""


def register(app: Flask, bus: Bus) -> None:
    """Have the ledger lay back, as if nobody had it, some of what it hands out."""
    lease = Ledger.lease

    def forgetful(self: Ledger, owner: str, slots: Sequence[Slot]) -> list[Lease]:
        leases = lease(self, owner, slots)
        for given in leases:
            if owner.startswith("queue:") and random.random() < FORGOTTEN:
                self._execute(
                    "UPDATE deliveries SET state = 0, until = NULL, holder = NULL WHERE owner = ? AND seq = ?",
                    (owner, given.message.seq),
                )
                self._move(owner, 1, -1)
        return leases

    Ledger.lease = forgetful  # type: ignore[method-assign]
