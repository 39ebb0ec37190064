"""Buckets over nodes: what others took counts here, and goes as their slices go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bus.limits.buckets import SLICES
from bus.limits.shared_buckets import SharedBuckets
from bus.limits.tally import TalliedBucket, Tally

SLICE_US = 60_000_000 // SLICES


class Redis:
    """The script's part, as Redis plays it: a hash for each bucket."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[tuple[str, int], int]] = {}

    def tell(self, keys: list[str], args: list[Any]) -> list[int]:
        node, now, before, _, *pairs = args
        kept = self.hashes.setdefault(keys[0], {})
        for slice_, cost in zip(pairs[::2], pairs[1::2], strict=True):
            kept[node, slice_] = kept.get((node, slice_), 0) + cost
        for name in [name for name in kept if name[1] < now - before]:
            del kept[name]
        return [value for (other, slice_), cost in kept.items() if other != node for value in (slice_, cost)]


class World:
    """Two nodes, whose time and talk a test drives."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.now_us = 1_700_000_000_000_000
        self.redis = Redis()
        self.tallies: list[Tally] = []
        for node in range(2):
            buckets = SharedBuckets(folder / f"limits-{node}", lambda: self.now_us)
            stack.callback(buckets.close)
            tally = Tally("redis://127.0.0.1:1", "bus", node, buckets)
            stack.callback(tally.stop)
            self.tallies.append(tally)

    def sync(self) -> None:
        """All nodes tell what was taken, and hear of the others."""
        for _ in range(2):
            for tally in self.tallies:
                untold, tally._untold = tally._untold, {}
                for bucket, taken in untold.items():
                    bucket.others_took(self.redis.tell([bucket.key], bucket.arguments(tally._node, taken)))
                    tally.note(bucket, 0, 0)
        for tally in self.tallies:
            tally._untold = {}

    def bucket(self, node: int, limit: int) -> TalliedBucket:
        """The bucket of one caller."""
        return self.tallies[node].bucket("key:k", limit, 60)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def taken(bucket: TalliedBucket, most: int = 100) -> int:
    """How many of single tokens are granted."""
    return sum(not bucket.take(1).wait_seconds for _ in range(most))


def test_what_others_took_is_taken_here_too(world: World) -> None:
    here, there = world.bucket(0, 30), world.bucket(1, 30)
    assert taken(here, 20) == 20
    world.sync()
    there.take(0)
    world.sync()
    grant = there.take(1)
    assert grant.remaining == 9
    assert taken(there) == 9
    here.take(0)
    world.sync()
    assert taken(here) == 0
    assert here.take(0).wait_seconds > 55


def test_a_token_comes_back_a_window_after_it_was_taken_anywhere(world: World) -> None:
    here, there = world.bucket(0, 10), world.bucket(1, 10)
    assert taken(here) == 10
    there.take(0)
    world.sync()
    wait = there.take(1).wait_seconds
    world.now_us += int(wait * 1e6) - 1
    assert taken(there) == 0
    world.now_us += 1
    assert taken(there) == 10


def test_what_was_given_back_is_there_for_others(world: World) -> None:
    here, there = world.bucket(0, 5), world.bucket(1, 5)
    here.take(5)
    here.give_back(3)
    there.take(0)
    world.sync()
    assert taken(there) == 3


def test_without_redis_each_node_holds_to_the_limit_and_forgets_the_others_in_time(world: World) -> None:
    here, there = world.bucket(0, 10), world.bucket(1, 10)
    assert taken(here) == 10
    there.take(0)
    world.sync()
    assert taken(there) == 0
    world.now_us += (SLICES + 1) * SLICE_US
    assert (taken(here), taken(there)) == (10, 10)  # nothing was heard since


@pytest.mark.parametrize("ahead", [-1, 0, 3])
def test_a_clock_that_is_ahead_a_little_does_no_harm(world: World, ahead: int) -> None:
    there = world.bucket(1, 10)
    there.others_took([there._local.present_slice() + ahead, 4])
    assert taken(there) == 6


def test_callers_of_the_last_minute_are_asked_for_again(world: World) -> None:
    here, there = world.bucket(0, 10), world.bucket(1, 10)
    here.take(0)
    world.sync()
    assert taken(there) == 10
    world.sync()
    began = next(iter(world.tallies[0]._recent.values()))
    world.tallies[0]._ask_again(began + 1.1)
    world.tallies[0]._ask_again(began + 1.2)
    world.sync()
    assert taken(here) == 0
    world.tallies[0]._ask_again(began + 1000)
    assert not world.tallies[0]._recent


def test_a_bucket_is_named_by_no_caller(world: World) -> None:
    assert "key:k" not in world.bucket(0, 10).key
    assert world.bucket(0, 10).key == world.bucket(1, 10).key
    keys: Callable[[str], str] = lambda who: world.tallies[0].bucket(who, 1, 60).key  # noqa: E731
    assert keys("a") != keys("b")
