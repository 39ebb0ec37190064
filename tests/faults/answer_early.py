"""A broken bus, to test the crash test with: it answers a send before its commit. Loaded through BUS_EXTENSIONS."""

from __future__ import annotations

import gevent
from flask import Flask

from bus.bus import Bus, Receipt
from bus.storage import Pending

DELAY_SECONDS = 0.05


def register(app: Flask, bus: Bus) -> None:
    """Settle what is submitted at once, and commit it a little later."""

    def turn_ended() -> None:
        gathered, bus._gathered = bus._gathered, []
        for item in gathered:
            assert isinstance(item, Pending)
            assert item.answer is not None
            item.answer(Receipt(b"msg-early", 0, 0, b"[]"))
            item.answer = lambda answer: None
        if gathered:
            gevent.spawn_later(DELAY_SECONDS, bus.writer.submit, gathered)

    bus.turn_ended = turn_ended  # type: ignore[method-assign]
