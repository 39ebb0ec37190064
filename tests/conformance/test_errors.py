"""What is wrong is told: stable codes, the field to blame, close codes; and the connection goes on where it can."""

from __future__ import annotations

import json
import os
import struct

import pytest

from tests.conformance.remote import Remote

DEEP: object = 0
for _ in range(33):
    DEEP = [DEEP]

BODIES: dict[str, tuple[bytes, int, str, str | None]] = {
    "nothing": (b"", 400, "bad_json", None),
    "no JSON": (b"{", 400, "bad_json", None),
    "no object": (b"[]", 400, "not_an_object", None),
    "no UTF-8": (b'{"to": "\xff"}', 400, "bad_utf8", None),
    "no sender": (b'{"to": "x"}', 400, "missing_field", "from"),
    "no recipient": (b'{"from": "x"}', 400, "missing_field", "to"),
    "an empty list": (b'{"from": "x", "to": []}', 400, "no_recipient", "to"),
    "too many recipients": (json.dumps({"from": "x", "to": ["y"] * 1001}).encode(), 400, "too_many_recipients", "to"),
    "a bad name": (b'{"from": "x", "to": "a b"}', 400, "bad_name", "to"),
    "a reserved sender": (b'{"from": "$bus", "to": "x"}', 400, "bad_name", "from"),
    "a reserved name": (b'{"from": "all", "to": "x"}', 400, "reserved_name", "from"),
    "a number for a name": (b'{"from": 5, "to": "x"}', 400, "bad_field", "from"),
    "a bad type": (b'{"from": "x", "to": "x", "type": "a b"}', 400, "bad_name", "type"),
    "too deep": (json.dumps({"from": "x", "to": "x", "payload": DEEP}).encode(), 400, "too_deep", "payload"),
    "headers that are no texts": (b'{"from": "x", "to": "x", "headers": {"a": 1}}', 400, "bad_field", "headers"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_with_its_code_and_field(remote: Remote, name: str) -> None:
    body, status, code, field = BODIES[name]
    answer = remote.call("POST", "/api/send", body)
    assert (answer.status, answer.body["code"], answer.body.get("field")) == (status, code, field)
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.body) <= {"error", "code", "field", "request_id"}
    assert answer.body["error"].endswith(".")


def test_a_body_must_say_that_it_is_json(remote: Remote) -> None:
    answer = remote.call("POST", "/api/send", b"{}", {"Content-Type": "text/plain"})
    assert (answer.status, answer.body["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/api/nothing", 404), ("DELETE", "/api/send", 405)])
def test_what_is_not_there_is_told_as_json(remote: Remote, method: str, path: str, status: int) -> None:
    answer = remote.call(method, path)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    assert answer.body["code"] in ("not_found", "method_not_allowed")


def test_every_answer_carries_the_id_of_its_request(remote: Remote) -> None:
    given = remote.call("GET", "/api/nothing", headers={"X-Request-ID": "my-request.1"})
    assert given.headers["X-Request-ID"] == given.body["request_id"] == "my-request.1"
    made = remote.call("GET", "/api/nothing", headers={"X-Request-ID": "not sane"})
    assert made.headers["X-Request-ID"] == made.body["request_id"] != "not sane"


@pytest.mark.parametrize("headers", [{"X-API-Key": "no-key-of-this-bus"}, {"Authorization": "Bearer no-key"}])
def test_a_wrong_key_is_refused(locked: Remote, headers: dict[str, str]) -> None:
    answer = locked.call("GET", "/api/status", headers={"X-API-Key": "", **headers})
    assert (answer.status, answer.body["code"]) == (401, "bad_credential")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_key_may_come_as_a_bearer_token(locked: Remote) -> None:
    headers = {"X-API-Key": "", "Authorization": f"Bearer {locked.key}"}
    assert locked.call("GET", "/api/status", headers=headers).status == 200


# ---- frames

FRAMES: dict[str, tuple[str, str, str | None, object]] = {
    "no JSON": ("hello", "bad_json", None, None),
    "no object": ("[]", "not_an_object", None, None),
    "no type": ('{"ref": 1}', "missing_field", "type", 1),
    "an unknown type": ('{"type": "sing", "ref": "a"}', "unknown_type", "type", "a"),
    "an outbound type": ('{"type": "message", "ref": 1}', "unknown_type", "type", 1),
    "no recipient": ('{"type": "send", "ref": 1}', "missing_field", "to", 1),
    "a bad name": ('{"type": "send", "to": "a b", "ref": 1}', "bad_name", "to", 1),
    "a field of a wrong type": ('{"type": "send", "to": 5, "ref": 1}', "bad_field", "to", 1),
    "a bad ref": ('{"type": "ping", "ref": [1]}', "bad_field", "ref", None),
    "an ack of everybody": (
        '{"type": "send", "to": "all", "require_ack": true, "ref": 1}',
        "ack_needs_names",
        "require_ack",
        1,
    ),
    "an ack of nothing": ('{"type": "ack", "ref": 1}', "missing_field", "message_id", 1),
    "a queue of no name": ('{"type": "subscribe", "queues": ["a b"], "ref": 1}', "bad_name", "queues", 1),
    "a wait that is too long": ('{"type": "request", "to": "x", "wait": 51, "ref": 1}', "bad_field", "wait", 1),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_bad_frame_is_told_and_the_connection_goes_on(remote: Remote, name: str) -> None:
    text, code, field, ref = FRAMES[name]
    with remote.connect(remote.name()) as socket:
        socket.connection.send(text)
        error = socket.read()
        assert (error["type"], error["code"], error.get("field"), error.get("ref")) == ("error", code, field, ref)
        assert error["error"].endswith(".")
        socket.send("ping")
        assert socket.read()["type"] == "pong"


def masked(first: int, payload: bytes = b"", announced: int | None = None) -> bytes:
    """A client's frame; `announced` is the length it claims."""
    size = len(payload) if announced is None else announced
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + struct.pack("!Q", size)
    mask = os.urandom(4)
    return bytes([first]) + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"\x81\x02{}", 1002, id="unmasked"),
        pytest.param(masked(0xC1, b"{}"), 1002, id="compressed"),
        pytest.param(masked(0x80, b"{}"), 1002, id="a continuation of nothing"),
        pytest.param(masked(0x82, b"{}"), 1003, id="binary"),
        pytest.param(masked(0x81, b"\xff"), 1007, id="no UTF-8"),
        pytest.param(masked(0x81, announced=2**40), 1009, id="too large"),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection_with_its_code(remote: Remote, data: bytes, code: int) -> None:
    socket = remote.connect(remote.name())
    socket.send_bytes(data)
    assert socket.close_code() == code


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_a_close_is_answered_with_its_code(remote: Remote, code: int) -> None:
    socket = remote.connect(remote.name())
    socket.connection.close(code, "done")
    assert socket.connection.close_code == code
