"""Webhooks, seen by their receivers: which events leave the bus, signed how, when, and in what order."""

from __future__ import annotations

import http.client
import json
import random
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from websockets.sync.client import connect

from bus.testing import BusServer, eventually
from tests.calls import call, send, send_all
from tests.sinks import Sink, Visit, answer, in_turn
from tests.webhook_calls import ENV, data_of, drop, hook, settled, stats

SERVER_ENV = ENV


# ---- what is sent


def test_a_message_reaches_its_receiver_signed_over_the_very_bytes(each_server: BusServer, sink: Sink) -> None:
    made = hook(each_server, sink)
    receipt = send(each_server, "anybody", {"שלום": ["🌍", 1.5, None]})
    (hit,) = sink.wait_for(1)
    body = Webhook(made["secret"]).verify(hit.body, hit.headers)
    assert (body["type"], body["event"]) == ("message.sent", "message.sent")
    assert body["data"]["id"] == receipt["message_id"]
    assert body["data"]["payload"] == {"שלום": ["🌍", 1.5, None]}
    assert hit.headers["content-type"] == "application/json"
    assert call(each_server, "DELETE", f"/api/webhooks/{made['id']}")["status"] == "deleted"


@pytest.mark.slow
def test_ten_thousand_random_payloads_verify_and_none_with_a_bit_changed(server: BusServer, sink: Sink) -> None:
    made = hook(server, sink, types=["random"])
    chance = random.Random(5)
    count = 10_000
    for _ in range(count // 1000):
        send_all(server, [{"to": "x", "type": "random", "payload": anything(chance, 3)} for _ in range(1000)])
    reference = Webhook(made["secret"])
    for hit in sink.wait_for(count, seconds=100):
        reference.verify(hit.body, hit.headers)
        changed = bytearray(hit.body)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        with pytest.raises((WebhookVerificationError, UnicodeDecodeError)):
            reference.verify(bytes(changed), hit.headers)
    drop(server, made)


def anything(chance: random.Random, depth: int) -> Any:
    """A random JSON value."""
    kind = chance.randrange(8 if depth else 5)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.randint(-(2**53), 2**53)
    if kind == 2:
        return chance.uniform(-1e9, 1e9)
    if kind < 5:
        return "".join(
            chr(chance.choice([chance.randrange(1, 128), chance.randrange(0x5D0, 0x5EB), 0x1F600])) for _ in range(9)
        )
    if kind < 7:
        return {str(anything(chance, 0)): anything(chance, depth - 1) for _ in range(chance.randrange(5))}
    return [anything(chance, depth - 1) for _ in range(chance.randrange(5))]


def test_an_event_too_large_to_be_sent_goes_as_a_reference(server: BusServer, sink: Sink) -> None:
    made = hook(server, sink)
    receipt = send(server, "anybody", "x" * 300_000)
    (hit,) = sink.wait_for(1)
    body = json.loads(hit.body)
    assert "data" not in body
    assert body["ref"] == f"/api/messages/{receipt['message_id']}"
    assert body["bytes"] > 300_000
    drop(server, made)


def test_a_webhook_belongs_to_the_trace_of_its_message(each_server: BusServer, sink: Sink) -> None:
    made = hook(each_server, sink, "message.sent", "message.failed", types=["traced"], headers={"traceparent": "mine"})
    trace = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "a=1,b=2"}
    path = "/api/send"
    body = {
        "from": "giver",
        "to": "traced",
        "type": "traced",
        "require_ack": True,
        "payload": {"traceparent": "not this"},
    }
    sent = each_server.call("POST", path, body, headers=trace).body["message_id"]
    call(each_server, "POST", f"/api/messages/{sent}/reject", {"client": "traced", "reason": "no"})
    for hit in sink.wait_for(2):
        assert {name: hit.headers.get(name) for name in trace} == trace
        assert data_of(hit)["headers"] == trace
    each_server.call(
        "POST", path, {**body, "require_ack": False, "headers": {**trace, "tracestate": "a=1\r\nX-Own: 1"}}
    )
    broken = sink.wait_for(3)[2]
    assert broken.headers["traceparent"] == trace["traceparent"]
    assert not {"tracestate", "x-own"} & set(broken.headers)
    send(each_server, "traced", {"headers": trace}, type="traced")
    assert sink.wait_for(4)[3].headers["traceparent"] == "mine"
    drop(each_server, made)


# ---- when it fails


def test_a_failed_delivery_comes_again_with_the_same_id_and_is_logged(each_server: BusServer, sink: Sink) -> None:
    sink.mode = in_turn(answer(500), answer(503), answer(200))
    made = hook(each_server, sink)
    send(each_server, "anybody")
    hits = sink.wait_for(3)
    reference = Webhook(made["secret"])
    assert len({hit.headers["webhook-id"] for hit in hits}) == 1
    assert [hit.headers["webhook-attempt"] for hit in hits] == ["1", "2", "3"]
    stamps = [int(hit.headers["webhook-timestamp"]) for hit in hits]
    assert stamps == sorted(stamps)
    for hit in hits:
        reference.verify(hit.body, hit.headers)
    settled(each_server, made)
    (delivery,) = call(each_server, "GET", "/api/webhooks/deliveries", webhook=made["id"])["deliveries"]
    log = call(each_server, "GET", f"/api/webhooks/deliveries/{delivery['id']}")["attempts"]
    assert [(attempt["outcome"], attempt["status"]) for attempt in log] == [
        ("http_5xx", 500),
        ("http_5xx", 503),
        ("ok", 200),
    ]
    assert all(attempt["total_ms"] > 0 and attempt["address"] == "127.0.0.1" for attempt in log)
    drop(each_server, made)


def test_what_failed_too_often_is_dead_and_a_replay_brings_it_marked(each_server: BusServer, sink: Sink) -> None:
    sink.mode = answer(500)
    made = hook(each_server, sink, max_retries=1)
    for _ in range(3):
        send(each_server, "anybody")
    eventually(lambda: stats(each_server, made)["dead"] == 3, what="dead deliveries")
    sink.mode = answer(200)
    choice = {"webhook": made["id"]}
    assert call(each_server, "POST", "/api/webhooks/replays", {**choice, "dry_run": True})["matched"] == 3
    first, again = (call(each_server, "POST", "/api/webhooks/replays", choice) for _ in range(2))
    assert first["matched"] == 3
    hits = sink.wait_for(9)[6:]
    assert all(hit.headers["webhook-replay"] == "1" for hit in hits)
    assert {hit.headers["webhook-id"] for hit in hits} == {hit.headers["webhook-id"] for hit in sink.hits[:6]}
    eventually(lambda: stats(each_server, made)["dead"] == 0, what="no dead deliveries")
    for replay in (first, again):
        path = f"/api/webhooks/replays/{replay['id']}"
        eventually(lambda path=path: call(each_server, "GET", path)["status"] == "done", what="the end of a replay")
    assert len(sink.hits) == 9
    drop(each_server, made)


def test_gone_disables_at_once_keeps_what_is_owed_and_tells(each_server: BusServer, sink: Sink) -> None:
    with Sink() as told:
        watcher = hook(each_server, told, "endpoint.disabled")
        sink.mode = answer(410)
        made = hook(each_server, sink)
        send(each_server, "anybody")
        (hit,) = told.wait_for(1)
        assert data_of(hit) == {"endpoint": made["id"], "url": sink.url.replace("/hook", "/…"), "reason": "gone"}
        shown = call(each_server, "GET", f"/api/webhooks/{made['id']}")
        assert (shown["state"], shown["reason"]) == ("disabled", "gone")
        (held,) = call(each_server, "GET", "/api/webhooks/deliveries", webhook=made["id"])["deliveries"]
        assert held["state"] == "held"
        sink.mode = answer(200)
        resume = f"/api/webhooks/{made['id']}/resume"
        assert call(each_server, "POST", resume, {"dry_run": True})["held"] == 1
        call(each_server, "POST", resume, {})
        first, second = sink.wait_for(2)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        drop(each_server, watcher, made)


def test_retry_after_rests_the_whole_lane(server: BusServer, sink: Sink) -> None:
    sink.mode = in_turn(answer(429, {"Retry-After": "2"}), answer(200))
    made = hook(server, sink)
    send(server, "anybody")
    (first,) = sink.wait_for(1)
    for _ in range(6):
        send(server, "anybody")
    second = sink.wait_for(2)[1]
    assert second.at - first.at >= 2.0
    assert stats(server, made)["lane"]["state"] in ("closed", "paused")
    hits = sink.wait_for(7, seconds=20)
    assert sum(hit.at - second.at < 0.9 for hit in hits[2:]) <= 2  # it begins slowly again
    drop(server, made)


# ---- who gets what


def test_filters_let_through_what_they_say_and_nothing_else(each_server: BusServer, sink: Sink) -> None:
    with Sink() as marked:
        made = [
            hook(each_server, sink, clients=["filter-a"]),
            hook(each_server, sink, topics=["filters.>"]),
            hook(each_server, sink, types=["filter-type"]),
            hook(each_server, sink, "message.failed"),
        ]
        last = hook(each_server, marked, types=["filter-end"])
        send(each_server, "filter-a", 1)
        send(each_server, "somebody", 2, sender="filter-a")
        send(each_server, "topic:filters.x.y", 3)
        send(each_server, "somebody", 4, type="filter-type")
        send(each_server, "somebody", 5)
        send(each_server, "topic:filtered.x", 6)
        send(each_server, "somebody", 7, type="filter-end")
        marked.wait_for(1)
        for each in made:
            settled(each_server, each)
        assert sorted(data_of(hit)["payload"] for hit in sink.hits) == [1, 2, 3, 4]
        drop(each_server, *made, last)


def test_what_is_received_and_what_fails_is_told(each_server: BusServer, sink: Sink) -> None:
    made = hook(each_server, sink, "message.received", "message.failed", clients=["taker"])
    taken = send(each_server, "taker", require_ack=True)["message_id"]
    call(each_server, "POST", f"/api/messages/{taken}/ack", {"client": "taker"})
    refused = send(each_server, "taker", require_ack=True)["message_id"]
    call(each_server, "POST", f"/api/messages/{refused}/reject", {"client": "taker", "reason": "no"})
    bodies = {json.loads(hit.body)["type"]: data_of(hit) for hit in sink.wait_for(2)}
    assert (bodies["message.received"]["id"], bodies["message.received"]["recipient"]) == (taken, "taker")
    assert bodies["message.failed"]["message_id"] == refused
    assert bodies["message.failed"]["reason"] == "rejected"
    drop(each_server, made)


def test_connections_are_told(each_server: BusServer, sink: Sink) -> None:
    made = hook(each_server, sink, "client.*")
    with connect(f"{each_server.ws_url}/ws/connects") as socket:
        socket.recv(timeout=5)
    bodies = [json.loads(hit.body) for hit in sink.wait_for(2)]
    assert [body["type"] for body in bodies] == ["client.connected", "client.disconnected"] or each_server.workers > 1
    assert {body["data"]["client"] for body in bodies} == {"connects"}
    drop(each_server, made)


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.one_node("each tells of its own start and stop")
def test_a_server_tells_once_that_it_stopped_and_once_that_it_started(
    fresh_server: Any, sink: Sink, workers: int
) -> None:
    server = fresh_server(env=ENV, workers=workers)
    made = hook(server, sink, "system.*")
    server.restart()
    eventually(lambda: len(sink.hits) >= 2, what="both events")
    victim = server.worker_pids()[0]
    server.kill_worker(victim)
    eventually(lambda: _workers(server) == workers, what="a new worker")
    settled(server, made)
    assert sorted(json.loads(hit.body)["type"] for hit in sink.hits) == ["system.started", "system.stopped"]


@pytest.mark.slow
@pytest.mark.one_node("two servers of one folder")
def test_two_servers_of_one_log_tell_once_each_that_they_started_and_stopped(
    fresh_server: Any, sink: Sink, tmp_path: Path
) -> None:
    first, second = (fresh_server(env=ENV, workers=2, data_dir=tmp_path) for _ in range(2))
    hook(second, sink, "system.*")
    first.kill_worker(first.worker_pids()[0])
    eventually(lambda: _workers(second) == 4, what="a new worker")
    assert first.terminate() == 0
    assert second.terminate() == 0
    second.start()  # what a server has no time to send at its end is sent at the next start

    def told(event: str) -> int:
        return [json.loads(hit.body)["type"] for hit in list(sink.hits)].count(event)

    eventually(lambda: (told("system.stopped"), told("system.started")) >= (2, 1), what="both ends and a start")
    assert (told("system.stopped"), told("system.started")) == (2, 1)


def _workers(server: BusServer) -> int:
    try:
        return int(server.call("GET", "/api/status").body["workers"])
    except (OSError, http.client.HTTPException, KeyError, TypeError):
        return 0


# ---- order


@pytest.mark.parametrize("order", ["endpoint", "to"])
def test_in_ordered_mode_the_first_success_of_each_comes_in_order(
    each_server: BusServer, sink: Sink, order: str
) -> None:
    chance = random.Random(11)
    done: list[tuple[str, int]] = []

    def sometimes(visit: Visit) -> bool | None:
        well = chance.random() > 0.3
        if well:
            done.append((data_of(visit.hit)["to"], int(visit.hit.headers["webhook-sequence"])))
        return answer(200 if well else 500)(visit)

    sink.mode = sometimes
    made = hook(each_server, sink, types=["ordered"], ordered=order, schedule_seconds=[0] * 21)
    names = ("a", "b", "c")
    for number in range(30):
        send(each_server, names[number % 3], number, type="ordered")
    settled(each_server, made)
    assert sorted(sequence for _, sequence in done) == list(range(1, 31))
    for name in names:
        mine = [sequence for to, sequence in done if to == name]
        assert mine == sorted(mine)
    if order == "endpoint":
        assert [sequence for _, sequence in done] == list(range(1, 31))
    drop(each_server, made)


def test_what_expires_is_told_when_it_leaves_the_log(each_server: BusServer, sink: Sink) -> None:
    made = hook(each_server, sink, events=["message.expired"], types=["fleeting"])
    receipts = [send(each_server, "somebody", number, type="fleeting", ttl=0.05) for number in range(3)]
    send(each_server, "somebody", "stays", type="fleeting")

    def are_told() -> bool:
        call(each_server, "POST", "/api/ttl/sweep")
        return len(sink.hits) >= 3

    eventually(are_told, what="the three that expired")
    told = [data_of(hit) for hit in sink.hits]
    assert {data["id"] for data in told} == {receipt["message_id"] for receipt in receipts}
    assert {(data["reason"], data["type"]) for data in told} == {("expired", "fleeting")}
    drop(each_server, made)
