"""A broken bus, to test the crash test of webhooks with: its outbox is written a little after the message, by itself.

Loaded through BUS_EXTENSIONS.
"""

from __future__ import annotations

import gevent
from flask import Flask

from bus.bus import Bus
from bus.events import MessageSent
from bus.storage import Row, Transaction
from bus.webhooks.outbox import Outbox, subject_of

DELAY_SECONDS = 0.05


def register(app: Flask, bus: Bus) -> None:
    """Take the outbox out of the message's transaction."""
    (companion,) = (
        each for each in bus.companions._all[MessageSent] if isinstance(getattr(each.call, "__self__", None), Outbox)
    )
    outbox = companion.call.__self__  # type: ignore[attr-defined]

    def of_sent(event: MessageSent) -> list[Row]:
        message = event.message

        def later() -> None:
            def job(transaction: Transaction) -> None:
                text = b'{"payload":%b}' % message.payload
                outbox.write(transaction, "message.sent", subject_of(message), text)

            bus.write(job)

        gevent.spawn_later(DELAY_SECONDS, later)
        return []

    companion.call = of_sent
    app.extensions["outbox_later"] = of_sent
