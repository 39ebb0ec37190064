"""Queues: each item is in one consumer's hands at a time, fairly shared, and given to another when it is let go."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import (
    call,
    claim,
    dead_letters,
    inbox,
    payloads,
    pending_acks,
    send,
    send_all,
    settle,
    standing,
    state,
)
from tests.peer import Peer
from tests.workers import only

Start = Callable[..., BusServer]


def seen(server: BusServer, queue: str) -> dict[str, Any]:
    """The queue as it is shown."""
    return call(server, "GET", f"/api/queues/{queue}")  # type: ignore[no-any-return]


def fill(server: BusServer, queue: str, count: int, **terms: object) -> list[str]:
    """Put numbered items into a queue; their ids."""
    return send_all(server, [{"to": f"queue:{queue}", "payload": number, **terms} for number in range(count)])


def work(consumers: Sequence[Peer], count: int) -> dict[str, list[Any]]:
    """Have consumers ack whatever comes until `count` items are done; what each of them did."""
    done: dict[str, list[Any]] = {consumer.client: [] for consumer in consumers}
    enough = threading.Event()

    def consume(consumer: Peer) -> None:
        while not enough.is_set():
            try:
                message = consumer.message(within_seconds=0.1)
            except TimeoutError:
                continue
            assert consumer.settle("ack", message)["status"] == "acked"
            done[consumer.client].append(message["payload"])

    with ThreadPoolExecutor(len(consumers)) as pool:
        working = [pool.submit(consume, consumer) for consumer in consumers]
        try:
            eventually(lambda: sum(map(len, done.values())) >= count, within_seconds=30, what=f"{count} acks")
        finally:
            enough.set()
        for each in working:
            each.result()
    return done


# ---- who gets what


def test_each_item_goes_to_exactly_one_consumer(each_server: BusServer) -> None:
    with ExitStack() as stack:
        consumers = [stack.enter_context(Peer(each_server, f"each-{number}")) for number in range(4)]
        for consumer in consumers:
            consumer.subscribe("each", max_in_flight=3)
        ids = fill(each_server, "each", 120)
        done = work(consumers, 120)
        assert sorted(itertools.chain(*done.values())) == list(range(120))
        assert min(map(len, done.values())) > 0
        assert {state(each_server, message_id) for message_id in ids} == {"acked"}
    assert (seen(each_server, "each")["depth"], seen(each_server, "each")["in_flight"]) == (0, 0)


def test_an_item_tells_its_queue_and_needs_an_ack(each_server: BusServer) -> None:
    with Peer(each_server, "curious") as curious:
        assert curious.subscribe("told")["queues"] == ["told"]
        (nobody,) = curious.ask("send", to="queue:other")["recipients"]
        assert nobody == {"client": "queue:other", "state": "sent", "online": 0}
        receipt = curious.ask("send", to="queue:told", payload={"n": 1})
        assert receipt["recipients"] == [{"client": "queue:told", "state": "sent", "online": 1}]
        message = curious.message()
        assert (message["to"], message["requires_ack"], message["payload"]) == ("queue:told", True, {"n": 1})
        assert (message["id"], message["seq"]) == (receipt["message_id"], receipt["seq"])
    assert inbox(each_server, "curious", since="earliest")["count"] == 0


def test_equal_consumers_get_even_shares(each_server: BusServer) -> None:
    count = 200
    with Peer(each_server, "even-1") as one, Peer(each_server, "even-2") as two:
        for consumer in (one, two):
            consumer.subscribe("even", max_in_flight=1)
        fill(each_server, "even", count)
        shares = [len(done) for done in work([one, two], count).values()]
    assert sum(shares) == count
    assert min(shares) > count / 5, shares


def test_idle_consumers_take_turns(each_server: BusServer) -> None:
    count = 60

    def trickle() -> None:
        for number in range(count):
            send(each_server, "queue:turns", number)
            eventually(lambda: not (now := seen(each_server, "turns"))["depth"] + now["in_flight"], what="idleness")

    with Peer(each_server, "turn-1") as one, Peer(each_server, "turn-2") as two, ThreadPoolExecutor() as pool:
        for consumer in (one, two):
            consumer.subscribe("turns", max_in_flight=10)
        trickling = pool.submit(trickle)
        shares = [len(done) for done in work([one, two], count).values()]
        trickling.result()
    assert sum(shares) == count
    assert min(shares) > count / 6, shares


def test_equal_consumers_on_different_workers_get_even_shares(server4: BusServer) -> None:
    count = 200
    with ExitStack() as stack:
        consumers = []
        for number, pid in enumerate(server4.worker_pids()[:2]):
            with only(server4, pid):
                consumers.append(stack.enter_context(Peer(server4, f"apart-{number}")))
                consumers[-1].subscribe("apart", max_in_flight=1)
        eventually(lambda: seen(server4, "apart")["consumers"] == 2, what="both consumers")
        fill(server4, "apart", count)
        shares = [len(done) for done in work(consumers, count).values()]
    assert sum(shares) == count
    assert min(shares) > count / 10, shares


def test_items_come_by_priority_and_then_in_order(each_server: BusServer) -> None:
    priorities = ["bulk", "normal", "critical", "high", "low", "normal", "critical", "high", "bulk"]
    ids = send_all(each_server, [{"to": "queue:ranked", "priority": priority} for priority in priorities])
    classes = ["critical", "high", "normal", "low", "bulk"]
    expected = [ids[at] for at in sorted(range(len(ids)), key=lambda at: classes.index(priorities[at]))]
    one_by_one = [claim(each_server, "ranked", "ranker")[0]["id"] for _ in range(4)]
    rest = [message["id"] for message in claim(each_server, "ranked", "ranker", limit=100)]
    assert one_by_one + rest == expected


def test_no_more_than_max_in_flight_are_in_hands(each_server: BusServer) -> None:
    with Peer(each_server, "careful") as careful:
        careful.subscribe("few", max_in_flight=3)
        fill(each_server, "few", 8)
        held = careful.messages(3)
        assert (seen(each_server, "few")["depth"], seen(each_server, "few")["in_flight"]) == (5, 3)
        assert careful.has_no_message()
        for verb in ("ack", "nack", "reject", "release"):
            careful.settle(verb, held.pop(0), delay=3600)
            held.append(careful.message())
            assert seen(each_server, "few")["in_flight"] == 3
            assert careful.has_no_message()
        careful.subscribe(max_in_flight=4)
        careful.message()
        careful.subscribe("another")
        fill(each_server, "another", 1)
        assert seen(each_server, "few")["in_flight"] == 4
        assert seen(each_server, "another")["depth"] == 1


def test_who_unsubscribes_gets_no_more_and_keeps_what_it_holds(each_server: BusServer) -> None:
    with Peer(each_server, "leaver") as leaver, Peer(each_server, "stayer") as stayer:
        assert leaver.subscribe("left", "kept", max_in_flight=1)["queues"] == ["kept", "left"]
        first, second, third = fill(each_server, "left", 3)
        held = leaver.message()
        assert held["id"] == first
        assert leaver.ask("unsubscribe", queues=["left"])["queues"] == ["kept"]
        stayer.subscribe("left")
        assert [message["id"] for message in stayer.messages(2)] == [second, third]
        assert standing(each_server, first) == {
            "client": "queue:left",
            "state": "leased",
            "attempt": 1,
            "failures": 0,
        }
        assert leaver.settle("ack", held)["status"] == "acked"
        eventually(lambda: seen(each_server, "left")["consumers"] == 1, what="one consumer")


# ---- what is let go


def test_a_clean_close_hands_items_on_at_once_and_uncounted(each_server: BusServer) -> None:
    with Peer(each_server, "heir") as heir:
        with Peer(each_server, "goer") as goer:
            goer.subscribe("estate")
            ids = fill(each_server, "estate", 3)
            goer.messages(3)
            goer.settle("ack", ids[1])
            heir.subscribe("estate")
            goer.leave()
        again = heir.messages(2)
        assert sorted(message["id"] for message in again) == [ids[0], ids[2]]
        assert [(message["attempt"], message["redelivered"]) for message in again] == [(2, True)] * 2
        assert standing(each_server, ids[0])["failures"] == 0


def test_a_cut_socket_hands_items_on_only_after_the_lease(server4: BusServer) -> None:
    with Peer(server4, "next") as next_:
        with Peer(server4, "broken") as broken:
            broken.subscribe("cut")
            (message_id,) = fill(server4, "cut", 1, ack_wait=1)
            assert broken.message()["id"] == message_id
            next_.subscribe("cut")
        eventually(lambda: seen(server4, "cut")["consumers"] == 1, what="the end of the connection")
        assert standing(server4, message_id)["failures"] == 0
        message = next_.message(within_seconds=20)
        assert (message["id"], message["attempt"], message["redelivered"]) == (message_id, 2, True)
        assert standing(server4, message_id)["failures"] == 1
        assert (
            server4.call("POST", f"/api/messages/{message_id}/ack", {"client": "broken"}).body["status"] == "superseded"
        )
        assert next_.settle("ack", message)["status"] == "acked"


@pytest.mark.full
def test_what_a_dead_worker_had_in_hand_goes_on_after_the_lease(fresh_server: Start) -> None:
    server = fresh_server(workers=2)
    victim, other, *_ = server.worker_pids()
    with only(server, victim):
        lost = Peer(server, "lost")
        lost.subscribe("orphans")
    with only(server, other):
        heir = Peer(server, "heir")
    with lost, heir:
        ids = fill(server, "orphans", 3, ack_wait=1)
        lost.messages(3)
        server.kill_worker(victim)
        heir.subscribe("orphans")
        again = heir.messages(3, within_seconds=30)
        assert sorted(message["id"] for message in again) == ids
        assert {(message["attempt"], message["redelivered"]) for message in again} == {(2, True)}
        eventually(lambda: seen(server, "orphans")["consumers"] == 1, what="the end of the dead worker's consumer")
        for message in again:
            assert heir.settle("ack", message)["status"] == "acked"


def test_work_that_was_done_late_still_counts_until_another_has_it(each_server: BusServer) -> None:
    (message_id,) = fill(each_server, "late", 1)
    (item,) = claim(each_server, "late", "snail", ack_wait=0.3)
    eventually(lambda: state(each_server, message_id) == "resting", what="the end of the lease")
    assert settle(each_server, "progress", item, "snail", attempt=1)["status"] == "superseded"
    assert settle(each_server, "ack", item, "snail", attempt=1)["status"] == "acked"
    assert state(each_server, message_id) == "acked"


def test_a_poison_item_is_set_aside_while_others_flow(each_server: BusServer) -> None:
    ids = send_all(
        each_server, [{"to": "queue:stew", "payload": n, "priority": "high"} for n in ("poison", *range(20))]
    )
    eaten = []
    with Peer(each_server, "eater") as eater:
        eater.subscribe("stew", max_in_flight=1)
        while len(eaten) < 20 or not dead_letters(each_server, owner="queue:stew"):
            message = eater.message()
            if message["payload"] == "poison":
                eater.settle("nack", message, delay=0, reason="tastes bad")
            else:
                eater.settle("ack", message)
                eaten.append(message["payload"])
    assert eaten == list(range(20))
    (letter,) = dead_letters(each_server, owner="queue:stew")
    assert (letter["id"], letter["reason"], len(letter["attempts"])) == (ids[0], "max_attempts", 5)
    assert {attempt["consumer"] for attempt in letter["attempts"]} == {"eater"}
    assert seen(each_server, "stew")["depth"] == seen(each_server, "stew")["in_flight"] == 0


def test_only_its_consumer_may_speak_of_an_item(each_server: BusServer) -> None:
    (message_id,) = fill(each_server, "own", 1)
    claim(each_server, "own", "holder")
    for verb in ("ack", "nack", "progress", "release", "reject"):
        answer = each_server.call("POST", f"/api/messages/{message_id}/{verb}", {"client": "stranger"})
        assert (answer.status, answer.body["code"]) == (403, "not_recipient")
    assert standing(each_server, message_id)["state"] == "leased"
    assert settle(each_server, "ack", message_id, "holder")["status"] == "acked"
    assert settle(each_server, "ack", message_id, "holder")["status"] == "acked"
    assert settle(each_server, "ack", message_id, "stranger")["status"] == "superseded"


# ---- claims


def test_a_claim_takes_as_many_as_it_says_and_no_other_gets_them(each_server: BusServer) -> None:
    fill(each_server, "shelf", 7)
    one, two = claim(each_server, "shelf", "one", limit=4), claim(each_server, "shelf", "two", limit=4)
    assert (payloads(one), payloads(two)) == ([0, 1, 2, 3], [4, 5, 6])
    assert claim(each_server, "shelf", "three", limit=4) == []
    for message in one:
        assert settle(each_server, "ack", message, "one")["attempt"] == 1
    assert seen(each_server, "shelf")["in_flight"] == 3


def test_a_claim_that_waits_wakes_for_an_item(each_server: BusServer) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(claim, each_server, "dock", f"docker-{n}", wait=30, limit=5) for n in range(3)]
        eventually(lambda: seen(each_server, "dock")["consumers"] == 3, what="three claims that wait")
        ids = []
        for done in range(1, 4):
            ids += fill(each_server, "dock", 1)
            eventually(lambda done=done: sum(each.done() for each in waiting) == done, what="a claim's answer")
        got = [[message["id"] for message in each.result()] for each in waiting]
    assert sorted(got) == [[message_id] for message_id in sorted(ids)]
    eventually(lambda: not seen(each_server, "dock")["consumers"], what="that nobody waits")


def test_a_claim_ends_empty_in_time(each_server: BusServer) -> None:
    assert claim(each_server, "empty", "waiter") == []
    assert claim(each_server, "empty", "waiter", wait=0.2) == []
    eventually(lambda: not seen(each_server, "empty")["consumers"], what="that nobody waits")


def test_a_claim_chooses_its_lease(each_server: BusServer) -> None:
    ids = fill(each_server, "leases", 2, ack_wait=3600)
    claim(each_server, "leases", "short", ack_wait=0.2)
    claim(each_server, "leases", "long")
    eventually(lambda: state(each_server, ids[0]) == "resting", what="the end of the short lease")
    assert state(each_server, ids[1]) == "leased"


def test_claims_and_consumers_share_a_queue(each_server: BusServer) -> None:
    with Peer(each_server, "socket") as socket:
        socket.subscribe("shared", max_in_flight=2)
        fill(each_server, "shared", 4)
        pushed = payloads(socket.messages(2))
        claimed = payloads(claim(each_server, "shared", "rest", limit=10))
        assert sorted(pushed + claimed) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("queue", "body", "field"),
    [
        ("q", {}, "client"),
        ("q", {"client": "all"}, "client"),
        ("q", {"client": 5}, "client"),
        ("q", {"client": "c", "limit": 0}, "limit"),
        ("q", {"client": "c", "limit": 101}, "limit"),
        ("q", {"client": "c", "limit": "x"}, "limit"),
        ("q", {"client": "c", "wait": 50.1}, "wait"),
        ("q", {"client": "c", "wait": -1}, "wait"),
        ("q", {"client": "c", "ack_wait": 0}, "ack_wait"),
        ("q", {"client": "c", "ack_wait": 86401}, "ack_wait"),
        ("$q", {"client": "c"}, "queue"),
        ("a%20b", {"client": "c"}, "queue"),
    ],
)
def test_a_wrong_claim_is_refused_and_takes_nothing(
    server: BusServer, queue: str, body: dict[str, Any], field: str
) -> None:
    (message_id,) = fill(server, "q", 1)
    answer = server.call("POST", f"/api/queues/{queue}/claim", body)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert state(server, message_id) == "waiting"


# ---- what is seen, and what lasts


def test_depth_age_hands_and_takers_are_seen(each_server: BusServer) -> None:
    empty = seen(each_server, "shown")
    assert empty == {
        "queue": "shown",
        "depth": 0,
        "in_flight": 0,
        "oldest_seconds": None,
        "consumers": 0,
        "limit": 100_000,
        "on_full": "refuse",
    }
    fill(each_server, "shown", 5)
    claim(each_server, "shown", "taker", limit=2)
    now = seen(each_server, "shown")
    assert (now["depth"], now["in_flight"]) == (3, 2)
    assert 0 <= now["oldest_seconds"] < 60
    eventually(lambda: seen(each_server, "shown")["oldest_seconds"] > now["oldest_seconds"], what="a greater age")
    listed = call(each_server, "GET", "/api/queues", limit=1000)["queues"]
    assert [queue["depth"] for queue in listed if queue["queue"] == "shown"] == [3]


def test_queues_are_listed_in_pages(fresh_server: Start) -> None:
    server = fresh_server()
    names = sorted(f"page-{number}" for number in range(7))
    for name in names:
        fill(server, name, 1)
    send(server, "somebody", require_ack=True)
    listed, cursor, more = [], "", True
    while more:
        page = call(server, "GET", "/api/queues", limit=3, cursor=cursor)
        listed += [queue["queue"] for queue in page["queues"]]
        cursor, more = page["cursor"], page["more"]
    assert listed == names


def test_items_and_leases_survive_a_kill(fresh_server: Start) -> None:
    server = fresh_server(workers=2)
    fill(server, "lasting", 3)
    (held,) = claim(server, "lasting", "holder")
    server.kill()
    server.start()
    assert (seen(server, "lasting")["depth"], seen(server, "lasting")["in_flight"]) == (2, 1)
    assert settle(server, "ack", held, "holder", attempt=1)["status"] == "acked"
    assert payloads(claim(server, "lasting", "other", limit=5)) == [1, 2]
    assert pending_acks(server) == 2


@pytest.mark.parametrize("workers", [1, 4])
def test_a_clear_empties_queues_and_hands(fresh_server: Start, workers: int) -> None:
    server = fresh_server(workers=workers)
    with Peer(server, "holder") as holder:
        holder.subscribe("swept", max_in_flight=1)
        fill(server, "swept", 3)
        held = holder.message()
        call(server, "POST", "/api/clear")
        assert (seen(server, "swept")["depth"], seen(server, "swept")["in_flight"]) == (0, 0)
        (fresh,) = fill(server, "swept", 1)
        assert holder.settle("ack", held)["code"] == "unknown_message"
        assert holder.message()["id"] == fresh
