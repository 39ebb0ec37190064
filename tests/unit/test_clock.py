"""The clock of deadlines: it runs on, whatever is done to the wall's clock, and all workers share it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from bus.clock import Clock

YEAR_NS = 365 * 86400 * 10**9


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    anchored = Clock(tmp_path / "clock")
    anchored.anchor()
    anchored.start()
    return anchored


def set_wall(monkeypatch: pytest.MonkeyPatch, ahead_ns: int) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead_ns)


def test_it_begins_at_the_time_of_day(clock: Clock) -> None:
    assert abs(clock.now_us() - time.time_ns() // 1000) < 1_000_000


@pytest.mark.parametrize("ahead_ns", [YEAR_NS, -YEAR_NS, -time.time_ns()], ids=["a year on", "a year back", "1970"])
def test_no_step_of_the_wall_moves_it(clock: Clock, monkeypatch: pytest.MonkeyPatch, ahead_ns: int) -> None:
    before = clock.now_us()
    set_wall(monkeypatch, ahead_ns)
    assert before <= clock.now_us() < before + 1_000_000


def test_a_worker_that_comes_after_a_step_shares_the_others_time(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_wall(monkeypatch, YEAR_NS)
    late = Clock(tmp_path / "clock")
    late.start()
    assert abs(late.now_us() - clock.now_us()) < 1_000_000


def test_a_step_is_said_once(clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    set_wall(monkeypatch, 3600 * 10**9)
    with caplog.at_level(logging.WARNING, "bus.clock"):
        for _ in range(3):
            clock.look_for_step()
    assert [record.message for record in caplog.records] == [
        "The clock was set by +3600 s; leases, delays and expiry go on as they were"
    ]


def test_it_goes_by_another_clock_and_never_falls(clock: Clock) -> None:
    clock.follow(clock.now_us() + 5_000_000)
    ahead = clock.now_us()
    clock.follow(ahead - 3_000_000)
    soon = clock.now_us()

    assert ahead >= time.time_ns() // 1000 + 4_000_000
    assert soon >= ahead


def test_it_comes_back_to_another_clock_by_running_slower(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    here = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: here)
    clock.follow(10_000_000)
    seen = []
    for second in range(1, 25):
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _, second=second: here + second * 10**9)
        clock.follow(8_000_000 + second * 1_000_000)  # it was set back by two seconds
        seen.append(clock.now_us())

    assert seen == sorted(set(seen))
    assert seen[0] == 10_900_000
    assert seen[-1] == 32_000_000
