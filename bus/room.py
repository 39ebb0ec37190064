"""A room: the connections of one client on this process, and what they are due this turn."""

from __future__ import annotations

from itertools import chain

from bus.connection import Connection, Encoding
from bus.message import Message


class Room:
    """The connections of one client on this process. `members`: the live ones, by encoding. `due`: this turn's messages."""

    __slots__ = ("due", "lagging", "last_seq", "members", "name", "size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[Encoding, dict[Connection, None]] = {}
        self.lagging: set[Connection] = set()
        self.size = 0
        self.due: list[Message] = []
        self.last_seq = 0

    @property
    def live(self) -> bool:
        """True when a connection of it keeps up."""
        return any(self.members.values())

    def connections(self) -> list[Connection]:
        """All of them, live and lagging."""
        return [*chain.from_iterable(self.members.values()), *self.lagging]
