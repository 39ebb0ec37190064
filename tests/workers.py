"""The workers of a server one by one: which of them takes a connection, and what each of them knows."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from bus.testing import BusServer, eventually, processes
from tests.bus_nodes import BusNodes
from tests.stored import nobody_commits


@contextmanager
def only(server: BusServer, pid: int) -> Iterator[None]:
    """Have one worker take all new connections: its node's others are stopped meanwhile, by a signal."""
    with server.turned_to(pid) if isinstance(server, BusNodes) else nullcontext(server) as node:
        others = [other for other in node.worker_pids() if other != pid]
        try:
            eventually(lambda: _stop(server, others), what="workers that stop and hold no lock")
            yield
        finally:
            _signal(others, signal.SIGCONT)


def statuses(server: BusServer) -> list[dict[str, Any]]:
    """`/api/status` as each worker sees it."""
    seen = []
    for pid in server.worker_pids():
        with only(server, pid):
            seen.append(server.call("GET", "/api/status").body)
    return seen


def wait_until_known(server: BusServer, names: Iterable[str]) -> None:
    """Wait until every worker knows that these clients, and perhaps others, are connected; each as often as it is named.

    A worker hears of the others' connections a moment after they were made.
    """
    wanted = Counter(names)
    eventually(
        lambda: all(wanted <= Counter(status["connections"]["by_client"]) for status in statuses(server)),
        what="presence on all workers",
    )


def _stop(server: BusServer, pids: list[int]) -> bool:
    """Stop processes. False: one was in the middle of a commit, so they go on, for it would keep everybody from writing."""
    _signal(pids, signal.SIGSTOP)
    eventually(lambda: len([each for each in processes() if each.pid in pids and each.state == "T"]) == len(pids))
    for _ in range(100):  # a worker that goes on gives it back in no time
        if nobody_commits(server):
            return True
        os.sched_yield()
    _signal(pids, signal.SIGCONT)
    return False


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
