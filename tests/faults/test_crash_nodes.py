"""The crash test of three nodes, in short; `python -m tests.faults.crash_nodes --rounds 50` is the long one."""

from __future__ import annotations

import pytest

from tests.faults import crash_nodes

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]


def test_nothing_acknowledged_is_lost_whatever_happens_to_redis_and_to_nodes() -> None:
    accidents = ["cut a line", "kill a node", "flush Redis", "fill Redis", "kill Redis", "pause Redis"]
    verdict = crash_nodes.run(accidents, channel="redis")
    assert verdict.faults == []
    assert verdict.acknowledged > 2000


def test_nothing_acknowledged_is_lost_when_a_node_sleeps_past_its_leases_and_when_postgresql_stops() -> None:
    verdict = crash_nodes.run(["freeze a node", "stop PostgreSQL", "kill a node"], channel="notify")
    assert verdict.faults == []
    assert verdict.acknowledged > 2000
