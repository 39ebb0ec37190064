"""Who is connected, over all workers of the bus: what one process announces of a client, and how the sums are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bus.backplane import Presence
from bus.room import Room


def presence_of(room: Room) -> Presence:
    """What this process has of a client."""
    mine = room.connections()
    live = sum(connection.live and connection.encoding.takes_messages for connection in mine)
    since = min((connection.opened_us for connection in mine), default=0)
    transports = Counter(connection.encoding.name for connection in mine)
    return Presence(room.name, len(mine), live, since, dict(transports))


def together(presences: Iterable[Presence]) -> dict[str, Presence]:
    """By client: connections summed, the earliest `since_us`."""
    everybody: dict[str, Presence] = {}
    for presence in presences:
        known = everybody.get(presence.name)
        everybody[presence.name] = presence if known is None else _joined(known, presence)
    return everybody


def _joined(one: Presence, other: Presence) -> Presence:
    return Presence(
        one.name,
        one.connections + other.connections,
        one.live + other.live,
        min(one.since_us, other.since_us),
        dict(Counter(one.transports) + Counter(other.transports)),
    )
