"""The bodies and answers of bus.transports.delivery as structs: what is sent, and what `/openapi.json` says is sent."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from bus.protocol import Question
from bus.transports.answers import Attempt, MessageBody

REQUEST_BODY = Annotated[Question, msgspec.Meta(extra_json_schema={"required": ["from", "to"]})]
"""See `bus.transports.answers.SEND_BODY`."""


class Settled(msgspec.Struct):
    """What came of a verdict: acked, nacked, extended, released, rejected; superseded: another attempt is the current one,
    or the lease has ended; dead: it is a dead letter already; not_needed: the message asks for no ack."""

    message_id: str
    status: str
    attempt: int
    lease_until: str | msgspec.UnsetType = msgspec.UNSET


class Cancelled(msgspec.Struct):
    status: str
    message_id: str


class ClaimBody(msgspec.Struct):
    """Who takes, how many, for how long they wait and hold, in seconds."""

    client: str | None = None
    limit: int = 1
    wait: float | None = None
    ack_wait: float | None = None


class Claimed(msgspec.Struct):
    messages: list[MessageBody]


class CapBody(msgspec.Struct):
    """How much may wait (None: as the settings say), and what happens beyond: refuse the new, or set the oldest aside."""

    limit: int | None = None
    on_full: Literal["refuse", "dead_letter"] | None = None


class Inbox(msgspec.Struct):
    """The cap of an inbox."""

    client: str
    limit: int
    on_full: str


class Queue(msgspec.Struct):
    """depth: items that wait; in_flight: in somebody's hands. oldest_seconds: the age of the oldest of both."""

    queue: str
    depth: int
    in_flight: int
    oldest_seconds: float | None
    consumers: int
    limit: int
    on_full: str


class Queues(msgspec.Struct):
    """Queues by name. `cursor` is for the next page, if there is `more`."""

    queues: list[Queue]
    cursor: str
    more: bool


class DeadLetter(msgspec.Struct):
    """A message that did not reach `owner`: why, when, and what was tried."""

    id: str
    owner: str
    reason: str
    detail: str | None
    died_at: str
    attempts: list[Attempt]
    message: MessageBody


class DeadLetters(msgspec.Struct):
    dead_letters: list[DeadLetter]
    cursor: str
    more: bool


class RedriveOneBody(msgspec.Struct):
    """For which owner; None: for all."""

    owner: str | None = None


class RedriveBody(msgspec.Struct):
    """Which dead letters; None means any. dry_run: only count them."""

    owner: str | None = None
    reason: str | None = None
    sender: str | None = msgspec.field(default=None, name="from")
    dry_run: bool = False
    limit: int = 1000


class Redriven(msgspec.Struct):
    """How many there were, and how many were sent again; those that found no room are still there."""

    matched: int
    redriven: int


class Purged(msgspec.Struct):
    matched: int
    purged: int


class Answer(msgspec.Struct):
    """How a request stands: answered, partial, pending. `reply` is the first of the replies."""

    status: str
    request_id: str
    correlation_id: str
    missing: list[str]
    replies: list[MessageBody]
    reply: MessageBody | msgspec.UnsetType = msgspec.UNSET


class ReplayBody(msgspec.Struct):
    """Into whose inbox, from where (a cursor, an ISO time, earliest) to where (now, if not said), and how fast a second.

    `source`: inbox, what was addressed to that client (default), or log, everything. `topic`: what went to topics that
    match a pattern; it needs no source.
    """

    to: str
    since: str
    until: str | None = None
    type: str | None = None
    sender: str | None = msgspec.field(default=None, name="from")
    source: Literal["inbox", "log"] | None = None
    topic: str | None = None
    rate: float = 500.0


class Replay(msgspec.Struct):
    """status: running, done, cancelled. `cursor`: how far it is; `copied`: messages put into the inbox."""

    replay_id: str
    status: str
    to: str
    from_: str = msgspec.field(name="from")
    until: str
    cursor: str
    copied: int
    rate: float


class Replays(msgspec.Struct):
    replays: list[Replay]


class Thread(msgspec.Struct):
    """A page of a thread. participants: senders and named recipients of the whole of it."""

    thread_id: str
    count: int
    participants: list[str]
    started_at: str
    last_activity: str
    cursor: str
    more: bool
    messages: list[MessageBody]
