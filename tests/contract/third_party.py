"""A small third-party extension that uses every verb of the contract; loaded by its dotted name through BUS_EXTENSIONS.

It stamps messages of type `stamped`, refuses type `forbidden`, counts each message in a table of its own, in the
message's transaction, and shows at `/third-party` what it heard.
"""

from __future__ import annotations

from pathlib import Path

import gevent
from flask import Blueprint, Flask, Response

from bus.bus import Bus
from bus.errors import Malformed
from bus.events import ClientConnected, Event, MessageFailed, MessageReceived, MessageSent
from bus.message import Message
from bus.storage import SEQ, TEXT, Row, Transaction
from bus.transports.edge import json_answer
from bus.worker import Worker

MIGRATIONS = Path(__file__).parent / "third_party_migrations"


class ThirdParty:
    """What it heard, as counts."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.heard: dict[str, int] = {}
        self.waited = 0
        self.ticks = 0
        self.asked_in_vain = 0

    def accept(self, message: Message) -> Message | None:
        if message.type == "forbidden":
            raise Malformed("This type is not wanted here.", code="not_wanted", field="type")
        if message.type == "crash":
            raise RuntimeError("a secret that no caller may see")
        if message.type == "stamped":
            message.extras += b',"headers":{"stamped":"yes"}'
        return message

    def rows_of_sent(self, event: MessageSent) -> list[Row]:
        if event.message.type == "crash_later":
            raise RuntimeError("a companion's own trouble")
        return [("INSERT INTO third_party VALUES (?, ?, ?)", (SEQ, event.message.type, TEXT))]

    def rows_of_received(self, event: MessageReceived) -> list[Row]:
        return [("INSERT INTO happened VALUES ('received', ?, ?)", (event.message.seq, event.recipient))]

    def rows_of_failed(self, event: MessageFailed) -> list[Row]:
        return [("INSERT INTO happened VALUES (?, ?, ?)", (event.reason, event.message.seq, event.owner))]

    def rows_of_nothing(self, event: MessageSent) -> list[Row]:
        self.asked_in_vain += 1
        return []

    def hear(self, event: Event) -> None:
        self.heard[type(event).__name__] = self.heard.get(type(event).__name__, 0) + 1

    def hear_and_fail(self, event: MessageSent) -> None:
        raise RuntimeError("a handler's own trouble")

    def hear_and_wait(self, event: ClientConnected) -> None:
        gevent.sleep(0)
        self.waited += 1

    def tick(self) -> None:
        self.ticks += 1
        raise RuntimeError("a tick's own trouble")

    def show(self) -> Response:
        def job(transaction: Transaction) -> list[tuple[object, ...]]:
            return transaction.execute("SELECT seq, type, CAST(text AS TEXT) FROM third_party ORDER BY seq")

        def happened(transaction: Transaction) -> list[tuple[object, ...]]:
            return transaction.execute("SELECT what, seq, party FROM happened")

        return json_answer(
            {
                "heard": self.heard,
                "waited": self.waited,
                "asked_in_vain": self.asked_in_vain,
                "ticks": self.ticks,
                "rows": self.bus.write(job),
                "happened": self.bus.write(happened),
            }
        )


def register(app: Flask, bus: Bus) -> None:
    """Use every verb."""
    third_party = ThirdParty(bus)
    app.extensions["third_party"] = third_party
    bus.use_tables("third_party", MIGRATIONS)
    bus.before_publish(third_party.accept)
    bus.with_commit(MessageSent, third_party.rows_of_sent)
    bus.with_commit(MessageReceived, third_party.rows_of_received)
    bus.with_commit(MessageFailed, third_party.rows_of_failed)
    bus.with_commit(MessageSent, third_party.rows_of_nothing).active = False
    bus.on(Event, third_party.hear)
    bus.on(MessageSent, third_party.hear_and_fail)
    bus.on(ClientConnected, third_party.hear_and_wait, wait=True)
    bus.add_worker(Worker("third_party", third_party.tick, interval_seconds=0.05))
    blueprint = Blueprint("third_party", __name__)
    blueprint.add_url_rule("/third-party", view_func=third_party.show)
    app.register_blueprint(blueprint)
