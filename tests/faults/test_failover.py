"""The PostgreSQL primary dies and its standby, which follows by a line that can be cut, is promoted: a real failover."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus.testing import HOST, BusServer, eventually
from tests.databases import PostgresServer
from tests.faults.crash import Load, judge, whole_log
from tests.faults.crash_nodes import acknowledged, as_one
from tests.follower import Follower
from tests.nodes import Nodes
from tests.redis_servers import Wire

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

BACK_SECONDS = 20.0
"""Processes that find another primary drain, end, and are started anew; then they send again."""


@pytest.fixture
def primary(postgresql: PostgresServer) -> Iterator[PostgresServer]:
    """A server that a test may stop. The shared one is asked for since it knows what is missing where there is none."""
    server = PostgresServer().start()
    yield server
    server.close()


@pytest.fixture
def line(primary: PostgresServer) -> Iterator[Wire]:
    """What the standby hears the primary by."""
    with Wire(primary.port) as wire:
        yield wire


@pytest.fixture
def standby(line: Wire) -> Iterator[PostgresServer]:
    server = PostgresServer(standby_of=line.port).start()
    yield server
    server.close()


def either(primary: PostgresServer, standby: PostgresServer) -> str:
    """The URL of a new database on the primary that names the standby, too."""
    here = f"{HOST}:{primary.port}"
    return primary.make().replace(here, f"{here},{HOST}:{standby.port}")


def wait_until_it_follows(standby: PostgresServer, primary: PostgresServer) -> None:
    """What is committed by now has come to the standby."""
    ((position,),) = primary.ask("SELECT pg_current_wal_lsn()")
    statement = f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
    eventually(lambda: standby.ask(statement) == [(True,)], what="a standby that has it all")


def send(server: BusServer, number: int) -> int:
    return server.call("POST", "/api/send", {"from": "giver", "to": "taker", "payload": number}).status


@pytest.mark.parametrize("workers", [1, 4])
def test_what_an_asynchronous_standby_lacks_is_told_as_a_gap(
    workers: int, primary: PostgresServer, line: Wire, standby: PostgresServer
) -> None:
    with BusServer(database_url=either(primary, standby), workers=workers) as server:
        old_epoch = server.call("GET", "/api/status").body["epoch"]
        with Follower(server.port, "taker") as taker:
            assert [send(server, number) for number in range(3)] == [200] * 3
            taker.wait_for(3)
            wait_until_it_follows(standby, primary)
            line.cut()
            assert [send(server, number) for number in (3, 4)] == [200] * 2
            shared, *_, lost = [message["id"] for message in taker.wait_for(5)]
            cursor = server.call("GET", "/api/status").body["cursor"]
            primary.stop("immediate")
            standby.promote()
            assert taker.wait_for_end(BACK_SECONDS) == 1012  # "service restart": its worker begins anew
        eventually(lambda: send(server, 100) == 200, within_seconds=BACK_SECONDS, what="a send's 200")

        def epochs() -> set[str]:
            answers = [server.call("GET", "/api/status") for _ in range(4 * workers)]
            return {answer.body["epoch"] for answer in answers if answer.status == 200}

        eventually(lambda: old_epoch not in epochs(), within_seconds=BACK_SECONDS, what="new workers")
        page = server.call("GET", f"/api/messages?to=taker&since={cursor}").body
        assert (page["gap"]["requested"], page["gap"]["reason"]) == (cursor, "epoch_changed")
        assert [message["payload"] for message in page["messages"]] == [100]
        assert page["messages"][0]["id"] != lost
        with Follower(server.port, "taker", f"since={cursor}") as taker:
            assert taker.hello["resumed"]["gap"]["reason"] == "epoch_changed"
            assert [message["payload"] for message in taker.wait_for(1)] == [100]
        assert [message["payload"] for message in whole_log(server)] == [0, 1, 2, 100]
        assert server.call("GET", f"/api/messages/{shared}").status == 200
        assert server.call("GET", f"/api/messages/{lost}").status == 404
        assert "a promoted standby" in server.log


def test_with_a_synchronous_standby_no_node_loses_what_it_acknowledged(
    primary: PostgresServer, standby: PostgresServer
) -> None:
    primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.ask("SELECT pg_reload_conf()")
    settings = {"DB_POOL_SIZE": "2", "INBOX_LIMIT": "100000000", "LOG_LEVEL": "WARNING"}
    with Nodes(either(primary, standby), [{}, {}, {}], env=settings) as nodes:
        load = Load(as_one(nodes))
        load.start()
        eventually(lambda: sum(map(len, load.acknowledged.values())) > 1000, within_seconds=30, what="a load")
        primary.stop("immediate")
        standby.promote()
        for number in range(3):
            body = {"from": "probe", "to": "nobody", "payload": {"n": number}}
            eventually(
                lambda at=nodes[number], body=body: at.call("POST", "/api/send", body).status == 200,  # type: ignore[misc]
                within_seconds=BACK_SECONDS,
                what=f"a send's 200 on node {number}",
            )
        before = sum(map(len, load.acknowledged.values()))
        eventually(lambda: sum(map(len, load.acknowledged.values())) > before + 1000, within_seconds=30, what="more")
        load.finish(60)
        log = [message for message in whole_log(as_one(nodes)) if message["from"] != "probe"]
        assert judge(load, acknowledged(load, log)) == []
