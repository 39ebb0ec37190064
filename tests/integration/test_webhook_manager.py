"""`WebhookManager` registered on a bus: the documented verbs, and what they leave survives a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from bus.webhooks import signing
from tests.sinks import Sink, answer
from tests.webhook_calls import ENV, data_of


@pytest.fixture(scope="module", params=[1, pytest.param(4, marks=pytest.mark.slow)], ids=["one worker", "four workers"])
def managed(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    with BusServer(env={**ENV, "BUS_EXTENSIONS": "tests.webhook_manager"}, workers=request.param) as server:
        yield server


def manager(server: BusServer, verb: str, **given: Any) -> Any:
    done = server.call("POST", f"/manager/{verb}", given)
    assert done.status == 200, done
    return done.body["value"]


def test_what_is_triggered_reaches_who_is_registered_signed_by_their_secret(managed: BusServer, sink: Sink) -> None:
    first = manager(managed, "register", url=sink.url, events=["order.*"], secret="secret123")
    assert manager(managed, "register", url=sink.url, events=["order.*"], secret="secret123") == first
    manager(managed, "trigger", event="order.paid", payload={"order": 17})
    manager(managed, "trigger", event="other.thing", payload={})
    (hit,) = sink.wait_for(1)
    assert data_of(hit) == {"order": 17}
    assert signing.verify_signature(hit.body, hit.headers["x-webhook-signature"], "secret123")
    stats = manager(managed, "get_stats")
    assert stats["durable"] is True
    assert stats["endpoints_registered"] == 1
    assert manager(managed, "unregister", url=sink.url) is True
    assert manager(managed, "unregister", url=sink.url) is False


def test_what_failed_is_listed_and_tried_again(managed: BusServer, sink: Sink) -> None:
    sink.mode = answer(500, body=b"no")
    manager(managed, "register", url=sink.url, events=["order.*"], max_retries=0)
    manager(managed, "trigger", event="order.lost", payload={"n": 1})
    failed = eventually(lambda: manager(managed, "get_failed_webhooks"), what="a failure")
    assert (failed[-1]["event"], failed[-1]["status"], failed[-1]["response"]) == ("order.lost", 500, "no")
    assert failed[-1]["payload"] == {"n": 1}
    sink.mode = answer(200)
    assert manager(managed, "retry_failed", url=sink.url) == 1
    first, again = sink.wait_for(2)
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    manager(managed, "unregister", url=sink.url)


def test_what_failed_at_a_chat_is_tried_again_by_its_url(managed: BusServer, sink: Sink) -> None:
    sink.mode = answer(400)
    manager(managed, "register", url=sink.url, events=["chat.*"], kind="slack")
    manager(managed, "trigger", event="chat.lost", payload={})
    (failed,) = eventually(
        lambda: [each for each in manager(managed, "get_failed_webhooks") if each["event"] == "chat.lost"],
        what="a failure",
    )
    sink.mode = answer(200)
    assert manager(managed, "retry_failed", url=failed["url"]) == 1
    sink.wait_for(2)
    manager(managed, "unregister", url=sink.url)


@pytest.mark.slow
def test_endpoints_and_what_they_are_owed_survive_a_restart(managed: BusServer, sink: Sink) -> None:
    sink.mode = answer(503, {"Retry-After": "2"})
    manager(managed, "register", url=sink.url, events=["order.*"])
    manager(managed, "trigger", event="order.kept", payload={"n": 2})
    sink.wait_for(1)
    managed.restart()
    sink.mode = answer(200)
    again = sink.wait_for(2, seconds=30)[1]
    assert json.loads(again.body)["type"] == "order.kept"
    manager(managed, "unregister", url=sink.url)


def test_what_can_not_be_sent_is_refused_at_once(managed: BusServer) -> None:
    too_large = managed.call("POST", "/manager/trigger", {"event": "order.large", "payload": "x" * 300_000})
    assert (too_large.status, too_large.body["code"]) == (413, "too_large")
    nameless = managed.call("POST", "/manager/trigger", {"event": "no name", "payload": {}})
    assert (nameless.status, nameless.body["code"]) == (400, "bad_event")


def test_a_limit_that_was_hit_is_told(managed: BusServer, sink: Sink) -> None:
    manager(managed, "register", url=sink.url, events=["rate_limit.hit"])
    manager(managed, "limit")
    (hit,) = sink.wait_for(1)
    assert data_of(hit) == {"scope": "address", "caller": "192.0.2.1", "retry_after_seconds": 60.0}
    manager(managed, "unregister", url=sink.url)
