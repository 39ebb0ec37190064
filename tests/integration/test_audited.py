"""What stands in the audit trail: every administrative request, every refused credential, whatever the transport."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from bus.testing import BusServer, eventually
from tests.rawws import RawWebSocket
from tests.refusals import KEY

ADMIN = {"X-API-Key": KEY}


@pytest.fixture(scope="module")
def locked() -> Iterator[BusServer]:
    with BusServer(env={"API_KEY": KEY}) as running:
        yield running


def records(server: BusServer, query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.call("GET", f"/api/audit?limit=1000&{query}", headers=ADMIN).body["records"]
    return found


def the_record(server: BusServer, query: str, **fields: str) -> dict[str, Any]:
    """The youngest record that the query finds and that has these fields; waited for."""

    def look() -> dict[str, Any] | None:
        fits = (r for r in records(server, query) if all(r[name] == value for name, value in fields.items()))
        return next(fits, None)

    return eventually(look, what=f"a record with {query} {fields}")  # type: ignore[return-value]


def made(server: BusServer, client: str) -> tuple[str, dict[str, str]]:
    """A key that may act as one client; its id, and the headers that show it."""
    key = server.call("POST", "/api/keys", {"label": client, "clients": [client]}, ADMIN).body
    return key["id"], {"X-API-Key": key["key"]}


def test_every_administrative_route_leaves_one_record(locked: BusServer) -> None:
    document = locked.call("GET", "/openapi.json").body
    called = [
        (method.upper(), re.sub(r"{\w+}", f"a{number}", path), uuid4().hex)
        for number, (path, methods) in enumerate(document["paths"].items())
        for method, described in methods.items()
        if described["x-right"] == "admin" and method != "get" and not path.endswith("/profile")
    ]
    assert len(called) > 40
    for method, path, request_id in called:
        locked.call(method, path, {}, {**ADMIN, "X-Request-ID": request_id})

    def found_all() -> dict[str, dict[str, Any]] | None:
        found = {record["request_id"]: record for record in records(locked, "actor=admin")}
        return found if found.keys() >= {request_id for _, _, request_id in called} else None

    found = eventually(found_all, what="all records")
    for method, path, request_id in called:
        record = found[request_id]
        assert (record["operation"], record["record_id"], record["table_name"]) == (method, path, "route")
        assert record["outcome"] in ("done", "failed")
        assert record["address"] == "127.0.0.1"


def test_a_wrong_credential_and_none_are_recorded(locked: BusServer) -> None:
    path = f"/api/threads/{uuid4().hex}"
    locked.call("GET", path, headers={"X-API-Key": "bus_dev_aaaaaaaaaaaa_" + "b" * 43 + "_abcdef"})
    record = the_record(locked, "outcome=refused", record_id=path)
    assert (record["user_id"], record["operation"], record["address"]) == ("nobody", "GET", "127.0.0.1")
    assert "bbbb" not in str(record)
    locked.call("POST", path + "x")
    assert the_record(locked, "outcome=refused", record_id=path + "x")["user_id"] == "nobody"


def test_the_life_of_a_key_is_recorded_and_never_its_text(locked: BusServer) -> None:
    key_id, headers = made(locked, "keyed")
    text = headers["X-API-Key"]
    for step in ("rotate", "revoke"):
        assert locked.call("POST", f"/api/keys/{key_id}/{step}", {}, ADMIN).status == 200
    assert locked.call("DELETE", f"/api/keys/{key_id}", headers=ADMIN).status == 200
    for step in ("created", "rotated", "revoked", "deleted"):  # each process writes what it has seen in its own time
        the_record(locked, f"action=key.{step}", record_id=key_id)
    assert text.split("_")[3] not in str(records(locked, "limit=1000"))


def test_who_oversteps_its_rights_is_recorded_by_name(locked: BusServer) -> None:
    key_id, mine = made(locked, "modest")
    actor = f"actor=key:{key_id}&outcome=refused"
    assert locked.call("POST", "/api/clear", {}, mine).status == 403
    assert the_record(locked, actor, record_id="/api/clear")["new_values"] == {"code": "needs_admin"}
    as_other = {"from": "other", "to": "modest", "payload": 1}
    assert locked.call("POST", "/api/send", as_other, mine).status == 403
    assert the_record(locked, actor, record_id="/api/send")["new_values"] == {"code": "not_your_name"}
    assert locked.call("POST", "/api/send/batch", {"messages": [as_other] * 3}, mine).status == 200
    assert the_record(locked, actor, record_id="/api/send/batch")["times"] == 3
    assert locked.call("GET", "/api/messages?to=other", headers=mine).status == 403
    assert the_record(locked, actor, record_id="/api/messages")["operation"] == "GET"


def test_sockets_that_are_turned_away_are_recorded(locked: BusServer) -> None:
    name = f"socket-{uuid4().hex[:8]}"
    with RawWebSocket(locked.port, f"/ws/{name}") as socket:
        socket.send_json({"type": "auth", "token": "bus_dev_aaaaaaaaaaaa_" + "b" * 43 + "_abcdef"})
        record = the_record(locked, "action=auth", record_id=f"/ws/{name}")
    assert (record["user_id"], record["outcome"]) == ("nobody", "refused")
    key_id, mine = made(locked, name)
    with RawWebSocket(locked.port, f"/ws/{name}", headers=mine) as socket:
        socket.read_json()
        socket.send_json({"type": "subscribe", "queues": ["q"], "topics": []})
        socket.send_json({"type": "send", "to": "x", "payload": 1, "on_behalf_of": "somebody"})
        record = the_record(locked, f"actor=key:{key_id}", record_id=f"/ws/{name}", operation="frame")
    assert record["outcome"] == "refused"
    locked.call("GET", f"/ws/{name}", headers={"X-API-Key": "wrong" * 8})
    assert the_record(locked, "actor=nobody&action=GET", record_id=f"/ws/{name}")


def test_a_connection_that_ends_with_its_credential_is_recorded(locked: BusServer) -> None:
    name = f"socket-{uuid4().hex[:8]}"
    key_id, mine = made(locked, name)
    with RawWebSocket(locked.port, f"/ws/{name}", headers=mine) as socket:
        socket.read_json()
        locked.call("POST", f"/api/keys/{key_id}/revoke", {}, ADMIN)
        record = the_record(locked, "action=connection.close", user_id=f"key:{key_id}")
    assert name in (record["table_name"], record["record_id"])
