"""How events reach extensions: handlers by event type, kept apart from the bus and from one another.

A handler runs on the event loop and may neither block nor switch, unless it was registered with `wait`: then it runs
in a greenlet of its own, behind a bounded queue. What a handler raises reaches nobody: it is logged and counted, and
one that fails FAILURES_BEFORE_MUTE times in a row is left out for MUTE_SECONDS.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.queue import Full, Queue

from bus.events import Event

log = logging.getLogger("bus.dispatch")

FAILURES_BEFORE_MUTE = 20
MUTE_SECONDS = 60.0
MAX_QUEUED = 1000


When = Callable[[], bool]


def always() -> bool:
    """When most handlers want events."""
    return True


class Guarded:
    """A callable of an extension, behind its breaker. `failed` and `dropped` are counts."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call
        self.failed = 0
        self.dropped = 0
        self._in_a_row = 0
        self._muted_until = 0.0
        self._report: Callable[..., None] = _directly

    def report_by(self, report: Callable[..., None]) -> None:
        """Have failures told by `report(tell, …)`, which has to call `tell(…)` where logging is allowed."""
        self._report = report

    def __call__(self, argument: Any) -> Any:
        """The callable's answer, or None when it failed or is muted."""
        if self._in_a_row >= FAILURES_BEFORE_MUTE:
            if time.monotonic() < self._muted_until:
                self.dropped += 1
                return None
            self._in_a_row = FAILURES_BEFORE_MUTE - 1
        try:
            answer = self.call(argument)
        except Exception as error:  # noqa: BLE001  # an extension's: told where logging is allowed
            self.failed += 1
            self._in_a_row += 1
            self._muted_until = time.monotonic() + MUTE_SECONDS
            self._report(_tell, _name(self.call), error)
            return None
        self._in_a_row = 0
        return answer


class Dispatcher:
    """Registration before the start, emission on the event loop."""

    def __init__(self) -> None:
        self._handlers: dict[type[Event], list[Callable[[Event], Any]]] = {}
        self._wanted: dict[type[Event], list[When]] = {}
        self._queues: list[tuple[Queue[Event | None], Guarded]] = []
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def on(self, kind: type[Event], handler: Callable[[Any], None], *, wait: bool, when: When = always) -> None:
        """Have `handler` called for events of `kind`; Event itself means all. It counts as hearing them while `when()`."""
        guarded = Guarded(handler)
        self._wanted.setdefault(kind, []).append(when)
        if not wait:
            self._handlers.setdefault(kind, []).append(guarded)
            return
        queue: Queue[Event | None] = Queue(MAX_QUEUED)
        self._queues.append((queue, guarded))

        def enqueue(event: Event) -> None:
            try:
                queue.put_nowait(event)
            except Full:
                guarded.dropped += 1

        self._handlers.setdefault(kind, []).append(enqueue)

    def wants(self, kind: type[Event]) -> bool:
        """True when anybody hears events of this kind: the hot path builds none for nobody."""
        return any(when() for heard in (kind, Event) for when in self._wanted.get(heard, ()))

    def emit(self, event: Event) -> None:
        """Call every handler of the event's type and of Event."""
        for kind in (type(event), Event):
            for handler in self._handlers.get(kind, ()):
                handler(event)

    def start(self) -> None:
        self._greenlets = [gevent.spawn(_work, queue, guarded) for queue, guarded in self._queues]

    def stop(self, timeout: float) -> None:
        """Let the queues empty for at most `timeout` seconds."""
        for queue, _ in self._queues:
            try:
                queue.put_nowait(None)
            except Full:
                continue
        gevent.joinall(self._greenlets, timeout=timeout)
        gevent.killall(self._greenlets)


def _directly(tell: Callable[..., None], *arguments: Any) -> None:
    tell(*arguments)


def _tell(name: str, error: Exception) -> None:
    log.error("%s failed", name, exc_info=error, extra={"action": "extension_failed"})


def _work(queue: Queue[Event | None], guarded: Guarded) -> None:
    while (event := queue.get()) is not None:
        guarded(event)


def _name(call: Callable[..., Any]) -> str:
    return f"{getattr(call, '__module__', '?')}.{getattr(call, '__qualname__', repr(call))}"
