"""Histories against the real server, with short leases and `kill -9` under it: the model's invariants hold."""

from __future__ import annotations

import random

import pytest

from bus.testing import BusServer, gunicorn
from tests.model.server_history import ServerHistory

HISTORIES = 7
"""For each number of workers. A history's seed is its number."""


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 4])
def test_invariants_hold_on_a_server_that_is_killed(workers: int) -> None:
    env = {"BUS_EXTENSIONS": "tests.faults.short_backoff", "LOG_LEVEL": "ERROR"}
    with BusServer(workers=workers, command=gunicorn(workers), env=env) as server:
        for seed in range(HISTORIES):
            history = ServerHistory(server, f"{workers}-{seed}", random.Random(seed))
            history.run(steps=60, kills=2)
            assert history.faults == [], f"history {seed}"
            assert history.acked
