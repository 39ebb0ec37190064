"""Which topics and queues a client follows: remembered, so that a new connection follows the same."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence

import msgspec


class Subscriptions:
    """The client's topics and queues. Thread-safe: one lock guards both."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Patterns, in the order in which they were named. Bounded by what the program names.
        self._topics: dict[str, None] = {}
        # Queues, in the order in which they were named.
        self._queues: dict[str, None] = {}
        # How many items of all queues together may be in flight to this client.
        self._max_in_flight = 0

    @property
    def topics(self) -> list[str]:
        """The patterns, for the URL of a connection."""
        with self._lock:
            return list(self._topics)

    @property
    def queues(self) -> list[str]:
        """The queues' names."""
        with self._lock:
            return list(self._queues)

    def add(self, topics: Iterable[str], queues: Iterable[str], max_in_flight: int) -> None:
        """Follow these, too."""
        with self._lock:
            self._topics.update(dict.fromkeys(topics))
            if added := dict.fromkeys(queues):
                self._queues.update(added)
                self._max_in_flight = max_in_flight

    def remove(self, topics: Iterable[str], queues: Iterable[str]) -> None:
        """Follow these no longer; what was not followed is passed over."""
        with self._lock:
            for topic in topics:
                self._topics.pop(topic, None)
            for queue in queues:
                self._queues.pop(queue, None)

    def frames(self, named: Collection[str]) -> list[bytes]:
        """What a new connection, with the topics `named` in its URL, has to say so that it gets exactly these."""
        with self._lock:
            gone = [topic for topic in named if topic not in self._topics]
            topics = [topic for topic in self._topics if topic not in named]
            queues, number = list(self._queues), self._max_in_flight
        frames = [subscribe_frame(topics, [], 0)] if topics else []
        frames += [unsubscribe_frame(gone, [])] if gone else []
        frames += [subscribe_frame([], queues, number)] if queues else []
        return frames


def subscribe_frame(topics: Sequence[str], queues: Sequence[str], max_in_flight: int, ref: str | None = None) -> bytes:
    """A `subscribe` frame; with a `ref` it is answered."""
    fields: dict[str, object] = {"type": "subscribe"}
    if topics:
        fields["topics"] = topics
    if queues:
        fields.update(queues=queues, max_in_flight=max_in_flight)
    return msgspec.json.encode(fields if ref is None else {**fields, "ref": ref})


def unsubscribe_frame(topics: Sequence[str], queues: Sequence[str], ref: str | None = None) -> bytes:
    """An `unsubscribe` frame; with a `ref` it is answered."""
    fields: dict[str, object] = {"type": "unsubscribe"}
    if topics:
        fields["topics"] = topics
    if queues:
        fields["queues"] = queues
    return msgspec.json.encode(fields if ref is None else {**fields, "ref": ref})
