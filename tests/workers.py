"""Which worker of a server takes a connection, chosen by the test."""

from __future__ import annotations

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
        for other in others:
            os.kill(other, signal.SIGSTOP)
        eventually(
            lambda: len([each for each in processes() if each.pid in others and each.state == "T"]) == len(others)
        )
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)
