"""What health is made of, each part by itself: the disk alarm, the figures of the machine, the pulse, the canary."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.errors import Unavailable
from bus.health import canary, pulse
from bus.health.disk import DiskAlarm
from bus.health.machine import Machine, folders_of
from bus.health.pulse import Pulse

GB = 1_000_000_000


def test_the_disk_alarm_waits_for_a_tenth_more_before_it_ends(tmp_path: Path) -> None:
    alarm = DiskAlarm(tmp_path, GB, 5)
    states = []
    for free in (1.01, 0.99, 1.05, 1.099, 1.101, 1.0, 0.999):
        alarm.take((int(free * GB), 10 * GB))
        states.append(alarm.is_on)
    assert states == [False, True, True, True, False, False, True]
    assert (alarm.refusal().status, alarm.refusal().code) == (507, "disk_low")


def test_the_larger_of_both_thresholds_counts_and_none_is_never(tmp_path: Path) -> None:
    alarm = DiskAlarm(tmp_path, GB, 5)
    alarm.take((5 * GB, 200 * GB))
    assert (alarm.threshold_bytes, alarm.is_on) == (10 * GB, True)
    never = DiskAlarm(tmp_path, 0, 0)
    never.take((0, GB))
    assert not never.is_on


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_in_a_container_memory_is_measured_against_its_limit(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/kubepods/pod1/box\n")
    write(tmp_path / "kubepods" / "pod1", memory__max=str(256 * 2**20), memory__current=str(210 * 2**20))
    write(tmp_path / "kubepods" / "pod1", memory__stat=f"inactive_file {10 * 2**20}\n")
    write(tmp_path / "kubepods" / "pod1" / "box", memory__max="max\n", cpu__stat="nr_periods 100\nnr_throttled 0\n")
    machine = Machine(tmp_path, membership)
    memory = machine.memory()
    assert (memory.limit_by, memory.limit_bytes, memory.used_bytes) == ("cgroup", 256 * 2**20, 200 * 2**20)
    assert memory.percent == 78.1
    write(tmp_path / "kubepods" / "pod1" / "box", cpu__stat="nr_periods 300\nnr_throttled 50\n")
    assert machine.cpu().throttled_percent == 25.0


def test_an_older_kernels_groups_are_read_too_and_none_means_the_machine(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("5:cpu,cpuacct:/a\n4:memory:/docker/abc\n")
    write(tmp_path / "memory", memory__limit_in_bytes=str(2**62))  # in the container, the root is the container's
    write(tmp_path / "memory", memory__usage_in_bytes="1000")
    assert folders_of(tmp_path, membership) == [tmp_path / "memory"]
    assert Machine(tmp_path, membership).memory().limit_by == "machine"
    assert Machine(tmp_path, tmp_path / "missing").memory().limit_by == "machine"


@pytest.mark.parametrize(("quiet_seconds", "writes"), [(0.0, 0), (canary.QUIET_SECONDS + 0.1, 1)])
def test_only_a_bus_that_is_quiet_writes_a_row_of_its_own(quiet_seconds: float, writes: int) -> None:
    written: list[Any] = []
    writer = SimpleNamespace(committed_at=time.monotonic() - quiet_seconds)
    bus: Any = SimpleNamespace(writer=writer, write=written.append)
    canary.Canary(bus, print).beat()
    assert len(written) == writes


def test_a_canary_says_where_it_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float | None] = []

    def refuse(_: object) -> None:
        raise Unavailable("The log failed.")

    bus: Any = SimpleNamespace(write=refuse)
    lost = canary.Canary(bus, told.append)
    lost.tick()
    assert (lost.problem, told, lost.seconds) == ("It was lost at the store.", [None], None)
    answers = iter([[(7,)], SimpleNamespace(seq=5)])
    bus.write, bus.read = lambda job: 7, lambda job: next(answers)
    bus.hub = SimpleNamespace(tail=SimpleNamespace(delivered=4))
    monkeypatch.setattr(canary, "DEADLINE_SECONDS", 0.05)
    lost.tick()
    assert lost.problem == "It was lost at the tail."


def test_a_loop_that_stood_still_for_half_a_minute_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    beating = Pulse()
    now[0] += 29.9
    assert beating.is_alive
    now[0] += 0.2
    assert not beating.is_alive
    beating._tick()
    assert beating.is_alive
    assert beating.lateness()[1] == pytest.approx(30.1 - pulse.BEAT_SECONDS)
