"""Handfuls: what a process draws in advance from a bucket that it shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.limits.drawn import HANDFULS, DrawnBucket
from bus.limits.shared_buckets import SharedBuckets

HOUR_US = 3_600_000_000


class Clock:
    us = 10 * HOUR_US

    def __call__(self) -> int:
        return self.us


def workers(folder: Path, clock: Clock, limit: int, count: int) -> list[DrawnBucket]:
    """One bucket, as so many processes see it."""
    tables = [SharedBuckets(folder / "table", clock) for _ in range(count)]
    return [DrawnBucket(table.bucket("key:a", limit, 60), limit) for table in tables]


@pytest.mark.parametrize("limit", [1, 60, 799, 800, 4000, 100_000])
def test_together_they_hand_out_no_more_than_the_limit_and_hardly_less(tmp_path: Path, limit: int) -> None:
    buckets = workers(tmp_path, Clock(), limit, 4)
    given = sum(not buckets[number % 4].take(1).wait_seconds for number in range(limit + limit // 2 + 8))
    assert limit - 4 * (limit // HANDFULS) <= given <= limit


@pytest.mark.parametrize("limit", [60, 4000])
def test_who_was_refused_waits_until_there_is_room_again(tmp_path: Path, limit: int) -> None:
    clock = Clock()
    (bucket,) = workers(tmp_path, clock, limit, 1)
    while not (refused := bucket.take(1)).wait_seconds:
        pass
    clock.us += int(refused.wait_seconds * 1e6) + 1
    assert not bucket.take(1).wait_seconds


@pytest.mark.parametrize("cost", [1, 9, 10, 11, 4000])
def test_what_was_given_back_can_be_taken_again(tmp_path: Path, cost: int) -> None:
    (bucket,) = workers(tmp_path, Clock(), 4000, 1)
    taken = 0
    while not bucket.take(cost).wait_seconds:
        taken += cost
    bucket.give_back(cost)
    assert not bucket.take(cost).wait_seconds
    assert taken <= 4000


def test_more_than_a_handful_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    one, two = workers(tmp_path, Clock(), 4000, 2)
    assert not one.take(1).wait_seconds
    assert two.take(4000).wait_seconds
    assert not two.take(3900).wait_seconds
