"""Buckets: no window sees more than the limit, whoever asks all the time gets nearly all of it, and waits are honest."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.limits.buckets import SLICES, Grant
from bus.limits.shared_buckets import ROWS, SETS, SharedBuckets

START_US = 1_700_000_000_000_000


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, path: Path) -> None:
        self.us = START_US
        self.table = SharedBuckets(path, lambda: self.us)

    def close(self) -> None:
        self.table.close()


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    made = Clock(tmp_path / "table")
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clock]:
    made = Clock(tmp_path_factory.mktemp("buckets") / "table")
    yield made
    made.close()


STEPS = st.lists(st.tuples(st.integers(0, 15_000_000), st.integers(1, 7)), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 40), window=st.sampled_from([60, 3600]), steps=STEPS)
def test_no_window_of_time_sees_more_than_the_limit(
    shared_clock: Clock, limit: int, window: int, steps: list[tuple[int, int]]
) -> None:
    bucket = shared_clock.table.bucket(os.urandom(8).hex(), limit, window)
    window_us, slice_us = window * 1_000_000, window * 1_000_000 // SLICES
    granted: list[tuple[int, int]] = []

    def taken_within(us: int) -> int:
        return sum(cost for at_us, cost in granted if at_us > shared_clock.us - us)

    for pause_us, cost in steps:
        shared_clock.us += pause_us * window // 60
        grant = bucket.take(cost)
        if grant.wait_seconds:
            assert taken_within(window_us + slice_us) + cost > limit, "Refused, although there was room."
        else:
            assert taken_within(window_us) + cost <= limit
            assert grant.remaining <= limit - taken_within(window_us) - cost
            granted.append((shared_clock.us, cost))


@settings(max_examples=40, deadline=None)
@given(limit=st.integers(1, 30), steps=STEPS, cost=st.integers(1, 30))
def test_who_comes_back_when_told_is_let_in_and_not_before(
    shared_clock: Clock, limit: int, steps: list[tuple[int, int]], cost: int
) -> None:
    bucket = shared_clock.table.bucket(os.urandom(8).hex(), limit, 60)
    for pause_us, taken in steps:
        shared_clock.us += pause_us
        bucket.take(taken)
    cost = min(cost, limit)
    grant = bucket.take(cost)
    if grant.wait_seconds:
        came_us = shared_clock.us
        shared_clock.us = came_us + round(grant.wait_seconds * 1e6) - 1
        assert bucket.take(cost).wait_seconds > 0
        shared_clock.us += 1
        assert not bucket.take(cost).wait_seconds


def test_who_asks_all_the_time_gets_nearly_all_of_the_limit(clock: Clock) -> None:
    bucket = clock.table.bucket("greedy", 100, 60)
    granted = 0
    for _ in range(10 * 60 * 20):
        clock.us += 50_000
        granted += not bucket.take(1).wait_seconds
    assert 900 <= granted <= 1000


def test_a_burst_may_have_the_whole_limit_at_once(clock: Clock) -> None:
    bucket = clock.table.bucket("bursty", 60, 60)
    outcomes = [bucket.take(1) for _ in range(100)]
    assert [bool(grant.wait_seconds) for grant in outcomes] == [False] * 60 + [True] * 40
    assert [grant.remaining for grant in outcomes[:60]] == list(range(59, -1, -1))
    assert 55 <= outcomes[-1].wait_seconds <= 62.5


def test_what_is_refused_costs_nothing_and_what_is_given_back_is_there_again(clock: Clock) -> None:
    bucket = clock.table.bucket("batches", 10, 60)
    assert bucket.take(8).remaining == 2
    assert bucket.take(3).wait_seconds
    assert bucket.take(2).remaining == 0
    bucket.give_back(2)
    assert bucket.take(0) == Grant(10, 60, 2, bucket.take(0).full_seconds)
    bucket.take(2)
    assert bucket.take(0).wait_seconds


def test_more_at_once_than_the_limit_never_passes(clock: Clock) -> None:
    assert clock.table.bucket("huge", 10, 60).take(11).wait_seconds
    assert clock.table.bucket("huge", 10, 60).take(10).remaining == 0


def test_callers_and_windows_do_not_touch_one_another(clock: Clock) -> None:
    clock.table.bucket("a", 5, 60).take(5)
    assert clock.table.bucket("b", 5, 60).take(5).remaining == 0
    assert clock.table.bucket("a", 5, 3600).take(1).remaining == 4
    assert clock.table.bucket("a", 5, 60).take(1).wait_seconds


def test_buckets_outlive_the_processes_and_their_clock_may_be_set_back_between(tmp_path: Path) -> None:
    first = Clock(tmp_path / "table")
    first.table.bucket("kept", 5, 60).take(5)
    first.close()
    second = Clock(tmp_path / "table")
    second.us += 1_000_000
    assert second.table.bucket("kept", 5, 60).take(1).wait_seconds
    second.us -= 10 * 3600 * 1_000_000
    assert not second.table.bucket("kept", 5, 60).take(1).wait_seconds
    second.close()


def test_a_crowd_is_held_to_limits_all_the_same(clock: Clock) -> None:
    """More strangers than the table has rows for: it stays as large as it is, and nobody gets more than the limit."""
    strangers = [clock.table.bucket(f"address:{number}", 3, 60) for number in range(2 * SETS * ROWS // 4)]
    granted = [sum(not bucket.take(1).wait_seconds for _ in range(4)) for bucket in strangers]
    assert max(granted) == 3
    assert sum(granted) < 3 * len(granted)
    assert [not clock.table.bucket("key:mine", 3, 60).take(1).wait_seconds for _ in range(4)] == [1, 1, 1, 0]
    clock.us += 63 * 1_000_000
    assert not clock.table.bucket("address:late", 3, 60).take(3).wait_seconds, "Rows that are full again are free."


def hammer(path: Path, limit: int, begin: Barrier, results: multiprocessing.SimpleQueue[int]) -> None:
    """Take from one bucket until it is empty; what was granted."""
    table = SharedBuckets(path, lambda: time.monotonic_ns() // 1000)
    bucket = table.bucket("hammered", limit, 60)
    granted = 0
    begin.wait(30)
    while not bucket.take(1).wait_seconds:
        granted += 1
    results.put(granted)
    table.close()


def test_processes_that_hammer_one_bucket_get_the_limit_together(tmp_path: Path) -> None:
    count, limit = 4, 20_000
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(count), context.SimpleQueue()
    how = (tmp_path / "table", limit, begin, results)
    processes = [context.Process(target=hammer, args=how) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count
    granted = [results.get() for _ in processes]
    assert sum(granted) == limit
    assert max(granted) < limit, "They did not take at the same time."
