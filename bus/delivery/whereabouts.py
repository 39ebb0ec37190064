"""Where a message is: in the log, waiting for its time, in whose hands; for `GET /api/messages/<id>`."""

from __future__ import annotations

from typing import Any

import msgspec

from bus.message import REQUIRES_ACK, Epochs, Message, audience_of
from bus.storage import ClientRow, Reader
from bus.storage.deliveries import DEAD
from bus.storage.rows import named

_STATES = ("waiting", "leased", "resting")


class Whereabouts(msgspec.Struct):
    """A message and how it stands with each recipient; `due_us` when it waits for its time outside the log."""

    message: Message
    recipients: list[dict[str, Any]]
    due_us: int | None = None


def find(reader: Reader, epochs: Epochs, message_id: str) -> Whereabouts | None:
    """Look a message up by its id."""
    rows = reader.execute("SELECT seq FROM other_ids WHERE id = ? ORDER BY seq DESC LIMIT 1", (message_id,))
    seq = rows[0][0] if rows else epochs.seq_of(message_id)
    message = reader.message(seq) if seq is not None else None
    if message is None:
        return _scheduled(reader, message_id)
    if not message.flags & REQUIRES_ACK:
        return Whereabouts(message, [_plain(name, reader.client(name), message.seq) for name in message.names])
    owners = message.names or (audience_of(message),)
    return Whereabouts(message, [_tracked(reader, owner, message.seq) for owner in owners])


def _scheduled(reader: Reader, message_id: str) -> Whereabouts | None:
    rows = reader.execute(
        "SELECT due_at, kind, address, sender, type, stamp, flags, extras, payload FROM scheduled WHERE id = ?",
        (message_id,),
    )
    if not rows:
        return None
    due_at, kind, address, sender, type_, stamp, flags, extras, payload = rows[0]
    names = named(kind, address)
    message = Message(kind, address, names, sender, type_, payload, stamp, flags, None, extras, own_id=message_id)
    recipients = [{"client": name, "state": "scheduled"} for name in names or (audience_of(message),)]
    return Whereabouts(message, recipients, due_at)


def _plain(name: str, row: ClientRow | None, seq: int) -> dict[str, Any]:
    state = "waiting" if row is None or row.mark < seq else "confirmed" if row.cursor >= seq else "handed_over"
    return {"client": name, "state": state}


def _tracked(reader: Reader, owner: str, seq: int) -> dict[str, Any]:
    open_ = reader.execute("SELECT state, attempt, failures FROM deliveries WHERE owner = ? AND seq = ?", (owner, seq))
    if open_:
        state, attempt, failures = open_[0]
        return {"client": owner, "state": _STATES[state], "attempt": attempt, "failures": failures}
    settled = reader.execute("SELECT outcome, attempt FROM settled WHERE seq = ? AND owner = ?", (seq, owner))
    if not settled:
        return {"client": owner, "state": "acked"}  # so long ago that it is no longer known when
    return {"client": owner, "state": "dead_letter" if settled[0][0] == DEAD else "acked", "attempt": settled[0][1]}
