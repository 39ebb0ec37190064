"""What a worker asks of its process: enough file descriptors, and a garbage collector that looks seldom."""

from __future__ import annotations

import gc
import resource


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
