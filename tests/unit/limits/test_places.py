"""Places: connections counted over all workers; those of the dead are not."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

from bus.counters import MAX_SLOTS
from bus.limits.places import ROWS, SETS, Places


def test_workers_see_one_anothers(tmp_path: Path) -> None:
    ours, theirs = Places(tmp_path / "places", 0), Places(tmp_path / "places", MAX_SLOTS - 1)
    for _ in range(3):
        ours.take("address:a")
        theirs.take("address:a")
    theirs.take("address:b")
    assert [places.count("address:a") for places in (ours, theirs)] == [6, 6]
    assert [places.count("address:b") for places in (ours, theirs)] == [1, 1]
    theirs.leave("address:a")
    theirs.leave("address:b")
    assert [ours.count(f"address:{name}") for name in "abc"] == [5, 0, 0]
    theirs.close()
    assert ours.count("address:a") == 3
    ours.close()


def test_a_successor_begins_anew(tmp_path: Path) -> None:
    neighbour, worker = Places(tmp_path / "places", 1), Places(tmp_path / "places", 0)
    worker.take("address:a")
    assert neighbour.count("address:a") == 1
    successor = Places(tmp_path / "places", 0)
    assert neighbour.count("address:a") == successor.count("address:a") == 0
    neighbour.close()


def hold(path: Path, ready: Event, over: Event) -> None:
    """Be a worker with two connections until it ends."""
    places = Places(path, 3)
    places.take("address:a")
    places.take("address:a")
    ready.set()
    over.wait(30)


def test_who_died_has_none(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, over = context.Event(), context.Event()
    worker = context.Process(target=hold, args=(tmp_path / "places", ready, over))
    places = Places(tmp_path / "places", 0)
    worker.start()
    assert ready.wait(30)
    assert places.count("address:a") == 2
    worker.kill()
    worker.join(30)
    assert places.count("address:a") == 0
    places.close()


def test_more_callers_than_there_are_rows_are_counted_by_their_worker(tmp_path: Path) -> None:
    places, neighbour = Places(tmp_path / "places", 0), Places(tmp_path / "places", 1)
    callers = [f"address:{number}" for number in range(SETS * ROWS + 500)]
    for caller in callers:
        places.take(caller)
    assert {places.count(caller) for caller in callers} == {1}
    seen = [neighbour.count(caller) for caller in callers]
    assert set(seen) == {0, 1}
    for caller in callers:
        places.leave(caller)
    assert {neighbour.count(caller) for caller in callers} == {0}
    places.close()
    neighbour.close()
