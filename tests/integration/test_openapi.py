"""`/openapi.json` says what there is: every route, and what it really answers. `/docs` shows it without a script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from bus import __version__
from bus.settings import ROOT, Settings
from bus.storage.ledger import VERBS
from bus.testing import Answer, BusServer, eventually
from tests.calls import call, claim, send, settle
from tests.ingress_calls import integrate, post
from tests.rawws import RawWebSocket
from tests.refusals import LEAK, MAX_BYTES

Operation = tuple[str, str]

ROUTES = """
import json, server_ws
rules = server_ws.app.url_map.iter_rules()
print(json.dumps([[rule.rule, sorted(rule.methods - {"HEAD", "OPTIONS"}), rule.websocket] for rule in rules]))
"""


SERVER_ENV = {"WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8"}  # receivers of webhooks on this machine


@pytest.fixture(scope="module")
def document(server: BusServer) -> dict[str, Any]:
    answer = server.call("GET", "/openapi.json")
    assert answer.status == 200
    return answer.body  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def routes() -> dict[str, set[str]]:
    """The methods of every plain route of the app, by path as the document writes it."""
    unset = {name.upper(): "" for name in Settings.__struct_fields__}
    command = [sys.executable, "-c", ROUTES]
    told = subprocess.run(command, cwd=ROOT, env={**os.environ, **unset}, capture_output=True, check=True, text=True)
    found: dict[str, set[str]] = {}
    for rule, methods, is_websocket in json.loads(told.stdout):
        if not is_websocket:
            found.setdefault(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule), set()).update(methods)
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            yield method.upper(), path, described


# ---- the document


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["info"]["version"] == __version__


def test_every_route_is_described_with_its_methods_and_nothing_else_is(
    document: dict[str, Any], routes: dict[str, set[str]]
) -> None:
    described: dict[str, set[str]] = {}
    for method, path, _ in operations(document):
        described.setdefault(path, set()).add(method)
    files = ("/", "/client.js", "/favicon.ico", "/static/{name}", "/openapi.json", "/docs")
    console = ("/console", "/console/", "/console/parts.json", "/console/{name}")
    unwritten = {path: {"GET"} for path in (*files, *console)}
    assert {**described, **unwritten} == routes
    assert len([path for path in routes if path.startswith("/api/")]) >= 2 * 8


def test_every_path_under_api_has_its_twin_under_v1(document: dict[str, Any]) -> None:
    paths = {path for path in document["paths"] if path.startswith("/api/")}
    plain = {path for path in paths if not path.startswith("/api/v1/")}
    assert paths - plain == {path.replace("/api/", "/api/v1/", 1) for path in plain}
    for path in plain:
        for method, described in document["paths"][path].items():
            twin = document["paths"][path.replace("/api/", "/api/v1/", 1)][method]
            assert {**twin, "operationId": ""} == {**described, "operationId": ""}
            assert twin["operationId"] != described["operationId"]


def test_every_operation_says_what_it_does_and_how_it_refuses(document: dict[str, Any]) -> None:
    for _, path, described in operations(document):
        assert re.fullmatch(r"[A-Z].+\.", described["summary"])
        assert set(re.findall(r"{(\w+)}", path)) == {p["name"] for p in described["parameters"] if p["in"] == "path"}
        assert all(p["description"] for p in described["parameters"] if p["in"] == "query")
        if path.startswith(("/api/", "/stream/")):
            assert {"401", "403", "503"} <= set(described["responses"])
            assert {"200", "202"} & set(described["responses"])


def test_what_stays_away_until_it_is_known_is_open_without_a_key(
    locked_server: BusServer, document: dict[str, Any]
) -> None:
    assert locked_server.call("GET", "/openapi.json").body == document
    assert locked_server.call("GET", "/docs").status == 200


# ---- real answers


def closed(schema: Any) -> Any:
    """The schema, with every object that lists its properties holding no others."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    return {**inner, "additionalProperties": False} if "properties" in schema else inner


def check_answer(document: dict[str, Any], operation: Operation, answer: Answer) -> None:
    """Check that the answer is one that the document tells of, and holds nothing beside."""
    method, path = operation
    responses = document["paths"][path][method.lower()]["responses"]
    assert str(answer.status) in responses, f"{method} {path} does not tell of {answer.status}."
    content = responses[str(answer.status)]["content"]
    media = answer.headers["content-type"].partition(";")[0]
    check_schema(document, content[media]["schema"], answer.body)


def check_schema(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator(closed({**schema, "components": document["components"]})).validate(value)


RICH = {
    "priority": "high",
    "correlation_id": "c",
    "reply_to": "r",
    "thread_id": "t",
    "headers": {"trace": "1"},
    "on_behalf_of": "somebody",
    "payload": [None, 1.5, {"שלום": "🌍"}],
}
GOOD = {"from": "describer", "to": "described"}
ASK = {**GOOD, "wait": 0}
VERDICT = {"client": "listener", "reason": "because", "delay": 0, "ack_wait": 5}
COPY = {"to": "copied", "since": "earliest", "source": "log", "rate": 10_000}

NOBODY = "http://127.0.0.1:1/hook"

CALLS: dict[Operation, list[tuple[str, Any]]] = {
    ("POST", "/stream/broadcast"): [("", {"event": "news", "data": [1], "exclude": ["zed"], "from": "describer"})],
    ("GET", "/metrics"): [("", None), ("?format=json", None)],
    ("GET", "/api/settings"): [("", None)],
    ("GET", "/llms.txt"): [("", None)],
    ("GET", "/api/audit"): [("?limit=1", None)],
    ("GET", "/api/audit/export"): [("", None)],
    ("GET", "/metrics/detailed"): [("?family=client", None), ("?family=queue&limit=1", None)],
    ("POST", "/api/send"): [
        ("", GOOD),
        ("", {**GOOD, **RICH}),
        ("", {**GOOD, "to": ["described", "nobody"], "type": "note"}),
        ("", {**GOOD, "to": "all"}),
        ("", {**GOOD, "to": "queue:described"}),
        ("", {**GOOD, "require_ack": True, "ack_wait": 5, "ttl": 3600}),
        ("", {**GOOD, "delay": 3600}),
        ("", {**GOOD, "deliver_at": "2020-01-01T00:00:00Z"}),
        ("", {**GOOD, "ephemeral": True}),
        ("", {**GOOD, "ephemeral": True, "to": "all"}),
        ("", {**GOOD, "idempotency_key": "twice"}),
        ("", {**GOOD, "idempotency_key": "twice"}),
    ],
    ("POST", "/api/send/batch"): [
        ("", {"messages": []}),
        ("", {"messages": [GOOD, {}, {**GOOD, "ephemeral": True}, "x"]}),
        ("", {"messages": [GOOD, {**GOOD, **RICH}], "atomic": True}),
    ],
    ("GET", "/api/messages"): [
        ("?to=described&limit=0", None),
        ("?to=described&since=earliest", None),
        ("?to=described&since=0123456789ab:5", None),
        ("?to=described&since=latest&wait=0.01", None),
        ("?to=nobody&since=2026-01-01T00:00:00Z", None),
    ],
    ("GET", "/api/messages/{message_id}"): [("", None)],
    ("DELETE", "/api/messages/{message_id}"): [("", None)],
    **{("POST", f"/api/messages/{{message_id}}/{verb}"): [("", VERDICT), ("", VERDICT)] for verb in sorted(VERBS)},
    ("POST", "/api/queues/{queue}/claim"): [("", {"client": "taker", "limit": 3, "wait": 0.01, "ack_wait": 5})],
    ("GET", "/api/queues"): [("", None), ("?limit=1&cursor=a", None)],
    ("GET", "/api/queues/{queue}"): [("", None)],
    ("PUT", "/api/queues/{queue}"): [("", {"limit": 1000, "on_full": "dead_letter"}), ("", {})],
    ("PUT", "/api/clients/{client_id}"): [("", {"limit": 1000, "on_full": "refuse"}), ("", {})],
    ("GET", "/api/dead-letters"): [("", None), ("?reason=rejected&owner=described&from=describer&limit=1", None)],
    ("GET", "/api/dead-letters/{message_id}"): [("", None)],
    ("POST", "/api/dead-letters/{message_id}/redrive"): [("", {})],
    ("POST", "/api/dead-letters/redrive"): [("", {"dry_run": True}), ("", {"reason": "rejected", "limit": 5})],
    ("DELETE", "/api/dead-letters/{message_id}"): [("?owner=described", None)],
    ("DELETE", "/api/dead-letters"): [("?dry_run=true", None), ("?reason=expired", None)],
    ("POST", "/api/request"): [("", ASK), ("", {**ASK, "to": "queue:described"})],
    ("GET", "/api/requests/{request_id}"): [("", None), ("?wait=0.01", None)],
    ("POST", "/api/replay"): [("", COPY), ("", {**COPY, "to": "described", "source": "inbox", "until": "latest"})],
    ("GET", "/api/replays"): [("", None), ("?limit=1", None)],
    ("GET", "/api/replays/{replay_id}"): [("", None)],
    ("DELETE", "/api/replays/{replay_id}"): [("", None)],
    ("GET", "/api/threads/{thread_id}"): [("", None), ("?limit=1", None)],
    ("GET", "/api/log"): [("", None), ("?until=latest&limit=1", None), ("?since=0123456789ab:5&type=note", None)],
    ("GET", "/api/search"): [
        ("?q=note&limit=1", None),
        ("?q=no*&from=describer&to=described&type=note&since=earliest&until=latest&order=rank&cursor=5.0", None),
    ],
    ("GET", "/api/clients"): [("", None), ("?limit=1", None), ("?cursor=zzz", None)],
    ("GET", "/api/clients/{client_id}"): [("", None)],
    ("GET", "/api/status"): [("", None)],
    ("GET", "/api/series"): [("", None), ("?last_seconds=60&step_seconds=5&names=workers", None)],
    ("POST", "/stream/send"): [("", {"client_id": "described", "event": "news"})],
    ("GET", "/stream/stats"): [("", None)],
    ("GET", "/stream/clients"): [("", None)],
    ("GET", "/api/ttl/policies"): [("", None)],
    ("PUT", "/api/ttl/policies/{message_type}"): [
        ("", {"ttl_seconds": 1, "archive_before_delete": True, "apply_to_stored": False}),
        ("", {"policy": "immediate"}),
    ],
    ("DELETE", "/api/ttl/policies/{message_type}"): [("?apply_to_stored=false", None)],
    ("GET", "/api/ttl/stats"): [("", None)],
    ("GET", "/api/ttl/expiring"): [("?within=100000&limit=5", None)],
    ("POST", "/api/ttl/sweep"): [("", None)],
    ("POST", "/api/messages/{message_id}/extend"): [("", {"additional_seconds": 5})],
    ("GET", "/api/archive/files"): [("", None), ("?since=2026-01-01T00:00:00Z&limit=1", None)],
    ("GET", "/api/archive/messages"): [("", None), ("?type=note&limit=1", None)],
    ("POST", "/api/archive/restore"): [("", {"type": "short-lived", "to": "described"}), ("", {"id": "none"})],
    ("POST", "/api/profile"): [("?seconds=0.05", None)],
    ("GET", "/api/integrations"): [("", None), ("?limit=1&cursor=0", None)],
    ("POST", "/api/integrations"): [
        ("", {"scheme": "github", "to": "described"}),
        (
            "",
            {
                "scheme": "twilio",
                "to": ["described", "copied"],
                "secret": "a secret",
                "type": "t",
                "sender": "vendor",
                "description": "d",
                "require_ack": True,
                "priority": "high",
                "ttl": 60,
                "template": {"a": {"$": "/b"}},
                "allowed_ips": ["127.0.0.1"],
                "rate": {"count": 5, "seconds": 2},
                "public_url": "https://example.com",
                "enabled": False,
            },
        ),
    ],
    ("GET", "/api/integrations/{integration_id}"): [("", None)],
    ("PATCH", "/api/integrations/{integration_id}"): [("", {}), ("", {"to": "all", "rate": None, "template": None})],
    ("DELETE", "/api/integrations/{integration_id}"): [("", None)],
    ("POST", "/api/integrations/{integration_id}/pause"): [("", None)],
    ("POST", "/api/integrations/{integration_id}/resume"): [("", None)],
    ("POST", "/api/integrations/{integration_id}/rotate"): [
        ("", {}),
        ("", {"secret": "another one", "grace_seconds": 60}),
    ],
    ("GET", "/api/integrations/{integration_id}/events"): [("", None)],
    ("GET", "/api/integrations/events"): [("", None), ("?limit=1&outcome=accepted", None)],
    ("GET", "/api/keys"): [("", None), ("?limit=1&cursor=0", None)],
    ("POST", "/api/keys"): [
        ("", {"clients": ["described"]}),
        (
            "",
            {
                "label": "all of it",
                "scopes": ["send", "read-all"],
                "clients": ["a", "b*"],
                "send_to": ["all", "topic:a.>", "queue:q*"],
                "topics": ["a.*"],
                "queues": ["q"],
                "rate_per_minute": 60,
                "expires_in": 60,
            },
        ),
    ],
    ("GET", "/api/keys/{key_id}"): [("", None)],
    ("POST", "/api/keys/{key_id}/rotate"): [("", {}), ("", {"grace": 5, "expires_in": 60})],
    ("POST", "/api/keys/{key_id}/revoke"): [("", None)],
    ("DELETE", "/api/keys/{key_id}"): [("", None)],
    ("POST", "/api/tickets"): [("", {}), ("", {"client": "described", "origin": "https://a.example"})],
    ("POST", "/api/session"): [("", None)],
    ("DELETE", "/api/session"): [("", None)],
    ("POST", "/api/tokens/revoke"): [("", {"jti": "described"}), ("", {"token": "e30.e30."})],
    ("GET", "/api/auth/me"): [("", None)],
    ("POST", "/api/auth/explain"): [("", {"action": "send", "target": "queue:a"})],
    ("GET", "/api/webhooks"): [("", None), ("?limit=1&cursor=0", None)],
    ("POST", "/api/webhooks"): [
        ("", {"url": NOBODY, "events": ["*"], "enabled": False}),
        (
            "",
            {
                "url": NOBODY,
                "events": ["a.b"],
                "enabled": False,
                "secret": "a secret",
                "headers": {"X-A": "b"},
                "rate": {"count": 5, "seconds": 2},
                "schedule_seconds": [0, 5.5],
                "ordered": "to",
                "clients": ["a"],
                "types": ["t"],
                "topics": ["a.>"],
                "max_retries": 3,
                "timeout_seconds": 5,
                "description": "d",
            },
        ),
        ("", {"url": NOBODY, "events": ["*"], "enabled": False, "kind": "slack", "rate": None}),
    ],
    ("GET", "/api/webhooks/{webhook_id}"): [("", None)],
    ("PATCH", "/api/webhooks/{webhook_id}"): [("", {}), ("", {"events": ["x"], "url": NOBODY, "ordered": None})],
    ("DELETE", "/api/webhooks/{webhook_id}"): [("", None)],
    ("POST", "/api/webhooks/{webhook_id}/pause"): [("", None)],
    ("POST", "/api/webhooks/{webhook_id}/resume"): [("", {}), ("", {"held": "set_aside", "dry_run": True})],
    ("POST", "/api/webhooks/{webhook_id}/rotate"): [("", {}), ("", {"secret": "another", "grace_seconds": 60})],
    ("POST", "/api/webhooks/{webhook_id}/test"): [("", None)],
    ("GET", "/api/webhooks/{webhook_id}/stats"): [("", None)],
    ("GET", "/api/webhooks/deliveries"): [
        ("", None),
        ("?state=dead&event=message.sent&since=2026-01-01&limit=1", None),
    ],
    ("GET", "/api/webhooks/deliveries/{delivery_id}"): [("", None)],
    ("POST", "/api/webhooks/deliveries/{delivery_id}/replay"): [("", None)],
    ("POST", "/api/webhooks/replays"): [("", {"dry_run": True}), ("", {"state": "done", "event": "no.such"})],
    ("GET", "/api/webhooks/replays"): [("", None), ("?limit=1", None)],
    ("GET", "/api/webhooks/replays/{replay_id}"): [("", None)],
    ("DELETE", "/api/webhooks/replays/{replay_id}"): [("", None)],
    ("POST", "/api/clear"): [("", None)],
    ("GET", "/health"): [("", None)],
    ("GET", "/health/live"): [("", None)],
    ("GET", "/health/ready"): [("", None)],
    ("GET", "/ready"): [("", None)],
    ("GET", "/health/startup"): [("", None)],
    ("GET", "/health/status"): [("", None)],
    ("GET", "/health/detailed"): [("", None)],
    ("GET", "/health/info"): [("", None)],
}
"""For every documented operation, calls that together bring every field of its answers."""

ENDLESS = {("GET", "/stream/events"), ("GET", "/api/log/stream")}
"""What has no end that could be looked at: see test_streaming.py and test_console.py."""

SIGNED = ("POST", "/api/integrations/webhook/{integration_id}")
"""What nothing but a signature opens: see `test_what_a_signature_opens_is_described`."""

OPTIONAL = {
    *RICH,
    "exclude",
    *("attempt", "deliver_at", "duplicate", "expired", "expires_at", "failures", "gap", "lease_until", "online"),
    *("redelivered", "redriven", "replay_of", "replayed", "reply", "restored"),
    *("key", "verified"),
}
"""Fields that are not in every answer."""


def called(server: BusServer, method: str, path: str) -> str:
    """The path with real names in it, of things that are there; what the call may use up is made anew."""
    names = {"queue": "described", "client_id": "listener", "thread_id": "t", "message_type": "described"}
    if method == "DELETE" and "{message_type}" in path:
        call(server, "PUT", "/api/ttl/policies/described", {"policy": "long"})
    if "{message_id}" in path:
        waits = {"delay": 3600} if method == "DELETE" and "dead-letters" not in path else {}
        names["message_id"] = send(server, ["described", "listener"], **RICH, **waits, require_ack=True)["message_id"]
        if "dead-letters" in path:
            settle(server, "reject", names["message_id"], "described")
    elif "{request_id}" in path:
        question = call(server, "POST", "/api/request", ASK)
        send(server, "describer", sender="described", correlation_id=question["correlation_id"])
        names["request_id"] = question["request_id"]
    elif "{key_id}" in path:
        names["key_id"] = call(server, "POST", "/api/keys", {"clients": ["described"]})["id"]
    elif "webhooks" in path:
        names |= webhook(server)
    elif "{integration_id}" in path:
        made = integrate(server)
        assert post(server, made).status == 202
        names["integration_id"] = made["id"]
    elif "{replay_id}" in path:
        names["replay_id"] = call(server, "POST", "/api/replay", COPY)["replay_id"]
    return path.format(**names)


def webhook(server: BusServer) -> dict[str, str]:
    """An endpoint where nobody listens, a delivery to it that is dead, and a replay."""
    known = call(server, "GET", "/api/webhooks/deliveries?state=dead")["deliveries"]
    made = call(server, "POST", "/api/webhooks", {"url": NOBODY, "events": ["message.sent"], "max_retries": 0,
                                                 "clients": ["hooked"], "enabled": not known})  # fmt: skip
    if not known:
        send(server, "hooked")
        known = eventually(
            lambda: call(server, "GET", "/api/webhooks/deliveries?state=dead")["deliveries"], what="a dead delivery"
        )
    replay = call(server, "POST", "/api/webhooks/replays", {"event": "no.such"})
    return {"webhook_id": made["id"], "delivery_id": known[0]["id"], "replay_id": replay["id"]}


def archive_one(server: BusServer) -> None:
    """See that the archive has a message, and the inbox of `described` one that was restored."""
    call(server, "PUT", "/api/ttl/policies/short-lived", {"ttl_seconds": 1, "archive_before_delete": True})
    for _ in range(2):
        send(server, "described", type="short-lived")
    eventually(
        lambda: call(server, "POST", "/api/ttl/sweep") and call(server, "GET", "/api/ttl/stats")["archived"] >= 2,
        what="an archive",
    )
    call(server, "POST", "/api/archive/restore", {"type": "short-lived", "limit": 1})


def test_real_answers_are_as_they_are_described(server: BusServer, document: dict[str, Any]) -> None:
    seen: dict[str, set[str]] = {}
    send(server, "queue:described")
    settle(server, "nack", claim(server, "described", "taker")[0], "taker", delay=0)
    archive_one(server)
    begun = call(server, "POST", "/api/replay", {**COPY, "to": "described"})
    eventually(lambda: call(server, "GET", f"/api/replays/{begun['replay_id']}")["status"] == "done", what="a replay")
    with RawWebSocket(server.port, "/ws/listener") as listener:
        listener.read_json()
        for (method, path), calls in CALLS.items():
            for prefix in (path, path.replace("/api/", "/api/v1/", 1)):
                for suffix, body in calls:
                    answer = server.call(method, called(server, method, prefix) + suffix, body)
                    assert answer.status in (200, 202), answer
                    check_answer(document, (method, prefix), answer)
                    remember(answer.body, seen)
    assert set(CALLS) | ENDLESS | {SIGNED} == {
        (method, path) for method, path, _ in operations(document) if not path.startswith("/api/v1/")
    }
    assert set(seen) >= OPTIONAL - {"verified"}, "The calls do not bring every field there is."


def test_what_a_signature_opens_is_described(server: BusServer, document: dict[str, Any]) -> None:
    made, hub, team = integrate(server, "stripe"), integrate(server, "github"), integrate(server, "slack")
    challenge = b'{"type": "url_verification", "challenge": "c"}'
    answers = [post(server, made, b'{"id": "evt_1"}'), post(server, made, b'{"id": "evt_1", "again": 1}')]
    answers += [post(server, hub, event="ping"), post(server, team, challenge)]
    assert [answer.status for answer in answers] == [202, 202, 200, 200]
    refused = [post(server, made, secret="another secret"), post(server, made, b"no json")]
    for answer in [*answers, *refused]:
        check_answer(document, SIGNED, answer)


def test_what_is_taken_is_described(server: BusServer, document: dict[str, Any]) -> None:
    bodies = {operation: [body for _, body in calls if body is not None] for operation, calls in CALLS.items()}
    bodies["POST", "/api/send/batch"] = [{"messages": [GOOD, {**GOOD, **RICH}], "atomic": True}]
    for method, path, described in operations(document):
        if "requestBody" not in described or path.startswith("/api/v1/"):
            continue
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        assert bodies[method, path], f"No call of {method} {path} has a body."
        for body in bodies[method, path]:
            check_schema(document, schema, body)
            assert server.call(method, called(server, method, path), body).status in (200, 202)


def remember(value: Any, seen: dict[str, set[str]]) -> None:
    """Note the names of all fields that came."""
    if isinstance(value, list):
        for item in value:
            remember(item, seen)
    elif isinstance(value, dict):
        for name, inner in value.items():
            seen.setdefault(name, set())
            remember(inner, seen)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/send", {}, 400),
        ("POST", "/api/send", {**GOOD, "payload": "x" * MAX_BYTES}, 413),
        ("POST", "/api/send", {**GOOD, "idempotency_key": "twice", "payload": 2}, 422),
        ("POST", "/api/send/batch", {}, 400),
        ("POST", "/api/send/batch", {"messages": [{**GOOD, "ttl": 0}], "atomic": True}, 400),
        ("GET", "/api/messages", None, 400),
        ("GET", "/api/messages/{message_id}", None, 404),
        ("DELETE", "/api/messages/{message_id}", None, 404),
        *[("POST", f"/api/messages/{{message_id}}/{verb}", VERDICT, 404) for verb in sorted(VERBS)],
        *[("POST", f"/api/messages/{{message_id}}/{verb}", {}, 400) for verb in sorted(VERBS)],
        ("POST", "/api/queues/{queue}/claim", {}, 400),
        ("GET", "/api/queues?limit=x", None, 400),
        ("PUT", "/api/queues/{queue}", {"limit": 0}, 400),
        ("PUT", "/api/clients/{client_id}", {"on_full": "burn"}, 400),
        ("GET", "/api/dead-letters?reason=boredom", None, 400),
        ("GET", "/api/dead-letters/{message_id}", None, 404),
        ("POST", "/api/dead-letters/{message_id}/redrive", {}, 404),
        ("POST", "/api/dead-letters/redrive", {"limit": 0}, 400),
        ("DELETE", "/api/dead-letters/{message_id}", None, 404),
        ("DELETE", "/api/dead-letters?dry_run=perhaps", None, 400),
        ("POST", "/api/request", {}, 400),
        ("POST", "/api/request", {**ASK, "to": "nobody", "require_online": True}, 409),
        ("POST", "/api/request", {**ASK, "idempotency_key": "twice", "correlation_id": "c"}, 422),
        ("GET", "/api/requests/{request_id}", None, 404),
        ("GET", "/api/requests/{request_id}?wait=x", None, 400),
        ("POST", "/api/replay", {}, 400),
        ("GET", "/api/replays/{replay_id}", None, 404),
        ("DELETE", "/api/replays/{replay_id}", None, 404),
        ("GET", "/api/threads/{thread_id}", None, 404),
        ("GET", "/api/threads/{thread_id}?cursor=x", None, 400),
        ("GET", "/api/log?until=x", None, 400),
        ("GET", "/api/clients?limit=x", None, 400),
        ("GET", "/api/clients/{client_id}", None, 404),
        ("GET", "/api/log?topic=x*", None, 400),
        ("GET", "/api/integrations?cursor=x", None, 400),
        ("POST", "/api/integrations", {"scheme": "github", "to": "a b"}, 400),
        ("GET", "/api/integrations/{integration_id}", None, 404),
        ("PATCH", "/api/integrations/{integration_id}", {}, 404),
        ("DELETE", "/api/integrations/{integration_id}", None, 404),
        ("POST", "/api/integrations/{integration_id}/pause", None, 404),
        ("POST", "/api/integrations/{integration_id}/resume", None, 404),
        ("POST", "/api/integrations/{integration_id}/rotate", {}, 404),
        ("GET", "/api/integrations/events?cursor=x", None, 400),
        ("GET", "/api/webhooks?cursor=x", None, 400),
        ("POST", "/api/webhooks", {"url": "http://169.254.169.254/", "events": ["*"]}, 400),
        ("POST", "/api/webhooks", {"url": NOBODY, "events": []}, 400),
        ("GET", "/api/webhooks/{webhook_id}", None, 404),
        ("PATCH", "/api/webhooks/{webhook_id}", {}, 404),
        ("PATCH", "/api/webhooks/{webhook_id}", {"url": "ftp://x"}, 400),
        ("DELETE", "/api/webhooks/{webhook_id}", None, 404),
        ("POST", "/api/webhooks/{webhook_id}/pause", None, 404),
        ("POST", "/api/webhooks/{webhook_id}/resume", {}, 404),
        ("POST", "/api/webhooks/{webhook_id}/rotate", {}, 404),
        ("POST", "/api/webhooks/{webhook_id}/rotate", {"grace_seconds": -1}, 400),
        ("POST", "/api/webhooks/{webhook_id}/test", None, 404),
        ("GET", "/api/webhooks/{webhook_id}/stats", None, 404),
        ("GET", "/api/webhooks/deliveries?state=lost", None, 400),
        ("GET", "/api/webhooks/deliveries/{delivery_id}", None, 404),
        ("POST", "/api/webhooks/deliveries/{delivery_id}/replay", None, 404),
        ("POST", "/api/webhooks/replays", {"since": "never"}, 400),
        ("POST", "/api/webhooks/replays", {"webhook": "none"}, 404),
        ("GET", "/api/webhooks/replays/{replay_id}", None, 404),
        ("DELETE", "/api/webhooks/replays/{replay_id}", None, 404),
    ],
)
def test_refusals_are_as_they_are_described(
    server: BusServer, document: dict[str, Any], method: str, path: str, body: Any, status: int
) -> None:
    server.call("POST", "/api/send", {**GOOD, "idempotency_key": "twice"})
    for prefix in (path, path.replace("/api/", "/api/v1/", 1)):
        answer = server.call(method, re.sub(r"{\w+}", "none", prefix), body)
        assert answer.status == status, answer
        check_answer(document, (method, prefix.partition("?")[0]), answer)


def test_a_body_of_another_type_is_refused_as_described(server: BusServer, document: dict[str, Any]) -> None:
    for method, path, described in operations(document):
        if "requestBody" in described:
            answer = server.call(method, re.sub(r"{\w+}", "none", path), GOOD, {"Content-Type": "text/plain"})
            assert answer.status == 415
            check_answer(document, (method, path), answer)


def test_every_operation_asks_for_a_key_as_described(locked_server: BusServer, document: dict[str, Any]) -> None:
    for method, path, described in operations(document):
        answer = locked_server.call(method, re.sub(r"{\w+}", "x", path), {} if method == "POST" else None)
        assert answer.status == (401 if "security" in described or described["x-right"] == "signed" else 200)
        check_answer(document, (method, path), answer)


def test_every_parameter_that_has_a_form_is_checked(server: BusServer, document: dict[str, Any]) -> None:
    checked = set()
    for method, path, described in operations(document):
        given = {p["name"]: "x" for p in described["parameters"] if p["in"] == "query" and p["required"]}
        for parameter in described["parameters"]:
            name = parameter["name"]
            if parameter["schema"]["type"] == "string" and name not in ("since", "until", "on_gap", "format"):
                continue
            query = "&".join(f"{key}={value}" for key, value in {**given, name: "no+such+thing"}.items())
            answer = server.call(method, f"{path}?{query}")
            assert (answer.status, answer.body["field"]) == (400, name), f"{method} {path}?{query}"
            checked.add(name)
    assert checked == {
        *("limit", "wait", "since", "until", "on_gap", "dry_run", "seconds", "format", "within"),
        *("last_seconds", "step_seconds", "peek"),
    }


# ---- the page


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attributes)
        self.links += [value or "" for name, value in attributes if name in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_shows_every_operation_and_runs_only_its_own_script(
    server: BusServer, document: dict[str, Any]
) -> None:
    answer = server.call("GET", "/docs")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; "))
    own = {name for name, value in policy.items() if value == "'self'"}
    assert own == {"script-src", "style-src", "img-src", "connect-src"}
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert {value for name, value in policy.items() if name not in own} == {"'none'"}
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} <= set(policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = Page(answer.body)
    assert not page.tags & {"style", "iframe", "object", "embed", "form", "img", "base"}
    assert not {name for name in page.attributes if name.startswith("on") or name == "style"}
    elsewhere = {link for link in page.links if not link.startswith("#")}
    assert elsewhere == {"/openapi.json", "/static/icon.svg", "/static/site.css", "/static/docs.js"}
    for method, path, described in operations(document):
        if not path.startswith("/api/v1/"):
            assert {method, path, described["summary"]} <= set(page.words)
    for name in document["components"]["schemas"]:
        assert name in page.words
    assert not LEAK.search(answer.body)


def test_the_page_for_models_is_the_projects_file(server: BusServer) -> None:
    answer = server.call("GET", "/llms.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body == (ROOT / "llms.txt").read_text()
