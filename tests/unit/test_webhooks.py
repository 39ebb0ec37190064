"""`WebhookManager` alone, against real receivers on loopback: what version 1.2 got wrong is right."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from flask import Flask, request
from standardwebhooks import Webhook

import webhooks
from bus.errors import ForbiddenTarget, Malformed, TooLarge
from bus.outbound import Guard, Outbound
from bus.testing import eventually
from bus.webhooks import signing
from bus.webhooks.local import MAX_FAILURES, Local
from tests.sinks import LOOPBACK, Sink, answer, in_turn, redirect, silent
from webhooks import DiscordWebhook, SlackWebhook, WebhookEndpoint, WebhookEvent, WebhookManager

SENT, FAILED = WebhookEvent.MESSAGE_SENT, WebhookEvent.MESSAGE_FAILED
ALLOWED = Outbound(Guard([ip_network("127.0.0.0/8")]))


class Clock:
    """A bus's clock that goes on when the test says so."""

    def __init__(self) -> None:
        self.at_us = time.time_ns() // 1000

    def now_us(self) -> int:
        return self.at_us


class Bench:
    """A running manager whose clock the test moves, and which draws no jitter."""

    def __init__(self, max_queue: int = 1000) -> None:
        self.clock = Clock()
        self.manager = WebhookManager(max_queue, outbound=ALLOWED)
        self.manager.deliver_through(Local(max_queue, lambda: ALLOWED, now_us=self.clock.now_us, draw=lambda: 0.0))
        self.manager.start_worker()

    def later(self, seconds: float) -> None:
        self.clock.at_us += int(seconds * 1_000_000)
        self.manager.start_worker()  # wakes who waits

    def stats(self, name: str, value: int) -> None:
        """Wait until a figure is there."""
        eventually(lambda: self.manager.get_stats()[name] == value)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.manager.stop_worker()


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


def endpoint(sink: Sink, **more: Any) -> WebhookEndpoint:
    return WebhookEndpoint(**{"url": sink.url, "events": {SENT}, "secret": "webhook_secret_123"} | more)


# ---- what is sent


def test_what_comes_is_signed_over_its_bytes_named_and_stamped(bench: Bench, sink: Sink) -> None:
    secret = signing.new_secret()
    bench.manager.register(endpoint(sink, secret=secret, headers={"X-Own": "1", "User-Agent": "me", "webhook-id": "x"}))
    bench.manager.trigger(SENT, {"z": "שלום", "a": [1.5, {"b": None}]})
    (hit,) = sink.wait_for(1)
    Webhook(secret).verify(hit.body, hit.headers)
    assert bench.manager.verify_signature(hit.body, hit.headers["x-webhook-signature"], secret)
    assert bench.manager.verify_signature(json.loads(hit.body), hit.headers["x-webhook-signature"], secret)
    assert hit.method == "POST"
    assert hit.headers["content-type"] == "application/json"
    assert hit.headers["x-own"] == "1"
    assert hit.headers["user-agent"].startswith("multi-agent-bridge/")
    assert hit.headers["webhook-id"].startswith("evt-")
    assert abs(int(hit.headers["webhook-timestamp"]) - hit.unix) < 5
    sent = json.loads(hit.body)
    assert (sent["type"], sent["event"]) == ("message.sent", "message.sent")
    assert sent["data"] == {"z": "שלום", "a": [1.5, {"b": None}]}


def test_without_a_secret_of_its_own_an_endpoint_is_signed_for_with_the_default_one(
    monkeypatch: pytest.MonkeyPatch, sink: Sink
) -> None:
    secret = signing.new_secret()
    for count, (given, used) in enumerate([(None, secret), ("its own", "its own"), (None, None)], start=1):
        if used is None:
            monkeypatch.delenv("WEBHOOK_SECRET")
        else:
            monkeypatch.setenv("WEBHOOK_SECRET", secret)
        manager = WebhookManager(outbound=ALLOWED)
        manager.register(endpoint(sink, secret=given))
        manager.start_worker()
        manager.trigger(SENT, {})
        hit = sink.wait_for(count)[-1]
        manager.stop_worker()
        assert manager.verify_signature(hit.body, hit.headers.get("x-webhook-signature"), used) is (used is not None)
        assert ("webhook-signature" in hit.headers) is (used is not None)


@pytest.mark.parametrize("events", [{"message.sent"}, ["message.*"], "message.sent", {SENT, FAILED}, {"*"}])
def test_events_may_be_text(bench: Bench, sink: Sink, events: Any) -> None:
    bench.manager.register(endpoint(sink, events=events))
    bench.manager.trigger("message.sent", {})
    sink.wait_for(1)
    bench.manager.trigger("system.started", {})
    assert bench.manager.get_stats()["total_sent"] == (2 if events == {"*"} else 1)


def test_one_url_is_one_endpoint(bench: Bench, sink: Sink) -> None:
    first = bench.manager.register(endpoint(sink, events={FAILED}))
    assert bench.manager.register(endpoint(sink)) == first
    bench.manager.trigger(FAILED, {})
    bench.manager.trigger(SENT, {})
    assert [json.loads(hit.body)["type"] for hit in sink.wait_for(1)] == ["message.sent"]
    assert bench.manager.get_stats()["total_sent"] == 1


def test_a_disabled_endpoint_gets_nothing(bench: Bench, sink: Sink) -> None:
    bench.manager.register(endpoint(sink, enabled=False))
    bench.manager.trigger(SENT, {})
    assert bench.manager.get_stats()["total_sent"] == 0


def test_events_of_one_endpoint_come_in_their_order(bench: Bench, sink: Sink) -> None:
    bench.manager.register(endpoint(sink))
    for number in range(20):
        bench.manager.trigger(SENT, number)
    for came in range(1, 21):
        sink.wait_for(came)
        bench.later(1)
    assert [json.loads(hit.body)["data"] for hit in sink.hits] == list(range(20))


# ---- refusals at once


@pytest.mark.parametrize(
    "wrong",
    [
        {"events": set()},
        {"events": {"message sent"}},
        {"secret": ""},
        {"secret": "whsec_AAAA"},
        {"headers": {"X-A": "a\r\nX-B: b"}},
        {"headers": {"": "a"}},
        {"max_retries": -1},
        {"timeout": 0},
        {"timeout": 31},
    ],
)
def test_what_can_not_be_meant_is_refused_at_registration(bench: Bench, sink: Sink, wrong: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        bench.manager.register(endpoint(sink, **wrong))
    assert bench.manager.get_stats()["endpoints_registered"] == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://2130706433/",
        "file:///etc/x",
        "x",
    ],
)
def test_urls_inside_are_refused_at_registration(url: str) -> None:
    manager = WebhookManager(outbound=Outbound(Guard()))
    with pytest.raises(ForbiddenTarget):
        manager.register(WebhookEndpoint(url, {SENT}))


def test_a_url_that_has_become_forbidden_is_not_called(sink: Sink) -> None:
    class Changed(Outbound):
        def check(self, url: str) -> Any:
            return None

    manager = WebhookManager(outbound=Changed(Guard()))
    manager.register(endpoint(sink, max_retries=0))
    manager.start_worker()
    manager.trigger(SENT, {})
    eventually(lambda: manager.get_stats()["total_failed"] == 1)
    manager.stop_worker()
    assert sink.connections == 0
    assert manager.get_failed_webhooks()[0]["error"] == "config_error"


@pytest.mark.parametrize("payload", [{1, 2}, object(), float("nan"), {("a",): 1}, b"x"])
def test_what_is_no_json_is_refused_by_trigger(bench: Bench, sink: Sink, payload: Any) -> None:
    bench.manager.register(endpoint(sink))
    with pytest.raises(Malformed):
        bench.manager.trigger(SENT, payload)
    assert bench.manager.get_stats()["queue_size"] == 0


def test_what_is_too_large_is_refused_by_trigger(bench: Bench, sink: Sink) -> None:
    bench.manager.register(endpoint(sink))
    with pytest.raises(TooLarge):
        bench.manager.trigger(SENT, "x" * 300_000)


def test_what_is_triggered_is_what_it_was_then(bench: Bench, sink: Sink) -> None:
    bench.manager.register(endpoint(sink))
    payload = {"n": 1}
    bench.manager.stop_worker()
    bench.manager.trigger(SENT, payload)
    payload["n"] = 2
    bench.manager.start_worker()
    assert json.loads(sink.wait_for(1)[0].body)["data"] == {"n": 1}


# ---- failures and retries


def test_three_retries_are_four_attempts_with_one_id_and_fresh_stamps(bench: Bench) -> None:
    with Sink(answer(500, body=b"broken")) as sink:
        bench.manager.register(endpoint(sink))
        bench.manager.trigger(SENT, {"n": 1})
        for attempt, pause in enumerate((5, 300, 1800, 7200), start=1):
            sink.wait_for(attempt)
            bench.stats("total_attempts", attempt)
            bench.later(pause)
        bench.stats("total_failed", 1)
        assert len(sink.hits) == 4
        assert len({hit.headers["webhook-id"] for hit in sink.hits}) == 1
        stamps = [int(hit.headers["webhook-timestamp"]) for hit in sink.hits]
        assert stamps == sorted(stamps)
    (failed,) = bench.manager.get_failed_webhooks()
    assert (failed["error"], failed["status"], failed["attempts"], failed["response"]) == ("http_5xx", 500, 4, "broken")
    assert failed["payload"] == {"n": 1}
    assert failed["url"] == sink.url


def test_no_retries_are_one_attempt(bench: Bench) -> None:
    with Sink(answer(500)) as sink:
        bench.manager.register(endpoint(sink, max_retries=0))
        bench.manager.trigger(SENT, {})
        bench.stats("total_failed", 1)
        assert len(sink.hits) == 1


def test_a_redirect_is_a_failure_and_not_followed(bench: Bench, sink: Sink) -> None:
    with Sink(redirect(sink.url)) as crooked:
        bench.manager.register(endpoint(crooked, max_retries=0))
        bench.manager.trigger(SENT, {})
        bench.stats("total_failed", 1)
    assert sink.connections == 0
    assert bench.manager.get_failed_webhooks()[0]["error"] == "redirect"


def test_a_refusal_is_tried_three_times(bench: Bench) -> None:
    with Sink(answer(422)) as sink:
        bench.manager.register(endpoint(sink, max_retries=9))
        bench.manager.trigger(SENT, {})
        for attempt in (1, 2, 3):
            bench.stats("total_attempts", attempt)
            bench.later(300)
        bench.stats("total_failed", 1)
        assert len(sink.hits) == 3
    assert bench.manager.get_failed_webhooks()[0]["error"] == "config_error"


def test_three_refused_in_a_row_flag_the_endpoint(bench: Bench) -> None:
    with Sink(answer(401)) as sink:
        bench.manager.register(endpoint(sink, max_retries=0))
        for failed in (1, 2, 3):
            assert not bench.manager.get_stats()["endpoints"][0]["flagged"]
            bench.manager.trigger(SENT, {})
            bench.stats("total_failed", failed)
            bench.later(1)
    assert bench.manager.get_stats()["endpoints"][0]["flagged"]


def test_gone_disables_and_registering_anew_goes_on_with_what_was_held(bench: Bench) -> None:
    with Sink(in_turn(answer(410), answer(200))) as sink:
        bench.manager.register(endpoint(sink))
        bench.manager.trigger(SENT, 1)
        eventually(lambda: bench.manager.get_stats()["endpoints"][0]["state"] == "gone")
        bench.manager.trigger(SENT, 2)
        assert bench.manager.get_stats()["total_sent"] == 1
        bench.manager.register(endpoint(sink))
        bench.stats("total_delivered", 1)


def test_retry_after_rests_the_whole_endpoint(bench: Bench) -> None:
    with Sink(in_turn(answer(429, {"Retry-After": "30"}), answer(200))) as sink:
        bench.manager.register(endpoint(sink))
        for number in range(100):
            bench.manager.trigger(SENT, number)
        sink.wait_for(1)
        eventually(lambda: bench.manager.get_stats()["endpoints"][0]["lane"] == "paused")
        bench.later(29.9)
        assert len(sink.hits) == 1
        bench.later(0.1)
        sink.wait_for(2)


@pytest.mark.parametrize("status", [100, 199, 300, 304])
def test_only_2xx_is_a_success(bench: Bench, status: int) -> None:
    with Sink(answer(status)) as sink:
        bench.manager.register(endpoint(sink, max_retries=0, timeout=1))
        bench.manager.trigger(SENT, {})
        bench.stats("total_failed", 1)
    assert bench.manager.get_stats()["success_rate"] == 0


def test_a_receiver_that_is_silent_delays_no_other(sink: Sink) -> None:
    manager = WebhookManager(outbound=ALLOWED)
    manager.start_worker()
    with Sink(silent) as hole:
        for receiver in (hole, sink):
            manager.register(endpoint(receiver))
        for number in range(10):
            manager.trigger(SENT, number)
        hole.wait_for(1)
        sink.wait_for(10)
        assert len(hole.hits) == 1
    manager.stop_worker()


def test_trigger_never_waits_and_what_finds_no_room_is_counted() -> None:
    manager = WebhookManager(max_queue_size=10, outbound=ALLOWED)
    manager.register(WebhookEndpoint(f"http://{LOOPBACK}:9/", {SENT}))
    for number in range(2000):
        manager.trigger(SENT, number)
    stats = manager.get_stats()
    assert (stats["queue_size"], stats["total_dropped"], stats["total_failed"]) == (10, 1990, 1990)
    assert stats["failed_recent"] == MAX_FAILURES
    assert stats["failed_evicted"] == 1990 - MAX_FAILURES
    assert manager.get_failed_webhooks(1)[0]["error"] == "overflow"
    assert manager.get_failed_webhooks(0) == []


# ---- trying again


def test_failures_are_tried_again_all_or_one_under_their_ids(bench: Bench) -> None:
    with Sink(in_turn(answer(500), answer(500), answer(200))) as sink:
        bench.manager.register(endpoint(sink, max_retries=0))
        bench.manager.trigger(SENT, 1)
        bench.stats("total_failed", 1)
        bench.later(1)
        bench.manager.trigger(SENT, 2)
        bench.stats("total_failed", 2)
        second = bench.manager.get_failed_webhooks()[1]
        assert bench.manager.retry_failed(sink.url, "del-unknown") == 0
        assert bench.manager.retry_failed(sink.url, second["id"]) == 1
        assert len(bench.manager.get_failed_webhooks()) == 1
        bench.later(60)
        bench.stats("total_delivered", 1)
        assert sink.hits[2].headers["webhook-id"] == sink.hits[1].headers["webhook-id"]
        assert bench.manager.retry_failed(sink.url) == 1
        bench.later(60)
        bench.stats("total_delivered", 2)
    assert bench.manager.get_failed_webhooks() == []


def test_an_endpoint_that_is_gone_keeps_its_failures(bench: Bench) -> None:
    with Sink(answer(500)) as sink:
        bench.manager.register(endpoint(sink))
        bench.manager.trigger(SENT, 1)
        sink.wait_for(1)
        bench.stats("total_attempts", 1)
        assert bench.manager.unregister(sink.url)
        assert not bench.manager.unregister(sink.url)
        bench.stats("total_failed", 1)
        assert bench.manager.retry_failed(sink.url) == 0
        assert len(bench.manager.get_failed_webhooks()) == 1


# ---- life


def sending_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("webhook ")]


def test_however_often_it_is_started_and_stopped_an_endpoint_has_one_thread(bench: Bench, sink: Sink) -> None:
    bench.manager.register(endpoint(sink))
    for _ in range(5):
        bench.manager.stop_worker()
        assert sending_threads() == []
        bench.manager.start_worker()
        bench.manager.start_worker()
    assert len(sending_threads()) == 1
    bench.manager.trigger(SENT, {})
    bench.stats("total_delivered", 1)
    assert len(sink.hits) == 1
    bench.manager.unregister(sink.url)
    eventually(lambda: sending_threads() == [])


def test_a_stop_does_not_wait_for_ever_and_a_start_behind_it_makes_no_second_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "STOP_SECONDS", 0.05)
    with Sink(silent) as hole:
        bench.manager.register(endpoint(hole, timeout=30))
        bench.manager.trigger(SENT, {})
        hole.wait_for(1)
        bench.manager.stop_worker()
        bench.manager.start_worker()
        assert len(sending_threads()) == 1
    bench.stats("total_attempts", 1)
    assert len(sending_threads()) == 1


def test_building_and_registering_start_nothing(sink: Sink) -> None:
    manager = WebhookManager(outbound=ALLOWED)
    manager.register(endpoint(sink))
    manager.trigger(SENT, {})
    assert sending_threads() == []
    assert manager.get_stats()["durable"] is False


def test_figures_stay_right_when_many_threads_trigger(bench: Bench, sink: Sink) -> None:
    bench.manager.register(endpoint(sink))
    threads = [threading.Thread(target=lambda: [bench.manager.trigger(SENT, n) for n in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: bench.later(1) or bench.manager.get_stats()["total_delivered"] == 80)
    stats = bench.manager.get_stats()
    assert (stats["total_sent"], stats["by_event"], stats["success_rate"]) == (80, {"message.sent": 80}, 1.0)
    assert len({hit.headers["webhook-id"] for hit in sink.hits}) == 80


def test_no_secret_and_no_chat_url_is_shown(bench: Bench, sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret_path = f"http://{sink.host}:{sink.port}/services/T0/B0/tellnobody"
    described = endpoint(sink, url=secret_path, headers={"Authorization": "Bearer tellnobody"}, secret="tellnobody")
    assert "tellnobody" not in repr(described).replace(secret_path, "")
    sink.mode = answer(410)
    bench.manager.register(described)
    bench.manager.trigger(SENT, {})
    eventually(lambda: bench.manager.get_stats()["endpoints"][0]["state"] == "gone")
    assert "tellnobody" not in str(bench.manager.get_stats())
    assert "gone" in caplog.text
    assert "tellnobody" not in caplog.text


# ---- verify_signature


@pytest.mark.parametrize("signature", [None, "é", "", 5, b"x", ["x"]])
def test_garbage_is_no_signature(signature: Any) -> None:
    assert WebhookManager().verify_signature({"a": 1}, signature, "secret123") is False
    assert WebhookManager().verify_signature({"a": 1}, "0" * 64, signature) is False


def test_the_parsed_body_of_the_request_at_hand_is_as_good_as_its_bytes() -> None:
    app = Flask("receiver")
    manager = WebhookManager()

    @app.post("/")
    def receive() -> tuple[str, int]:
        payload = request.json
        signature = request.headers.get("X-Webhook-Signature")
        valid = manager.verify_signature(payload, signature, "secret123")
        return ("", 204) if valid else ("Invalid signature", 403)

    raw = b'{"b": 1.0e2,\n "a": "\\u00e9"}'
    for text, status in ((raw, 204), (raw + b" ", 403)):
        headers = {"X-Webhook-Signature": signing.sign_body("secret123", raw)}
        assert (
            app.test_client().post("/", data=text, headers=headers, content_type="application/json").status_code
            == status
        )


# ---- chats


@pytest.mark.parametrize(("helper", "kind"), [(SlackWebhook, "slack"), (DiscordWebhook, "discord")])
def test_a_helper_sends_one_message_and_says_whether_it_was_taken(
    helper: Any, kind: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOWED_TARGETS", "127.0.0.0/8")
    assert helper.send(webhook_url=sink.url, event=SENT, data={"from": "code", "text": "```@everyone"})
    (hit,) = sink.wait_for(1)
    assert ("blocks" in json.loads(hit.body)) == (kind == "slack")
    assert ("wait=true" in hit.path) == (kind == "discord")
    sink.mode = answer(404, body=b"no_service")
    assert not helper.send(sink.url, "error.occurred", {})
    assert "did not take a message: http_4xx (status 404)" in caplog.text
    monkeypatch.delenv("WEBHOOK_ALLOWED_TARGETS")
    assert not helper.send(sink.url, SENT, {})
    assert len(sink.hits) == 2


def test_a_chat_that_is_owed_much_gets_it_in_one_message(bench: Bench, sink: Sink) -> None:
    bench.manager.register(endpoint(sink, kind="slack"))
    bench.manager.trigger(SENT, {"n": 0})
    bench.stats("total_delivered", 1)
    for number in range(1, 600):
        bench.manager.trigger(SENT, {"n": number})
    bench.later(10)
    bench.stats("total_delivered", 600)
    assert len(sink.hits) == 2
    assert json.loads(sink.hits[1].body)["text"] == "599 events"


def test_the_addresses_of_chats_are_recognised() -> None:
    kinds = {
        "https://hooks.slack.com/services/T0/B0/x": "slack",
        "https://discord.com/api/webhooks/1/a-b_c": "discord",
        "https://canary.discord.com/api/v10/webhooks/1/a": "discord",
        "https://discord.com/": "http",
        "https://hooks.slack.com.evil.example/": "http",
        "https://[": "http",
    }
    assert {url: webhooks.kind_of(url) for url in kinds} == kinds
