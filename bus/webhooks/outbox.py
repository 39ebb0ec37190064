"""The outbox: the rows of an event, one for each endpoint that wants it, written where the event itself is written.

`Outbox` turns events into rows for `Bus.with_commit`. It is asked on the event loop and on the writer's thread, so it only
reads: its matcher is replaced as a whole, and the clock and chance are safe anywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from bus.events import MessageExpired, MessageFailed, MessageReceived, MessageSent
from bus.message import Epochs, Kind, Message, audience_of, text_of
from bus.storage import SEQ, TEXT, Row, Transaction
from bus.trace_context import trace_in
from bus.webhooks import body
from bus.webhooks.matching import Matcher, Subject

MAX_PENDING = 1_000_000
MAX_PENDING_BYTES = 1024 * 1024 * 1024
"""What may wait for all endpoints together; past either, what they want is refused until there is room."""

_EVENT = "INSERT INTO webhook_events (id, name, occurred_at, seq, data) VALUES (?, ?, ?, ?, ?)"
_DELIVERY = """
INSERT INTO webhook_deliveries (endpoint, event, state, due_at, made_at, bytes)
SELECT l.endpoint, e.number, 0, ?1, ?1, ?2 FROM webhook_events e, webhook_lanes l WHERE e.id = ?3 AND l.endpoint = ?4"""
_IN_ORDER = """
INSERT INTO webhook_deliveries (endpoint, event, state, due_at, made_at, bytes, order_key, sequence)
SELECT l.endpoint, e.number,
       CASE WHEN EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.endpoint = ?4 AND d.order_key = ?5 AND d.state < 3)
            THEN 2 ELSE 0 END,
       ?1, ?1, ?2, ?5, l.sequence
  FROM webhook_events e, webhook_lanes l WHERE e.id = ?3 AND l.endpoint = ?4"""
_PENDING = """
UPDATE webhook_lanes SET pending = pending + 1, pending_bytes = pending_bytes + ?, sequence = sequence + ?
 WHERE endpoint = ?"""


class Outbox:
    """`matcher` may be replaced at any time. `now_us` is the bus's clock."""

    def __init__(self, now_us: Callable[[], int], epochs: Callable[[], Epochs]) -> None:
        self.matcher = Matcher()
        self._now_us = now_us
        self._epochs = epochs

    # ---- for Bus.with_commit

    def of_sent(self, event: MessageSent) -> list[Row]:
        message = event.message
        size = len(message.payload) + len(message.extras) + 300
        return self.rows("message.sent", subject_of(message), TEXT, size, seq=SEQ)

    def of_received(self, event: MessageReceived) -> list[Row]:
        message = event.message
        text = text_of(message, self._epochs())
        data = b'%b,"recipient":"%b"}' % (text[:-1], event.recipient.encode())
        return self.rows("message.received", subject_of(message), data, len(data), seq=message.seq)

    def of_expired(self, event: MessageExpired) -> list[Row]:
        message = event.message
        text = text_of(message, self._epochs())
        data = b'%b,"reason":"%b"}' % (text[:-1], event.reason.encode())
        return self.rows("message.expired", subject_of(message), data, len(data), seq=message.seq)

    def of_failed(self, event: MessageFailed) -> list[Row]:
        message = event.message
        told = {
            "message_id": event.message_id,
            "from": message.sender,
            "owner": event.owner,
            "type": message.type,
            "reason": event.reason,
        }
        trace = trace_in(b"{%b}" % message.extras[1:])
        data = body.encode(told | {"headers": trace} if trace else told)
        return self.rows("message.failed", subject_of(message), data, len(data))

    # ---- rows

    def write(self, transaction: Transaction, name: str, subject: Subject, data: bytes) -> bool:
        """Write an event inside a job. False: nobody wants it."""
        rows = self.rows(name, subject, data, len(data))
        for statement, bindings in rows:
            transaction.execute(statement, bindings)
        return bool(rows)

    def rows(self, name: str, subject: Subject, data: Any, size: int, seq: Any = None) -> list[Row]:
        """What is written of an event: nothing when nobody wants it."""
        wishes = self.matcher.matches(name, subject)
        if not wishes:
            return []
        now_us = self._now_us()
        event_id = new_event_id(now_us)
        rows: list[Row] = [(_EVENT, (event_id, name, now_us, seq, data))]
        for wish in wishes:
            if wish.order is None:
                rows.append((_PENDING, (size, 0, wish.number)))
                rows.append((_DELIVERY, (now_us, size, event_id, wish.number)))
            else:
                key = {"to": subject.to, "from": subject.sender}.get(wish.order, "")
                rows.append((_PENDING, (size, 1, wish.number)))
                rows.append((_IN_ORDER, (now_us, size, event_id, wish.number, key)))
        return rows


def new_event_id(now_us: int) -> str:
    """An id that no other event has, and that sorts by time: what receivers know a repeat by."""
    return f"evt-{now_us:014x}{secrets.token_hex(6)}"


def subject_of(message: Message) -> Subject:
    """What filters see of a message."""
    topic = message.address if message.kind == Kind.TOPIC else None
    to = (
        message.address
        if message.kind == Kind.CLIENT
        else audience_of(message)
        if not message.names
        else message.address
    )
    return Subject((message.sender, *message.names), topic, message.type, to, message.sender)
