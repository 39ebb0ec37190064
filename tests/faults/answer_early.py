"""A broken bus, to test the crash test with: it answers a send before its commit. Loaded through BUS_EXTENSIONS."""

from __future__ import annotations

import gevent
from flask import Flask

from bus.bus import Bus
from bus.receipts import Receipt
from bus.storage import Burst, Pending

DELAY_SECONDS = 0.05


def register(app: Flask, bus: Bus) -> None:
    """Settle what is submitted at once, and commit it a little later."""

    def turn_ended() -> None:
        gathered = bus.sending.take()
        for item in gathered:
            if isinstance(item, Burst):
                for ref in item.refs:
                    item.heard(ref, Receipt(b"msg-early", 0, 0, b"[]"))
                item.refs = [None] * len(item.refs)
                continue
            assert isinstance(item, Pending)
            assert item.answer is not None
            item.answer(Receipt(b"msg-early", 0, 0, b"[]"))
            item.answer = lambda answer: None
        if gathered:
            gevent.spawn_later(DELAY_SECONDS, bus.writer.submit, gathered)

    bus.turn_ended = turn_ended  # type: ignore[method-assign]
