"""The tail of the log on this process: blocks of messages come in from anywhere, and go out in seq order, once.

Blocks come from this process's writer, from its neighbours (the backplane), and from the store. A block that runs
ahead waits a moment for the one before it; if that does not come, the store is read. A lost hint costs a poll
interval, never a message.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from itertools import count

import gevent

from bus.message import Message
from bus.storage import Page, Reader
from bus.threads import WorkerPool

log = logging.getLogger("bus.tail")

GAP_WAIT_SECONDS = 0.003
"""How long a block that runs ahead waits for its predecessor before the store is asked. A hop of the mesh takes 0.1 ms."""

POLL_SECONDS = 0.1
"""How often the store is asked whether others committed: the safety net below the backplane. One look costs 3 µs."""

PAGE_MESSAGES = 2000
PAGE_BYTES = 4 * 1024 * 1024
MAX_AHEAD = 256
"""Blocks that may wait for a predecessor; beyond, they are dropped, since the store has them."""

Deliver = Callable[[list[Message]], None]


class Tail:
    """`delivered`: everything in the log up to this seq was handed to `deliver`. Event loop only."""

    def __init__(self, readers: WorkerPool, deliver: Deliver, skipped: Callable[[], None]) -> None:
        """`deliver(messages)` gets them in order; `skipped()` hears that some were passed over, since nobody listens."""
        self._readers = readers
        self._deliver = deliver
        self._skipped = skipped
        self._ahead: list[tuple[int, int, int, list[Message]]] = []
        self._order = count()
        self._reading = self._has_failed = self._has_said = False
        self.delivered = 0
        self.on_failed: Callable[[BaseException], None] | None = None
        self.anybody = False
        """Whether anything listens on this process; if not, blocks need not be read from the store."""

        loop = gevent.get_hub().loop
        # Repeating, for `again`: libev's `start` goes on with what was left when the timer was last stopped.
        self._gap_timer = loop.timer(GAP_WAIT_SECONDS, GAP_WAIT_SECONDS)
        self._poll_timer = loop.timer(POLL_SECONDS, POLL_SECONDS)

    def start(self, head: int) -> None:
        """Begin at `head`: what is older is read by those who ask for it."""
        self.delivered = head
        self._poll_timer.start(self._poll)

    def stop(self) -> None:
        self._poll_timer.stop()
        self._gap_timer.stop()

    def offer(self, first: int, last: int, messages: list[Message]) -> None:
        """Take the block that holds all messages of first…last that still exist."""
        if last <= self.delivered:
            return
        if first > self.delivered + 1:
            if len(self._ahead) < MAX_AHEAD:
                heapq.heappush(self._ahead, (first, last, next(self._order), messages))
            if not self._gap_timer.active:  # type: ignore[attr-defined]  # missing in the stubs
                self._gap_timer.again(self._read, update=True)
            return
        self._pass_on(last, messages)
        while self._ahead and self._ahead[0][0] <= self.delivered + 1:
            _, last, _, messages = heapq.heappop(self._ahead)
            if last > self.delivered:
                self._pass_on(last, messages)
        if not self._ahead:
            self._gap_timer.stop()

    def hint(self, head: int) -> None:
        """Hear that the log reaches `head`."""
        if head <= self.delivered or self._ahead:
            return
        if self.anybody:
            self._read()
        else:
            self.delivered = head
            self._skipped()

    def _pass_on(self, last: int, messages: list[Message]) -> None:
        if messages and messages[0].seq <= self.delivered:
            messages = [message for message in messages if message.seq > self.delivered]
        self.delivered = last
        if messages:
            self._deliver(messages)

    def _read(self) -> None:
        self._gap_timer.stop()
        if self._reading:
            return
        self._reading, self._has_failed = True, False
        after = self.delivered

        def job(reader: Reader) -> Page:
            return reader.tail(after, PAGE_MESSAGES, PAGE_BYTES)

        self._readers.submit(job, self._have_read)

    def _have_read(self, page: Page, error: BaseException | None) -> None:
        self._reading = False
        if error is not None:
            self._has_failed = True  # the next poll reads again, also if nothing is committed until then
            self._say("The tail of the log could not be read, and is tried again", error)
            return
        self.offer(self.delivered + 1, page.upto, page.messages)
        if page.more or self._ahead:
            self._read()

    def _say(self, sentence: str, error: BaseException) -> None:
        """Once until it works again: the store is asked ten times a second."""
        if not self._has_said:
            self._has_said = True
            log.error("%s: %s", sentence, error, extra={"action": "tail_failed"})
        self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if self.on_failed is not None:
            self.on_failed(error)

    def _poll(self) -> None:
        def job(reader: Reader) -> int | None:
            return reader.head().seq if reader.changed() else None

        self._readers.submit(job, self._polled)

    def _polled(self, head: int | None, error: BaseException | None) -> None:
        if error is not None:
            self._say("The log can't be polled, and is tried again", error)
        elif head is not None:
            self.hint(head)
        if error is None and self._has_said:
            self._has_said = False
            log.info("The log is polled again", extra={"action": "poll_again"})
        if self._has_failed:
            self._read()
