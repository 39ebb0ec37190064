"""What a worker asks of its process: enough file descriptors, a collector that looks seldom, and whose child it is."""

from __future__ import annotations

import gc
import logging
import os
import resource
from pathlib import Path

import psutil

SAME_SECONDS = 60.0
"""By how much a process's time of birth may seem to move when the clock is set right."""

log = logging.getLogger("bus.process")

KEPT_FILES = 128
"""Files that connections leave to everything else, at least: a quarter of the limit, if that is more."""


def calm_collector() -> None:
    """What is there now stays, and messages in flight make no cycles: looking for some took a quarter of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def connections_possible(wanted: int) -> int:
    """Raise the limit of open files as far as the system lets this process, and say how many connections it may have:
    those that are wanted, or as many as leave room for requests, probes and the store."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # no limit at all is -1
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = hard - max(hard // 4, KEPT_FILES)
    if hard == resource.RLIM_INFINITY or wanted <= possible:
        return wanted
    log.warning(
        "This process may open %d files, so it takes %d connections instead of MAX_CONNECTIONS=%d; raise `ulimit -n`",
        hard,
        max(possible, 1),
        wanted,
        extra={"action": "few_files"},
    )
    return max(possible, 1)


def begins_anew(folder: Path) -> bool:
    """True for the first worker of a server; False when a server that still runs had lost all of its workers at once.

    The server is the process that starts workers. Call it while no other worker runs: it is noted in `folder`.
    """
    server = psutil.Process(os.getppid())
    note = folder / "server"
    known = note.read_text().split() if note.exists() else []
    note.write_text(f"{server.pid} {server.create_time()}")
    if len(known) != 2:
        return True
    return int(known[0]) != server.pid or abs(float(known[1]) - server.create_time()) > SAME_SECONDS
