"""What the bus announces. One frozen type an event; extensions hear them with `Bus.on`.

The names in capitals below are the documented event names that webhooks and audit use.
"""

from __future__ import annotations

import msgspec

from bus.message import Message


class Event(msgspec.Struct, frozen=True):
    """The base of all events; `Bus.on(Event, handler)` hears every one."""


class MessageSent(Event, frozen=True):
    """`message.sent`: a message entered the log, by a commit of this process. Raised once, before it is delivered.

    A delayed message enters it when it is due; a copy by a replay is a message of its own; a redriven one was sent before.
    """

    message: Message


class MessageReceived(Event, frozen=True):
    """`message.received`: a named recipient has acked a message, or its kept cursor has passed a plain one.

    For the companions of a transaction alone (`Bus.with_commit`): nobody hears it by `Bus.on`.
    """

    message: Message
    recipient: str


class MessageRefused(Event, frozen=True):
    """A send was refused by `before_publish` or by the store; `code` is the error's."""

    sender: str
    code: str


class MessageFailed(Event, frozen=True):
    """`message.failed`: a delivery became a dead letter of `owner` (a client, or queue:<name>); raised where it happened."""

    message: Message
    message_id: str
    owner: str
    reason: str


class MessageExpired(Event, frozen=True):
    """`message.expired`: a message has left the log, `reason` expired or delivered; raised by the process that sweeps."""

    message: Message
    reason: str


class ClockJumped(Event, frozen=True):
    """`clock.jumped`: the wall's clock was set by so many seconds. Deadlines go on as they were; the sweep pauses."""

    seconds: float


class RetentionHeld(Event, frozen=True):
    """`retention.held`: after a jump of time, a sweep would remove `due` of `kept` messages, so it waits for a person."""

    due: int
    kept: int


class ClientConnected(Event, frozen=True):
    """`client.connected`: a push connection of this process was opened."""

    client: str
    transport: str


class ClientDisconnected(Event, frozen=True):
    """`client.disconnected`: a push connection of this process ended; `close_code` as in RFC 6455, 1006 unclean."""

    client: str
    transport: str
    close_code: int


class RateLimitHit(Event, frozen=True):
    """`rate_limit.hit`: a caller was refused for asking too often. `scope`: told apart by address, key or client."""

    scope: str
    caller: str
    retry_after_seconds: float


class Audited(Event, frozen=True):
    """`audited`: somebody administered, or was refused for who they are. `actor`: a caller's name; `outcome`: done, refused
    or failed; `address`: the peer's, if there is one; `detail`: plain values, no secrets."""

    action: str
    actor: str
    target: str
    outcome: str
    address: str = ""
    request_id: str = ""
    detail: dict[str, str] = {}


class BusStarted(Event, frozen=True):
    """This process serves."""


class BusStopping(Event, frozen=True):
    """This process began to drain."""


class CanaryFlown(Event, frozen=True):
    """The message that this process sends through itself arrived after so many seconds; None: it was lost."""

    seconds: float | None
