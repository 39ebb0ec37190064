"""The JSON answers of REST as structs: what is sent, and what `/openapi.json` says is sent."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from bus.protocol import Send
from bus.resume import Gap

SEND_BODY = Annotated[Send, msgspec.Meta(extra_json_schema={"required": ["to"]})]
"""A send over REST. The struct asks for nothing: a missing field is refused later, with a code of its own. `from` may be
left out by a credential that stands for one client."""


class Fate(msgspec.Struct):
    """What happens to a message for one recipient: delivered, queued, unknown, refused, dropped, scheduled; `sent` for
    all, topics and queues."""

    client: str
    state: str
    online: int | msgspec.UnsetType = msgspec.UNSET


class Standing(msgspec.Struct):
    """How a message stands with one recipient: waiting, handed_over, confirmed; of one that needs an ack: waiting,
    leased, resting, acked, dead_letter. `by`: who has it in hands, or settled it; `since`, `until`: of the lease, or the end
    of the rest; `settled_at`: of the last day; `attempts`: those that have ended."""

    client: str
    state: str
    attempt: int | msgspec.UnsetType = msgspec.UNSET
    failures: int | msgspec.UnsetType = msgspec.UNSET
    by: str | msgspec.UnsetType = msgspec.UNSET
    since: str | msgspec.UnsetType = msgspec.UNSET
    until: str | msgspec.UnsetType = msgspec.UNSET
    settled_at: str | msgspec.UnsetType = msgspec.UNSET
    attempts: list[Attempt] | msgspec.UnsetType = msgspec.UNSET


class Attempt(msgspec.Struct):
    """One time that a message was in somebody's hands."""

    attempt: int
    consumer: str
    began_at: str | None
    ended_at: str
    outcome: str
    reason: str | None


class Sent(msgspec.Struct):
    """The receipt of a send, given after the commit. status: sent, or scheduled until `deliver_at`."""

    status: str
    message_id: str
    seq: int | None
    timestamp: str
    recipients: list[Fate]
    duplicate: bool | msgspec.UnsetType = msgspec.UNSET
    deliver_at: str | msgspec.UnsetType = msgspec.UNSET


class BatchBody(msgspec.Struct):
    """Up to 1,000 messages for one commit; atomic: all are stored, or none."""

    messages: list[Send]
    atomic: bool = False


class BatchSent(msgspec.Struct):
    """A receipt or an error for each message, in order."""

    count: int
    results: list[dict[str, Any]]


class MessageBody(msgspec.Struct):
    """A message as every recipient sees it. From `priority` on, a field is there when it was set."""

    id: str
    seq: int | None
    from_: str = msgspec.field(name="from")
    to: str | list[str]
    type: str
    payload: Any
    timestamp: str
    requires_ack: bool
    priority: str | msgspec.UnsetType = msgspec.UNSET
    correlation_id: str | msgspec.UnsetType = msgspec.UNSET
    reply_to: str | msgspec.UnsetType = msgspec.UNSET
    thread_id: str | msgspec.UnsetType = msgspec.UNSET
    headers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    expires_at: str | msgspec.UnsetType = msgspec.UNSET
    attempt: int | msgspec.UnsetType = msgspec.UNSET
    redelivered: bool | msgspec.UnsetType = msgspec.UNSET
    replayed: bool | msgspec.UnsetType = msgspec.UNSET
    replay_of: str | msgspec.UnsetType = msgspec.UNSET
    redriven: bool | msgspec.UnsetType = msgspec.UNSET
    restored: bool | msgspec.UnsetType = msgspec.UNSET
    exclude: list[str] | msgspec.UnsetType = msgspec.UNSET
    verified: bool | msgspec.UnsetType = msgspec.UNSET
    on_behalf_of: str | msgspec.UnsetType = msgspec.UNSET


class Messages(msgspec.Struct):
    """A page of messages. `cursor` is where the next page begins; `gap` tells what could not be resumed."""

    count: int
    messages: list[MessageBody]
    cursor: str
    more: bool
    gap: Gap | msgspec.UnsetType = msgspec.UNSET
    expired: int | msgspec.UnsetType = msgspec.UNSET


class OneMessage(msgspec.Struct):
    """A message, and how it stands with each named recipient; `deliver_at` of one that waits for its time."""

    message: MessageBody
    recipients: list[Standing]
    deliver_at: str | msgspec.UnsetType = msgspec.UNSET


class Client(msgspec.Struct):
    """A known client. `waiting`: messages neither pushed to it nor fetched by it."""

    client: str
    online: bool
    connected_since: str | None
    over: str | None
    connections: int
    waiting: int
    first_seen: str
    last_seen: str


class Clients(msgspec.Struct):
    """Known clients by name. `cursor` is for the next page, if there is `more`."""

    clients: list[Client]
    cursor: str
    more: bool


class StatusMetrics(msgspec.Struct):
    """`total_messages` since the log began; the other totals since the server did."""

    total_messages: int
    total_connections: int
    active_connections: int
    errors: int
    messages_per_minute: int
    last_message_time: str | None


class StatusConnections(msgspec.Struct):
    active: int
    by_client: dict[str, int]


class StatusQueue(msgspec.Struct):
    """Messages that wait for their commit in this process, and how many may."""

    current: int
    max: int


class Durability(msgspec.Struct):
    """What an acknowledged send survives."""

    setting: str
    store: str
    survives: str


class Status(msgspec.Struct):
    """The whole bus: all workers."""

    status: str
    mode: str
    version: str
    metrics: StatusMetrics
    connections: StatusConnections
    queue: StatusQueue
    pending_acks: int
    durability: Durability
    epoch: str
    cursor: str
    workers: int


class Cleared(msgspec.Struct):
    """How many messages were cleared, and where the log goes on."""

    status: str
    cleared: int
    cursor: str


class Health(msgspec.Struct):
    status: str
