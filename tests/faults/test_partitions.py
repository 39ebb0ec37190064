"""A node loses its line to PostgreSQL, or to Redis: nothing is closed, and nothing comes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bus.counters import MAX_SLOTS
from bus.nodes.leases import LEASE_SECONDS
from bus.testing import Answer, BusServer, eventually
from tests.databases import PostgresServer
from tests.faults.crash import Load, judge, whole_log
from tests.faults.crash_nodes import acknowledged, as_one
from tests.follower import Follower
from tests.nodes import Nodes
from tests.redis_servers import RedisServer, Wire

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

NOTICED_SECONDS = 15.0
"""A statement may take 5 s, its connection 2 s more; what it had locked, PostgreSQL frees after 10 s."""

SOON_SECONDS = 2.0
"""Less than the 3 s that an attempt to connect may take, on a machine that has other things to do."""

BACK_SECONDS = 5.0

Lines = list[Wire]
"""The nodes' lines to one server, by the nodes' numbers."""


@pytest.fixture
def to_postgresql(postgresql: PostgresServer) -> Iterator[Lines]:
    with ExitStack() as stack:
        yield [stack.enter_context(Wire(postgresql.port)) for _ in range(3)]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def to_redis(redis: RedisServer) -> Iterator[Lines]:
    with ExitStack() as stack:
        yield [stack.enter_context(Wire(redis.port)) for _ in range(3)]


@pytest.fixture
def nodes(postgresql: PostgresServer, to_postgresql: Lines, to_redis: Lines) -> Iterator[Nodes]:
    """Three nodes, each with lines of its own."""
    url = postgresql.make()
    envs = [
        {
            "DATABASE_URL": postgresql.over(database.port, url),
            "REDIS_URL": f"redis://127.0.0.1:{redis.port}",
        }
        for database, redis in zip(to_postgresql, to_redis, strict=True)
    ]
    with Nodes(url, envs, env={"DB_POOL_SIZE": "2", "INBOX_LIMIT": "100000000", "LOG_LEVEL": "WARNING"}) as running:
        yield running


@contextmanager
def loaded(nodes: Nodes) -> Iterator[Load]:
    """A load of them all, under way; it ends with the block at the latest."""
    load = Load(as_one(nodes))
    load.start()
    eventually(lambda: sum(map(len, load.acknowledged.values())) > 500, within_seconds=30, what="a load")
    try:
        yield load
    finally:
        load.finish(0)


def send(server: BusServer, to: str = "nobody", payload: object = 0, patience_seconds: float = 30.0) -> Answer:
    body = {"from": "probe", "to": to, "payload": payload}
    return server.call("POST", "/api/send", body, timeout_seconds=patience_seconds)


def holder_of(nodes: Nodes, lease: str) -> int:
    """The number of the node that has a lease."""
    holder = eventually(lambda: nodes.holders().get(lease), within_seconds=LEASE_SECONDS + 30, what="a holder")
    process = int(holder.split("-")[-2])
    return next(number for number in range(3) if nodes.number_of(number) == process // MAX_SLOTS)


def tokens(nodes: Nodes) -> dict[str, int]:
    """How often each lease was taken."""
    found: list[Any] = nodes.query("SELECT name, token FROM leases")
    return dict(found)


def checks(server: BusServer) -> dict[str, str]:
    """What a node says of itself."""
    return {name: check["status"] for name, check in server.call("GET", "/health/status").body["checks"].items()}


def test_a_node_without_postgresql_refuses_sends_and_loses_its_leases_and_is_back_in_a_moment(
    nodes: Nodes, to_postgresql: Lines
) -> None:
    cut_off = holder_of(nodes, "reaper")
    here, others = nodes[cut_off], [nodes[number] for number in range(3) if number != cut_off]
    before = tokens(nodes)
    with loaded(nodes) as load:
        to_postgresql[cut_off].cut()
        nodes.up.discard(cut_off)  # as a balancer does that asks for readiness
        eventually(lambda: send(here).status == 503, within_seconds=NOTICED_SECONDS, what="the first refusal")
        for _ in range(20):  # and from now on it does not wait for what may not come
            answer = send(here, patience_seconds=SOON_SECONDS)
            assert (answer.status, int(answer.headers["retry-after"]) > 0) == (503, True)
        eventually(lambda: here.call("GET", "/health/ready").status == 503, within_seconds=NOTICED_SECONDS, what="a no")
        assert here.call("GET", "/health/live").status == 200
        for other in others:
            eventually(lambda at=other: send(at).status == 200, within_seconds=NOTICED_SECONDS, what="a send elsewhere")  # type: ignore[misc]
        eventually(
            lambda: tokens(nodes)["reaper"] > before["reaper"], within_seconds=LEASE_SECONDS + 30, what="an heir"
        )
        heir = holder_of(nodes, "reaper")
        with Follower(others[0].port, "later") as later:
            send_later = {"from": "probe", "to": "later", "payload": "on time", "delay": 0.1}
            assert others[1].call("POST", "/api/send", send_later).status == 200
            assert [message["payload"] for message in later.wait_for(1)] == ["on time"]
        to_postgresql[cut_off].mend()
        eventually(lambda: send(here).status == 200, within_seconds=BACK_SECONDS, what="a send that is stored")
        nodes.up.add(cut_off)
        nodes.wait_until_joined()
        load.finish(60)
    after = tokens(nodes)
    assert heir != cut_off
    assert holder_of(nodes, "reaper") == heir
    assert {after[name] - token for name, token in before.items()} <= {0, 1}
    assert judge(load, acknowledged(load, _without_probes(whole_log(as_one(nodes))))) == []


def test_a_node_without_redis_goes_on_by_the_log_and_keeps_its_leases(nodes: Nodes, to_redis: Lines) -> None:
    cut_off = holder_of(nodes, "reaper")
    here, there = nodes[cut_off], nodes[(cut_off + 1) % 3]
    before = tokens(nodes)
    with loaded(nodes) as load, Follower(here.port, "here") as mine, Follower(there.port, "there") as theirs:
        to_redis[cut_off].cut()
        eventually(lambda: checks(here)["nodes"] == "degraded", within_seconds=NOTICED_SECONDS, what="its notice")
        assert here.call("GET", "/health/ready").status == 200
        for number in range(20):
            assert send(here, "there", number, SOON_SECONDS).status == 200
            assert send(there, "here", number, SOON_SECONDS).status == 200
        for follower in (mine, theirs):
            assert [message["payload"] for message in follower.wait_for(20)] == list(range(20))
        to_redis[cut_off].mend()
        eventually(lambda: checks(here)["nodes"] == "healthy", within_seconds=BACK_SECONDS, what="its return")
        nodes.wait_until_joined()
        load.finish(60)
    assert before.items() <= tokens(nodes).items()
    assert judge(load, _without_probes(whole_log(as_one(nodes)))) == []


def _without_probes(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in log if message["from"] != "probe"]
