"""What the hub tells of its connections, and asks of the bus above it."""

from __future__ import annotations

from typing import Protocol

from bus.connection import Connection
from bus.message import Message
from bus.room import Room


class Listener(Protocol):
    """Hears of the hub's changes."""

    def presence_changed(self, room: Room) -> None: ...

    def turn_ended(self) -> None: ...

    def is_committing(self) -> bool:
        """True when the writer has something of this process, or is about to."""
        ...

    def connection_lost(self, connection: Connection) -> None: ...

    def tracked(self, message: Message) -> None:
        """A message that needs an ack came by the tail; those it is leased to get it from here."""
        ...

    def turned_live(self, connection: Connection) -> None: ...

    def emptied(self, connection: Connection) -> None:
        """Nothing is held any more for a connection that keeps up."""
        ...
