"""The crash test of three nodes, in short; `python -m tests.faults.crash_nodes --rounds 50` is the long one."""

from __future__ import annotations

import pytest

from bus.counters import MAX_SLOTS
from bus.nodes.leases import LEASE_SECONDS
from bus.testing import eventually
from tests.databases import PostgresServer
from tests.faults import crash_nodes, rolling_update
from tests.nodes import Nodes

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


def test_nothing_is_lost_while_nodes_become_another_release_one_by_one() -> None:
    verdict = rolling_update.run()
    assert verdict.faults == []
    assert verdict.acknowledged > 2000


def test_leases_of_a_node_that_sleeps_are_taken_over_once_and_it_notices_when_it_wakes(
    postgresql: PostgresServer,
) -> None:
    with Nodes(postgresql.make(), [{}, {}, {}], env={"DB_POOL_SIZE": "2"}) as nodes:
        holder = eventually(lambda: nodes.holders().get("reaper"), what="a holder")
        asleep = next(at for at in range(3) if nodes.number_of(at) == int(holder.split("-")[-2]) // MAX_SLOTS)
        ((token,),) = nodes.query("SELECT token FROM leases WHERE name = 'reaper'")
        nodes.freeze(asleep)
        heir = eventually(
            lambda: next((other for other in [nodes.holders().get("reaper")] if other not in (None, holder)), None),
            within_seconds=LEASE_SECONDS + 30,
            what="another holder",
        )
        nodes.thaw(asleep)
        eventually(lambda: "lease_lost" in nodes[asleep].log, within_seconds=30, what="the sleeper's notice")
        nodes.wait_until_joined()
        assert nodes.holders()["reaper"] == heir
        assert nodes.query("SELECT token FROM leases WHERE name = 'reaper'") == [(token + 1,)]
