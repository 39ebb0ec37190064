"""What the tail does when blocks are missing, and when the store can't be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import gevent
import pytest
from gevent.event import Event

from bus import tail
from bus.message import Kind, Message
from bus.storage import Page
from bus.tail import Tail
from bus.threads import WorkerPool


def message(seq: int) -> Message:
    return Message(Kind.CLIENT, "b", ("b",), "a", "message", b"{}", 0, seq=seq)


class Readers:
    """A pool that is told what became of each job. `asked` is set by the next one."""

    def __init__(self) -> None:
        self.asked = Event()
        self.then: Callable[[Any, BaseException | None], None]

    def submit(self, job: Callable[[Any], Any], then: Callable[[Any, BaseException | None], None]) -> None:
        self.then = then
        self.asked.set()


class Log:
    """A tail, and what it delivered."""

    def __init__(self) -> None:
        self.readers = Readers()
        self.seqs: list[int] = []
        self.tail = Tail(cast("WorkerPool", self.readers), self._deliver, lambda: None)
        self.tail.anybody = True

    def _deliver(self, messages: list[Message]) -> None:
        self.seqs += [message.seq for message in messages]


def test_a_gap_is_read_again_after_a_failure_though_nothing_is_committed() -> None:
    log = Log()
    log.tail.offer(2, 2, [message(2)])
    assert log.readers.asked.wait(5)
    log.readers.then(None, OSError("the disk failed"))
    log.readers.asked.clear()
    log.tail.start(0)
    assert log.readers.asked.wait(5)
    log.readers.then(None, None)  # the poll: nothing new
    log.tail.stop()
    log.readers.then(Page([message(1)], 1, more=False, lost_through=0), None)
    assert log.seqs == [1, 2]


def test_each_gap_is_waited_for_as_long_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "GAP_WAIT_SECONDS", 0.1)
    log = Log()
    log.tail.offer(2, 2, [message(2)])
    assert log.readers.asked.wait(5)
    log.readers.then(Page([message(1)], 1, more=False, lost_through=0), None)
    log.readers.asked.clear()
    log.tail.offer(4, 4, [message(4)])
    gevent.spawn_later(0.01, log.tail.offer, 3, 3, [message(3)])
    gevent.sleep(0.2)
    assert not log.readers.asked.is_set()
    assert log.seqs == [1, 2, 3, 4]
