"""Three nodes are one bus: over Redis, and over PostgreSQL's own notifications."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bus.counters import MAX_SLOTS
from bus.testing import BusServer, eventually
from tests.calls import call
from tests.databases import PostgresServer
from tests.follower import Follower
from tests.nodes import Nodes
from tests.peer import Peer
from tests.redis_servers import RedisServer

KEY = "a-key-for-tests-of-nodes"
ADMIN = {"X-API-Key": KEY}


@pytest.fixture(scope="module", params=["redis", "notify"])
def nodes(request: pytest.FixtureRequest, postgresql: PostgresServer) -> Iterator[Nodes]:
    """Three nodes, the second with two workers."""
    with ExitStack() as stack:
        env = {"API_KEY": KEY, "DB_POOL_SIZE": "2"}
        if request.param == "redis":
            env["REDIS_URL"] = stack.enter_context(RedisServer()).url
        made = Nodes(postgresql.make(), [{}, {}, {}], env=env)
        made[1].workers = 2
        yield stack.enter_context(made)


def follow(nodes: Nodes, number: int, client: str, query: str = "") -> Follower:
    """A client on a node."""
    return Follower(nodes[number].port, client, query, headers=ADMIN)


def seen(nodes: Nodes, number: int) -> dict[str, int]:
    """Who is connected, as a node sees it."""
    found: dict[str, int] = nodes[number].call("GET", "/api/status", headers=ADMIN).body["connections"]["by_client"]
    return found


def send(nodes: Nodes, number: int, to: object, payload: object, **more: object) -> dict[str, str]:
    """Send on a node; the states of the recipients."""
    body = {"from": "giver", "to": to, "payload": payload, **more}
    answer = nodes[number].call("POST", "/api/send", body, headers=ADMIN)
    assert answer.status == 200, answer
    return {recipient["client"]: recipient["state"] for recipient in answer.body["recipients"]}


def test_what_is_sent_on_one_node_arrives_on_the_others_in_order(nodes: Nodes) -> None:
    with follow(nodes, 0, "one"), follow(nodes, 1, "two") as two, follow(nodes, 2, "three", "topics=reach.>") as three:
        eventually(lambda: {"one", "two", "three"} <= set(seen(nodes, 0)), what="presence on node 0")
        for number in range(40):
            to = ("two", ["two", "three"], "all", "topic:reach.a")[number % 4]
            send(nodes, 0, to, number)
        assert two.wait_for(30)
        assert three.wait_for(30)
        assert two.payloads() == [number for number in range(40) if number % 4 != 3]
        assert three.payloads() == [number for number in range(40) if number % 4 != 0]
        assert two.seqs == sorted(two.seqs)


def test_ephemeral_messages_cross_nodes_whatever_their_size(nodes: Nodes) -> None:
    with follow(nodes, 1, "fleet") as there:
        eventually(lambda: "fleet" in seen(nodes, 2), what="presence on node 2")
        for size in (10, 7_000, 40_000, 300_000):
            states = send(nodes, 2, "fleet", "x" * size, ephemeral=True)
            assert states == {"fleet": "delivered"}
        assert [len(text) for text in (message["payload"] for message in there.wait_for(4))] == [
            10,
            7_000,
            40_000,
            300_000,
        ]


def test_who_is_connected_is_known_on_all_nodes_and_forgotten(nodes: Nodes) -> None:
    with follow(nodes, 0, "wanderer"), follow(nodes, 2, "wanderer"):
        for number in range(3):
            eventually(lambda at=number: seen(nodes, at).get("wanderer") == 2, what=f"presence on node {number}")  # type: ignore[misc]
        assert send(nodes, 1, "wanderer", 1) == {"wanderer": "delivered"}
    for number in range(3):
        eventually(lambda at=number: "wanderer" not in seen(nodes, at), what=f"its end on node {number}")  # type: ignore[misc]


def test_an_item_that_is_queued_on_one_node_is_taken_on_another_and_acked_on_a_third(nodes: Nodes) -> None:
    with Peer(nodes[1], "taker", headers=ADMIN) as taker:
        taker.subscribe("far", max_in_flight=5)
        for number in range(6):
            send(nodes, 0, "queue:far", number)
        items = taker.messages(5)
        assert taker.has_no_message()
        done = nodes[2].call(
            "POST", f"/api/messages/{items[0]['id']}/ack", {"client": "taker", "attempt": 1}, headers=ADMIN
        )
        assert done.status == 200, done
        assert taker.message()["payload"] == 5  # the room that an ack elsewhere made
        assert sorted(item["payload"] for item in items) == [0, 1, 2, 3, 4]


def test_a_tracked_message_is_pushed_wherever_its_client_is(nodes: Nodes) -> None:
    with Peer(nodes[0], "held", headers=ADMIN) as one, Peer(nodes[2], "held", headers=ADMIN) as other:
        eventually(lambda: seen(nodes, 1).get("held") == 2, what="presence on node 1")
        send(nodes, 1, "held", "mind", requires_ack=True)
        first, second = one.message(), other.message()
        assert first["id"] == second["id"]
        assert one.settle("ack", first)["type"] == "acked"


def test_what_needs_an_ack_comes_live_from_other_nodes_in_seq_order_and_as_a_first_attempt(nodes: Nodes) -> None:
    """Whatever its priority, beside plain messages, also where nodes read rows back from the log."""
    with follow(nodes, 0, "minder") as minder:
        eventually(lambda: "minder" in seen(nodes, 1) and "minder" in seen(nodes, 2), what="presence")
        for number in range(30):
            tracked = {"require_ack": True, "priority": ("bulk", "critical")[number % 4 // 2]} if number % 2 else {}
            send(nodes, 1 + number % 3 % 2, "minder", number, **tracked)
        got = minder.wait_for(30)
        assert minder.payloads() == list(range(30))
        assert not any("redelivered" in message or "attempt" in message for message in got)


def test_a_revoked_key_ends_its_sockets_on_every_node(nodes: Nodes) -> None:
    made = nodes[0].call("POST", "/api/keys", {"clients": ["lodger", "lodger2"]}, headers=ADMIN)
    assert made.status == 200, made
    key = {"X-API-Key": made.body["key"]}
    with Follower(nodes[1].port, "lodger", headers=key) as one, Follower(nodes[2].port, "lodger2", headers=key) as two:
        gone = nodes[0].call("DELETE", f"/api/keys/{made.body['id']}", headers=ADMIN)
        assert gone.status == 200, gone
        assert (one.wait_for_end(5), two.wait_for_end(5)) == (4401, 4401)
    assert nodes[2].call("GET", "/api/messages?to=lodger", headers=key).status == 401


def test_what_one_process_does_is_leased_to_one(nodes: Nodes) -> None:
    holders = eventually(lambda: "reaper" in nodes.holders() and nodes.holders(), what="a holder of the reaper's lease")
    assert {"reaper", "replays", "webhook_replays"} <= set(holders)
    assert sorted(nodes.query("SELECT number FROM bus_nodes")) == [(0,), (1,), (2,)]


def test_a_delayed_message_is_moved_once_and_arrives_elsewhere(nodes: Nodes) -> None:
    with follow(nodes, 2, "later") as later:
        for number in range(5):
            send(nodes, 0, "later", number, delay=0.2)
        assert sorted(message["payload"] for message in later.wait_for(5)) == list(range(5))
    log = nodes[1].call("GET", "/api/log?since=earliest&limit=1000", headers=ADMIN).body["messages"]
    assert sorted(message["payload"] for message in log if message["to"] == "later") == list(range(5))


@pytest.mark.slow
def test_a_node_that_is_killed_is_forgotten_and_its_work_goes_on(postgresql: PostgresServer) -> None:
    with Nodes(postgresql.make(), [{}, {}], env={"DB_POOL_SIZE": "2"}) as pair:
        holder = eventually(lambda: pair.holders().get("reaper"), what="a holder")
        killed = next(number for number in (0, 1) if pair.number_of(number) == number_in(holder))
        left = pair[1 - killed]
        with Follower(left.port, "stays") as stays, Peer(pair[killed], "goes") as goes:
            eventually(lambda: "goes" in connected(left), what="its presence")
            goes.subscribe("shared", max_in_flight=1)
            call(left, "POST", "/api/send", {"from": "a", "to": "queue:shared", "payload": "held", "ack_wait": 2})
            held = goes.message()
            pair.kill(killed)
            with Peer(left, "heir") as heir:  # what its connections held comes back when the leases end
                heir.subscribe("shared", max_in_flight=1)
                inherited = heir.message(within_seconds=30)
            assert (inherited["id"], inherited["attempt"]) == (held["id"], 2)
            eventually(lambda: "goes" not in connected(left), within_seconds=15, what="the end of its presence")
            eventually(lambda: pair.holders().get("reaper", holder) != holder, within_seconds=30, what="another holder")
            call(left, "POST", "/api/send", {"from": "a", "to": "stays", "payload": 1, "delay": 0.1})
            assert stays.wait_for(1)


def connected(server: BusServer) -> dict[str, int]:
    """Who is connected, as a node without auth sees it."""
    found: dict[str, int] = call(server, "GET", "/api/status")["connections"]["by_client"]
    return found


def number_in(holder: str) -> int:
    """The number of the node in a holder's name: the middle of that is its process's number."""
    return int(holder.split("-")[-2]) // MAX_SLOTS


@pytest.mark.slow
def test_a_rate_limit_holds_over_all_nodes_and_on_each_while_redis_is_away(postgresql: PostgresServer) -> None:
    with RedisServer() as redis:
        env = {"REDIS_URL": redis.url, "RATE_LIMIT_REQUESTS_PER_HOUR": "60", "DB_POOL_SIZE": "2"}
        with Nodes(postgresql.make(), [{}, {}], env=env) as pair:
            eventually(lambda: _check(pair[0], "limits"), what="limits that are shared")
            redis.say("FLUSHALL")

            def passed(number: int) -> int:
                return sum(pair[number].call("GET", "/api/messages?to=x").status == 200 for _ in range(70))

            assert passed(0) <= 60
            assert passed(1) <= 20  # until it has heard what the other node took
            answer = pair[1].call("GET", "/api/messages?to=x")
            assert int(answer.headers["retry-after"]) > 60
            redis.kill()
            eventually(lambda: not _check(pair[1], "limits"), within_seconds=15, what="the loss of Redis")
            assert pair[1].call("GET", "/health/ready").status == 200
            assert pair[1].call("GET", "/api/messages?to=x").status == 429
            eventually(lambda: not _check(pair[1], "nodes"), within_seconds=20, what="the loss of the channel")
            redis.start()
            eventually(lambda: _check(pair[1], "limits") and _check(pair[1], "nodes"), within_seconds=30, what="Redis")


def _check(server: BusServer, name: str) -> bool:
    """Whether a health check finds all well."""
    checks = server.call("GET", "/health/status").body["checks"]
    return bool(checks[name]["status"] == "healthy")
