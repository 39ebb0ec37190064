"""The audience of topics: the subscriptions of this process's connections and waiting requests, and what is due to them.

What goes to a topic waits with all else for the end of the turn. Then connections that are due the same are put
together, so that its frames are joined once; a connection's messages come in seq order, whatever their addresses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import NamedTuple

from gevent.event import Event

from bus.backplane import Backplane
from bus.connection import Connection, Encoding
from bus.message import Message, is_for, set_apart
from bus.topics import TopicIndex, TopicSet, check_count

by_seq = attrgetter("seq")


class Share(NamedTuple):
    """Live connections that are due the same messages, topics and all else, in seq order."""

    encoding: Encoding
    members: tuple[Connection, ...]
    due: list[Message]


class Audience:
    """Event loop only. A connection's number, for the neighbours, is its descriptor: no two that are open share one.

    `_index`: the connections that joined; `_waiting`: the requests that wait for a message. `due`: this turn's messages
    to topics that somebody here subscribed to.
    """

    def __init__(self, backplane: Backplane) -> None:
        self._backplane = backplane
        self._index: TopicIndex[Connection] = TopicIndex()
        self._waiting: TopicIndex[Event] = TopicIndex()
        self.due: list[Message] = []

    # ---- subscribing

    def subscribe(self, connection: Connection, patterns: Collection[str]) -> None:
        """Add checked patterns, from now on. Raises Malformed when they are too many; then nothing is added."""
        before = connection.topics.patterns if connection.topics else frozenset()
        after = before.union(patterns)
        check_count(after)
        connection.topics = TopicSet(after) if after else None
        added = after - before
        for pattern in added:
            self._index.add(pattern, connection)
        if added:
            self._backplane.announce_topics(connection.descriptor, added, added=True)

    def unsubscribe(self, connection: Connection, patterns: Collection[str]) -> None:
        """Take patterns away, from now on. What was not subscribed to is passed over."""
        before = connection.topics.patterns if connection.topics else frozenset()
        after = before.difference(patterns)
        connection.topics = TopicSet(after) if after else None
        removed = before - after
        for pattern in removed:
            self._index.discard(pattern, connection)
        if removed:
            self._backplane.announce_topics(connection.descriptor, removed, added=False)

    def enter(self, connection: Connection) -> None:
        """A connection joined: what it brought in `topics` begins to count."""
        if connection.topics is not None:
            for pattern in connection.topics.patterns:
                self._index.add(pattern, connection)
            self._backplane.announce_topics(connection.descriptor, connection.topics.patterns, added=True)

    def leave(self, connection: Connection) -> None:
        """A connection left. Its descriptor is still open."""
        if connection.topics is not None:
            self._index.drop(connection)
            self._backplane.announce_topics(connection.descriptor, connection.topics.patterns, added=False)
            connection.topics = None

    def subscriptions(self) -> Iterable[tuple[int, tuple[str, ...]]]:
        """All connections with subscriptions: their numbers and patterns."""
        return [(connection.descriptor, patterns) for connection, patterns in self._index.subscribers()]

    # ---- waiting

    def wait(self, event: Event, topics: TopicSet) -> None:
        """Have `event` set when something comes that matches. Give it back with `forget`."""
        for pattern in topics.patterns:
            self._waiting.add(pattern, event)

    def forget(self, event: Event) -> None:
        self._waiting.drop(event)

    # ---- fan-out

    def online(self, topic: str) -> int:
        """How many connections, on any worker, have a subscription that matches."""
        return len(self._index.match(topic)) + self._backplane.subscribers(topic)

    def hear(self, message: Message) -> None:
        """A message to a topic came."""
        if self._index.match(message.address):
            self.due.append(message)
        if self._waiting:
            for event in self._waiting.match(message.address):
                event.set()

    def shares(self, everybody: list[Message]) -> list[Share]:
        """Take what is due to topics, and say what each live connection that hears of it is due in all.

        That is its room's own mail and `everybody`, the messages to `all`, too. Lagging ones count what they lose.
        """
        due, self.due = self.due, []
        by_topic: dict[str, list[Message]] = {}
        for message in due:
            by_topic.setdefault(message.address, []).append(message)
        groups: dict[tuple[Encoding, str, tuple[str, ...]], list[Connection]] = {}
        apart = set_apart(everybody)
        for connection, topics in self._heard(by_topic).items():
            room = connection.room
            if not connection.live or room is None:
                connection.dropped += sum(not message.seq for topic in topics for message in by_topic[topic])
                continue
            own = room.name if room.due or room.name in apart else ""
            groups.setdefault((connection.encoding, own, tuple(topics)), []).append(connection)
        shares = []
        for (encoding, own, heard), members in groups.items():
            of_topics = [message for topic in heard for message in by_topic[topic]]
            shares.append(Share(encoding, tuple(members), _whole(members[0], own, of_topics, everybody)))
        return shares

    def _heard(self, by_topic: Iterable[str]) -> dict[Connection, list[str]]:
        """Which of the topics each connection hears."""
        heard: dict[Connection, list[str]] = {}
        for topic in by_topic:
            for connection in self._index.match(topic):
                topics = heard.get(connection)
                if topics is None:
                    heard[connection] = [topic]
                else:
                    topics.append(topic)
        return heard


def _whole(member: Connection, own: str, of_topics: list[Message], everybody: list[Message]) -> list[Message]:
    """All that a group of connections is due. `own` names the room, if what everybody is due is not all else it owes."""
    if own:
        assert member.room is not None
        everybody = [message for message in everybody if is_for(message, own)]
        return sorted([*of_topics, *member.room.due, *everybody], key=by_seq)
    return sorted([*of_topics, *everybody], key=by_seq)
