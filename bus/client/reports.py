"""What the bus answers over REST: replies to requests, queues, dead letters, replays, threads."""

from __future__ import annotations

from typing import Literal

import msgspec

from bus.client.received import Message, message_of


class Reply(msgspec.Struct, kw_only=True, frozen=True):
    """What came of a request.

    `status` is `answered` when all who were asked have replied, `partial` when some have, `pending` when nobody has so
    far; then `Client.fetch_reply(request_id)` may have it later. `missing` names who has not replied.
    """

    status: Literal["answered", "partial", "pending"]
    request_id: str
    correlation_id: str | None = None
    reply: Message | None = None
    replies: tuple[Message, ...] = ()
    missing: tuple[str, ...] = ()


class QueueState(msgspec.Struct, kw_only=True, frozen=True):
    """A queue: `depth` items wait, the oldest for `oldest_seconds`, and `in_flight` are with a consumer.

    `limit` is how many it holds at most, and `on_full` what then happens: `refuse` or `dead_letter`.
    """

    queue: str
    depth: int = 0
    in_flight: int = 0
    oldest_seconds: float | None = None
    consumers: int = 0
    limit: int | None = None
    on_full: str | None = None


class Attempt(msgspec.Struct, kw_only=True, frozen=True):
    """One delivery of a dead letter: who had it, from when until when, and how that ended."""

    attempt: int
    consumer: str | None = None
    began_at: str | None = None
    ended_at: str | None = None
    outcome: str | None = None
    reason: str | None = None


class DeadLetter(msgspec.Struct, kw_only=True, frozen=True):
    """A message that could not be delivered to `owner` (a client, or `queue:<name>`).

    `reason` is `rejected`, `expired`, `max_attempts`, `overflow`, `no_recipient` or `invalid`.
    """

    id: str
    owner: str
    reason: str
    detail: str | None = None
    died_at: str | None = None
    attempts: tuple[Attempt, ...] = ()
    message: Message


class Swept(msgspec.Struct, kw_only=True, frozen=True):
    """How many dead letters matched, and how many of them were redriven or purged (None for the one not asked for)."""

    matched: int
    redriven: int | None = None
    purged: int | None = None


class Replay(msgspec.Struct, kw_only=True, frozen=True):
    """A replay of a part of the log into an inbox. `status` is `running`, `done` or `cancelled`."""

    replay_id: str
    status: str
    to: str | list[str] | None = None
    copied: int = 0
    start: str | None = msgspec.field(default=None, name="from")
    until: str | None = None
    cursor: str | None = None


class Thread(msgspec.Struct, kw_only=True, frozen=True):
    """A conversation: all messages that carry its id, oldest first."""

    thread_id: str
    count: int = 0
    participants: tuple[str, ...] = ()
    started_at: str | None = None
    last_activity: str | None = None
    messages: tuple[Message, ...] = ()


class Hit(msgspec.Struct, frozen=True):
    """A message that a search found. `matches` are pairs of where a word begins in `text`, and how long it is."""

    message: Message
    text: str
    matches: tuple[tuple[int, int], ...]


class Hits(msgspec.Struct, frozen=True):
    """What a search found. `more`: there is more of it. `complete`: the whole log was looked through, not just up to the
    cursor `indexed_to`."""

    hits: tuple[Hit, ...]
    more: bool
    indexed_to: str
    complete: bool


# ---- as they come: messages are kept as the text they are


class HitBody(msgspec.Struct):
    """A result of a search as it comes."""

    class Snippet(msgspec.Struct):
        """The part of its text where the words stand."""

        text: str
        matches: tuple[tuple[int, int], ...]

    message: msgspec.Raw
    snippet: Snippet

    def read(self) -> Hit:
        """The same for the caller."""
        return Hit(message_of(bytes(self.message)), self.snippet.text, self.snippet.matches)


class HitsPage(msgspec.Struct):
    """A page of results."""

    results: list[HitBody]
    cursor: str
    more: bool
    indexed_to: str
    complete: bool


class Claimed(msgspec.Struct):
    """The answer to a claim."""

    messages: list[msgspec.Raw]


class Settled(msgspec.Struct):
    """The answer to an ack or its sisters."""

    status: str
    attempt: int | None = None


class ReplyBody(msgspec.Struct, kw_only=True):
    """The answer to a request."""

    status: Literal["answered", "partial", "pending"]
    request_id: str
    correlation_id: str | None = None
    reply: msgspec.Raw = msgspec.Raw(b"null")
    replies: list[msgspec.Raw] = []
    missing: tuple[str, ...] = ()

    def read(self) -> Reply:
        """The same for the caller."""
        replies = tuple(message_of(bytes(raw)) for raw in self.replies)
        first = message_of(bytes(self.reply)) if bytes(self.reply) != b"null" else None
        return Reply(
            status=self.status,
            request_id=self.request_id,
            correlation_id=self.correlation_id,
            reply=first or (replies[0] if replies else None),
            replies=replies or ((first,) if first else ()),
            missing=self.missing,
        )


class QueuesPage(msgspec.Struct):
    """A page of queues."""

    queues: list[QueueState]
    cursor: str | None = None
    more: bool = False


class DeadLetterBody(msgspec.Struct, kw_only=True):
    """A dead letter as it comes."""

    id: str
    owner: str
    reason: str
    detail: str | None = None
    died_at: str | None = None
    attempts: tuple[Attempt, ...] = ()
    message: msgspec.Raw

    def read(self) -> DeadLetter:
        """The same for the caller."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "message"}
        return DeadLetter(**fields, message=message_of(bytes(self.message)))


class DeadLettersPage(msgspec.Struct):
    """A page of dead letters."""

    dead_letters: list[DeadLetterBody]
    cursor: str | None = None
    more: bool = False


class ReplaysPage(msgspec.Struct):
    """A page of replays."""

    replays: list[Replay]
    cursor: str | None = None
    more: bool = False


class ThreadPage(msgspec.Struct, kw_only=True):
    """A page of a thread."""

    thread_id: str
    count: int = 0
    participants: tuple[str, ...] = ()
    started_at: str | None = None
    last_activity: str | None = None
    messages: list[msgspec.Raw] = []
    cursor: str | None = None
    more: bool = False
