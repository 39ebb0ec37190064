"""Series of figures: rates and quantiles over any step, what is missing stays missing, and all slots count together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import series
from bus.families import SECONDS
from bus.metrics import Block
from bus.series import DAY_SECONDS, FIGURES, HOUR_SECONDS, SeriesFile, usual_step

NOON = 1_763_726_400
"""A whole number of days."""


def delivered(count: float, *, commits: list[int] | None = None, websockets: int = 0) -> list[Block]:
    """What a worker leaves: messages delivered, commits by bucket, open sockets."""
    counts = commits or [0] * (len(SECONDS) + 1)
    return [
        Block("bus_messages_delivered_total", "counter", "", {(("transport", "http"),): [count], (): [0]}),
        Block("bus_commit_duration_seconds", "histogram", "", {(): [*counts, 0.0]}, SECONDS),
        Block("bus_connections", "gauge", "", {(("transport", "websocket"),): [websockets]}),
    ]


def slow_and_quick(quick: int, slow: int) -> list[int]:
    """Commits below 1 ms, and between 250 and 500 ms."""
    counts = [0] * (len(SECONDS) + 1)
    counts[0], counts[SECONDS.index(0.5)] = quick, slow
    return counts


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SeriesFile]:
    made = SeriesFile(tmp_path / "series", 0)
    yield made
    made.close()


def points(file: SeriesFile, name: str, *, at: float, seconds: int, step: int = 1) -> list[float | None]:
    """The points of one series that end at a moment."""
    return file.excerpt(seconds, step, [name], at).series[name]


def test_a_rate_is_counted_between_rows_and_by_the_time_that_passed(file: SeriesFile) -> None:
    for count, moment in ((0, NOON + 0.9), (100, NOON + 1.4), (150, NOON + 2.4)):
        file.note(delivered(count))
        file.add(moment, {})
    assert points(file, "delivered_per_second", at=NOON + 2.5, seconds=3) == [None, 200, 50]
    assert points(file, "delivered_per_second", at=NOON + 2.5, seconds=4, step=2) == [None, 100]


def test_a_second_that_was_missed_is_filled_and_a_pause_is_not(file: SeriesFile) -> None:
    for count, moment in ((0, NOON + 0.99), (200, NOON + 3.0), (900, NOON + 20)):
        file.note(delivered(count))
        file.add(moment, {})
    rates = points(file, "delivered_per_second", at=NOON + 20, seconds=20)
    assert rates[:3] == pytest.approx([200 / 2.01] * 3)
    assert rates[3:] == [None] * 17


def test_what_is_told_and_what_is_not_known(file: SeriesFile) -> None:
    for second in range(3):
        file.add(NOON + second, {"published": 10 * second, "dead_letters": 7} if second != 1 else {"dead_letters": 8})
    assert points(file, "dead_letters", at=NOON + 2, seconds=3) == [7, 8, 7]
    assert points(file, "published_per_second", at=NOON + 2, seconds=3) == [None, None, None]
    assert points(file, "published_per_second", at=NOON + 2, seconds=2, step=2) == [10]
    assert points(file, "workers", at=NOON + 2, seconds=1) == [None]


def test_quantiles_are_of_the_step(file: SeriesFile) -> None:
    for second, (quick, slow) in enumerate([(0, 0), (100, 0), (100, 100)]):
        file.note(delivered(0, commits=slow_and_quick(quick, slow)))
        file.add(NOON + second, {})
    found = points(file, "commit_p99_seconds", at=NOON + 2, seconds=3)
    assert found == [None, pytest.approx(0.00099), pytest.approx(0.4975)]
    assert (
        points(file, "commit_p99_seconds", at=NOON + 3, seconds=1) == found[-1:]
    )  # nothing was added in this second yet


def test_a_step_without_a_commit_has_no_quantile(file: SeriesFile) -> None:
    for second in range(2):
        file.note(delivered(0, commits=slow_and_quick(5, 5)))
        file.add(NOON + second, {})
    assert points(file, "commit_p99_seconds", at=NOON + 1, seconds=1) == [None]


def test_all_slots_count_together_and_the_gone_keep_what_they_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = SeriesFile(tmp_path / "series", 0), SeriesFile(tmp_path / "series", 7)
    clock = itertools.count(1000, 0)
    monkeypatch.setattr(series.time, "monotonic", lambda: next(clock))
    for second, (first, other) in enumerate([(1, 10), (2, 30)]):
        one.note(delivered(first, websockets=1))
        two.note(delivered(other, websockets=2))
        one.add(NOON + second, {})
    clock = itertools.count(1006, 0)
    one.note(delivered(5, websockets=1))
    two.add(NOON + 2, {})
    assert points(two, "delivered_per_second", at=NOON + 2, seconds=2) == [21, 3]
    assert points(one, "websockets", at=NOON + 2, seconds=3) == [3, 3, 1]
    one.close()
    two.close()


def test_after_a_restart_what_went_before_is_there_and_no_rate_falls_below_zero(tmp_path: Path) -> None:
    before = SeriesFile(tmp_path / "series", 0)
    for second in range(2):
        before.note(delivered(100 * second))
        before.add(NOON + second, {})
    before.close()
    after = SeriesFile(tmp_path / "series", 0)
    for second in (2, 3):
        after.note(delivered(second))
        after.add(NOON + second, {})
    assert points(after, "delivered_per_second", at=NOON + 3, seconds=4) == [None, 100, None, 1]
    after.close()


def test_a_file_of_another_version_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "series").write_bytes(b"\x01" * 5000)
    opened = SeriesFile(tmp_path / "series", 0)
    assert points(opened, "workers", at=NOON, seconds=3) == [None] * 3
    opened.close()


def test_a_day_is_kept_by_minutes_and_an_hour_by_seconds(file: SeriesFile) -> None:
    for second in range(0, DAY_SECONDS, 30):
        file.note(delivered(second * 10))
        file.add(NOON + second, {"workers": second})
    end = NOON + DAY_SECONDS - 30
    day = points(file, "delivered_per_second", at=end, seconds=DAY_SECONDS, step=300)
    assert day[0] is None
    assert day[1:] == [10.0] * (DAY_SECONDS // 300 - 1)
    hour = points(file, "workers", at=end, seconds=HOUR_SECONDS, step=30)
    assert hour == list(range(DAY_SECONDS - HOUR_SECONDS, DAY_SECONDS, 30))


def test_points_stand_at_multiples_of_the_step_and_old_ones_stay(file: SeriesFile) -> None:
    for second in range(20):
        file.note(delivered(second))
        file.add(NOON + second, {})
    found = file.excerpt(10, 5, ["delivered_per_second"], NOON + 19.5)
    assert (found.begins - NOON, found.step_seconds) == (10, 5)
    assert found.series == {"delivered_per_second": [1, 1]}
    assert file.excerpt(10, 5, ["delivered_per_second"], NOON + 40).series == {"delivered_per_second": [None, None]}


@pytest.mark.parametrize(
    ("seconds", "step"), [(60, 1), (360, 1), (361, 5), (3600, 10), (3601, 60), (21600, 60), (DAY_SECONDS, 300)]
)
def test_the_usual_step_gives_a_chart_few_points(seconds: int, step: int) -> None:
    assert usual_step(seconds) == step


def test_every_figure_says_what_it_means(file: SeriesFile) -> None:
    file.note(delivered(1))
    file.add(NOON, {})
    file.add(NOON + 1, {})
    for name, figure in FIGURES.items():
        assert figure.help
        (value,) = points(file, name, at=NOON + 1, seconds=1)
        assert value is None or math.isfinite(value)
