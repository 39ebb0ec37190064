"""Who is known: a client that connects or sends gets its row, once, and is part of `all` from then on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bus.errors import DiskFull, Unavailable
from bus.message import now_us
from bus.storage import MAKE_KNOWN, Transaction
from bus.storage.inboxes import NAMES_REMEMBERED, NAMES_REMEMBERED_SECONDS


class Known:
    """What one process remembers of it. Event loop only. `read` and `write` are the bus's."""

    def __init__(self, read: Callable[[Any], Any], write: Callable[[Any], Any]) -> None:
        self._read = read
        self._write = write
        self._names: set[str] = set()
        self._since = time.monotonic()

    def make(self, name: str) -> None:
        """Give a client its row. Waits for the commit when the name is new here."""
        if name in self._names:
            return

        def job(transaction: Transaction) -> None:
            transaction.execute(MAKE_KNOWN, (name, transaction.head, now_us()))

        try:
            self._write(job)
        except (DiskFull, Unavailable):  # who is known already may read while nothing can be written
            row = self._read(lambda reader: reader.client(name))
            if row is None or not row.known:
                raise
            return
        if len(self._names) >= NAMES_REMEMBERED or time.monotonic() - self._since > NAMES_REMEMBERED_SECONDS:
            self._names.clear()
            self._since = time.monotonic()
        self._names.add(name)
