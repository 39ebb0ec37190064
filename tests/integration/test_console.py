"""What the console asks of the server: its files, the log as it grows, the settings in force, a message's whole life."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from bus.console import POLICY
from bus.testing import BusServer, eventually
from tests.calls import call, inbox, send, send_all, settle
from tests.event_source import EventSource
from tests.refusals import KEY
from tests.sinks import Sink
from tests.webhook_calls import ENV, drop, hook, settled

SERVER_ENV = ENV
ADMIN = {"X-API-Key": KEY}


@contextlib.contextmanager
def watching(server: BusServer, query: str = "", headers: dict[str, str] | None = None) -> Iterator[EventSource]:
    """A stream of the log."""
    stream = EventSource(server, query, headers, path="/api/log/stream")
    try:
        yield stream
    finally:
        stream.close()


def seen(stream: EventSource, count: int) -> list[Any]:
    """The messages of the events that come, once there are `count`."""
    found: list[Any] = []
    while len(found) < count:
        found += next_log(stream)["messages"]
    return found


def next_log(stream: EventSource) -> Any:
    """What the next event of the log says."""
    return stream.read_until("log").json


# ---- files


def test_the_files_come_with_the_policy_and_are_kept_by_browsers(server: BusServer) -> None:
    page = server.call("GET", "/console")
    assert page.status == 200
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    script = server.call("GET", "/console/main.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    again = server.call("GET", "/console/main.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status, again.body) == (304, "")
    assert server.call("GET", "/console/views/feed.js").status == 200
    assert server.call("GET", "/console/../server_ws.py").status == 404
    assert server.call("GET", "/console/%2e%2e/__init__.py").status == 404


def test_the_files_need_no_key_and_what_they_ask_does(fresh_server: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY, "RATE_LIMIT_UNAUTHENTICATED_PER_MINUTE": "5"})
    for _ in range(10):
        assert server.call("GET", "/console").status == 200
    assert server.call("GET", "/api/log/stream").status == 401
    assert server.call("GET", "/api/settings").status == 401


def test_the_console_can_be_left_out(fresh_server: Any) -> None:
    server = fresh_server(env={"DISABLED_EXTENSIONS": "console"})
    assert server.call("GET", "/console").status == 404


def test_the_console_knows_what_a_server_lacks(fresh_server: Any) -> None:
    server = fresh_server(env={"ENABLE_METRICS": "false"})
    assert call(server, "GET", "/console/parts.json")["series"] is False


# ---- the log as it grows


def test_the_log_is_watched_as_it_grows(each_server: BusServer) -> None:
    server = each_server
    send(server, "watched", {"n": 0}, type="old")
    with watching(server, "client=watched") as stream:
        assert seen(stream, 1)[-1]["type"] == "old"  # it begins with the newest
        receipt = send(server, "watched", {"text": "שלום"}, type="new")
        (found,) = seen(stream, 1)
        assert found == {
            "id": receipt["message_id"], "seq": receipt["seq"], "from": "giver", "to": "watched", "type": "new",
            "timestamp": receipt["timestamp"], "bytes": 19, "preview": '{"text":"שלום"}',
        }  # fmt: skip
    names = {one["client"] for one in call(server, "GET", "/api/clients", limit=1000)["clients"]}
    assert not any(name.startswith("anon-") for name in names)


def test_a_watch_is_narrowed(server: BusServer) -> None:
    queries = ["type=narrow", "from=one", "to=two", "topic=narrow.>", "client=one"]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(watching(server, f"since={cursor(server)}&{query}")) for query in queries]
        by_type = send(server, "x", type="narrow")
        by_sender = send(server, "x", sender="one")
        to_two = send(server, ["two", "three"])
        to_topic = send(server, "topic:narrow.a")
        to_one = send(server, "one")
        wanted = [[by_type], [by_sender], [to_two], [to_topic], [by_sender, to_one]]
        for stream, receipts in zip(streams, wanted, strict=True):
            assert [one["id"] for one in seen(stream, len(receipts))] == [one["message_id"] for one in receipts]


def cursor(server: BusServer) -> str:
    found: str = call(server, "GET", "/api/status")["cursor"]
    return found


def test_what_is_too_fast_is_counted(server: BusServer) -> None:
    with watching(server, f"since={cursor(server)}") as stream:
        sent = send_all(server, [{"to": "fast", "payload": n} for n in range(1000)])
        passed, shown, left_out = 0, [], False
        while passed < 1000:
            told = next_log(stream)
            passed += told["passed"]
            shown += told["messages"]
            left_out |= told["left_out"]
        assert (passed, left_out) == (1000, True)
        assert [one["id"] for one in shown] == [id_ for id_ in sent if id_ in {one["id"] for one in shown}]
        assert shown[-1]["id"] == sent[-1]
        assert len(shown) <= 500


def test_a_watch_goes_on_where_it_was(server: BusServer) -> None:
    with watching(server, f"since={cursor(server)}") as stream:
        first = send(server, "again")
        told = next_log(stream)
        assert told["messages"][-1]["id"] == first["message_id"]
    between = [send(server, "again")["message_id"] for _ in range(3)]
    with watching(server, f"since={told['cursor']}") as stream:
        assert [one["id"] for one in seen(stream, 3)] == between
    with watching(server, "since=000000000000:7&type=none") as stream:
        assert stream.read().event == "connected"  # of another log: from now on
    assert server.call("GET", "/api/log/stream?since=x").status == 400


def test_a_long_payload_and_a_long_list_are_shown_at_a_glance(server: BusServer) -> None:
    with watching(server, f"since={cursor(server)}") as stream:
        send(server, [f"many-{n}" for n in range(20)], "é" * 5000, require_ack=True)
        (found,) = seen(stream, 1)
    assert len(found["preview"].encode()) <= 400
    assert found["bytes"] == 10_002
    assert (len(found["to"]), found["more_names"], found["requires_ack"]) == (5, 15, True)


def test_a_watch_ends_with_its_credential(fresh_server: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    key = server.call("POST", "/api/keys", {"scopes": ["read-all"]}, ADMIN).body
    other = server.call("POST", "/api/keys", {"clients": ["a"]}, ADMIN).body
    assert server.call("GET", "/api/log/stream", headers={"X-API-Key": other["key"]}).status == 403
    with watching(server, "", {"X-API-Key": key["key"]}) as stream:
        assert stream.read().event == "connected"
        server.call("POST", f"/api/keys/{key['id']}/revoke", headers=ADMIN)
        eventually(lambda: call_status(server) == 0, what="the end of the stream")


def call_status(server: BusServer) -> int:
    """How many streams are open."""
    found: int = server.call("GET", "/stream/stats", headers=ADMIN).body["active_streams"]
    return found


# ---- settings, inboxes, lives


def test_settings_say_their_origin_and_hide_secrets(fresh_server: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY, "INBOX_LIMIT": "77", "SECRET_KEY": "s" * 40})
    answer = server.call("GET", "/api/settings", headers=ADMIN)
    found = {one["name"]: one for one in answer.body["settings"]}
    assert (found["INBOX_LIMIT"]["value"], found["INBOX_LIMIT"]["origin"], found["INBOX_LIMIT"]["default"]) == (
        77, "environment", 10_000,
    )  # fmt: skip
    assert found["QUEUE_LIMIT"]["origin"] == "default"
    assert found["API_KEY"]["value"] == found["SECRET_KEY"]["value"] == "***"
    assert found["JWT_SECRET"]["value"] is None
    assert all(one["description"] for one in found.values())
    assert KEY not in str(answer.body)


def test_a_look_into_an_inbox_takes_nothing(server: BusServer) -> None:
    send(server, "other", sender="peeked")  # by which it is known
    for payload in range(3):
        send(server, "peeked", payload)
    assert [one["payload"] for one in inbox(server, "peeked", peek="true")["messages"]] == [0, 1, 2]
    message_id = inbox(server, "peeked", peek="true")["messages"][0]["id"]
    assert standing(server, message_id)["state"] == "waiting"
    assert call(server, "GET", "/api/clients/peeked")["waiting"] == 3
    inbox(server, "peeked")
    eventually(lambda: standing(server, message_id)["state"] == "handed_over", what="a read that is no look")


def standing(server: BusServer, message_id: str) -> Any:
    """How a message stands with its first recipient."""
    return call(server, "GET", f"/api/messages/{message_id}")["recipients"][0]


def test_a_message_tells_its_whole_life(server: BusServer) -> None:
    with Sink() as sink:
        made = hook(server, sink, types=["lived"])
        message_id = send(server, "queue:lives", "x", type="lived")["message_id"]
        (item,) = call(server, "POST", "/api/queues/lives/claim", {"client": "worker-1"})["messages"]
        held = standing(server, message_id)
        assert (held["state"], held["by"], held["attempt"]) == ("leased", "worker-1", 1)
        assert held["since"] < held["until"]
        settle(server, "nack", item, "worker-1", delay=0.001, reason="busy")
        eventually(lambda: standing(server, message_id)["state"] == "waiting", what="the end of the rest")
        (tried,) = standing(server, message_id)["attempts"]
        assert (tried["attempt"], tried["consumer"], tried["outcome"], tried["reason"]) == (
            1,
            "worker-1",
            "nacked",
            "busy",
        )
        (item,) = call(server, "POST", "/api/queues/lives/claim", {"client": "worker-2"})["messages"]
        settle(server, "ack", item, "worker-2")
        done = standing(server, message_id)
        assert (done["state"], done["by"], done["attempt"]) == ("acked", "worker-2", 2)
        assert done["settled_at"] >= tried["ended_at"]
        settled(server, made)
        (delivery,) = call(server, "GET", "/api/webhooks/deliveries", message=message_id)["deliveries"]
        assert (delivery["event"], delivery["state"]) == ("message.sent", "done")
        assert call(server, "GET", "/api/webhooks/deliveries", message="nothing")["deliveries"] == []
        drop(server, made)


def test_a_dead_letter_tells_its_attempts(server: BusServer) -> None:
    message_id = send(server, "stubborn", "x", require_ack=True)["message_id"]
    settle(server, "reject", message_id, "stubborn", reason="no")
    told = standing(server, message_id)
    assert told["state"] == "dead_letter"
    assert [(one["outcome"], one["reason"]) for one in told["attempts"]] == [("rejected", "no")]


@pytest.mark.parametrize("path", ["/api/log/stream", "/api/settings"])
def test_the_routes_are_described(server: BusServer, path: str) -> None:
    assert path in call(server, "GET", "/openapi.json")["paths"]
