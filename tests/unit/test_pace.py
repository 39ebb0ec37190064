"""When a wide flush waits, and that it never waits for nothing."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

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
