"""Who may do what: every credential against every route, frame and stream. The routes come from the OpenAPI document.

A route says by `x-right` what it asks for. What that means is written down here once more, so a route that is new, or asks
for something new, fails until somebody has thought about it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bus.protocol import Frame
from bus.testing import BusServer
from bus.transports.ws_verbs import VERBS
from tests.rawws import CLOSE, RawWebSocket
from tests.refusals import KEY

RIGHTS = {
    "open": ("nobody", "wrong", "expired", "revoked", "other", "reader", "sender", "admin"),
    "any": ("other", "reader", "sender", "admin"),
    "send": ("other", "sender", "admin"),
    "read": ("other", "reader", "admin"),
    "presence": ("other", "admin"),
    "read-all": ("admin",),
    "admin": ("admin",),
}
"""Who gets past the door of a route, by what it asks for."""

SCOPES = {
    "other": ["send", "read", "presence"],
    "reader": ["read"],
    "sender": ["send"],
}
DOORS = (401, 403)
OPEN_ROUTES = {
    *(
        "/health",
        "/health/live",
        "/health/ready",
        "/health/startup",
        "/health/status",
        "/health/detailed",
        "/health/info",
    ),
    *("/ready", "/metrics", "/llms.txt"),
}
"""What the contract opens to everybody."""


@pytest.fixture(scope="module")
def bus() -> Iterator[BusServer]:
    """A server with auth on, without limits on how often one may be refused."""
    with BusServer(env={"API_KEY": KEY}) as server:
        yield server


@pytest.fixture(scope="module")
def credentials(bus: BusServer) -> dict[str, str | None]:
    """A credential of each kind; None: none at all."""

    def make(**granted: Any) -> dict[str, Any]:
        answer = bus.call("POST", "/api/keys", granted, headers={"X-API-Key": KEY})
        assert answer.status == 200, answer
        return dict(answer.body)

    keys = {name: make(clients=[name], scopes=scopes)["key"] for name, scopes in SCOPES.items()}
    revoked = make(clients=["revoked"])
    bus.call("POST", f"/api/keys/{revoked['id']}/revoke", headers={"X-API-Key": KEY})
    expired = make(clients=["expired"], expires_in=1)
    with RawWebSocket(bus.port, "/ws/expired", {"X-API-Key": expired["key"]}) as socket:
        while socket.read_frame(10).opcode != CLOSE:
            pass
    wrong = keys["other"][:-7] + "_AAAAAA"
    ended = {"wrong": wrong, "expired": expired["key"], "revoked": revoked["key"]}
    return {"nobody": None, "admin": KEY, **keys, **ended}


@pytest.fixture(scope="module")
def routes(bus: BusServer) -> list[tuple[str, str, str]]:
    """(method, path with names in it, right) of every route that is described."""
    document = bus.call("GET", "/openapi.json").body
    return [
        (method.upper(), re.sub(r"{(\w+)}", "nothing", path), described["x-right"])
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]


def test_every_right_is_one_of_these_and_only_what_the_contract_opens_is_open(
    routes: list[tuple[str, str, str]],
) -> None:
    assert {right for _, _, right in routes} <= set(RIGHTS) | {"signed"}
    assert {path for _, path, right in routes if right == "open"} == OPEN_ROUTES
    assert len(routes) > 100


@pytest.mark.parametrize("who", ["nobody", "wrong", "expired", "revoked", "other", "reader", "sender", "admin"])
def test_each_route_lets_in_whom_it_should(
    bus: BusServer, credentials: dict[str, str | None], routes: list[tuple[str, str, str]], who: str
) -> None:
    key = credentials[who]
    wrongly = []
    for method, path, right in routes:
        if right == "signed" or path in ("/stream/events", "/api/profile", "/api/v1/profile"):
            continue
        if right == "read-all" and path.endswith("/stream") and who in RIGHTS[right]:
            continue  # it would not end: see test_console.py
        headers = {} if key is None else {"X-API-Key": key}
        answer = bus.call(method, path, {} if method in ("POST", "PUT", "PATCH") else None, headers)
        # Behind the door, an empty body or an unknown name is refused for what it is; a name is never the caller's own.
        refused = answer.status in DOORS and answer.body["code"] != "not_your_name"
        if refused is (who in RIGHTS[right]):
            wrongly.append((method, path, right, answer.status, answer.body))
        if right != "open" and who in ("nobody", "wrong", "expired", "revoked") and answer.status != 401:
            wrongly.append((method, path, right, answer.status, answer.body))
        assert answer.status < 500, (method, path, answer)
    assert not wrongly
    assert "Traceback" not in bus.log


@pytest.mark.parametrize("who", ["nobody", "wrong", "expired", "revoked", "other", "reader", "sender", "admin"])
def test_sockets_and_streams_let_in_whom_they_should(
    bus: BusServer, credentials: dict[str, str | None], who: str
) -> None:
    key = credentials[who]
    headers = {} if key is None else {"X-API-Key": key}
    reads = who in RIGHTS["read"]
    for client in (who, "somebody-else"):
        allowed = who == "admin" or (reads and client == who)
        with RawWebSocket(bus.port, f"/ws/{client}", headers) as socket:
            if who == "nobody":  # it may still bring its credential, in its first frame
                socket.send_json({"type": "ping"})
                assert socket.read_frame().close_code == 4401
                continue
            expected = 101 if allowed else 403 if who in SCOPES else 401
            assert socket.status == expected, (client, socket.status)
        with RawWebSocket(bus.port, f"/ws/{client}") as socket:
            socket.send_json({"type": "auth", "token": key})
            frame = socket.read_frame()
            if allowed:
                assert json.loads(frame.payload)["type"] == "connection_confirmed"
            else:
                assert frame.close_code == (4403 if who in SCOPES else 4401)
        if not allowed:
            answer = bus.call("GET", f"/stream/events?client_id={client}", headers=headers)
            assert answer.status == expected


FRAMES: dict[str, dict[str, Any]] = {
    "send": {"to": "x"},
    "request": {"to": "x", "wait": 0},
    "subscribe": {"topics": ["news"], "queues": ["q"]},
    "unsubscribe": {"topics": ["news"]},
    **{
        verb: {"message_id": "msg-000000000000-000000000001"}
        for verb in ("ack", "nack", "progress", "release", "reject")
    },
    "ping": {},
    "auth": {"token": "x"},
}
"""A good frame of each type that there is."""

NOT_FOR_READERS = {"send", "request"}


def test_every_frame_is_known_here() -> None:
    assert set(FRAMES) == set(VERBS) | {"send", "ping", "auth"}
    assert "token" in Frame.__struct_fields__


@pytest.mark.parametrize("type_", list(FRAMES))
def test_a_reader_may_do_all_but_send(bus: BusServer, credentials: dict[str, str | None], type_: str) -> None:
    with RawWebSocket(bus.port, "/ws/reader", {"X-API-Key": str(credentials["reader"])}) as socket:
        assert socket.read_json()["type"] == "connection_confirmed"
        socket.send_json({"type": type_, "ref": 1, **FRAMES[type_]})
        assert (socket.read_json().get("code") == "not_allowed") is (type_ in NOT_FOR_READERS)


def test_a_path_that_is_no_route_says_nothing_to_strangers(bus: BusServer, credentials: dict[str, str | None]) -> None:
    assert bus.call("GET", "/api/nothing").status == 401
    assert bus.call("GET", "/api/nothing", headers={"X-API-Key": str(credentials["other"])}).status == 404
