"""Tickets and sessions on the running server: what they stand for, that nobody else can use them, and how they end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from bus.testing import Answer, BusServer, eventually
from tests.event_source import EventSource
from tests.issuer import AUDIENCE, ISSUER, claims
from tests.rawws import CLOSE, RawWebSocket
from tests.refusals import KEY, check
from tests.stored import rows

PAGE = "https://page.example"
SECRET = "a secret of thirty-two bytes, or more"
ADMIN = {"X-API-Key": KEY}


@pytest.fixture(scope="module", params=[1, 4], ids=["1 worker", "4 workers"])
def bus(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    """A server with auth on, and pages of one more origin."""
    with BusServer(workers=request.param, env={"API_KEY": KEY, "ALLOWED_ORIGINS": PAGE}) as server:
        yield server


def make_key(bus: BusServer, client: str, **granted: Any) -> dict[str, Any]:
    answer = bus.call("POST", "/api/keys", {"clients": [client], **granted}, ADMIN)
    assert answer.status == 200, answer
    return dict(answer.body)


def ticket(bus: BusServer, key: str, headers: dict[str, str] | None = None, **bound: str) -> str:
    answer = bus.call("POST", "/api/tickets", bound, {"X-API-Key": key, **(headers or {})})
    assert answer.status == 200, answer
    assert answer.body["expires_in"] == 30
    return str(answer.body["ticket"])


def handshake(bus: BusServer, path: str, headers: dict[str, str | None] | None = None) -> Answer:
    with RawWebSocket(bus.port, path, headers) as socket:
        if socket.is_open:
            return Answer(101, socket.read_json(), socket.headers)
        return Answer(socket.status, json.loads(socket.body), socket.headers)


def log_in(bus: BusServer, key: str, headers: dict[str, str] | None = None) -> tuple[str, Answer]:
    """The value of `Cookie`, and the answer that made it."""
    answer = bus.call("POST", "/api/session", headers={"X-API-Key": key, **(headers or {})})
    assert answer.status == 200, answer
    return answer.headers["set-cookie"].partition(";")[0], answer


# ---- tickets


def test_a_ticket_opens_one_socket(bus: BusServer) -> None:
    bought = ticket(bus, make_key(bus, "alice")["key"])
    hello = handshake(bus, f"/ws/alice?ticket={bought}")
    assert (hello.status, hello.body["client_id"]) == (101, "alice")
    for _ in range(4):
        check(handshake(bus, f"/ws/alice?ticket={bought}"), 401, "bad_ticket")


def test_many_that_use_one_ticket_at_once_open_one_socket(bus: BusServer) -> None:
    bought = ticket(bus, make_key(bus, "alice")["key"])
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(handshake(bus, f"/ws/alice?ticket={bought}").status))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [101] + [401] * 11


def test_a_ticket_may_come_as_a_subprotocol_and_stays_out_of_the_url(bus: BusServer) -> None:
    bought = ticket(bus, make_key(bus, "alice")["key"])
    offered = {"Sec-WebSocket-Protocol": f"bus, ticket.{bought}"}
    hello = handshake(bus, "/ws/alice", offered)
    assert (hello.status, hello.headers["sec-websocket-protocol"]) == (101, "bus")
    check(handshake(bus, "/ws/alice", offered), 401, "bad_ticket")


def test_a_ticket_is_good_for_whom_it_was_made_only(bus: BusServer) -> None:
    both = make_key(bus, "alice", clients=["alice", "bob"])["key"]
    alone = make_key(bus, "alice")["key"]
    check(handshake(bus, f"/ws/bob?ticket={ticket(bus, both, client='alice')}"), 401, "bad_ticket")
    assert handshake(bus, f"/ws/bob?ticket={ticket(bus, both)}").status == 101
    check(handshake(bus, f"/ws/bob?ticket={ticket(bus, alone)}"), 403, "not_your_name")
    refused = bus.call("POST", "/api/tickets", {"client": "bob"}, {"X-API-Key": alone})
    check(refused, 403, "not_your_name")
    check(bus.call("POST", "/api/tickets", {"origin": "*"}, {"X-API-Key": alone}), 400, "bad_field", "origin")
    check(bus.call("POST", "/api/tickets", {}), 401, "unauthenticated")


def test_a_ticket_is_good_for_the_page_that_bought_it_only(bus: BusServer) -> None:
    key = make_key(bus, "alice")["key"]
    for bound, page, status in (
        ({"headers": {"Origin": PAGE}}, PAGE, 101),
        ({"headers": {"Origin": PAGE}}, bus.url, 401),
        ({"headers": {"Origin": PAGE}}, None, 401),
        ({"origin": PAGE.upper()}, PAGE, 101),
        ({"origin": PAGE}, bus.url, 401),
        ({}, PAGE, 101),
        ({}, "https://evil.example", 403),
    ):
        bought = ticket(bus, key, **bound)  # type: ignore[arg-type]
        assert handshake(bus, f"/ws/alice?ticket={bought}", {"Origin": page} if page else None).status == status


def test_a_ticket_ends_with_its_credential_and_so_does_its_socket(bus: BusServer) -> None:
    key = make_key(bus, "alice")
    early, late = ticket(bus, key["key"]), ticket(bus, key["key"])
    with RawWebSocket(bus.port, f"/ws/alice?ticket={early}") as socket:
        assert socket.read_json()["type"] == "connection_confirmed"
        assert bus.call("POST", f"/api/keys/{key['id']}/revoke", headers=ADMIN).status == 200
        while (frame := socket.read_frame(5)).opcode != CLOSE:
            pass
        assert frame.close_code == 4401
    spent = {"X-API-Key": key["key"]}
    eventually(  # another node looks once a second, if it does not hear of it
        lambda: all(bus.call("GET", "/api/auth/me", headers=spent).status == 401 for _ in range(9)),
        what="the key's end",
    )
    check(handshake(bus, f"/ws/alice?ticket={late}"), 401, "bad_ticket")


@pytest.mark.parametrize("text", ["", "x", "A" * 43, "' OR 1=1 --", "%00" * 43, "A" * 4000])
def test_what_is_no_ticket_is_refused(bus: BusServer, text: str) -> None:
    check(handshake(bus, f"/ws/alice?ticket={text.replace(' ', '%20')}"), 401, "bad_ticket")


@pytest.mark.one_node("sets the clock of one process")
def test_a_caller_may_have_so_many_unused_tickets_and_the_store_has_none_of_them(fresh_server: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY, "BUS_EXTENSIONS": "tests.clock_seams"})
    key = make_key(server, "alice")["key"]
    bought = [ticket(server, key) for _ in range(20)]
    kept = str(rows(server, "SELECT * FROM tickets"))
    assert rows(server, "SELECT count(*) FROM tickets") == [(20,)]
    assert not any(text in kept for text in bought)
    assert server.call("PUT", "/seams/clock?bus=29", headers=ADMIN).status == 200
    assert handshake(server, f"/ws/alice?ticket={bought[0]}").status == 101
    assert server.call("PUT", "/seams/clock?bus=31", headers=ADMIN).status == 200
    check(handshake(server, f"/ws/alice?ticket={bought[1]}"), 401, "bad_ticket")
    ticket(server, key)
    assert rows(server, "SELECT count(*) FROM tickets") == [(1,)]


# ---- keys in URLs


@pytest.mark.parametrize(
    "query",
    [
        "api_key={key}", "apikey={key}", "token={key}", "access_token=x", "a=1&X-API-Key={key}", "q={key}", "jwt=a.b.c",
        "q=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.AAAA",
    ],
)  # fmt: skip
def test_a_key_in_a_url_is_refused_whatever_it_is_called(bus: BusServer, query: str) -> None:
    key = make_key(bus, "alice")["key"]
    given = query.format(key=key)
    for path in ("/api/status", "/stream/events", "/api/nothing"):
        check(bus.call("GET", f"{path}?{given}"), 400, "credential_in_url")
    check(handshake(bus, f"/ws/alice?{given}"), 400, "credential_in_url")
    assert key not in bus.log


# ---- sessions

SEND = {"from": "alice", "to": "bob"}


def test_a_cookie_stands_for_the_key_and_is_only_for_browsers(bus: BusServer) -> None:
    key = make_key(bus, "alice")
    cookie, answer = log_in(bus, key["key"])
    name, _, attributes = answer.headers["set-cookie"].partition("=")
    assert name == "bus_session"
    parts = {part for part in attributes.split("; ")[1:] if not part.startswith("Expires=")}
    assert parts == {"HttpOnly", "Path=/", "SameSite=Strict", "Max-Age=43200"}
    assert key["key"] not in cookie
    for _ in range(4):
        found = bus.call("GET", "/api/auth/me", headers={"Cookie": cookie}).body
        assert (found["name"], found["clients"]) == (f"key:{key['id']}", ["alice"])
    page = {"Cookie": cookie, "Origin": bus.url}
    assert bus.call("POST", "/api/send", SEND, page).status == 200
    check(bus.call("POST", "/api/send", {**SEND, "from": "bob"}, page), 403, "not_your_name")
    check(bus.call("POST", "/api/session", headers={**page, "X-Requested-With": "x"}), 403, "needs_credential")


def test_over_https_the_cookie_is_secure(bus: BusServer) -> None:
    proxied = {"X-Forwarded-Proto": "https"}
    cookie, answer = log_in(bus, KEY, proxied)
    assert cookie.startswith("__Host-bus_session=")
    assert "Secure" in answer.headers["set-cookie"].split("; ")
    assert bus.call("GET", "/api/auth/me", headers={"Cookie": cookie, **proxied}).body["name"] == "admin"
    assert bus.call("GET", "/api/auth/me", headers={"Cookie": cookie}).status == 401


def test_a_page_with_a_cookie_hears_its_stream_and_opens_its_socket(bus: BusServer) -> None:
    key = make_key(bus, "alice")["key"]
    cookie, _ = log_in(bus, key)
    with EventSource(bus, "client_id=alice", headers={"Cookie": cookie}) as source:
        assert bus.call("POST", "/stream/send", {"client_id": "alice", "event": "e"}, ADMIN).status == 200
        source.read_until("e")
    check(bus.call("GET", "/stream/events?client_id=bob", headers={"Cookie": cookie}), 403, "not_your_name")
    assert handshake(bus, "/ws/alice", {"Cookie": cookie, "Origin": bus.url}).status == 101
    check(handshake(bus, "/ws/bob", {"Cookie": cookie, "Origin": bus.url}), 403, "not_your_name")
    check(handshake(bus, "/ws/alice", {"Cookie": cookie}), 403, "origin_missing")
    check(handshake(bus, "/ws/alice", {"Cookie": cookie, "Origin": "https://evil.example"}), 403, "origin_not_allowed")


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_with_a_cookie_alone_nothing_is_changed(bus: BusServer) -> None:
    cookie, _ = log_in(bus, make_key(bus, "alice")["key"])
    own = {"Cookie": cookie, "Origin": bus.url}
    raw = json.dumps(SEND).encode()
    for headers, code in (
        ({"Cookie": cookie}, "origin_missing"),
        ({"Cookie": cookie, "Sec-Fetch-Site": "cross-site"}, "origin_not_allowed"),
        ({"Cookie": cookie, "Origin": "null"}, "origin_not_allowed"),
        ({"Cookie": cookie, "Origin": "https://evil.example"}, "origin_not_allowed"),
        ({**own, **FORM}, "csrf_header_missing"),
        ({**own, "Content-Type": "text/plain"}, "csrf_header_missing"),
    ):
        check(bus.call("POST", "/api/send", raw=raw, headers=headers), 403, code)
    for path in ("/api/clear", "/api/v1/tokens/revoke"):
        check(bus.call("POST", path, headers=own), 403, "csrf_header_missing")
    check(bus.call("DELETE", "/api/session", headers=own), 403, "csrf_header_missing")
    assert bus.call("GET", "/api/auth/me", headers={"Cookie": cookie}).status == 200


def test_logging_out_ends_the_session_everywhere(bus: BusServer) -> None:
    key = make_key(bus, "alice")["key"]
    (cookie, _), (other, _) = log_in(bus, key), log_in(bus, key)
    page = {"Cookie": cookie, "Origin": bus.url, "X-Requested-With": "fetch"}
    bought = bus.call("POST", "/api/tickets", {}, page).body["ticket"]
    with (
        RawWebSocket(bus.port, "/ws/alice", {"Cookie": cookie, "Origin": bus.url}) as socket,
        EventSource(bus, "client_id=alice", headers={"Cookie": other}) as stays,
        EventSource(bus, "client_id=alice", headers={"Cookie": cookie}) as source,
    ):
        assert socket.read_json()["type"] == "connection_confirmed"
        answer = bus.call("DELETE", "/api/session", headers=page)
        assert (answer.status, answer.body) == (200, {"status": "ended"})
        assert answer.headers["set-cookie"].startswith("bus_session=;")
        while (frame := socket.read_frame(5)).opcode != CLOSE:
            pass
        assert frame.close_code == 4401
        source.read_end(5)
        assert bus.call("POST", "/stream/send", {"client_id": "alice", "event": "still"}, ADMIN).status == 200
        stays.read_until("still")
    asked = partial(bus.call, "GET", "/api/auth/me", headers={"Cookie": cookie})
    eventually(lambda: all(asked().status == 401 for _ in range(4)), within_seconds=3, what="an end everywhere")
    for _ in range(4):
        check(asked(), 401, "session_ended")
        assert bus.call("GET", "/api/auth/me", headers={"Cookie": other}).status == 200
    check(handshake(bus, f"/ws/alice?ticket={bought}", {"Origin": bus.url}), 401, "bad_ticket")
    check(bus.call("DELETE", "/api/session", headers={"X-API-Key": key}), 404, "no_session")


def test_a_session_ends_with_its_key(bus: BusServer) -> None:
    key = make_key(bus, "alice")
    cookie, _ = log_in(bus, key["key"])
    with RawWebSocket(bus.port, "/ws/alice", {"Cookie": cookie, "Origin": bus.url}) as socket:
        assert socket.read_json()["type"] == "connection_confirmed"
        assert bus.call("DELETE", f"/api/keys/{key['id']}", headers=ADMIN).status == 200
        while (frame := socket.read_frame(5)).opcode != CLOSE:
            pass
        assert frame.close_code == 4401
    check(bus.call("GET", "/api/auth/me", headers={"Cookie": cookie}), 401, "session_ended")


@pytest.mark.parametrize("how", ["changed", "cut", "foreign", "long", "empty signature"])
def test_a_forged_cookie_is_refused(bus: BusServer, how: str) -> None:
    cookie, _ = log_in(bus, make_key(bus, "alice")["key"])
    forged = {
        "changed": cookie.replace("=", "=x", 1),
        "cut": cookie[:-2],
        "foreign": "bus_session=eyJpZCI6ImEifQ.c2lnbmF0dXJl",
        "long": f"bus_session={'A' * 7000}",
        "empty signature": f"{cookie.rpartition('.')[0]}.",
    }[how]
    check(bus.call("GET", "/api/auth/me", headers={"Cookie": forged}), 401, "session_ended")
    assert bus.call("GET", "/api/auth/me", headers={"Cookie": forged, **ADMIN}).body["name"] == "admin"


# ---- time, with tokens of a shared secret


@pytest.mark.one_node("sets the clock of one process")
def test_sessions_and_sockets_end_in_time_and_outlive_a_restart(fresh_server: Any) -> None:
    import jwt  # noqa: PLC0415

    env = {"JWT_SECRET": SECRET, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWT_ALLOW_ADMIN": "true"}
    server = fresh_server(workers=2, env={"API_KEY": KEY, "BUS_EXTENSIONS": "tests.clock_seams", **env})
    token = jwt.encode(claims("alice", bus={"scopes": ["admin"]}, jti="one"), SECRET, "HS256")
    with_token = {"Authorization": f"Bearer {token}"}
    assert server.call("GET", "/api/auth/me", headers=with_token).body["admin"] is True
    short, answer = log_in(server, token)
    assert 600 <= int(answer.headers["set-cookie"].partition("Max-Age=")[2].partition(";")[0]) <= 660
    long, _ = log_in(server, KEY)

    def me(cookie: str) -> int:
        return server.call("GET", "/api/auth/me", headers={"Cookie": cookie}).status

    server.restart()
    assert [me(short), me(long)] == [200, 200]
    with RawWebSocket(server.port, "/ws/alice", with_token) as socket:
        assert socket.read_json()["type"] == "connection_confirmed"
        assert server.call("PUT", "/seams/clock?bus=700", headers=ADMIN).status == 200
        while (frame := socket.read_frame(5)).opcode != CLOSE:
            pass
        assert frame.close_code == 4401
    assert server.call("GET", "/api/auth/me", headers=with_token).status == 401
    assert [me(short), me(long)] == [401, 200]
    assert server.call("PUT", "/seams/clock?bus=40000", headers=ADMIN).status == 200
    assert me(long) == 200
    assert server.call("PUT", "/seams/clock?bus=43300", headers=ADMIN).status == 200
    assert me(long) == 401
    (key_file,) = server.data_dir.glob("sessions.key")
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_another_admin_key_ends_what_stood_for_the_former_one(fresh_server: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    cookie, _ = log_in(server, KEY)
    server.env["API_KEY"] = "another-key-for-the-tests"
    server.restart()
    check(server.call("GET", "/api/auth/me", headers={"Cookie": cookie}), 401, "session_ended")


def test_with_auth_off_there_is_nothing_to_log_in_to(server: BusServer) -> None:
    answer = server.call("POST", "/api/session")
    assert (answer.status, answer.body) == (200, {"name": "anybody", "expires_at": None})
    assert "set-cookie" not in answer.headers
    assert server.call("POST", "/api/tickets", {}).status == 200
    assert handshake(server, "/ws/guest?ticket=whatever").status == 101
