"""Where a message is: in the log, waiting for its time, in whose hands; for `GET /api/messages/<id>`."""

from __future__ import annotations

from typing import Any

import msgspec

from bus.message import REQUIRES_ACK, Epochs, Message, audience_of, iso
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
    seq = seq_of(reader, epochs, message_id)
    message = reader.message(seq) if seq is not None else None
    if message is None:
        return _scheduled(reader, message_id)
    if not message.flags & REQUIRES_ACK:
        return Whereabouts(message, [_plain(name, reader.client(name), message.seq) for name in message.names])
    owners = message.names or (audience_of(message),)
    return Whereabouts(message, [_tracked(reader, owner, message.seq) for owner in owners])


def seq_of(reader: Reader, epochs: Epochs, message_id: str) -> int | None:
    """A message's latest place in the log; None when its id means none."""
    rows = reader.execute("SELECT seq FROM other_ids WHERE id = ? ORDER BY seq DESC LIMIT 1", (message_id,))
    return int(rows[0][0]) if rows else epochs.seq_of(message_id)


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
    open_ = reader.execute(
        "SELECT state, attempt, failures, holder, leased_at, until, history FROM deliveries WHERE owner = ? AND seq = ?",
        (owner, seq),
    )
    if open_:
        state, attempt, failures, holder, leased_at, until, history = open_[0]
        standing = {"client": owner, "state": _STATES[state], "attempt": attempt, "failures": failures}
        if holder is not None:
            standing["by"] = str(holder).partition("/")[0]
        return standing | _moments(since=leased_at, until=until) | _tried(history)
    settled = reader.execute(
        "SELECT outcome, attempt, consumer, settled_at FROM settled WHERE seq = ? AND owner = ?", (seq, owner)
    )
    if not settled:
        return {"client": owner, "state": "acked"}  # so long ago that it is no longer known when
    outcome, attempt, consumer, settled_at = settled[0]
    standing = {"client": owner, "state": "dead_letter" if outcome == DEAD else "acked", "attempt": attempt}
    if consumer:
        standing["by"] = consumer
    tried = reader.execute("SELECT attempts FROM dead_letters WHERE seq = ? AND owner = ?", (seq, owner))
    return standing | _moments(settled_at=settled_at) | _tried(tried[0][0] if tried else None)


def _moments(**times_us: int | None) -> dict[str, str]:
    """Times by name, those that are known."""
    return {name: iso(at).decode() for name, at in times_us.items() if at is not None}


def _tried(history: bytes | None) -> dict[str, Any]:
    """The attempts that have ended, if there are any."""
    tried = msgspec.json.decode(history) if history else []
    return {"attempts": [attempt_of(attempt) for attempt in tried]} if tried else {}


def attempt_of(kept: dict[str, Any]) -> dict[str, Any]:
    """An attempt as it is shown."""
    began, ended = kept["began_us"], kept["ended_us"]
    return {
        "attempt": kept["attempt"],
        "consumer": kept["consumer"],
        "began_at": iso(began).decode() if began else None,
        "ended_at": iso(ended).decode(),
        "outcome": kept["outcome"],
        "reason": kept["reason"],
    }
