"""Canary secrets in every input, every error path provoked: afterwards no log, metric, page or record has one."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bus.testing import HOST, BusServer, eventually, gunicorn
from tests.canaries import FAILING, WAYS_TO_FAIL
from tests.integration.test_cli import run
from tests.rawws import RawWebSocket
from tests.sinks import Sink, Visit, answer
from tests.stored import dumped

ADMIN_KEY = "Zq4canaryAdminKey8xY2"
OF_SETTINGS = {
    "API_KEY": ADMIN_KEY,
    "SECRET_KEY": "Zq4canarySecretKey8xY2",
    "WEBHOOK_SECRET": "whsec_WnE0Y2FuYXJ5V2ViaG9va1NlY3JldDh4WTI=",
    "METRICS_TOKEN": "Zq4canaryMetricsToken8xY2",
    "JWT_SECRET": "Zq4canaryJwtSecret8xY2-and-some-more",
}
WRONG_KEY = f"bus_dev_abcdefghijkl_{'Zq4canaryWrongKey8xY2' * 2}Z_abcdef"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJacTRjYW5hcnlKd3QifQ.Zq4canaryJwt8xY2"
COOKIE = "Zq4canaryCookie8xY2"
QUERY = "Zq4canaryQuery8xY2"
PAYLOAD = "Zq4canaryPayload8xY2"
HOOK_HEADER = "Zq4canaryHookHeader8xY2"
HOOK_QUERY = "Zq4canaryHookQuery8xY2"
HOOK_SECRET = "whsec_WnE0Y2FuYXJ5SG9va1NlY3JldDh4WTJhYmNk"
SLACK = "https://hooks.slack.com/services/T00/B00/Zq4canarySlack8xY2"
SECRETS = [
    *OF_SETTINGS.values(), WRONG_KEY, WRONG_KEY.split("_")[3], JWT, JWT.split(".")[2], COOKIE, QUERY, PAYLOAD, HOOK_HEADER,
    HOOK_QUERY, HOOK_SECRET, SLACK.rsplit("/", 1)[1],
]  # fmt: skip
ADMIN = {"X-API-Key": ADMIN_KEY}
BAD = [
    {"X-API-Key": WRONG_KEY},
    {"Authorization": f"Bearer {JWT}"},
    {"Authorization": f"Bearer {WRONG_KEY}"},
    {"Authorization": f"Basic {WRONG_KEY}"},
    {"Cookie": f"bus_session={COOKIE}"},
    {"X-API-Key": WRONG_KEY, "Origin": "https://evil.example"},
]
LEAKY = f"?my_token={QUERY}&password={QUERY}&session_id={QUERY}"
IN_URL = f"?token={QUERY}&ticket={QUERY}&api_key={QUERY}&key={QUERY}"
"""What is refused before anything else is looked at."""


@pytest.fixture(params=[pytest.param("true", id="json"), pytest.param("false", id="readable", marks=pytest.mark.slow)])
def careless(request: pytest.FixtureRequest, fresh_server: Any) -> BusServer:
    """A server with secrets in its settings, that logs all it can, in each of the two forms."""
    env = {
        **OF_SETTINGS,
        **FAILING,
        "JWT_ISSUER": "i",
        "JWT_AUDIENCE": "a",
        "LOG_LEVEL": "DEBUG",
        "ENABLE_STRUCTURED_LOGGING": request.param,
    }
    server: BusServer = fresh_server(env={**env, "WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8"})
    return server


def show_what_was_sent(visit: Visit) -> bool | None:
    """A receiver in trouble, that tells the caller all that came."""
    return answer(500, body=visit.hit.raw)(visit)


@pytest.fixture
def receiver() -> Iterator[Sink]:
    with Sink(show_what_was_sent) as sink:
        yield sink


def provoke_rest(server: BusServer) -> list[str]:
    """Refusals and crashes over HTTP; what the callers were told."""
    told = []
    for headers in [*BAD, ADMIN, {**ADMIN, "Cookie": f"s={COOKIE}"}, {**ADMIN, "Authorization": f"Bearer {JWT}"}]:
        for method, path, body in [
            ("GET", f"/api/messages{IN_URL}", None),
            ("GET", f"/ws/someone{IN_URL}", None),
            ("GET", f"/ws/someone?ticket={QUERY}", None),
            ("GET", f"/api/messages{LEAKY}", None),
            ("GET", f"/api/messages/{WRONG_KEY}{LEAKY}", None),
            ("GET", f"/api/keys{LEAKY}", None),
            ("GET", f"/nowhere/{JWT}{LEAKY}", None),
            ("DELETE", f"/api/status{LEAKY}", None),
            ("GET", f"/ws/someone{LEAKY}", None),
            ("GET", f"/stream/events{LEAKY}&client_id=all", None),
            ("GET", f"/metrics{LEAKY}", None),
            ("POST", f"/api/send{LEAKY}", {"from": 1, "to": "b", "payload": PAYLOAD}),
            ("POST", "/api/send", {"from": "a", "to": "b", "payload": PAYLOAD, "type": "crash"}),
            ("POST", "/api/send", {"from": "a", "to": "b", "payload": PAYLOAD, "headers": {"token": 5}}),
            ("POST", "/api/send/batch", {"messages": [{"from": "a", "payload": PAYLOAD}]}),
            ("POST", "/api/webhooks", {"url": f"http://u:{QUERY}@127.0.0.1/", "events": ["*"], "secret": PAYLOAD}),
            ("POST", "/api/webhooks", {"url": f"ftp://127.0.0.1/?token={QUERY}", "events": ["*"]}),
            ("POST", "/api/keys", {"label": PAYLOAD * 100, "clients": ["x y"], "rate_per_minute": -1}),
            *[("GET", f"/tests/fail?how={how}&my_token={QUERY}", None) for how in WAYS_TO_FAIL],
        ]:
            told.append(str(server.call(method, path, body, headers)))
    bodies = ('{"from": "a", "to": "b", "payload": "' + PAYLOAD, PAYLOAD, "\xff" + PAYLOAD)
    answers = [server.call("POST", "/api/send", headers=ADMIN, raw=body.encode("latin-1")) for body in bodies]
    return [*told, *map(str, answers)]


def provoke_raw(server: BusServer) -> None:
    """What gunicorn refuses by itself."""
    for raw in (
        f"GET /x?token={QUERY} HTTP/9.9\r\nX-API-Key: {WRONG_KEY}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nX-API-Key : {WRONG_KEY}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {JWT}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        f"POST /api/send HTTP/1.1\r\nHost: x\r\nCookie: s={COOKIE}\r\nContent-Length: 90\r\n\r\n{PAYLOAD}",
    ):
        with socket.create_connection((HOST, server.port), timeout=10) as connection:
            connection.sendall(raw.encode())
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while connection.recv(65536):
                    continue


def provoke_frames(server: BusServer) -> list[str]:
    told = []
    for token in (WRONG_KEY, JWT, COOKIE):
        with RawWebSocket(server.port, f"/ws/turned-away{LEAKY}") as ws:
            ws.send_json({"type": "auth", "token": token})
            told.append(str(ws.read_frame()))
    with RawWebSocket(server.port, f"/ws/in{LEAKY}", headers=ADMIN) as ws:
        told.append(str(ws.read_json()))
        for frame in (
            {"type": "send", "to": 5, "payload": PAYLOAD},
            {"type": "send", "to": "b", "msg_type": "crash", "payload": PAYLOAD, "ref": 1},
            {"type": PAYLOAD},
            {"type": "auth", "token": WRONG_KEY},
        ):
            ws.send_json(frame)
            told.append(str(ws.read_json()))
        ws.send_text("{" + PAYLOAD)
        told.append(str(ws.read_json()))
    return told


def provoke_webhooks(server: BusServer, sink: Sink) -> None:
    """An endpoint full of secrets whose receiver shows them, one of a chat, and a message for both."""
    endpoint = {
        "url": f"{sink.url}?token={HOOK_QUERY}",
        "events": ["message.sent"],
        "headers": {"Authorization": HOOK_HEADER},
        "secret": HOOK_SECRET,
        "schedule_seconds": [0, 0],
        "max_retries": 1,
    }
    hook = server.call("POST", "/api/webhooks", endpoint, ADMIN).body
    assert hook["secret"] == HOOK_SECRET, "It is shown this once."
    chat = server.call("POST", "/api/webhooks", {"url": SLACK, "events": ["client.connected"]}, ADMIN)
    assert chat.status == 200
    server.call("POST", f"/api/webhooks/{hook['id']}/test", {}, ADMIN)
    server.call("POST", "/api/send", {"from": "a", "to": "b", "payload": "plain"}, ADMIN)
    sink.wait_for(2)

    def failed() -> bool:
        found = server.call("GET", f"/api/webhooks/deliveries?webhook={hook['id']}", headers=ADMIN).body["deliveries"]
        return bool(found) and found[0]["attempts"] >= 1

    eventually(failed, what="an attempt in the log of deliveries")


def pages(server: BusServer) -> dict[str, str]:
    """Everything that can be looked at, by its path, the inboxes aside."""
    bearer = {"Authorization": f"Bearer {OF_SETTINGS['METRICS_TOKEN']}"}
    paths = [
        *(
            "/openapi.json",
            "/docs",
            "/health/status",
            "/health/detailed",
            "/health/info",
            "/api/status",
            "/api/clients",
        ),
        *(
            "/api/webhooks",
            "/api/webhooks/deliveries",
            "/api/keys",
            "/api/me",
            "/api/audit?limit=1000",
            "/api/audit/export",
        ),
        *("/api/ttl/policies", "/api/ttl/stats", "/api/dead-letters", "/stream/stats", "/stream/clients"),
    ]
    found = {path: str(server.call("GET", path, headers=ADMIN)) for path in paths}
    for path in (
        "/metrics",
        "/metrics?format=json",
        "/metrics/detailed?family=client",
        "/metrics/detailed?family=endpoint",
    ):
        found[path] = str(server.call("GET", path, headers=bearer))
    hooks = server.call("GET", "/api/webhooks", headers=ADMIN).body["webhooks"]
    found |= {hook["id"]: str(server.call("GET", f"/api/webhooks/{hook['id']}", headers=ADMIN)) for hook in hooks}
    for delivery in server.call("GET", "/api/webhooks/deliveries", headers=ADMIN).body["deliveries"]:
        path = f"/api/webhooks/deliveries/{delivery['id']}"
        found[path] = str(server.call("GET", path, headers=ADMIN))
    return found


def seen(text: str) -> list[str]:
    """The secrets that a text has."""
    return [secret for secret in SECRETS if secret in text]


def test_no_secret_is_found_anywhere(careless: BusServer, receiver: Sink) -> None:
    told = provoke_rest(careless) + provoke_frames(careless)
    provoke_raw(careless)
    sent = careless.call("POST", "/api/send", {"from": "a", "to": "kept", "payload": PAYLOAD}, ADMIN)
    assert sent.status == 200
    provoke_webhooks(careless, receiver)
    key = careless.call("POST", "/api/keys", {"clients": ["one"]}, ADMIN).body["key"]
    careless.call("GET", "/api/clients", headers={"X-API-Key": key})
    cookie = careless.call("POST", "/api/session", headers={"X-API-Key": key}).headers["set-cookie"].split(";")[0]
    ticket = careless.call("POST", "/api/tickets", {}, {"X-API-Key": key}).body["ticket"]
    careless.call("GET", "/api/clients", headers={"Cookie": cookie})
    for _ in range(2):
        with RawWebSocket(careless.port, f"/ws/one?ticket={ticket}"):
            pass
    eventually(lambda: "Nobody caught this" in careless.log, what="the word of the thread")
    assert [text for text in told if seen(text)] == []
    assert {path: seen(text) for path, text in pages(careless).items() if seen(text)} == {}
    careless.restart()
    log = careless.log
    assert careless.terminate() == 0
    for provoked in (
        "A request failed",
        "Nobody caught this",
        "Asked by",
        "could not look at a message",
        "RuntimeError",
    ):
        assert provoked in log, f"{provoked}: the path was not provoked."
    assert [line for line in log.splitlines() if seen(line)] == []
    assert [given for given in (key, cookie.partition("=")[2], ticket) if given in log] == []
    stored = b"".join(file.read_bytes() for file in careless.data_dir.rglob("*") if file.is_file()) + dumped(careless)
    kept = [secret for secret in SECRETS if secret.encode() in stored]
    assert kept == [PAYLOAD], "Of all that, the store holds the message that was sent, and nothing else."
    assert [given for given in (key.split("_")[3], cookie.partition("=")[2], ticket) if given.encode() in stored] == []


def test_the_command_line_shows_no_key(locked_server: BusServer) -> None:
    for arguments in (["status"], ["audit", "list"], ["send", "--to", "b", "x"], ["audit", "verify", "--expect", "x"]):
        done = run(locked_server.url, *arguments, "--api-key", WRONG_KEY)
        assert done.returncode
        assert not seen(done.stdout + done.stderr), json.dumps([done.stdout, done.stderr])


def test_an_access_log_is_masked_like_all_others(fresh_server: Any) -> None:
    server: BusServer = fresh_server(command=gunicorn(1, "--access-logfile", "-"))
    server.call("GET", f"/api/messages{IN_URL}&to=seen-in-log", headers={"Referer": f"http://x/?token={QUERY}"})
    eventually(lambda: "seen-in-log" in server.log, what="a line of the access log")
    assert not seen(server.log)
