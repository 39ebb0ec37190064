"""When a wide flush waits, and that it never waits for nothing."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from bus import pace
from bus.pace import Pace


class Loop:
    """A pace with a writer that commits when it is told to; `flushed` is set by what the pace itself flushes."""

    def __init__(self) -> None:
        self.committing = False
        self.flushed = Event()
        self.pace = Pace(self._flush, lambda: self.committing)

    def _flush(self) -> None:
        self.pace.flushed(wide=True)
        self.flushed.set()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_what_is_due_to_few_waits_for_nothing(loop: Loop) -> None:
    loop.committing = True
    assert not loop.pace.waits(wide=False)


def test_a_wide_flush_does_not_wait_when_nothing_is_under_way(loop: Loop) -> None:
    assert not loop.pace.waits(wide=True)


def test_a_wide_flush_waits_for_the_commit_under_way_and_no_longer(loop: Loop) -> None:
    loop.committing = True
    assert loop.pace.waits(wide=True)
    assert loop.pace.waits(wide=False)  # what comes meanwhile goes with it
    assert loop.pace.commit_ended()
    assert not loop.pace.waits(wide=True)  # though the next commit is under way already
    loop.pace.flushed(wide=True)
    assert not loop.pace.commit_ended()


def test_a_commit_that_takes_long_is_not_waited_for(loop: Loop) -> None:
    loop.committing = True
    assert loop.pace.waits(wide=True)
    assert loop.flushed.wait(5)


def test_right_after_a_wide_flush_the_next_one_waits_a_moment(loop: Loop) -> None:
    loop.pace.flushed(wide=True)
    assert loop.pace.waits(wide=True)
    assert loop.flushed.wait(5)


def test_a_commit_that_begins_in_that_moment_is_waited_for(loop: Loop) -> None:
    loop.pace.flushed(wide=True)
    assert loop.pace.waits(wide=True)
    loop.committing = True
    assert loop.pace.waits(wide=False)
    gevent.sleep(0)
    assert not loop.flushed.is_set()
    assert loop.pace.commit_ended()
    assert not loop.pace.waits(wide=False)


def test_after_a_narrow_flush_nothing_waits(loop: Loop) -> None:
    loop.pace.flushed(wide=False)
    assert not loop.pace.waits(wide=True)


def test_each_wait_is_as_long_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "COMMIT_WAIT_SECONDS", 0.1)
    loop = Loop()
    loop.committing = True
    assert loop.pace.waits(wide=True)
    assert loop.flushed.wait(5)
    loop.flushed.clear()
    assert loop.pace.waits(wide=True)
    sooner = Event()
    gevent.spawn_later(0.01, lambda: sooner.set() if not loop.flushed.is_set() else None)
    assert loop.flushed.wait(5)
    assert sooner.is_set()


def test_a_flush_that_failed_is_tried_again() -> None:
    tried = Event()

    def flush() -> None:
        if not tried.is_set():
            tried.set()
            raise RuntimeError("a frame could not be made")
        waiting.flushed(wide=True)
        done.set()

    done = Event()
    waiting = Pace(flush, lambda: True)
    assert waiting.waits(wide=True)
    assert done.wait(5)
    assert tried.is_set()
