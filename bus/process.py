"""What a worker asks of its process: enough file descriptors, a collector that looks seldom, and whose child it is."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import psutil

SAME_SECONDS = 60.0
"""By how much a process's time of birth may seem to move when the clock is set right."""


def calm_collector() -> None:
    """What is there now stays, and messages in flight make no cycles: looking for some took a quarter of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def raise_file_limit() -> None:
    """As many files as the system lets this process open: a socket is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
