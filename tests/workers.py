"""Which worker of a server takes a connection, chosen by the test."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from bus.testing import BusServer, eventually, processes


@contextmanager
def only(server: BusServer, pid: int) -> Iterator[None]:
    """Have one worker take all new connections: the others are stopped meanwhile, by a signal."""
    others = [other for other in server.worker_pids() if other != pid]
    try:
        eventually(lambda: _stop(server, others), what="workers that stop and hold no lock")
        yield
    finally:
        _signal(others, signal.SIGCONT)


def _stop(server: BusServer, pids: list[int]) -> bool:
    """Stop processes. False: one was in the middle of a commit, so they go on, for it would keep everybody from writing."""
    _signal(pids, signal.SIGSTOP)
    eventually(lambda: len([each for each in processes() if each.pid in pids and each.state == "T"]) == len(pids))
    with (server.data_dir / "bus.db.workers" / "writers.lock").open("rb+") as lock:
        for _ in range(100):  # a worker that goes on gives it back in no time
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.sched_yield()
            else:
                return True
    _signal(pids, signal.SIGCONT)
    return False


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
