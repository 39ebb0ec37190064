"""Leases over nodes: rows with an end and a token, and what becomes of a holder that was frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
import pytest

from bus.bus import MIGRATIONS
from bus.nodes import leases as module
from bus.nodes.leases import HELD, LEASE_SECONDS, FileLeases, LeaseLost, StoreLeases, fenced
from bus.nodes.node import MIGRATIONS as TABLES
from bus.storage import Job
from bus.storage.sqlite import SqliteStore
from bus.worker import Worker


class Time:
    """The clock of the store, and the monotonic one, as a test drives them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def now_us(self) -> int:
        return int(self.now * 1e6)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


@pytest.fixture
def make(tmp_path: Path, time: Time) -> Iterator[Callable[[str], StoreLeases]]:
    """Makes the leases of a process, by its name; all on one store."""
    store = SqliteStore(
        tmp_path / "bus.db", tmp_path / "locks", time.now_us, durability="relaxed", inbox_limit=10, queue_limit=10
    )
    store.open([("core", MIGRATIONS), ("nodes", TABLES)])
    with closing(store.writer()) as writer, closing(store.reader()) as reader:

        def write(job: Any) -> Any:
            done = Job(fenced(job), lambda _: None)
            writer.commit([done])
            if done.error is not None:
                raise done.error
            return done.value

        yield lambda holder: StoreLeases(tmp_path / holder, holder, lambda job: job(reader), write)


def write_under(hold: Any, leases: StoreLeases) -> None:
    """Write something as the work of a lease does."""
    token = HELD.set(hold)
    try:
        leases._write(lambda transaction: transaction.execute("UPDATE log_head SET seq = seq"))
    finally:
        HELD.reset(token)


def test_one_has_it_until_it_is_given_back(make: Callable[[str], StoreLeases]) -> None:
    one, other = make("one"), make("other")
    hold = one.try_take("sweep")
    assert hold is not None
    assert hold.holds()
    assert other.try_take("sweep") is None
    assert other.try_take("audit") is not None
    hold.release()
    hold.release()
    assert not hold.holds()
    assert other.try_take("sweep") is not None
    assert other.taken == 0


def test_who_renews_keeps_it(make: Callable[[str], StoreLeases], time: Time) -> None:
    one, other = make("one"), make("other")
    hold = one.try_take("sweep")
    assert hold is not None
    for _ in range(10):
        time.now += LEASE_SECONDS / 2
        one.renew()
        assert other.try_take("sweep") is None
    assert hold.holds()


def test_a_holder_that_died_loses_it_once_its_time_is_over(make: Callable[[str], StoreLeases], time: Time) -> None:
    one, other, third = make("one"), make("other"), make("third")
    assert one.try_take("sweep") is not None
    time.now += LEASE_SECONDS - 0.1
    assert other.try_take("sweep") is None
    time.now += 0.2
    assert other.try_take("sweep") is not None
    assert third.try_take("sweep") is None
    assert (other.taken, third.taken) == (1, 0)


def test_who_was_frozen_past_its_end_writes_nothing_more(make: Callable[[str], StoreLeases], time: Time) -> None:
    one, other = make("one"), make("other")
    hold = one.try_take("sweep")
    assert hold is not None
    write_under(hold, one)
    time.now += LEASE_SECONDS + 1
    assert other.try_take("sweep") is not None
    with pytest.raises(LeaseLost):  # it was in the middle of its work, and has looked at no clock
        write_under(hold, one)
    assert not hold.holds()
    one.renew()
    assert other.try_take("sweep") is None


def test_who_was_frozen_notices_before_its_next_work(make: Callable[[str], StoreLeases], time: Time) -> None:
    one, other = make("one"), make("other")
    hold = one.try_take("sweep")
    assert hold is not None
    time.now += LEASE_SECONDS + 1
    assert other.try_take("sweep") is not None
    assert not hold.holds()


def test_who_was_frozen_goes_on_if_nobody_wanted_it_meanwhile(make: Callable[[str], StoreLeases], time: Time) -> None:
    one, other = make("one"), make("other")
    hold = one.try_take("sweep")
    assert hold is not None
    time.now += 10 * LEASE_SECONDS
    write_under(hold, one)
    assert hold.holds()
    assert other.try_take("sweep") is None


def test_workers_of_two_nodes_take_turns(make: Callable[[str], StoreLeases], time: Time) -> None:
    ticks: list[str] = []
    one, other = make("one"), make("other")

    def worker(leases: StoreLeases, name: str) -> Worker:
        made = Worker("sweep", lambda: ticks.append(name), interval_seconds=0.005, exclusive=True)
        made.start(leases)
        return made

    first = worker(one, "one")
    while len(ticks) < 3:
        gevent.sleep(0.005)
    second = worker(other, "other")
    while len(ticks) < 6:
        gevent.sleep(0.005)
    assert set(ticks) == {"one"}
    first.stop()
    while "other" not in ticks:
        gevent.sleep(0.005)
    time.now += LEASE_SECONDS + 1
    taken = one.try_take("sweep")
    before = len(ticks)
    while second._hold is not None:
        gevent.sleep(0.005)
    assert taken is not None
    assert len(ticks) == before
    assert second.failures == 0
    second.stop()


def test_what_is_a_nodes_own_is_done_on_each(make: Callable[[str], StoreLeases], tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = make("one"), make("other")
    hold = one.try_take_here("metrics-port")
    assert hold is not None
    assert one.try_take_here("metrics-port") is None
    assert other.try_take_here("metrics-port") is not None
    hold.release()
    assert one.try_take_here("metrics-port") is not None


def test_on_one_machine_a_lease_is_a_file_lock(tmp_path: Path) -> None:
    leases, others = FileLeases(tmp_path), FileLeases(tmp_path)
    hold = leases.try_take("sweep")
    assert hold is not None
    assert others.try_take("sweep") is None
    assert hold.fenced(len) is len
    hold.release()
    assert not hold.holds()
    assert others.try_take("sweep") is not None
