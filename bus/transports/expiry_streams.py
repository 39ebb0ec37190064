"""Tells streams what has left the log: `message.expired`, for those that subscribe to it by name.

The process that sweeps gathers what goes, and once a second its own streams and its neighbours' are told, each in one event,
of what they may see. What is gathered is bounded, a slow reader is left out, and while no stream of any process asks, no
message is looked at for it. What was told is not kept: who needs each one has webhooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import gevent
import msgspec

from bus.connection import Connection
from bus.event_stream import Wanted
from bus.events import BusStarted, MessageExpired
from bus.message import Kind
from bus.protocol import encode
from bus.storage.rows import named
from bus.worker import Worker

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.topics import TopicSet

EVENT = "message.expired"
TELL_SECONDS = 1.0
GATHERED, GATHERED_BYTES = 1000, 256 * 1024
"""Messages of one second that are looked at, and the length of their addresses; what goes beyond is told as `more`."""

LISTED = 100
"""Messages that one event lists."""

TOLD_A_TURN = 20
"""Streams that are told before others get a turn of the event loop."""


class Gone(msgspec.Struct, array_like=True, gc=False):
    """A message that has left the log; small enough to be told to the neighbours."""

    id: str
    kind: int
    address: str
    sender: str
    type: str
    excluded: tuple[str, ...]
    reason: str

    def is_seen_by(self, client: str, topics: TopicSet | None) -> bool:
        """True when a stream could have had it, or its client sent it."""
        if client == self.sender:
            return True
        if self.kind == Kind.ALL:
            return client not in self.excluded
        if self.kind == Kind.TOPIC:
            return topics is not None and topics.matches(self.address)
        return client in named(self.kind, self.address)


class Told(msgspec.Struct):
    """How an event lists a message."""

    id: str
    type: str
    sender: str = msgspec.field(name="from")
    to: str | tuple[str, ...]
    reason: str


class Event(msgspec.Struct, tag_field="type", tag=EVENT):
    """`count` messages that this stream may see, of which the first are listed. `more`: not all that went were looked at."""

    count: int
    more: bool
    messages: list[Told]


class ExpiryStreams:
    """The streams of this process that want to know. Event loop only, `tick` in a greenlet.

    `_streams`: those; one that has ended goes with the next tick. `_gathered`: what this process removed since the last,
    and `_left_out` whether that was more; `_noted`: what neighbours removed.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._streams: set[Connection] = set()
        self._gathered: list[Gone] = []
        self._bytes = 0
        self._left_out = False
        self._noted: list[tuple[Sequence[Gone], bool]] = []
        bus.on(BusStarted, lambda _: bus.backplane.hear("gone", self._hear))
        bus.on(MessageExpired, self._gather, when=self._is_wanted)
        bus.add_worker(Worker("expiry_streams", self.tick, interval_seconds=TELL_SECONDS))

    def enter(self, connection: Connection, wanted: Wanted) -> None:
        """A stream was opened: tell it, if it asks for that."""
        if wanted.events is not None and EVENT in wanted.events:
            self._streams.add(connection)
            self._count()

    def tick(self) -> None:
        """Tell what was gathered since the last time."""
        if any(connection.descriptor < 0 for connection in self._streams):
            self._streams = {connection for connection in self._streams if connection.descriptor >= 0}
            self._count()
        told, self._noted = self._noted, []
        if self._gathered:
            told.append((self._gathered, self._left_out))
            self._bus.backplane.note(["gone", self._gathered, self._left_out])
            self._gathered, self._bytes, self._left_out = [], 0, False
        for gone, more in told:
            self._tell(gone, more=more)

    # ---- below

    def _count(self) -> None:
        self._bus.counters.set("streams_of_expiry", len(self._streams))

    def _is_wanted(self) -> bool:
        return self._bus.counters.total("streams_of_expiry") > 0

    def _gather(self, event: MessageExpired) -> None:
        message = event.message
        if len(self._gathered) >= GATHERED or self._bytes > GATHERED_BYTES:
            self._left_out = True
        elif self._is_wanted():
            self._bytes += len(message.address)
            gone_id = message.own_id or self._bus.epochs.id_of(message.seq).decode()
            whom = message.kind, message.address, message.sender
            self._gathered.append(Gone(gone_id, *whom, message.type, message.excluded, event.reason))

    def _hear(self, _: int, note: list[Any]) -> None:
        if self._streams:
            self._noted.append((msgspec.convert(note[1], list[Gone]), note[2]))

    def _tell(self, gone: Sequence[Gone], *, more: bool) -> None:
        """Streams that see the same share the text."""
        apart = _named_in(gone)
        texts: dict[Any, bytes] = {}
        for number, connection in enumerate(tuple(self._streams), 1):
            wanted, topics = _wanted(connection), connection.topics
            key = (connection.client in apart and connection.client, wanted.types, topics and topics.patterns)
            if key not in texts:
                seen = [
                    each for each in gone if wanted.takes_type(each.type) and each.is_seen_by(connection.client, topics)
                ]
                texts[key] = _event(seen, more=more) if seen else b""
            if texts[key] and connection.held is None:
                connection.reply(texts[key])
            if number % TOLD_A_TURN == 0:
                gevent.sleep(0)


def _wanted(connection: Connection) -> Wanted:
    wanted: Wanted = connection.encoding.wanted  # type: ignore[attr-defined]  # a stream's
    return wanted


def _named_in(gone: Iterable[Gone]) -> set[str]:
    """The clients that do not see just what everybody sees."""
    names: set[str] = set()
    for each in gone:
        names.update((each.sender, *each.excluded, *named(each.kind, each.address)))
    return names


def _event(seen: Sequence[Gone], *, more: bool) -> bytes:
    listed = [Told(each.id, each.type, each.sender, _shown(each), each.reason) for each in islice(seen, LISTED)]
    return encode(Event(len(seen), more, listed))


def _shown(each: Gone) -> str | tuple[str, ...]:
    if each.kind == Kind.ALL:
        return "all"
    if each.kind in (Kind.TOPIC, Kind.QUEUE):
        return f"{'topic' if each.kind == Kind.TOPIC else 'queue'}:{each.address}"
    names = named(each.kind, each.address)
    return names[0] if each.kind == Kind.CLIENT else names
