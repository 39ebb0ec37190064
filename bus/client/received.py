"""What comes out of the server: the message as its recipient sees it, the receipt of a send, and the other frames."""

from __future__ import annotations

import json
from typing import Any, Literal, Protocol

import msgspec

Verb = Literal["ack", "nack", "progress", "release", "reject"]
"""What a recipient can say about a message that needs an ack."""

QUEUE_PREFIX = "queue:"


class Settler(Protocol):
    """Carries what is said about a message to the bus, over the way on which the message came."""

    def settle(self, message: Message, verb: Verb, fields: dict[str, object]) -> str | None:
        """Say it; returns the bus's word, or None where it is not waited for."""


class Message(msgspec.Struct, kw_only=True, dict=True):
    """A message, as it was pushed or claimed. Treat it as read-only; it may be shared between threads.

    `seq` is its place in the log, and None for an ephemeral message. `payload` is whatever the sender gave, decoded
    from JSON. `timestamp` is the server's receive time, ISO 8601 in UTC. `raw` is the JSON text as it came.

    One with `requires_ack` comes with a lease. `ack`, `nack`, `release` and `reject` end it, `progress` extends it, and
    when it runs out the bus delivers the message again, as the next `attempt`. `redelivered` is true when it may have
    been seen before; `replayed` and `redriven` when somebody sent it on its way a second time, on purpose.

    Each of the five returns what the bus answered (`acked`, `nacked`, `extended`, `released`, `rejected`, `superseded`
    when the lease had ended before, `dead`, `not_needed`) for a message that was claimed, and raises what went wrong
    on the way. For one that was pushed they return None at once; see `Client` for what happens to them offline.
    """

    id: str
    sender: str = msgspec.field(name="from")
    to: str | list[str]
    type: str
    timestamp: str
    seq: int | None = None
    payload: Any = None
    requires_ack: bool = False
    priority: str | int | None = None
    expires_at: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    thread_id: str | None = None
    headers: dict[str, str] | None = None
    attempt: int = 1
    redelivered: bool = False
    verified: bool = False
    on_behalf_of: str | None = None
    replayed: bool = False
    replay_of: str | None = None
    redriven: bool = False
    raw: bytes = b""

    def ack(self) -> str | None:
        """It was dealt with, and does not come again."""
        return self._settle("ack", {})

    def nack(self, *, delay: float | None = None, reason: str | None = None) -> str | None:
        """It failed: the bus delivers it again after `delay` seconds (None: its own backoff), and counts the attempt.

        The fifth counted failure makes it a dead letter. `reason` is kept with the attempt.
        """
        return self._settle("nack", {"delay": delay, "reason": reason})

    def progress(self, seconds: float | None = None) -> str | None:
        """It is still being dealt with: the lease lasts `seconds` from now (None: as long as it was given for)."""
        return self._settle("progress", {"ack_wait": seconds})

    def release(self) -> str | None:
        """Give it back untouched: it is delivered again at once, and the attempt is not counted."""
        return self._settle("release", {})

    def reject(self, reason: str | None = None) -> str | None:
        """It can never be dealt with: it becomes a dead letter at once, with `reason`."""
        return self._settle("reject", {"reason": reason})

    @property
    def is_settled(self) -> bool:
        """True once this object was acked, nacked, released or rejected."""
        return "settled" in self.__dict__

    @property
    def queue(self) -> str | None:
        """The queue that it is an item of; None when it came to an inbox."""
        is_item = isinstance(self.to, str) and self.to.startswith(QUEUE_PREFIX)
        return str(self.to).removeprefix(QUEUE_PREFIX) if is_item else None

    def bind(self, settler: Settler) -> None:
        """Say who carries what is said about it. It stands beside the fields: it is neither shown, compared nor sent."""
        self.__dict__["settler"] = settler

    def _settle(self, verb: Verb, fields: dict[str, object]) -> str | None:
        if not self.requires_ack:
            return "not_needed"
        settler: Settler | None = self.__dict__.get("settler")
        if settler is None:
            raise ValueError(f"{self.id} was only looked at; what a client receives or claims can be settled")
        word = settler.settle(self, verb, {name: value for name, value in fields.items() if value is not None})
        if verb != "progress":
            self.__dict__["settled"] = verb
        return word

    def json_line(self) -> bytes:
        """The message as one line of JSON, ending in a newline; spelled as the sender spelled the payload.

        Inside of JSON text a bare line break can only be space between tokens, so replacing it alters nothing.
        """
        return self.raw.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


class Fate(msgspec.Struct, frozen=True):
    """What became of a send for one recipient.

    `state` is `delivered`, `queued`, `unknown` (queued for a name that the bus has not met), `refused`, `scheduled`,
    `sent` (for `all`, topics and queues; then `online` says how many were there), or `dropped` (ephemeral).
    """

    client: str
    state: str
    online: int | None = None


class Receipt(msgspec.Struct, frozen=True):
    """The server's answer to a send; for a durable one it comes after the commit.

    `seq` is None for an ephemeral message; so is `message_id` when it was dropped before it left. `duplicate` is
    true when the idempotency key had been used for the same send before, and nothing new was stored. `deliver_at` is
    set when the message is delayed: it gets its seq then.
    """

    message_id: str | None
    seq: int | None
    recipients: tuple[Fate, ...] = ()
    duplicate: bool = False
    deliver_at: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """A message that this client sent became a dead letter for `recipient` (a client, or `queue:<name>`).

    `reason` is `rejected`, `expired`, `max_attempts`, `overflow`, `no_recipient` or `invalid`.
    """

    message_id: str
    recipient: str
    reason: str


class Gap(msgspec.Struct, frozen=True):
    """The server could not resume where this client stood: what lay between is not kept any more.

    `requested` and `resumed_from` are cursors; `reason` is `evicted`, `epoch_changed` or `unknown`; `lost` is the
    number of messages of the log in between, None when it can't be known.
    """

    requested: str | None = None
    resumed_from: str | None = None
    reason: str = "unknown"
    lost: int | None = None

    def sentence(self) -> str:
        """The gap in words, for a log or a person."""
        count = "an unknown number of" if self.lost is None else f"up to {self.lost}"
        return f"A gap ({self.reason}): {count} messages are not kept any more; going on at {self.resumed_from}."


class Resumed(msgspec.Struct, frozen=True):
    """From which cursor to which the server feeds this connection before it is live."""

    start: str | None = msgspec.field(default=None, name="from")
    end: str | None = msgspec.field(default=None, name="to")
    gap: Gap | None = None
    expired: int | None = None


class ServerFrame(msgspec.Struct):
    """Any frame of the server, flat: the union of the fields of those that a client has to understand."""

    type: str = ""
    message: msgspec.Raw = msgspec.Raw(b"")
    ref: str | int | None = None
    message_id: str | None = None
    seq: int | None = None
    recipients: tuple[Fate, ...] = ()
    duplicate: bool = False
    deliver_at: str | None = None
    recipient: str = ""
    topics: list[str] | None = None
    queues: list[str] | None = None
    code: str = "internal"
    error: str = ""
    field: str | None = None
    retry_after_seconds: float | None = None
    reason: str = ""
    reconnect_after_ms: float | None = None
    n: int = 0
    epoch: str = ""
    cursor: str | None = None
    resumed: Resumed | None = None


decode_frame = msgspec.json.Decoder(ServerFrame).decode
_decode_message = msgspec.json.Decoder(Message).decode


def message_of(raw: bytes) -> Message:
    """A message from its JSON text. Raises msgspec.DecodeError when it has not the promised form.

    A number beyond a double's range (1e400) is good JSON that msgspec refuses; the standard library reads it as inf.
    """
    try:
        message = _decode_message(raw)
    except msgspec.DecodeError:
        message = msgspec.convert(_loads(raw), Message)
    message.raw = raw
    return message


def _loads(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from None


def receipt_of(frame: ServerFrame) -> Receipt:
    """The receipt inside of a `sent` frame."""
    return Receipt(frame.message_id, frame.seq, frame.recipients, frame.duplicate, frame.deliver_at)
