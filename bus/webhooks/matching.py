"""Which endpoints want an event: a snapshot of their filters, indexed so that those who don't want it cost nothing.

A snapshot never changes; another takes its place when the endpoints change. So it may be asked on any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from bus.topics import TopicSet
from bus.webhooks import body
from bus.webhooks.endpoints import Endpoint


class Subject(msgspec.Struct, frozen=True, gc=False):
    """What filters look at: the clients that an event is about, the topic and the type of its message."""

    clients: tuple[str, ...] = ()
    topic: str | None = None
    type: str | None = None
    to: str = ""
    sender: str = ""


class Wish(msgspec.Struct, frozen=True):
    """What of an endpoint the outbox needs. `order` says by what its deliveries are ordered."""

    number: int
    order: str | None
    clients: frozenset[str]
    types: frozenset[str]
    topics: TopicSet | None

    def fits(self, subject: Subject) -> bool:
        """True when every filter lets it through."""
        if self.clients and self.clients.isdisjoint(subject.clients):
            return False
        if self.types and subject.type not in self.types:
            return False
        return self.topics is None or (subject.topic is not None and self.topics.matches(subject.topic))


class Matcher:
    """A snapshot. What is paused is still owed, so it matches; what is disabled is not."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._patterns: list[tuple[tuple[str, ...], Wish]] = []
        for endpoint in endpoints:
            if endpoint.state != "disabled":
                config = endpoint.config
                topics = TopicSet(config.topics) if config.topics else None
                wish = Wish(endpoint.number, config.ordered, frozenset(config.clients), frozenset(config.types), topics)
                self._patterns.append((config.events, wish))
        self._by_name: dict[str, _Wanted] = {}

    def wants(self, name: str) -> bool:
        """True when an event of this name may interest anybody."""
        return bool(self._of(name))

    def matches(self, name: str, subject: Subject) -> Sequence[Wish]:
        """Who gets an event."""
        return self._of(name).matches(subject)

    def _of(self, name: str) -> _Wanted:
        wanted = self._by_name.get(name)
        if wanted is None:
            wanted = _Wanted([wish for patterns, wish in self._patterns if body.matches(patterns, name)])
            if len(self._by_name) < 1000:
                self._by_name[name] = wanted
        return wanted


class _Wanted:
    """Everybody who wants events of one name, found by the narrowest thing they ask for."""

    def __init__(self, wishes: list[Wish]) -> None:
        self._open: list[Wish] = []
        self._by_client: dict[str, list[Wish]] = {}
        self._by_type: dict[str, list[Wish]] = {}
        self._by_topic: list[Wish] = []
        for wish in wishes:
            if wish.clients:
                for client in wish.clients:
                    self._by_client.setdefault(client, []).append(wish)
            elif wish.types:
                for type_ in wish.types:
                    self._by_type.setdefault(type_, []).append(wish)
            elif wish.topics is not None:
                self._by_topic.append(wish)
            else:
                self._open.append(wish)
        self._any = bool(wishes)

    def __bool__(self) -> bool:
        return self._any

    def matches(self, subject: Subject) -> list[Wish]:
        found = list(self._open)
        if self._by_client:
            mine = {wish.number: wish for client in subject.clients for wish in self._by_client.get(client, ())}
            found += [wish for wish in mine.values() if wish.fits(subject)]
        if self._by_type and subject.type is not None:
            found += [wish for wish in self._by_type.get(subject.type, ()) if wish.fits(subject)]
        if self._by_topic and subject.topic is not None:
            found += [wish for wish in self._by_topic if wish.fits(subject)]
        return found
