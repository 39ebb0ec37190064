"""Threads: the messages that carry one `thread_id`, in order, whoever they are addressed to."""

from __future__ import annotations

import msgspec

from bus.message import Message
from bus.storage import Reader
from bus.storage.rows import named

MAX_PARTICIPANTS = 1000
MAX_PAGE_BYTES = 4 * 1024 * 1024


class Thread(msgspec.Struct):
    """A page of a thread, and what is known of the whole. Times in microseconds; None for a thread without messages."""

    messages: list[Message]
    count: int
    participants: list[str]
    started_us: int | None
    last_us: int | None
    more: bool


_IN = """FROM thread_messages t JOIN messages m ON m.seq = t.seq
 WHERE t.thread_id = ? AND (m.expires_at IS NULL OR m.expires_at > ?)"""


def read_thread(reader: Reader, thread_id: str, after: int, limit: int) -> Thread:
    """The messages of a thread behind the seq `after`."""
    alive = thread_id, reader.now_us()
    count, started, last = reader.execute(f"SELECT count(*), min(m.stamp), max(m.stamp) {_IN}", alive)[0]
    senders = reader.execute(f"SELECT DISTINCT m.sender {_IN} LIMIT {MAX_PARTICIPANTS}", alive)
    seqs = reader.execute(f"SELECT t.seq {_IN} AND t.seq > ? ORDER BY t.seq LIMIT ?", (*alive, after, limit + 1))
    messages = reader.messages([seq for (seq,) in seqs[:limit]], MAX_PAGE_BYTES)
    more = bool(seqs) and (not messages or messages[-1].seq < seqs[-1][0])
    participants = {sender for (sender,) in senders}
    for kind, address in reader.execute(f"SELECT DISTINCT m.kind, m.address {_IN} LIMIT {MAX_PARTICIPANTS}", alive):
        participants.update(named(kind, address))
    return Thread(messages, count, sorted(participants), started, last, more)
