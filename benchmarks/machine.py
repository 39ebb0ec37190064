"""The machine under the benchmark: which core runs what, who else used it, what its disk costs; building the C parts."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"
CALM_SECONDS = 0.3
PROGRAMS = {
    "load": tuple(
        f"{part}.c" for part in ("load", "client", "message", "dialects", "mqtt", "amqp", "stomp", "probe", "measure")
    ),
    "reference": ("reference.c",),
}


def build(folder: Path) -> dict[str, Path]:
    """Compile the C programs into the folder. Exits with a sentence when there is no compiler."""
    binaries = {}
    for name, sources in PROGRAMS.items():
        binaries[name] = folder / name
        files = [str(NATIVE / source) for source in sources]
        try:
            subprocess.run(["gcc", "-O3", "-std=gnu11", "-o", str(binaries[name]), *files], check=True)
        except FileNotFoundError:
            sys.exit(
                "The load generator is written in C, and there is no gcc here; install it (Debian: gcc libc6-dev)."
            )
    return binaries


def pinned_to(cores: set[int]) -> Callable[[], None]:
    """What a child runs before it becomes its program, so that it and all its threads stay on these cores."""
    return lambda: os.sched_setaffinity(0, cores)


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    members = [pid]
    for member in members:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return members


def cpu_seconds(pid: int) -> float:
    """Processor time of one process, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Moment:
    """Processor seconds used so far on the cores in question: all of it, and what the host took away."""

    at: float
    busy: float
    stolen: float

    @classmethod
    def now(cls, cores: set[int]) -> Moment:
        """Read /proc/stat."""
        busy = stolen = 0.0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *ticks = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
                user, nice, system, _idle, _waiting, irq, soft_irq, steal = (int(tick) for tick in ticks[:8])
                busy += user + nice + system + irq + soft_irq
                stolen += steal
        per_second = os.sysconf("SC_CLK_TCK")
        return cls(time.monotonic(), busy / per_second, stolen / per_second)


def disturbance(before: Moment, after: Moment, *, ours: float, cores: set[int]) -> float:
    """The share of the cores' time, 0 to 1, that neither server nor load used: other programs and the host."""
    foreign = after.busy - before.busy - ours + after.stolen - before.stolen
    return max(0.0, foreign / ((after.at - before.at) * len(cores)))


def wait_for_calm(cores: set[int], *, share: float, patience_seconds: float) -> None:
    """Return when others use less than this share of the cores, or when patience ends."""
    limit = time.monotonic() + patience_seconds
    while time.monotonic() < limit:
        before = Moment.now(cores)
        time.sleep(CALM_SECONDS)
        if disturbance(before, Moment.now(cores), ours=0, cores=cores) < share:
            return


def file_system(folder: Path) -> str:
    """The type of the file system that holds the folder."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        mount, kind = line.split()[1:3]
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def sync_milliseconds(folder: Path) -> float:
    """The median time of a 4 KiB append and fdatasync: what no durable acknowledgement can undercut."""
    times = []
    file = folder / "sync-probe"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(50):
            begin = time.perf_counter()
            os.write(descriptor, bytes(4096))
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - begin)
    finally:
        os.close(descriptor)
        file.unlink()
    return statistics.median(times) * 1000


def described(folder: Path) -> str:
    """One line about the machine."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {gib:.0f} GiB, {platform.machine()}, kernel {platform.release()}, "
        f"Python {platform.python_version()}; store on {file_system(folder)}, fdatasync {sync_milliseconds(folder):.2f} ms"
    )
