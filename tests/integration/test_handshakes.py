"""WebSocket handshakes: who is let in, who is refused before the upgrade, and who has ten seconds to show a key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bus.testing import HOST, Answer, BusServer
from tests.rawws import BINARY, CLOSE, CONTINUATION, PING, TEXT, RawWebSocket, frame_bytes
from tests.refusals import KEY, check

AUTH = json.dumps({"type": "auth", "token": KEY}).encode()
WITH_KEY = {"X-API-Key": KEY}
FOREIGN_ORIGINS = [
    "https://example.com",
    "null",
    "",
    "file://",
    "http://[",
    "http://127.0.0.1",
    "http://{host}.example.com",
    "https://{host}",
]


def refused(server: BusServer, path: str, headers: dict[str, str | None] | None = None) -> Answer:
    """The answer to a handshake that was refused."""
    with RawWebSocket(server.port, path, headers) as connection:
        assert not connection.is_open, "The server agreed to the upgrade."
        assert "upgrade" not in connection.headers
        assert "sec-websocket-accept" not in connection.headers
        return Answer(connection.status, json.loads(connection.body), connection.headers)


# ---- refused before the upgrade


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_a_page_of_a_foreign_origin_gets_no_socket(untouched: BusServer, origin: str) -> None:
    given = origin.format(host=f"{HOST}:{untouched.port}")
    check(refused(untouched, "/ws/page", {"Origin": given}), 403, "origin_not_allowed")


@pytest.mark.parametrize("host", ["bus.example.com", "127.0.0.1.example.com", ""])
def test_a_foreign_host_gets_no_socket(untouched: BusServer, host: str) -> None:
    check(refused(untouched, "/ws/page", {"Host": host}), 403, "host_not_allowed")
    check(refused(untouched, "/ws/page", {"Host": host, "Origin": f"http://{host}"}), 403, "host_not_allowed")


@pytest.mark.parametrize(
    "name", ["%24stream", "$", "a%20b", "a%00", "%D7%A9", "%22", "n" * 129, "a%0A", "a,b", "%F0%9F"]
)
def test_a_bad_name_gets_no_socket(untouched: BusServer, name: str) -> None:
    check(refused(untouched, f"/ws/{name}"), 400, "bad_name", "client_id")


@pytest.mark.parametrize("name", ["all", ".", "..", "topic:builds", "queue:reviews", "topic%3A"])
def test_a_reserved_name_gets_no_socket(untouched: BusServer, name: str) -> None:
    check(refused(untouched, f"/ws/{name}"), 400, "reserved_name", "client_id")


@pytest.mark.parametrize(
    ("query", "status", "code", "field"),
    [
        ("since=", 400, "bad_cursor", "since"),
        ("since=5", 400, "bad_cursor", "since"),
        ("since=oldest", 400, "bad_cursor", "since"),
        ("since=0123456789ab:-1", 400, "bad_cursor", "since"),
        ("since=2026-02-30T00:00:00", 400, "bad_time", "since"),
        ("on_gap=newest", 400, "bad_field", "on_gap"),
        ("topics=builds,", 400, "bad_pattern", "topics"),
        ("topics=builds.*,>.done", 400, "bad_pattern", "topics"),
    ],
)
def test_a_bad_query_gets_no_socket_and_makes_nobody_known(
    untouched: BusServer, query: str, status: int, code: str, field: str
) -> None:
    check(refused(untouched, f"/ws/asker?{query}"), status, code, field)
    check(refused(untouched, f"/ws/nobody-yet?{query}"), status, code, field)


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("Sec-WebSocket-Version", None, "bad_handshake"),
        ("Sec-WebSocket-Version", "8", "bad_handshake"),
        ("Sec-WebSocket-Version", "13, 8", "bad_handshake"),
        ("Sec-WebSocket-Key", None, "bad_handshake"),
        ("Sec-WebSocket-Key", "", "bad_handshake"),
        ("Sec-WebSocket-Key", "c2hvcnQ=", "bad_handshake"),
        ("Sec-WebSocket-Key", "!" * 22 + "==", "bad_handshake"),
        ("Sec-WebSocket-Key", "A" * 24, "bad_handshake"),
        ("Upgrade", None, "websocket_mismatch"),
        ("Upgrade", "h2c", "websocket_mismatch"),
        ("Connection", "keep-alive", "websocket_mismatch"),
        ("Connection", "not-upgrade", "websocket_mismatch"),
    ],
)
def test_a_wrong_handshake_is_refused(untouched: BusServer, header: str, value: str | None, code: str) -> None:
    check(refused(untouched, "/ws/page", {header: value}), 400, code)


@pytest.mark.parametrize("path", ["/api/status", "/health", "/docs"])
def test_no_other_path_speaks_websocket(untouched: BusServer, path: str) -> None:
    check(refused(untouched, path), 400, "websocket_mismatch")


@pytest.mark.parametrize("path", ["/ws", "/ws/", "/ws/a/b", "/ws/a%2Fb", "/socket"])
def test_there_is_no_socket_at_another_path(untouched: BusServer, path: str) -> None:
    check(refused(untouched, path), 404, "not_found")


# ---- agreed to


def test_compression_and_subprotocols_are_declined(server: BusServer) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits", "Sec-WebSocket-Protocol": "chat"}
    with RawWebSocket(server.port, "/ws/offerer", dict(offer)) as offerer:
        assert offerer.is_open
        assert not {name for name in offerer.headers if name in ("sec-websocket-extensions", "sec-websocket-protocol")}
        assert offerer.read_frame().reserved == 0
        offerer.send_frame(TEXT, b"compressed, as it were", reserved=4)
        assert offerer.read_close().close_code == 1002


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://{host}"},
        {"Origin": "HTTP://{host}"},
        {"Host": "localhost:5001", "Origin": "http://localhost:5001"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade", "Upgrade": "WebSocket"},
    ],
)
def test_a_good_handshake_is_welcomed(server: BusServer, headers: dict[str, str]) -> None:
    given = {name: value.format(host=f"{HOST}:{server.port}") for name, value in headers.items()}
    with RawWebSocket(server.port, "/ws/guest", dict(given)) as guest:
        assert guest.read_json()["type"] == "connection_confirmed"


def test_further_origins_and_hosts_are_let_in_when_they_are_named(fresh_server: Any) -> None:
    server = fresh_server(
        env={"ALLOWED_ORIGINS": "https://a.example, https://B.example/", "ALLOWED_HOSTS": "bus.example"}
    )
    for headers in ({"Origin": "https://a.example"}, {"Origin": "https://b.example"}, {"Host": "BUS.example:5001"}):
        with RawWebSocket(server.port, "/ws/guest", dict(headers)) as guest:
            assert guest.read_json()["type"] == "connection_confirmed"
    for headers in ({"Origin": "http://a.example"}, {"Origin": "https://a.example.com"}, {"Host": "www.bus.example"}):
        assert refused(server, "/ws/guest", dict(headers)).status == 403


# ---- with auth on


@pytest.mark.parametrize(
    "headers", [{"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"X-API-Key": KEY + "x"}]
)
def test_a_wrong_key_in_the_handshake_is_refused_without_an_upgrade(locked: BusServer, headers: dict[str, str]) -> None:
    answer = refused(locked, "/ws/guest", dict(headers))
    check(answer, 401, "bad_credential")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_opens_neither_a_foreign_page_nor_a_bad_name(locked: BusServer) -> None:
    check(refused(locked, "/ws/guest", {**WITH_KEY, "Origin": "https://example.com"}), 403, "origin_not_allowed")
    check(refused(locked, "/ws/guest", {"Origin": "https://example.com"}), 403, "origin_not_allowed")
    check(refused(locked, "/ws/%24", {**WITH_KEY}), 400, "bad_name", "client_id")
    check(refused(locked, "/ws/nobody-yet?since=5", {**WITH_KEY}), 400, "bad_cursor", "since")


@pytest.mark.parametrize("headers", [WITH_KEY, {"Authorization": f"Bearer {KEY}"}])
def test_a_key_in_the_handshake_is_welcomed_at_once(locked_server: BusServer, headers: dict[str, str]) -> None:
    with RawWebSocket(locked_server.port, "/ws/guest", dict(headers)) as guest:
        assert guest.read_json()["type"] == "connection_confirmed"


def text(**fields: Any) -> bytes:
    return frame_bytes(TEXT, json.dumps(fields).encode())


BAD_FIRST_FRAMES: dict[str, bytes] = {
    "a ping": text(type="ping"),
    "a send": text(type="send", to="guest", token=KEY),
    "no token": text(type="auth"),
    "an empty token": text(type="auth", token=""),
    "a null token": text(type="auth", token=None),
    "a token that is a number": text(type="auth", token=5),
    "a wrong token": text(type="auth", token="wrong"),
    "half a token": text(type="auth", token=KEY[:-1]),
    "a token in another place": text(type="auth", payload={"token": KEY}),
    "an empty object": text(),
    "a list": frame_bytes(TEXT, b"[" + AUTH + b"]"),
    "no JSON": frame_bytes(TEXT, KEY.encode()),
    "bad UTF-8": frame_bytes(TEXT, AUTH[:-1] + b',"\xff":1}'),
    "too deep": frame_bytes(TEXT, AUTH[:-1] + b',"x":' + b"[" * 3000 + b"}"),
    "4,097 bytes": frame_bytes(TEXT, AUTH + b" " * (4097 - len(AUTH))),
    "a megabyte that is announced": frame_bytes(TEXT, announced=2**20),
    "binary": frame_bytes(BINARY, AUTH),
    "a first fragment": frame_bytes(TEXT, AUTH, is_final=False),
    "a continuation": frame_bytes(CONTINUATION, AUTH),
    "a control frame": frame_bytes(PING, AUTH),
    "an unmasked frame": frame_bytes(TEXT, AUTH, mask=None),
    "a reserved bit": frame_bytes(TEXT, AUTH, reserved=4),
    "an unknown opcode": frame_bytes(0x3, AUTH),
}


@pytest.mark.parametrize("name", BAD_FIRST_FRAMES)
def test_a_bad_first_frame_is_the_last(locked: BusServer, name: str) -> None:
    with RawWebSocket(locked.port, "/ws/stranger") as stranger:
        assert stranger.is_open
        stranger.send_bytes(BAD_FIRST_FRAMES[name] + frame_bytes(TEXT, AUTH) + text(type="send", to="guest", ref=1))
        end = stranger.read_frame()  # the first that ever comes: the socket was silent
        assert (end.opcode, end.close_code) == (CLOSE, 4401)
        stranger.send_close(4401)
        stranger.read_end()


def test_a_silent_socket_is_nobody_and_hears_nothing(locked_server: BusServer) -> None:
    with RawWebSocket(locked_server.port, "/ws/lurker") as lurker:
        for to in ("lurker", "all"):
            sent = locked_server.call("POST", "/api/send", {"from": "writer", "to": to}, WITH_KEY)
            assert sent.body["recipients"][0].get("state") in ("unknown", "queued", "sent")
        assert (
            "lurker" not in locked_server.call("GET", "/api/status", headers=WITH_KEY).body["connections"]["by_client"]
        )
        assert locked_server.call("GET", "/api/clients/lurker", headers=WITH_KEY).status == 404
        lurker.send_bytes(text(type="auth", token="wrong"))
        assert lurker.read_frame().close_code == 4401


@pytest.mark.parametrize("piece", [1, 5, 10_000])
def test_a_good_first_frame_is_welcomed_however_it_is_cut(locked_server: BusServer, piece: int) -> None:
    with RawWebSocket(locked_server.port, f"/ws/guest-in-pieces-of-{piece}") as guest:
        data = frame_bytes(TEXT, AUTH, mask=b"mask")
        for start in range(0, len(data), piece):
            guest.send_bytes(data[start : start + piece])
        assert guest.read_json()["type"] == "connection_confirmed"
        guest.send_json({"type": "ping"})
        assert guest.read_json()["type"] == "pong"


def test_what_follows_the_auth_in_one_write_is_handled_whatever_its_size(locked_server: BusServer) -> None:
    large = text(type="send", to="guest", ref=2, payload="x" * 100_000)
    with RawWebSocket(locked_server.port, "/ws/hasty") as hasty:
        hasty.send_bytes(
            frame_bytes(TEXT, AUTH + b" " * (4096 - len(AUTH))) + text(type="send", to="guest", ref=1) + large
        )
        assert hasty.read_json()["type"] == "connection_confirmed"
        assert [hasty.read_until("sent")["ref"] for _ in range(2)] == [1, 2]


def test_a_violation_behind_the_auth_ends_the_connection_after_the_welcome(locked_server: BusServer) -> None:
    with RawWebSocket(locked_server.port, "/ws/hasty") as hasty:
        hasty.send_bytes(frame_bytes(TEXT, AUTH) + frame_bytes(TEXT, b"{}", reserved=4))
        assert hasty.read_json()["type"] == "connection_confirmed"
        assert hasty.read_close().close_code == 1002


def test_a_good_first_frame_does_not_excuse_a_bad_cursor(locked: BusServer) -> None:
    with RawWebSocket(locked.port, "/ws/nobody-yet?since=5") as guest:
        guest.send_frame(TEXT, AUTH)
        end = guest.read_frame()
        assert (end.close_code, "`since`" in end.close_reason) == (1008, True)


@pytest.mark.slow
def test_who_shows_no_key_in_ten_seconds_is_turned_away(locked: BusServer) -> None:
    with RawWebSocket(locked.port, "/ws/sleeper") as sleeper:
        sleeper.send_bytes(frame_bytes(TEXT, AUTH)[:-1])  # begun in time, not ended
        assert sleeper.read_frame(within_seconds=20).close_code == 4401
