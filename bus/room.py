"""A room: the connections of one client on this process, and what they are due this turn."""

from __future__ import annotations

from itertools import chain

from bus.connection import Connection, Encoding
from bus.message import Message


class Room:
    """The connections of one client on this process. `members`: the live ones, by encoding; `takers`: how many of them take
    every message. `due`: this turn's messages."""

    __slots__ = ("due", "lagging", "last_seq", "members", "name", "size", "takers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[Encoding, dict[Connection, None]] = {}
        self.lagging: set[Connection] = set()
        self.size = 0
        self.due: list[Message] = []
        self.last_seq = 0
        self.takers = 0

    @property
    def live(self) -> bool:
        """True when a connection of it that takes every message keeps up."""
        return self.takers > 0

    def enter(self, connection: Connection) -> None:
        """A lagging connection keeps up from now on."""
        self.lagging.discard(connection)
        members, encoding = self.members, connection.encoding
        if encoding not in members:  # streams with other filters come and go: keep no place for those that are gone
            self.members = members = {encoding: live for encoding, live in members.items() if live} | {encoding: {}}
        members[encoding][connection] = None
        self.takers += encoding.takes_messages

    def withdraw(self, connection: Connection) -> None:
        """A live connection keeps up no longer."""
        del self.members[connection.encoding][connection]
        self.takers -= connection.encoding.takes_messages

    def connections(self) -> list[Connection]:
        """All of them, live and lagging."""
        return [*chain.from_iterable(self.members.values()), *self.lagging]
