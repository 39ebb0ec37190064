"""An inbox of messages that need acks: who gets them, in which order, how many at once, and again after what."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from bus.testing import BusServer, eventually
from tests.calls import call, inbox, payloads, pending_acks, send, send_all, settle, standing, state
from tests.peer import Peer
from tests.workers import only, wait_until_known

WINDOW = 100
"""Unacked messages that are pushed to one client at a time."""

PRIORITIES = ["bulk", "normal", "critical", "high", "low", "normal", "critical", 9, 1]


def by_rank(messages: list[dict[str, Any]]) -> list[int]:
    """The numbers of messages that carry one, by priority, then in the order in which they were sent."""
    rank = {"critical": 1, "high": 3, "normal": 5, "low": 7, "bulk": 9}
    ordered = sorted(messages, key=lambda message: rank.get(message["priority"], message["priority"]))
    return [message["payload"] for message in ordered]


def tracked(to: str, priorities: list[Any]) -> list[dict[str, Any]]:
    """Numbered sends with these priorities."""
    return [
        {"to": to, "payload": number, "priority": priority, "require_ack": True}
        for number, priority in enumerate(priorities)
    ]


# ---- order


def test_what_comes_live_comes_in_seq_order_whatever_its_priority(each_server: BusServer) -> None:
    with Peer(each_server, "live") as live:
        wait_until_known(each_server, ["live"])
        for message in tracked("live", PRIORITIES):
            send(each_server, **message)
            send(each_server, "live", "plain")
        got = live.messages(2 * len(PRIORITIES))
        assert [message["seq"] for message in got] == sorted(message["seq"] for message in got)
        assert payloads(got)[::2] == list(range(len(PRIORITIES)))


def test_a_backlog_comes_by_priority_and_then_by_seq(each_server: BusServer) -> None:
    messages = tracked("ranked", PRIORITIES)
    for message in messages:
        send(each_server, **message)
    expected = by_rank(messages)
    assert payloads(inbox(each_server, "ranked")["messages"]) == expected
    with Peer(each_server, "ranked") as ranked:
        assert payloads(ranked.messages(len(PRIORITIES))) == expected


def test_plain_messages_keep_their_order_beside_tracked_ones(each_server: BusServer) -> None:
    numbers = range(40)
    for number in numbers:
        send(each_server, "mixed", number, require_ack=number % 2 == 0, priority="bulk" if number % 4 else "critical")
    with Peer(each_server, "mixed") as mixed:
        got = mixed.messages(40)
    plain = [message["payload"] for message in got if not message["requires_ack"]]
    assert plain == [number for number in numbers if number % 2]
    assert sorted(payloads(got)) == list(numbers)


# ---- connections


def test_both_connections_of_a_client_get_it_and_either_may_settle(each_server: BusServer) -> None:
    with Peer(each_server, "twin") as one, Peer(each_server, "twin") as two:
        wait_until_known(each_server, ["twin", "twin"])
        for settler in (one, two):
            message_id = send(each_server, "twin", 1, require_ack=True)["message_id"]
            assert one.message()["id"] == two.message()["id"] == message_id
            assert settler.settle("ack", message_id)["status"] == "acked"
        for other in (one, two):
            assert other.settle("ack", message_id)["status"] == "acked"
    with Peer(each_server, "twin") as back:
        assert back.has_no_message()


def test_connections_on_different_workers_are_one_client(server4: BusServer) -> None:
    with ExitStack() as stack:
        twins = []
        for pid in server4.worker_pids():
            with only(server4, pid):
                twins.append(stack.enter_context(Peer(server4, "spread")))
        wait_until_known(server4, ["spread"] * len(twins))
        for number in range(3 * len(twins)):
            settler, sender = twins[number % len(twins)], twins[(number + 1) % len(twins)]
            sent = sender.ask("send", to="spread", payload=number, require_ack=True)
            assert {twin.message()["id"] for twin in twins} == {sent["message_id"]}
            assert settler.settle("nack", sent["message_id"], attempt=1, delay=0)["status"] == "nacked"
            assert {twin.message()["attempt"] for twin in twins} == {2}
            assert settler.settle("ack", sent["message_id"], attempt=2)["status"] == "acked"


def test_what_is_open_comes_again_at_once_to_who_reconnects(each_server: BusServer) -> None:
    with Peer(each_server, "returner") as returner:
        ids = [send(each_server, "returner", n, require_ack=True)["message_id"] for n in range(4)]
        assert [message["id"] for message in returner.messages(4)] == ids
        returner.settle("ack", ids[1])
        returner.settle("nack", ids[2], delay=3600)
    for _ in range(3):
        with Peer(each_server, "returner", "?since=latest") as returner:
            again = returner.messages(2)
            assert [(message["id"], message["redelivered"]) for message in again] == [(ids[0], True), (ids[3], True)]
            assert not any("attempt" in message for message in again)
            marker = send(each_server, "returner", "marker")["message_id"]
            assert returner.message()["id"] == marker
    assert standing(each_server, ids[0]) == {"client": "returner", "state": "leased", "attempt": 1, "failures": 0}


def test_what_needs_an_ack_comes_whatever_since_says_and_moves_no_cursor(each_server: BusServer) -> None:
    message_id = send(each_server, "owing", "owed", require_ack=True)["message_id"]
    send(each_server, "owing", "plain")
    with Peer(each_server, "owing", "?since=latest") as owing:
        assert owing.message()["id"] == message_id
        assert owing.has_no_message()
    page = inbox(each_server, "owing", since="latest")
    assert payloads(page["messages"]) == ["owed"]
    assert inbox(each_server, "owing", since=page["cursor"])["messages"] == page["messages"]


# ---- reading


def test_what_was_acked_is_not_read_again(each_server: BusServer) -> None:
    ids = [send(each_server, "neat", number, require_ack=True)["message_id"] for number in range(3)]
    settle(each_server, "ack", ids[1], "neat")
    for query in ({}, {"since": "earliest"}):
        assert payloads(inbox(each_server, "neat", **query)["messages"]) == [0, 2]
    log = call(each_server, "GET", "/api/log", to="neat")
    assert payloads(log["messages"]) == [0, 1, 2]


def test_reading_begins_no_lease_and_changes_no_later_read(each_server: BusServer) -> None:
    message_id = send(each_server, "peeker", 1, require_ack=True)["message_id"]
    first = inbox(each_server, "peeker")
    assert first == inbox(each_server, "peeker") == inbox(each_server, "peeker", wait=5)
    assert standing(each_server, message_id) == {"client": "peeker", "state": "waiting", "attempt": 0, "failures": 0}
    with Peer(each_server, "peeker") as peeker:
        assert not {"attempt", "redelivered"} & set(peeker.message())


def test_a_read_is_filtered_by_type_and_sender(server: BusServer) -> None:
    for sender, type_ in (("ann", "note"), ("ann", "order"), ("bob", "order")):
        send(server, "sorter", f"{sender} {type_}", sender=sender, type=type_, require_ack=True)
    assert payloads(inbox(server, "sorter", type="order")["messages"]) == ["ann order", "bob order"]
    assert payloads(inbox(server, "sorter", **{"from": "ann"})["messages"]) == ["ann note", "ann order"]


def test_a_long_poll_wakes_for_what_needs_an_ack(each_server: BusServer) -> None:
    found: list[Any] = []
    poll = threading.Thread(target=lambda: found.append(inbox(each_server, "drowsy", wait=30)))
    poll.start()
    send(each_server, "not-drowsy", 0, require_ack=True)
    send(each_server, "drowsy", "wake up", require_ack=True)
    poll.join(20)
    assert payloads(found[0]["messages"]) == ["wake up"]


# ---- the window


def test_at_most_a_hundred_unacked_are_pushed_and_the_rest_waits_by_priority(each_server: BusServer) -> None:
    with Peer(each_server, "swamped") as swamped:
        wait_until_known(each_server, ["swamped"])
        send_all(each_server, tracked("swamped", ["normal"] * WINDOW))
        got = swamped.messages(WINDOW)
        more = send_all(each_server, tracked("swamped", ["bulk", "high", "critical"]))
        assert [state(each_server, message_id) for message_id in more] == ["waiting"] * 3
        assert swamped.has_no_message()
        assert call(each_server, "GET", "/api/clients/swamped")["waiting"] == 3
        for message, expected in zip(got, reversed(more), strict=False):
            assert swamped.settle("ack", message)["status"] == "acked"
            assert swamped.message()["id"] == expected


def test_a_backlog_beyond_the_window_comes_as_room_is_made(each_server: BusServer) -> None:
    ids = send_all(each_server, tracked("catcher", ["normal"] * 350))
    with Peer(each_server, "catcher") as catcher:
        assert call(each_server, "GET", "/api/clients/catcher")["waiting"] >= 350 - WINDOW
        for message_id in ids:
            message = catcher.message()
            assert message["id"] == message_id
            assert catcher.settle("ack", message)["status"] == "acked"


def test_pending_acks_go_back_to_nothing(fresh_server: Any) -> None:
    server = fresh_server()
    with Peer(server, "one") as one, Peer(server, "two") as two:
        for number in range(20):
            send(server, ["one", "two", "three"], number, require_ack=True)
        assert pending_acks(server) == 60
        for peer in (one, two):
            for message in peer.messages(20):
                peer.settle("ack", message)
        assert pending_acks(server) == 20
        for message in inbox(server, "three")["messages"]:
            settle(server, "ack", message, "three")
        eventually(lambda: pending_acks(server) == 0, what="no pending acks")
