"""The sweep where the log is not in the order of expiry, and where the archive's folder holds what it can't read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.errors import Conflict
from bus.retention import archiver, retention
from bus.retention.retention import Wanted
from tests.unit.retention_bench import DAY, HOUR, SECOND, RetentionBench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[RetentionBench]:
    made = RetentionBench(tmp_path)
    made.sweep()
    yield made
    made.close()


def test_what_a_shorter_policy_left_alone_holds_nothing_newer_back(bench: RetentionBench) -> None:
    bench.policy("job", seconds=7 * 86_400.0)
    old = [bench.send("job") for _ in range(700)]
    bench.sweep()
    bench.policy("job", seconds=3600.0, to_stored=False)
    young = [bench.send("job") for _ in range(700)]
    bench.wait(HOUR - SECOND)
    assert bench.stored() == old + young
    bench.wait(SECOND)
    assert bench.stored() == old
    bench.restart()  # the places are found again
    young = [bench.send("job")]
    bench.wait(HOUR)
    assert bench.stored() == old
    bench.wait(7 * DAY)
    bench.retention.ask_for_sweep()
    bench.sweep()
    assert bench.stored() == []


def test_a_type_that_is_given_back_keeps_its_stored_messages_lives_and_holds_no_other_back(
    bench: RetentionBench,
) -> None:
    bench.policy("report", seconds=7 * 86_400.0)
    old = bench.send("report")
    bench.sweep()
    bench.retention.delete("report", to_stored=False)
    young = bench.send("message")
    bench.wait(DAY)
    assert young not in bench.stored()
    assert bench.stored() == [old]
    bench.wait(6 * DAY)
    assert bench.stored() == []


def test_after_a_start_with_a_clock_a_year_ahead_the_log_does_not_grow(bench: RetentionBench) -> None:
    year = 365 * DAY
    bench.now += year
    ahead = bench.send()
    bench.restart()
    bench.retention.ask_for_sweep()
    bench.sweep()
    bench.now -= year
    bench.restart()  # with the right clock
    for _ in range(3):
        bench.send()
        bench.wait(DAY)
    assert bench.stored() == [ahead]
    assert bench.readable() == [ahead]
    bench.wait(year)
    assert bench.stored() == []


def test_strays_that_are_archived_go_there_once(bench: RetentionBench) -> None:
    bench.policy("kept", seconds=7 * 86_400.0, archive=True)
    old = [bench.send("kept") for _ in range(3)]
    bench.sweep()
    bench.policy("kept", seconds=3600.0, archive=True, to_stored=False)
    young = [bench.send("kept") for _ in range(3)]
    bench.wait(HOUR)
    assert bench.archived() == young
    bench.wait(7 * DAY)
    assert sorted(bench.archived()) == old + young


def test_while_a_change_is_applied_no_other_can_leave_stored_messages_alone(
    bench: RetentionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TRIES", 1)
    bench.policy("job", seconds=7 * 86_400.0)
    before = bench.retention.policies()
    with pytest.raises(Conflict, match="being given"):
        bench.policy("job", seconds=3600.0, to_stored=False)
    assert bench.retention.policies() == before
    bench.policy("$audit", seconds=86_400.0, to_stored=False)  # there is nothing stored that it could touch
    bench.sweep()
    bench.policy("job", seconds=3600.0, to_stored=False)


@pytest.mark.parametrize("damage", ["gone", "cut", "garbage"])
def test_a_damaged_file_of_the_archive_stops_no_sweep(
    bench: RetentionBench, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    bench.send("error")
    bench.wait(HOUR)
    (file,) = (bench.folder / "archive").glob("*.gz")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-12] if damage == "cut" else b"none of ours")
    bench.write(lambda t: t.execute("UPDATE archives SET complete = 0"))  # as if it had been killed in between
    seq = bench.send("error")
    bench.restart()
    bench.wait(HOUR)
    bench.retention.ask_for_sweep()
    bench.sweep()
    assert bench.stored() == []
    assert "can't be read" in caplog.text
    found = bench.retention.search(Wanted(), (0, 0), 10)
    assert [line.seq for line in found.lines] == [seq]
    bench.restart()
    bench.sweep()  # a stray file that can't be read is left where it is
    assert file.exists() == (damage != "gone")


def test_a_search_passes_over_what_is_damaged(bench: RetentionBench, caplog: pytest.LogCaptureFixture) -> None:
    bench.send("error")
    bench.wait(HOUR)
    (file,) = (bench.folder / "archive").glob("*.gz")
    bench.send("error")
    bench.wait(HOUR)
    file.write_bytes(b"none of ours")
    assert [line.seq for line in bench.retention.search(Wanted(), (0, 0), 10).lines] == [2]
    assert "damaged" in caplog.text


def test_a_file_of_the_archive_is_cut_by_messages_and_by_bytes(
    bench: RetentionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiver, "FILE_MESSAGES", 4)
    for _ in range(10):
        bench.send("error")
    bench.wait(HOUR)
    assert [entry.messages for entry in bench.retention.files(0, 10, None, None)] == [4, 4, 2]
    monkeypatch.setattr(archiver, "FILE_BYTES", 3 * len(b'{"n":1}'))
    for _ in range(10):
        bench.send("error")
    bench.wait(HOUR)
    assert [entry.messages for entry in bench.retention.files(3, 10, None, None)] == [3, 3, 3, 1]
