"""Event streams over the bus: what comes, in which form and order; who gets it; how it goes on after an end."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, inbox, send, settle
from tests.event_source import EventSource
from tests.peer import Peer
from tests.rawws import RawWebSocket
from tests.workers import wait_until_known

CURSOR = re.compile(r"[0-9a-f]{12}:\d+")


def opened(server: BusServer, query: str = "", **how: Any) -> EventSource:
    """A stream that was welcomed."""
    source = EventSource(server, query, **how)
    assert source.status == 200, (source.head, source.body)
    assert source.read().event == "connected"
    return source


def broadcast(server: BusServer, event: str, data: object = None, **more: object) -> Any:
    return call(server, "POST", "/stream/broadcast", {"event": event, "data": data, **more})


def send_event(server: BusServer, client: str, event: str, data: object = None) -> Any:
    return call(server, "POST", "/stream/send", {"client_id": client, "event": event, "data": data})


# ---- the form


def test_the_first_bytes_say_who_where_and_when_to_come_back(each_server: BusServer) -> None:
    with EventSource(each_server, "client_id=first-bytes") as source:
        hello = source.read()
        assert source.status == 200
        assert source.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert source.headers["cache-control"] == "no-cache, no-transform"
        assert source.headers["x-accel-buffering"] == "no"
        assert source.headers["connection"] == "close"
        assert {"x-request-id", "date"} <= set(source.headers)
        assert not {"transfer-encoding", "content-length"} & set(source.headers)
        assert hello.event == "connected"
        assert set(hello.json) == {"client_id", "timestamp", "cursor"}
        assert hello.json["client_id"] == "first-bytes"
        assert hello.json["cursor"] == hello.id
        assert CURSOR.fullmatch(hello.id)
        assert source.retry_ms is not None
        assert 2000 <= source.retry_ms <= 4000


def test_browsers_are_not_all_told_to_come_back_at_once(server: BusServer) -> None:
    waits = set()
    for _ in range(8):
        with opened(server) as source:
            waits.add(source.retry_ms)
    assert len(waits) > 1


def test_a_message_streams_whole_and_its_id_is_its_place(each_server: BusServer) -> None:
    with opened(each_server, "client_id=whole") as source, Peer(each_server, "whole") as peer:
        sent = send(each_server, "whole", {"text": "שלום\n"}, type="command", priority="high")
        event = source.read()
        assert event.event == "message_received"
        assert event.json == peer.message()
        assert event.id == f"{source.id.partition(':')[0]}:{sent['seq']}"


def test_line_ends_in_a_payload_part_the_data_and_change_nothing(server: BusServer) -> None:
    with opened(server, "client_id=lines") as source:
        body = b'{"from": "a", "to": "lines", "payload": {\r\n "a":\r [1,\n 2]}}'
        raw_post(server, "/api/send", body)
        assert source.read().payload == {"a": [1, 2]}


def raw_post(server: BusServer, path: str, body: bytes) -> None:
    from urllib.request import Request, urlopen  # noqa: PLC0415  # JSON that a library would write otherwise

    with urlopen(Request(server.url + path, body, {"Content-Type": "application/json"}), timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("plain", "plain"),
        ("", ""),
        ("two\nlines", "two\nlines"),
        ("all\r\nsorts\rof\nends", "all\nsorts\nof\nends"),
        ("\nid: 0\nevent: gap", "\nid: 0\nevent: gap"),
        ("שלום 🌍", "שלום 🌍"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (17, "17"),
        (None, "null"),
    ],
)
def test_an_event_streams_under_its_own_name_with_its_data(server: BusServer, data: object, shown: str) -> None:
    with opened(server) as source:
        before = source.id
        broadcast(server, "notification", data)
        event = source.read()
        assert (event.event, event.data) == ("notification", shown)
        assert event.id != before


def test_over_http_1_0_and_for_head(server: BusServer) -> None:
    with opened(server, version="1.0") as source:
        broadcast(server, "old", 1)
        assert source.read().event == "old"
    with EventSource(server, method="HEAD") as head:
        assert head.status == 200
        assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert head.raw in (b"", b"0\r\n\r\n")
    assert eventually(lambda: call(server, "GET", "/stream/stats")["active_streams"] == 0, what="no stream")


def test_what_a_peer_says_on_a_stream_is_ignored(server: BusServer) -> None:
    with opened(server, "client_id=chatty") as source:
        source.socket.sendall(b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        send(server, "chatty", 1)
        assert source.read().payload == 1


# ---- who gets what


def test_without_a_client_id_a_stream_is_a_strangers(each_server: BusServer) -> None:
    send(each_server, "all", "before")
    with opened(each_server, "topics=news.*") as source, opened(each_server) as other:
        name = eventually(lambda: call(each_server, "GET", "/stream/clients")["anonymous"] == 2, what="two strangers")
        send(each_server, "all", "to all")
        send(each_server, "topic:news.today", "to a topic")
        broadcast(each_server, "notice", "event")
        first, second, third = source.take(3)
        assert (first.payload, second.payload, third.data) == ("to all", "to a topic", "event")
        assert [event.event for event in other.take(2)] == ["message_received", "notice"]
        assert name
    with EventSource(each_server) as one, EventSource(each_server) as two:
        names = {one.read().json["client_id"], two.read().json["client_id"]}
        assert len(names) == 2
        assert all(re.fullmatch("anon-[0-9a-f]{16}", name) for name in names)
        listed = call(each_server, "GET", "/api/clients", limit=1000)["clients"]
        assert not names & {client["client"] for client in listed}
        assert each_server.call("GET", f"/api/clients/{names.pop()}").status == 404


def test_a_stranger_can_be_sent_an_event_while_it_is_there(server: BusServer) -> None:
    with EventSource(server) as source:
        name = source.read().json["client_id"]
        send_event(server, name, "psst", 1)
        assert source.read().event == "psst"


def test_nobody_takes_a_strangers_name(server: BusServer) -> None:
    refused = server.call("GET", "/stream/events?client_id=anon-0123456789abcdef")
    assert (refused.status, refused.body["code"], refused.body["field"]) == (400, "reserved_name", "client_id")


def test_a_client_gets_what_waited_for_it_then_what_comes(each_server: BusServer) -> None:
    for number in range(3):
        send(each_server, "returning", number)
    with opened(each_server, "client_id=returning") as source:
        send(each_server, "returning", 3)
        assert source.payloads(4) == [0, 1, 2, 3]


def test_lists_all_and_topics_come_in_one_order(each_server: BusServer) -> None:
    with opened(each_server, "client_id=ordered&topics=o.*,p.>") as source:
        sent = [
            send(each_server, to, number)
            for number, to in enumerate(
                ["ordered", "all", ["ordered", "x"], "topic:o.a", "topic:p.b.c", "ordered"] * 20
            )
        ]
        events = source.take(len(sent))
        assert [event.json["seq"] for event in events] == [receipt["seq"] for receipt in sent]


def test_a_sender_does_not_get_its_own_message_to_all(server: BusServer) -> None:
    with opened(server, "client_id=crier") as crier, opened(server, "client_id=hearer") as hearer:
        send(server, "all", 1, sender="crier")
        broadcast(server, "called", 2, **{"from": "crier"})
        send(server, "crier", "next")
        assert crier.read().payload == "next"
        assert [event.event for event in hearer.take(2)] == ["message_received", "called"]


@pytest.mark.parametrize("when", ["live", "later"])
def test_who_is_excluded_gets_it_over_no_transport(each_server: BusServer, when: str) -> None:
    names = [f"{kind}-{when}" for kind in ("streaming", "socket", "reading")]
    left_out, others = names, [f"other-{name}" for name in names]
    for name in left_out + others:
        call(each_server, "POST", "/api/send", {"from": name, "to": "elsewhere"})  # they are known from now on
    start = call(each_server, "GET", "/api/status")["cursor"]

    def connect() -> tuple[list[EventSource], list[Peer]]:
        streams = [opened(each_server, f"client_id={n}&last_event_id={start}") for n in (left_out[0], others[0])]
        return streams, [Peer(each_server, n, f"?since={start}") for n in (left_out[1], others[1])]

    if when == "live":
        streams, peers = connect()
    receipt = broadcast(each_server, "party", {"at": 8}, exclude=left_out)
    for name in left_out + others:
        send(each_server, name, "after")
    if when == "later":
        streams, peers = connect()
    assert streams[0].read().payload == "after"
    assert [event.event for event in streams[1].take(2)] == ["party", "message_received"]
    assert peers[0].message()["payload"] == "after"
    message = peers[1].message()
    assert message["payload"] == {"at": 8}
    assert (message["type"], message["from"], message["exclude"]) == ("party", "$stream", left_out)
    read = [[m["payload"] for m in inbox(each_server, n, since=start)["messages"]] for n in (left_out[2], others[2])]
    assert read == [["after"], [{"at": 8}, "after"]]
    told = [call(each_server, "GET", "/api/log", to=n, since=start)["messages"] for n in (left_out[2], others[2])]
    assert [message["seq"] == receipt["seq"] for message in told[1]] == [True, False]
    assert receipt["seq"] not in [message["seq"] for message in told[0]]
    for open_one in (*streams, *peers):
        open_one.close()


def test_an_event_is_a_message_of_the_log_and_of_an_inbox(each_server: BusServer) -> None:
    receipt = send_event(each_server, "later", "note", {"n": 1})
    assert receipt["status"] == "sent"
    assert receipt["recipients"][0]["state"] == "unknown"
    (message,) = inbox(each_server, "later")["messages"]
    assert (message["id"], message["type"], message["payload"]) == (receipt["message_id"], "note", {"n": 1})
    with opened(each_server, "client_id=later") as source:
        event = source.read()
        assert (event.event, event.json) == ("note", {"n": 1})


def test_a_replayed_event_streams_under_its_own_name(server: BusServer) -> None:
    with opened(server, "client_id=again") as source:
        start = source.id
        send_event(server, "again", "note", 1)
        first = source.read()
        call(server, "POST", "/api/replay", {"to": "again", "source": "inbox", "since": start})
        second = source.read()
        assert (second.event, second.data) == (first.event, first.data)
        assert second.id != first.id


def test_a_repeated_event_with_a_key_is_one(server: BusServer) -> None:
    body = {"event": "once", "data": 1}
    answers = [
        server.call("POST", "/stream/broadcast", body, headers={"Idempotency-Key": "stream-once"}) for _ in range(2)
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body["message_id"] == answers[1].body["message_id"]
    assert answers[1].body["duplicate"] is True


# ---- filters


def test_filters_choose_events_and_types(each_server: BusServer) -> None:
    with (
        opened(each_server, "client_id=choosy&subscribe=notice,message_received") as events,
        opened(each_server, "client_id=choosy&types=command,notice") as types,
        opened(each_server, "client_id=choosy&subscribe=notice") as notices,
        opened(each_server, "client_id=choosy") as everything,
    ):
        send(each_server, "choosy", "c", type="command")
        send(each_server, "choosy", "t")
        send_event(each_server, "choosy", "noise", "n")
        send_event(each_server, "choosy", "notice", "last")
        assert [event.event for event in events.take(3)] == ["message_received", "message_received", "notice"]
        assert [event.event for event in types.take(2)] == ["message_received", "notice"]
        assert [event.event for event in notices.take(1)] == ["notice"]
        assert len(everything.take(4)) == 4


def test_a_new_filter_holds_for_the_stream_that_brings_it(server: BusServer) -> None:
    for wanted in ("one", "two"):
        with opened(server, f"client_id=refilter&subscribe={wanted}&last_event_id=") as source:
            for event in ("one", "two"):
                send_event(server, "refilter", event)
            assert source.read().event == wanted


def test_heartbeats_come_while_messages_do(beating: BusServer) -> None:
    with opened(beating, "client_id=busy") as source:
        while len(source.comments) < 2:
            send(beating, "busy", 1)
            source.read()


def test_a_heartbeat_carries_a_filtered_streams_place(beating: BusServer) -> None:
    with opened(beating, "client_id=beating&subscribe=nothing") as source:
        sent = send(beating, "beating", 1)
        while not source.id.endswith(f":{sent['seq']}"):
            source.read_comment()
        assert b"message_received" not in source.raw


@pytest.fixture(scope="module")
def beating():
    """A server whose streams have a short heartbeat."""
    with BusServer(env={"BUS_EXTENSIONS": "tests.faults.quick_streams"}) as running:
        yield running


def test_a_filtered_stream_moves_no_cursor_and_takes_no_lease(each_server: BusServer) -> None:
    name = "partial"
    with opened(each_server, f"client_id={name}&types=command") as source:
        plain = send(each_server, name, "plain")
        tracked = send(each_server, name, "tracked", type="command", require_ack=True)
        assert plain["recipients"] == [{"client": name, "state": "queued"}]
        assert tracked["recipients"] == [{"client": name, "state": "queued"}]
        assert source.is_silent(1.5)
        found = call(each_server, "GET", f"/api/messages/{tracked['message_id']}")["recipients"][0]
        assert found["state"] == "waiting"
        with opened(each_server, f"client_id={name}") as whole:
            assert {event.payload for event in whole.take(2)} == {"plain", "tracked"}


def test_a_stream_that_leaves_out_messages_leases_nothing_that_waited(each_server: BusServer) -> None:
    sent = send(each_server, "waiting", "do", require_ack=True)
    with opened(each_server, "client_id=waiting&subscribe=notice") as source:
        send_event(each_server, "waiting", "notice")
        assert source.read().event == "notice"
        assert source.is_silent(0.5)
        (found,) = call(each_server, "GET", f"/api/messages/{sent['message_id']}")["recipients"]
        assert found["state"] == "waiting"


# ---- what needs an ack


def test_what_needs_an_ack_comes_without_an_id_and_is_acked_over_rest(each_server: BusServer) -> None:
    with opened(each_server, "client_id=acker") as source:
        before = source.id
        send(each_server, "acker", "do", require_ack=True)
        event = source.read()
        assert event.json["requires_ack"] is True
        assert event.id == before
        assert settle(each_server, "ack", event.json, "acker")["status"] == "acked"
    with opened(each_server, "client_id=acker") as source:
        send(each_server, "acker", "next")
        assert source.read().payload == "next"


def test_what_was_not_acked_comes_again_to_the_next_stream(each_server: BusServer) -> None:
    with opened(each_server, "client_id=forgetful") as source:
        send(each_server, "forgetful", "do", require_ack=True)
        first = source.read().json
    with opened(each_server, "client_id=forgetful") as source:
        again = source.read().json
        assert (again["id"], again["redelivered"]) == (first["id"], True)
        assert "attempt" not in again


# ---- going on


def test_the_id_seen_last_is_where_a_stream_goes_on(each_server: BusServer) -> None:
    with opened(each_server, "client_id=resuming&topics=r.*") as source:
        send(each_server, "resuming", 0)
        last = source.read().id
    for number in (1, 2, 3):
        send(each_server, ["resuming", "all", "topic:r.x"][number - 1], number)
    with opened(each_server, "client_id=resuming&topics=r.*", headers={"Last-Event-ID": last}) as source:
        assert source.payloads(3) == [1, 2, 3]
        assert source.is_silent(0.3)


def test_the_header_wins_over_the_query_and_earliest_is_all(server: BusServer) -> None:
    start = call(server, "GET", "/api/status")["cursor"]
    for number in range(3):
        send(server, "headed", number)
    middle = f"{start.partition(':')[0]}:{int(start.partition(':')[2]) + 2}"
    query = f"client_id=headed&last_event_id={start}"
    with opened(server, query, headers={"Last-Event-ID": middle}) as source:
        assert source.payloads(1) == [2]
    for query in (f"client_id=headed&lastEventId={start}", "client_id=headed&last_event_id=earliest"):
        with opened(server, query) as source:
            mine: list[int] = []
            while len(mine) < 3:
                message = source.read_until("message_received").json
                mine += [message["payload"]] if message["to"] == "headed" else []
            assert mine == [0, 1, 2]


def test_a_stranger_goes_on_too(each_server: BusServer) -> None:
    with opened(each_server) as source:
        send(each_server, "all", 0)
        last = source.read().id
    broadcast(each_server, "missed", 1)
    with opened(each_server, headers={"Last-Event-ID": last}) as source:
        assert source.read().event == "missed"


@pytest.mark.parametrize("bad", ["0123456789ab:7", "event-17", "x" * 5000])
def test_an_id_that_is_gone_is_told_with_a_new_one(each_server: BusServer, bad: str) -> None:
    send(each_server, "told", "kept")
    with EventSource(each_server, "client_id=told", headers={"Last-Event-ID": bad}) as source:
        gap = source.read()
        assert source.status == 200
        assert gap.event == "gap"
        assert gap.json["requested"] == bad[:128]
        assert gap.json["reason"] in ("unknown", "epoch_changed")
        assert gap.json["resumed_from"] == gap.id == source.headers["x-resumed-from"]
        assert source.read().event == "connected"
        while source.read_until("message_received").payload != "kept":
            pass  # what tests before sent to all
    with EventSource(each_server, "client_id=told&on_gap=latest", headers={"Last-Event-ID": bad}) as source:
        assert source.read().event == "gap"
        send(each_server, "told", "new")
        source.read_until("connected")
        assert source.read().payload == "new"


def test_an_id_ahead_of_the_log_is_told(server: BusServer) -> None:
    epoch = call(server, "GET", "/api/status")["epoch"]
    with EventSource(server, "client_id=ahead", headers={"Last-Event-ID": f"{epoch}:999999"}) as source:
        assert source.read().json["reason"] == "unknown"


def test_the_kept_cursor_follows_an_unfiltered_stream(each_server: BusServer) -> None:
    with opened(each_server, "client_id=kept") as source:
        for number in range(3):
            send(each_server, "kept", number)
        assert source.payloads(3) == [0, 1, 2]
        eventually(lambda: not inbox(each_server, "kept", limit=1)["messages"], what="the cursor behind the third")
    send(each_server, "kept", 3)
    with opened(each_server, "client_id=kept") as source:
        assert source.payloads(1) == [3]


def test_two_tabs_of_a_client_get_everything_and_one_may_leave(each_server: BusServer) -> None:
    with opened(each_server, "client_id=tabs") as one:
        with opened(each_server, "client_id=tabs") as two:
            send_event(each_server, "tabs", "both", 1)
            assert one.read().data == two.read().data == "1"
        eventually(lambda: tabs_of(each_server, "tabs") == 1, what="one tab")
        send_event(each_server, "tabs", "left", 2)
        assert one.read().data == "2"
    eventually(lambda: tabs_of(each_server, "tabs") == 0, what="no tab")


def tabs_of(server: BusServer, name: str) -> int:
    clients = call(server, "GET", "/stream/clients", limit=1000)["clients"]
    return sum(client["streams"] for client in clients if client["client_id"] == name)


@pytest.mark.parametrize(("workers", "rounds"), [(1, 2), pytest.param(4, 4, marks=pytest.mark.slow)])
def test_a_kill_and_a_restart_lose_and_double_nothing(fresh_server, workers: int, rounds: int) -> None:
    server = fresh_server(workers=workers)
    got: list[int] = []
    source = opened(server, "client_id=survivor")
    for round_ in range(rounds):
        for number in range(10):
            send(server, "survivor", round_ * 20 + number)
        got += source.payloads(5)  # the rest is lost on the way, or with the server
        last = source.id
        source.close()
        server.kill() if round_ % 2 == 0 else server.terminate()
        server.kill()
        server.start()
        for number in range(10, 20):
            send(server, "survivor", round_ * 20 + number)
        source = opened(server, "client_id=survivor", headers={"Last-Event-ID": last})
        got += source.payloads(15)
    source.close()
    assert got == list(range(20 * rounds))


def test_a_stop_ends_streams_well(fresh_server) -> None:
    server = fresh_server(workers=2)
    streams = [opened(server, f"client_id=stopped-{number}") for number in range(10)]
    for number in range(10):
        send(server, f"stopped-{number}", "last")
    assert server.terminate() == 0
    for source in streams:
        events = source.read_end()
        assert [event.event for event in events] == ["message_received", "goaway"]
        assert source.retry_ms == events[-1].json["reconnect_after_ms"]
        source.close()


# ---- all workers


@pytest.mark.one_node("each counts for itself")
def test_streams_of_every_worker_are_counted_and_reached(server4: BusServer) -> None:
    before = call(server4, "GET", "/stream/stats")
    streams = [opened(server4, f"client_id=spread-{number % 20}") for number in range(40)]
    eventually(
        lambda: call(server4, "GET", "/stream/stats")["active_streams"] == before["active_streams"] + 40,
        what="all streams in the figures",
    )
    clients = call(server4, "GET", "/stream/clients", limit=1000)["clients"]
    assert [c["streams"] for c in clients if c["client_id"].startswith("spread-")] == [2] * 20
    page = call(server4, "GET", "/stream/clients", limit=5)
    assert page["count"] == 5
    assert page["more"] is True
    assert call(server4, "GET", "/stream/clients", limit=1, cursor=page["cursor"])["clients"][0] not in page["clients"]
    answer = broadcast(server4, "hello", 1)
    assert answer["recipients"][0]["online"] >= 20
    for source in streams:
        assert source.read().event == "hello"
        source.close()
    after = eventually(
        lambda: (now := call(server4, "GET", "/stream/stats"))["active_streams"] == before["active_streams"] and now,
        what="the end of all streams in the figures",
    )
    assert after["total_connections"] == before["total_connections"] + 40
    assert after["total_broadcasts"] == before["total_broadcasts"] + 1
    assert after["total_events_sent"] == before["total_events_sent"] + 1


def test_many_senders_and_readers_at_once_see_one_order(server4: BusServer) -> None:
    streams = [opened(server4, "client_id=crowd") for _ in range(8)]

    def sender(number: int) -> None:
        for at in range(20):
            (send if at % 2 else send_event)(server4, "crowd", *([{"n": at}] if at % 2 else ["tick", at]))  # type: ignore[operator]

    threads = [threading.Thread(target=sender, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = [[event.id for event in source.take(80)] for source in streams]
    assert all(ids == seen[0] for ids in seen)
    places = [int(id_.partition(":")[2]) for id_ in seen[0]]
    assert places == sorted(set(places))
    for source in streams:
        source.close()


def test_ephemeral_messages_stream_without_a_place(each_server: BusServer) -> None:
    with opened(each_server, "client_id=typing") as source:
        before = source.id
        send(each_server, "typing", "…", ephemeral=True)
        event = source.read()
        assert (event.payload, event.id) == ("…", before)


def test_a_sender_hears_over_its_stream_what_became_a_dead_letter(each_server: BusServer) -> None:
    with opened(each_server, "client_id=asker") as source:
        wait_until_known(each_server, ["asker"])
        sent = send(each_server, "refuser", "do", sender="asker", require_ack=True)
        settle(each_server, "reject", sent["message_id"], "refuser", reason="no")
        event = source.read()
        assert event.event == "failed"
        assert (event.json["message_id"], event.json["reason"]) == (sent["message_id"], "rejected")


# ---- refusals


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("client_id=", "client_id"),
        ("client_id=a%0d%0ab", "client_id"),
        ("client_id=all", "client_id"),
        ("subscribe=a%0ab", "subscribe"),
        ("types=$x", "types"),
        ("topics=a%20b", "topics"),
        ("on_gap=never", "on_gap"),
        ("subscribe=" + ",".join(["a"] * 101), "subscribe"),
    ],
)
def test_a_bad_query_is_refused_before_the_head(untouched: BusServer, query: str, field: str) -> None:
    refused = untouched.call("GET", f"/stream/events?{query}")
    assert (refused.status, refused.body["field"]) == (400, field)
    assert refused.headers["content-type"] == "application/json"
    assert {"error", "code", "request_id"} <= set(refused.body)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/stream/send", {"event": "e", "data": 1}, "client_id"),
        ("/stream/send", {"client_id": "a", "data": 1}, "event"),
        ("/stream/send", {"client_id": "all", "event": "e"}, "client_id"),
        ("/stream/send", {"client_id": "a", "event": "e\nid: 1"}, "event"),
        ("/stream/send", {"client_id": 5, "event": "e"}, "client_id"),
        ("/stream/broadcast", {"data": 1}, "event"),
        ("/stream/broadcast", {"event": "e\r\ndata: x"}, "event"),
        ("/stream/broadcast", {"event": ""}, "event"),
        ("/stream/broadcast", {"event": "e", "exclude": "a"}, "exclude"),
        ("/stream/broadcast", {"event": "e", "exclude": ["a b"]}, "exclude"),
        ("/stream/broadcast", {"event": "e", "from": "$stream"}, "from"),
        ("/stream/broadcast", {"event": "e", "data": json.loads("[" * 40 + "]" * 40)}, "data"),
        ("/stream/broadcast", [], None),
        ("/stream/send", None, None),
    ],
)
def test_a_bad_body_is_refused_and_nothing_is_stored(
    untouched: BusServer, path: str, body: object, field: str | None
) -> None:
    refused = untouched.call("POST", path, body, headers={"Content-Type": "application/json"})
    assert refused.status == 400
    assert refused.body.get("field") == field


def test_without_a_key_there_is_no_stream_and_no_event(locked: BusServer) -> None:
    for method, path, body in (
        ("GET", "/stream/events", None),
        ("GET", "/stream/events?client_id=victim", None),
        ("GET", "/stream/stats", None),
        ("GET", "/stream/clients", None),
        ("POST", "/stream/send", {"client_id": "a", "event": "e"}),
        ("POST", "/stream/broadcast", {"event": "e"}),
    ):
        assert locked.call(method, path, body).status == 401
        assert locked.call(method, path, body, headers={"X-API-Key": "wrong"}).status == 401


def test_with_a_key_there_is(locked_server: BusServer) -> None:
    from tests.refusals import KEY  # noqa: PLC0415

    with opened(locked_server, "client_id=keyed", headers={"Authorization": f"Bearer {KEY}"}) as source:
        body = {"client_id": "keyed", "event": "e", "data": 1}
        assert locked_server.call("POST", "/stream/send", body, headers={"X-API-Key": KEY}).status == 200
        assert source.read().event == "e"


def test_pages_of_strangers_get_no_stream_and_allowed_ones_may_read_it(fresh_server) -> None:
    server = fresh_server(env={"ALLOWED_ORIGINS": "https://page.example"})
    refused = server.call("GET", "/stream/events", headers={"Origin": "https://evil.example"})
    assert (refused.status, refused.body["code"]) == (403, "origin_not_allowed")
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert server.call("GET", "/stream/events?client_id=victim", headers=image).status == 403
    assert server.call("GET", "/api/clients/victim").status == 404
    with opened(server, headers={"Sec-Fetch-Site": "same-origin"}):
        pass
    with opened(server, headers={"Origin": "https://page.example"}) as source:
        assert source.headers["access-control-allow-origin"] == "https://page.example"
        assert source.headers["vary"] == "Origin"
    with opened(server, headers={"Origin": server.url}) as source:
        assert source.status == 200


@pytest.mark.one_node("a full process")
def test_a_full_process_refuses_and_tells_a_browser_to_come_back(fresh_server) -> None:
    server = fresh_server(env={"MAX_CONNECTIONS": "1"})
    with opened(server, "client_id=only"):
        refused = server.call("GET", "/stream/events")
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        with EventSource(server) as browser:
            assert browser.status == 200
            assert re.fullmatch(rb"retry: \d+\n\n", browser.raw)
            assert int(browser.headers["content-length"]) == len(browser.raw)
    with RawWebSocket(server.port, "/ws/next") as socket:
        assert eventually(lambda: socket.is_open, what="room for a socket")


# ---- in Python, inside the server


@pytest.mark.one_node("each counts for itself")
def test_the_managers_verbs_go_through_the_bus(fresh_server) -> None:
    server = fresh_server(env={"BUS_EXTENSIONS": "tests.faults.own_streams,tests.faults.quick_streams"})

    def verb(name: str, **arguments: object) -> Any:
        return call(server, "POST", f"/own/{name}", arguments)["answer"]

    with EventSource(server, path="/own/stream", version="1.0") as source, opened(server, "client_id=page") as page:
        assert source.read().json["client_id"] == "own"
        verb("broadcast", event="mine", data={"n": 1}, exclude=["page"])
        assert verb("send_event", client_id="own", event="other", data=2) is True
        for _ in range(2):
            assert verb("send_event", client_id="own", event="mine", data="שלום", event_id="once") is True
        assert verb("send_event", client_id="page", event="mine", data=4) is True
        assert [event.data for event in source.take(2)] == ['{"n":1}', "שלום"]
        assert page.read().data == "4"
        assert verb("get_client_info", client_id="page")["streams"] == 1
        assert verb("get_client_info", client_id="nobody") is None
        assert verb("get_stats")["active_streams"] == 2
        assert verb("register_client", client_id="early")["client_id"] == "early"
        assert server.call("GET", "/api/clients/early").status == 200
        verb("unregister_client", client_id="page")
        assert page.read_end() == []
    eventually(lambda: verb("get_stats")["active_streams"] == 0, what="the end of its own stream")
