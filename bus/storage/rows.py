"""Rows of `messages` as messages, for whoever reads them in SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bus.message import EVENT, OWN_EXPIRY, OWN_ID, TYPE_EXPIRY, Kind, Message, excluded_of

COLUMNS = "m.seq, m.kind, m.address, m.sender, m.type, m.stamp, m.expires_at, m.flags, m.extras, m.payload"

_SHOWN = OWN_EXPIRY | TYPE_EXPIRY


def named(kind: int, address: str) -> tuple[str, ...]:
    """The recipients that an address names, as it is stored."""
    if kind == Kind.CLIENT:
        return (address,)
    return tuple(msgspec.json.decode(address)) if kind == Kind.LIST else ()


def values_of(message: Message) -> tuple[Any, ...]:
    """What a message is outside the log, from its kind to its payload: as `scheduled` and `dead_letters` have it."""
    return (
        message.kind,
        message.address,
        message.sender,
        message.type,
        message.stamp_us,
        message.flags,
        message.extras,
        message.payload,
    )


def message_of(row: tuple[Any, ...], query: Callable[[str, tuple[Any, ...]], Any]) -> Message:
    """A row of COLUMNS as a Message. `query(statement, bindings)` gives rows: an id may have to be looked up."""
    seq, kind, address, sender, type_, stamp, expires_at, flags, extras, payload = row
    shown = expires_at if flags & _SHOWN else None
    flags &= ~_SHOWN
    message = Message(kind, address, named(kind, address), sender, type_, payload, stamp, flags, shown, extras, seq)
    if flags & EVENT:
        message.excluded = excluded_of(extras)
    if flags & OWN_ID:
        message.own_id = next(iter(query("SELECT id FROM other_ids WHERE seq = ?", (seq,))))[0]
    return message
