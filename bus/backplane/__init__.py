"""How the processes of one bus wake one another: the interface of a backplane.

What goes over it are hints. Losing one costs a poll interval, never a message: the log is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import msgspec

from bus.message import Message


class Presence(msgspec.Struct, array_like=True, gc=False):
    """A client's connections on one process: how many, how many of them take every message and keep up, since when, and
    how many over which transport."""

    name: str
    connections: int
    live: int
    since_us: int
    transports: dict[str, int]

    @property
    def transport(self) -> str:
        """Over what, in one string."""
        return ",".join(sorted(self.transports))


class Neighbours(Protocol):
    """Hears what other processes say. All calls on the event loop."""

    def block(self, first: int, last: int, messages: list[Message]) -> None:
        """The rows of a neighbour's commit."""
        ...

    def hint(self, head: int) -> None:
        """The log reaches `head`; the rows are in the store."""
        ...

    def ephemeral(self, message: Message) -> None: ...

    def snapshot(self) -> Iterable[Presence]:
        """What a neighbour that just joined has to know of this process."""
        ...

    def notes(self) -> Iterable[list[Any]]:
        """The notes that it has to know beside."""
        ...

    def noted(self, slot: int, note: list[Any]) -> None:
        """The neighbour in a slot sent a note: its first item says what it is about."""
        ...

    def left(self, slot: int) -> None:
        """The neighbour in a slot is gone."""
        ...

    def missed(self) -> None:
        """What neighbours told may not have come. What is in the log comes by itself; all else has to be looked up."""
        ...

    def subscriptions(self) -> Iterable[tuple[int, Collection[str]]]:
        """What it also has to know: this process's connections with topics, each a number with its patterns."""
        ...


class Backplane(Protocol):
    """Event loop only."""

    slot: int
    """This process's among those of its machine."""

    number: int
    """This process's among all that share the log: the slot, where they are all on one machine."""

    alone: bool
    """No other process of this machine had this log when this one came."""

    @property
    def size(self) -> int:
        """How many processes there are, this one included."""
        ...

    def start(self, neighbours: Neighbours) -> None: ...

    def stop(self) -> None: ...

    def share(self, first: int, last: int, messages: list[Message]) -> None:
        """Tell of a commit: all messages of first…last, rendered."""
        ...

    def share_ephemeral(self, message: Message) -> None: ...

    def announce(self, presence: Presence) -> None:
        """A client's connections on this process changed."""
        ...

    def note(self, note: list[Any]) -> None:
        """Send something small that all neighbours should hear, in order, with everything else."""
        ...

    def hear(self, kind: str, handler: Callable[[int, list[Any]], None]) -> None:
        """Have `handler(slot, note)` hear the notes that begin with `kind`, in place of `Neighbours.noted`."""
        ...

    def neighbours(self) -> list[int]:
        """The slots of those whom a note reaches."""
        ...

    def here(self) -> list[int]:
        """The slots of this machine's processes, this one's included."""
        ...

    def announce_topics(self, number: int, patterns: Collection[str], *, added: bool) -> None:
        """A connection of this process, known by a number, subscribed to patterns, or unsubscribed."""
        ...

    def live(self, name: str) -> bool:
        """True when a neighbour has a connection of `name` that keeps up."""
        ...

    def elsewhere(self) -> Iterable[Presence]:
        """What the neighbours have connected."""
        ...

    def subscribers(self, topic: str) -> int:
        """How many connections of the neighbours have a pattern that matches."""
        ...
