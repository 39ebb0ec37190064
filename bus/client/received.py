"""What comes out of the server: the message as its recipient sees it, the receipt of a send, and the other frames."""

from __future__ import annotations

import json
from typing import Any

import msgspec


class Message(msgspec.Struct, kw_only=True, gc=False):
    """A message, as it was pushed. Treat it as read-only; it may be shared between threads.

    `seq` is its place in the log, and None for an ephemeral message. `payload` is whatever the sender gave, decoded
    from JSON. `timestamp` is the server's receive time, ISO 8601 in UTC. `attempt` counts deliveries of what needs
    an ack. `raw` is the JSON text as it came.
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

    def json_line(self) -> bytes:
        """The message as one line of JSON, ending in a newline; spelled as the sender spelled the payload.

        Inside of JSON text a bare line break can only be space between tokens, so replacing it alters nothing.
        """
        return self.raw.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


class Fate(msgspec.Struct, frozen=True):
    """What became of a send for one recipient.

    `state` is `delivered`, `queued`, `unknown` (queued for a name that the bus has not met), `refused`, `sent` (for
    `all` and topics; then `online` says how many were reached), or `dropped` (ephemeral).
    """

    client: str
    state: str
    online: int | None = None


class Receipt(msgspec.Struct, frozen=True):
    """The server's answer to a send; for a durable one it comes after the commit.

    `seq` is None for an ephemeral message; so is `message_id` when it was dropped before it left. `duplicate` is
    true when the idempotency key had been used for the same send before, and nothing new was stored.
    """

    message_id: str | None
    seq: int | None
    recipients: tuple[Fate, ...] = ()
    duplicate: bool = False


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
    return Receipt(frame.message_id, frame.seq, frame.recipients, frame.duplicate)
