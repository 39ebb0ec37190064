"""The headers of safety stand on every answer: of Flask, of the lane, of streams, probes and pages, good or refused."""

from __future__ import annotations

import http.client

import pytest

from bus.testing import HOST, BusServer
from tests.refusals import GOOD, KEY, exchange

SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

ASKED = [
    ("GET", "/health", 200),
    ("GET", "/health/live", 200),
    ("GET", "/metrics", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/docs", 200),
    ("GET", "/api/status", 200),
    ("GET", "/api/audit/export", 200),
    ("GET", "/nowhere", 404),
    ("DELETE", "/api/status", 405),
    ("GET", "/api/messages", 400),
    ("POST", "/api/send", 200),
    ("POST", "/api/clear", 200),
    ("GET", "/ws/reader", 400),
]


@pytest.mark.parametrize(("method", "path", "status"), ASKED)
def test_every_answer_has_them(locked_server: BusServer, method: str, path: str, status: int) -> None:
    body = GOOD if path == "/api/send" else None
    for headers in ({"X-API-Key": KEY}, {}):
        answer = locked_server.call(method, path, body, headers)
        assert answer.status in (status, 401)
        assert {name: answer.headers.get(name) for name in SAFE} == SAFE
        assert "cache-control" in answer.headers
        assert ("content-security-policy" in answer.headers) == (answer.headers["content-type"].startswith("text/html"))


def test_a_stream_has_them(locked_server: BusServer) -> None:
    connection = http.client.HTTPConnection(HOST, locked_server.port, timeout=10)
    connection.request("GET", "/stream/events?client_id=reader", headers={"X-API-Key": KEY})
    response = connection.getresponse()
    assert response.status == 200
    assert {name: response.getheader(name) for name in SAFE} == SAFE
    assert response.getheader("Cache-Control") == "no-cache, no-transform"
    connection.close()


def test_what_gunicorn_refuses_by_itself_shows_nothing_that_runs(locked_server: BusServer) -> None:
    answer = exchange(locked_server, b"GET /<script>alert(1)</script> HTTP/9.9\r\n\r\n")
    assert answer.status == 400
    assert "<script" not in str(answer.body)
