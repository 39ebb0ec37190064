"""Figures of the machine and of the container around the process: CPU, memory, throttling. No probe looks at them.

In a container the limit that counts is the cgroup's: 200 MB are 80 % of 256 MB, whatever the host has.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import msgspec
import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


class Memory(msgspec.Struct, frozen=True):
    """Bytes in use of the bytes there are; `limit_by`: cgroup or machine. `process_bytes`: resident, of this process."""

    used_bytes: int
    limit_bytes: int
    percent: float
    limit_by: str
    process_bytes: int


class Cpu(msgspec.Struct, frozen=True):
    """Per cent of one core that this process took, and of all cores that the machine did, since the last look.

    `throttled_percent`: of the cgroup's periods, those in which it was held back; None without such a limit.
    """

    process_percent: float
    machine_percent: float
    cores: int
    throttled_percent: float | None


class Machine:
    """Looks, and compares with its last look. Not thread-safe; a look takes well below a millisecond."""

    def __init__(self, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> None:
        self._folders = folders_of(cgroups, membership)
        self._process = psutil.Process()
        self._at = time.monotonic()
        self._cpu_seconds = time.process_time()
        self._periods = self._throttling()
        psutil.cpu_percent(None)

    def memory(self) -> Memory:
        """Memory, measured against the tightest limit there is."""
        machine = psutil.virtual_memory()
        mine = self._process.memory_info().rss
        limits = [(limit, folder) for folder in self._folders if (limit := _limit_of(folder)) is not None]
        limit, folder = min(limits, default=(machine.total, None), key=lambda each: each[0])
        if folder is None or limit >= machine.total:
            used = machine.total - machine.available
            return Memory(used, machine.total, round(100 * used / machine.total, 1), "machine", mine)
        used = _working_set(folder)
        return Memory(used, limit, round(100 * used / limit, 1), "cgroup", mine)

    def cpu(self) -> Cpu:
        """CPU since the last call."""
        now, spent, periods = time.monotonic(), time.process_time(), self._throttling()
        process_percent = 100 * (spent - self._cpu_seconds) / max(now - self._at, 0.001)
        throttled = None
        if periods is not None and self._periods is not None:
            all_of_them, held_back = periods[0] - self._periods[0], periods[1] - self._periods[1]
            throttled = round(100 * held_back / all_of_them, 1) if all_of_them else 0.0
        self._at, self._cpu_seconds, self._periods = now, spent, periods
        return Cpu(round(process_percent, 1), psutil.cpu_percent(None), os.cpu_count() or 1, throttled)

    def _throttling(self) -> tuple[int, int] | None:
        for folder in self._folders:
            found = _table(folder / "cpu.stat")
            if found.get("nr_periods"):
                return found["nr_periods"], found.get("nr_throttled", 0)
        return None


def folders_of(cgroups: Path, membership: Path) -> list[Path]:
    """The folders of the groups that this process is in, innermost first: version 2, or the memory group of version 1."""
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
        for _, controllers, path in (line for line in lines if len(line) == 3):
            if controllers == "":
                return _upwards(cgroups, path)
            if "memory" in controllers.split(","):
                return _upwards(cgroups / "memory", path)
    return []


def _upwards(root: Path, path: str) -> list[Path]:
    """A group's folder and those above it. In a container the path may be the host's, and only the root is there."""
    inner = root / path.strip("/")
    folders = [inner, *inner.parents]
    return [folder for folder in folders[: folders.index(root) + 1] if folder.is_dir()]


def _limit_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int((folder / name).read_text())
    return None


def _working_set(folder: Path) -> int:
    """What is in use and could not be dropped at once, as kubelet counts it."""
    used = 0
    for name in ("memory.current", "memory.usage_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            used = int((folder / name).read_text())
            break
    found = _table(folder / "memory.stat")
    return max(used - found.get("total_inactive_file", found.get("inactive_file", 0)), 0)


def _table(path: Path) -> dict[str, int]:
    """A file of lines with a name and a number."""
    with contextlib.suppress(OSError, ValueError):
        return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
    return {}
