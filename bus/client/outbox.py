"""The sends that have no receipt yet, in the order in which they were made.

A send stays here until the server answered it, so a connection may come and go in between: what is left is sent again,
in order, with the same idempotency keys, and is done once.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any, TypedDict

import msgspec

from bus.client.errors import Offline, QueueFull, ReceiptTimeout
from bus.client.received import Receipt
from bus.errors import BusError


class SendOptions(TypedDict, total=False):
    """What a send may say beside `to` and the payload. None is as if not given.

    `require_ack`: the recipient has to ack, within `ack_wait` seconds (30) at a time; else it is delivered again.
    `ttl`: after so many seconds it is of no use. `delay` (seconds) or `deliver_at` (a datetime, or ISO 8601 with an
    offset): not before. `priority`: critical, high, normal, low, bulk, or 1, 3, 5, 7, 9, for what waits and needs an ack.
    """

    type: str | None
    ephemeral: bool | None
    require_ack: bool | None
    ack_wait: float | None
    ttl: float | None
    delay: float | None
    deliver_at: datetime | str | None
    priority: str | int | None
    correlation_id: str | None
    reply_to: str | None
    thread_id: str | None
    headers: Mapping[str, str] | None
    idempotency_key: str | None


class Pending(msgspec.Struct, eq=False):
    """One send: its fields as they go over the wire, and the future that its sender looks at.

    `fields` are those that REST and WebSocket share; the payload in it is JSON already. `attempted` is true once it
    was written to some connection, so that the server may know it. `again_at` is when (monotonic seconds) to write it
    again because the server could not store it, or None.
    """

    ref: int
    type: str
    fields: dict[str, Any]
    size: int
    ephemeral: bool
    future: Future[Receipt]
    attempted: bool = False
    again_at: float | None = None

    @property
    def recipients(self) -> list[str]:
        """The names it is addressed to."""
        to = self.fields["to"]
        return [to] if isinstance(to, str) else list(to)

    @property
    def idempotency_key(self) -> str | None:
        """The key under which repeating this send is safe; None for ephemeral ones."""
        key = self.fields.get("idempotency_key")
        return key if isinstance(key, str) else None

    def frame(self) -> bytes:
        """The send as a WebSocket frame's text."""
        return msgspec.json.encode({"type": "send", "ref": self.ref, "msg_type": self.type, **self.fields})

    def body(self, sender: str) -> dict[str, Any]:
        """The same send as an item of a REST batch."""
        return {"from": sender, "type": self.type, **self.fields}


class Outbox:
    """Unsettled sends by `ref`, oldest first. Bounded by `limit`. Thread-safe: one condition guards the dict.

    Futures are resolved outside of the lock, since their callbacks may call back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._pending: dict[int, Pending] = {}
        self._refs = itertools.count(1)
        self._key_prefix = secrets.token_hex(8)

    def __len__(self) -> int:
        with self._changed:
            return len(self._pending)

    def draft(self, to: str | list[str], payload: Any, options: SendOptions) -> Pending:
        """Make a send, with a key of its own unless one is given or it is ephemeral. Raises TypeError."""
        fields = fields_of(options)
        type_ = str(fields.pop("type", "message"))
        ref = next(self._refs)
        is_ephemeral = "ephemeral" in fields
        if not is_ephemeral:
            fields.setdefault("idempotency_key", f"{self._key_prefix}-{ref}")
        text = msgspec.json.encode(payload)
        future: Future[Receipt] = Future()
        future.set_running_or_notify_cancel()
        return Pending(ref, type_, {"to": to, "payload": msgspec.Raw(text), **fields}, len(text), is_ephemeral, future)

    def add(self, pending: Pending) -> None:
        """Take in a new send. Raises QueueFull."""
        with self._changed:
            if len(self._pending) >= self._limit:
                raise QueueFull(
                    f"{len(self._pending)} sends wait for their receipts already, as many as max_queued allows; wait"
                    " for some of them, or raise max_queued."
                )
            self._pending[pending.ref] = pending

    def unsettled(self) -> list[Pending]:
        """All sends without a receipt, in order."""
        with self._changed:
            return list(self._pending.values())

    def awaiting_receipts(self) -> list[Pending]:
        """The durable sends that were written and have no answer, in order."""
        return [pending for pending in self.unsettled() if pending.attempted and not pending.ephemeral]

    def withdraw(self, pending: Pending) -> None:
        """Forget a send whose sender gave it up; its future stays as it is."""
        with self._changed:
            self._pending.pop(pending.ref, None)
            self._changed.notify_all()

    def settle(self, ref: str | int | None, receipt: Receipt) -> None:
        """The server answered. An answer to what is not known any more is a repeat, and ignored."""
        pending = self._pop(ref)
        if pending is not None and not pending.future.done():
            pending.future.set_result(receipt)

    def fail(self, ref: str | int | None, error: BusError) -> bool:
        """The server refused the send, or it can't be made. False when it is not known any more."""
        pending = self._pop(ref)
        if pending is None:
            return False
        if not pending.future.done():
            pending.future.set_exception(error)
        return True

    def fail_where(self, which: Callable[[Pending], bool], error: Callable[[Pending], BusError]) -> int:
        """Fail those that `which` accepts with what `error` makes of each; returns how many."""
        return sum(self.fail(pending.ref, error(pending)) for pending in self.unsettled() if which(pending))

    def fail_largest(self, error: BusError) -> bool:
        """The server found a frame too large without saying which: it can only have been the largest one written."""
        written = [pending for pending in self.unsettled() if pending.attempted]
        return bool(written) and self.fail(max(written, key=lambda pending: pending.size).ref, error)

    def postpone(self, ref: str | int | None, until: float) -> bool:
        """Keep the send, to be written again at `until` (monotonic seconds). False when it is not known."""
        with self._changed:
            pending = self._pending.get(ref) if isinstance(ref, int) else None
            if pending is None:
                return False
            pending.again_at = until
            return True

    def next_again(self) -> float | None:
        """The earliest moment (monotonic seconds) at which a postponed send is due, or None."""
        with self._changed:
            return min((p.again_at for p in self._pending.values() if p.again_at is not None), default=None)

    def wait_empty(self, timeout: float | None) -> int:
        """Wait up to `timeout` seconds until every send is settled; returns how many are not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, timeout)
            return len(self._pending)

    def _pop(self, ref: str | int | None) -> Pending | None:
        with self._changed:
            pending = self._pending.pop(ref, None) if isinstance(ref, int) else None
            if pending is not None:
                self._changed.notify_all()
            return pending


def fields_of(options: SendOptions) -> dict[str, object]:
    """The options that are set, as they go over the wire. Raises TypeError for one that a send does not have."""
    unknown = options.keys() - SendOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"a send has no option {', '.join(sorted(unknown))}")
    return {name: value for name, value in options.items() if value is not None and value is not False}


# ---- what is said to the sender of what has no receipt


def too_late(pending: Pending, timeout: float | None, problem: str) -> ReceiptTimeout:
    """No receipt came within `timeout` seconds; `problem` is why there is no connection, if there is none."""
    key = pending.idempotency_key
    if not pending.attempted:
        return ReceiptTimeout(f"Nothing was sent within {timeout} s: {problem}.", idempotency_key=key)
    return ReceiptTimeout(f"No receipt came within {timeout} s; {_MAY_BE_STORED}", idempotency_key=key)


def lost_before_receipt(pending: Pending) -> Offline:
    """The connection went while the send was on its way, and it is not to be sent again by itself."""
    key = pending.idempotency_key
    if key is None:
        return Offline("The connection was lost before the receipt; an ephemeral message is not sent again.")
    return Offline(f"The connection was lost before the receipt; {_MAY_BE_STORED}", idempotency_key=key)


def closed_before_receipt(pending: Pending) -> Offline:
    """The client was closed while the send was waiting."""
    if not pending.attempted:
        return Offline("The client was closed before the message could be sent.")
    return Offline(
        f"The client was closed before the receipt; {_MAY_BE_STORED}", idempotency_key=pending.idempotency_key
    )


_MAY_BE_STORED = "the message may be stored. Send it again with this exception's idempotency_key to be sure."
