"""How a connection begins: the confirmation, the place it goes on from, and who is refused before the upgrade."""

from __future__ import annotations

import json
import re

import pytest

from tests.conformance.remote import CURSOR, EPOCH, TIME, Remote, Socket, eventually

UNKNOWN_CURSOR = "000000000000:7"


def test_the_first_frame_is_the_confirmation(remote: Remote) -> None:
    name = remote.name()
    with remote.connect(name) as socket:
        hello = socket.hello
    assert (hello["type"], hello["client_id"], hello["server"]) == ("connection_confirmed", name, "multi-agent-bridge")
    assert re.fullmatch(TIME, hello["timestamp"])
    assert re.fullmatch(EPOCH, hello["epoch"])
    assert re.fullmatch(CURSOR, hello["cursor"])
    assert hello["resumed"]["from"] == hello["cursor"]
    assert re.fullmatch(CURSOR, hello["resumed"]["to"])
    assert hello["resumed"]["expired"] == 0
    assert "gap" not in hello["resumed"]
    assert hello["version"].count(".") == 2


def test_the_confirmation_comes_before_what_waits(remote: Remote) -> None:
    name = remote.name()
    remote.send(remote.name(), name, 1)
    with remote.connect(name) as socket:
        assert socket.hello["type"] == "connection_confirmed"
        assert socket.message()["payload"] == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [("%24bus", "bad_name"), ("a%20b", "bad_name"), ("n" * 129, "bad_name"), ("all", "reserved_name")],
)
def test_a_client_that_may_not_be_called_so_gets_no_socket(remote: Remote, name: str, code: str) -> None:
    refused = remote.refusal(name)
    assert (refused.status, refused.body["code"], refused.body["field"]) == (400, code, "client_id")


@pytest.mark.parametrize(
    ("query", "code"),
    [({"since": "yesterday"}, "bad_cursor"), ({"since": "T"}, "bad_time"), ({"on_gap": "no"}, "bad_field")],
)
def test_a_place_that_can_not_be_read_gets_no_socket(remote: Remote, query: dict[str, str], code: str) -> None:
    refused = remote.refusal(remote.name(), **query)
    assert (refused.status, refused.body["code"], refused.body["field"]) == (400, code, next(iter(query)))


def test_a_page_of_a_foreign_origin_gets_no_socket(remote: Remote) -> None:
    refused = remote.refusal(remote.name(), {"Origin": "https://stranger.example"})
    assert (refused.status, refused.body["code"]) == (403, "origin_not_allowed")


def test_plain_http_on_the_sockets_path_is_told_so(remote: Remote) -> None:
    answer = remote.get(f"/ws/{remote.name()}")
    assert (answer.status, answer.body["code"]) == (400, "websocket_mismatch")


def test_compression_is_declined(remote: Remote) -> None:
    connection = remote.open(remote.name())
    assert connection.response is not None
    assert "Sec-WebSocket-Extensions" not in connection.response.headers
    connection.close()


def test_a_cursor_of_another_epoch_is_a_gap_that_is_told(remote: Remote) -> None:
    with remote.connect(remote.name(), since=UNKNOWN_CURSOR) as socket:
        gap = socket.hello["resumed"]["gap"]
        assert (gap["requested"], gap["reason"], gap["lost"]) == (UNKNOWN_CURSOR, "epoch_changed", None)
        assert gap["resumed_from"] == socket.hello["cursor"]


def test_a_cursor_ahead_of_the_log_is_a_gap_that_is_told(remote: Remote) -> None:
    ahead = f"{remote.read(remote.name())['cursor'].partition(':')[0]}:999999999999999"
    with remote.connect(remote.name(), since=ahead, on_gap="latest") as socket:
        gap = socket.hello["resumed"]["gap"]
        assert (gap["requested"], gap["reason"]) == (ahead, "unknown")
        assert socket.hello["cursor"] == gap["resumed_from"] != ahead


def test_a_client_is_known_and_online_while_it_is_connected(remote: Remote) -> None:
    name = remote.name()
    assert remote.get(f"/api/clients/{name}").status == 404
    with remote.connect(name):
        # another process of the bus may hear of the connection a moment later
        client = eventually(lambda: (found := remote.get(f"/api/clients/{name}").body)["online"] and found)
        assert (client["client"], client["online"], client["over"], client["connections"]) == (
            name,
            True,
            "websocket",
            1,
        )
        assert re.fullmatch(TIME, client["connected_since"])


# ---- keys


def test_a_wrong_key_is_refused_before_the_upgrade(locked: Remote) -> None:
    refused = locked.refusal(locked.name(), {"X-API-Key": "no-key-of-this-bus"})
    assert (refused.status, refused.body["code"]) == (401, "bad_credential")


def test_without_a_key_the_socket_is_silent_until_the_first_frame_shows_one(locked: Remote) -> None:
    name = locked.name()
    connection = locked.open(name, {"X-API-Key": ""})
    connection.send(json.dumps({"type": "auth", "token": locked.key}))
    with Socket(connection, name) as socket:
        assert socket.hello["type"] == "connection_confirmed"
        assert socket.ask("auth", token=locked.key)["code"] == "already_authenticated"


@pytest.mark.parametrize("first", [{"type": "auth", "token": "wrong"}, {"type": "ping"}])
def test_another_first_frame_ends_the_silent_socket_with_4401(locked: Remote, first: dict[str, str]) -> None:
    connection = locked.open(locked.name(), {"X-API-Key": ""})
    connection.send(json.dumps(first))
    with pytest.raises(Exception, match="4401"):
        connection.recv(timeout=5)
