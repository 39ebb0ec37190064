"""Pools of native threads: how many there are, and what becomes of those beyond a pool's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent.monkey import get_original

from bus import threads
from bus.testing import eventually
from bus.threads import WorkerPool

Lock = get_original("_thread", "allocate_lock")


class Straight:
    """A mailbox that hands over at once."""

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        call(*arguments)


class Opened:
    """What a pool's thread works with."""

    def __init__(self, into: list[Opened]) -> None:
        self.open = True
        into.append(self)

    def close(self) -> None:
        self.open = False


@pytest.mark.parametrize(("overflow", "most"), [(0, 2), (3, 5)])
def test_a_pool_grows_while_jobs_wait_and_shrinks_again(
    monkeypatch: pytest.MonkeyPatch, overflow: int, most: int
) -> None:
    monkeypatch.setattr(threads, "OVERFLOW_SECONDS", 0.05)
    opened: list[Opened] = []
    done: list[Any] = []
    gate = Lock()
    gate.acquire()
    pool = WorkerPool(Straight(), lambda: Opened(opened), size=2, overflow=overflow)  # type: ignore[arg-type]
    pool.start()

    def job(_: Opened) -> None:
        gate.acquire()
        gate.release()

    for _ in range(20):
        pool.submit(job, lambda value, error: done.append(error))
    eventually(lambda: len(opened) == most, what="the threads")
    gate.release()
    eventually(lambda: len(done) == 20, what="the jobs")
    eventually(lambda: sum(each.open for each in opened) == 2, what="the end of those that are too many")
    pool.stop()

    assert done == [None] * 20
    assert len(opened) == most
