"""What every refusal over HTTP must be, and what it must leave alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bus.settings import ROOT
from bus.testing import HOST, Answer, BusServer

KEY = "a-key-for-the-tests-of-refusals"
MAX_BYTES = 1024 * 1024
GOOD = {"from": "asker", "to": "asked"}
LEAK = re.compile(
    r"Traceback|\b[A-Z]\w*(?:Error|Exception)\b|InvalidChunk|NoMoreData|Malformed|site-packages|\.py\b|"
    + "|".join(re.escape(path) for path in sorted({str(ROOT), sys.prefix, sys.base_prefix}))
)
"""What no stranger may read: an exception's class, a file, a stack."""


def sending(**fields: Any) -> bytes:
    """The body of a send that is good but for `fields`."""
    return json.dumps({**GOOD, **fields}).encode()


def check(answer: Answer, status: int, code: str, field: str | None = None) -> str:
    """Check that the answer is this refusal, whole and without a leak. Returns its sentence."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer
    body = answer.body
    assert (body["code"], body.get("field")) == (code, field), answer
    assert set(body) <= {"error", "code", "field", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"] != ""
    check_sentence(body["error"])
    assert not LEAK.search(str(answer))
    return str(body["error"])


def check_sentence(text: str) -> None:
    """Check that an `error` is a sentence for people."""
    assert re.fullmatch(r"[A-Z`/].{15,}\.", text), f"This is no sentence: {text}"
    assert "jSON" not in text


def exchange(server: BusServer, data: bytes, *, ends: bool = False) -> Answer:
    """Send these bytes, and no more if `ends`; the answer that comes, as of `BusServer.call`."""
    with socket.create_connection((HOST, server.port), timeout=10) as connection:
        connection.sendall(data)
        if ends:
            with contextlib.suppress(OSError):  # the server may have answered and hung up already
                connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()
        text = response.read().decode()
    headers = {name.lower(): value for name, value in response.getheaders()}
    is_json = headers.get("content-type") == "application/json"
    return Answer(response.status, json.loads(text) if is_json else text, headers)


def kept(server: BusServer) -> dict[str, Any]:
    """What a refused request must not change: the log, its figures, and who is known."""
    headers = {"X-API-Key": KEY}
    status = server.call("GET", "/api/status", headers=headers).body
    log = server.call("GET", f"/api/log?limit=1000&since={status['epoch']}:0", headers=headers).body
    clients = server.call("GET", "/api/clients?limit=1000", headers=headers).body
    return {
        "total": status["metrics"]["total_messages"],
        "cursor": status["cursor"],
        "log": log["messages"],
        "clients": [client["client"] for client in clients["clients"]],
    }


@contextmanager
def nothing_stored(server: BusServer) -> Iterator[None]:
    """Check that what happens within leaves no trace, and the server well. The key `taken` was used before."""
    server.call("POST", "/api/send", {**GOOD, "payload": 1, "idempotency_key": "taken"}, {"X-API-Key": KEY})
    before = kept(server)
    assert before["total"] > 0
    assert before["log"]
    yield
    assert kept(server) == before
    assert server.call("GET", "/health").status == 200
    assert "Traceback" not in server.log, "The server was not ready for what it refused."
