"""Who waits for a message on this process: long polls and requests, by the key they wait for, on events that the hub sets.

A key is a client's name, or `answer_to` a correlation id.
"""

from __future__ import annotations

from gevent.event import Event


def answer_to(correlation_id: str) -> str:
    """What a request waits for, as a key among the names of clients: none of them begins like this."""
    return f"$answer:{correlation_id}"


class Waiters:
    """Event loop only. `bool(waiters)` is whether anybody waits."""

    def __init__(self) -> None:
        self._events: dict[str, set[Event]] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, key: str) -> Event:
        """An event that is set when something may have come under `key`. Give it back with `discard`."""
        event = Event()
        self._events.setdefault(key, set()).add(event)
        return event

    def discard(self, key: str, event: Event) -> None:
        events = self._events.get(key, set())
        events.discard(event)
        if not events:
            self._events.pop(key, None)

    def wake(self, key: str) -> None:
        for event in self._events.get(key, ()):
            event.set()

    def wake_all(self) -> None:
        for key in self._events:
            self.wake(key)
