"""Bad WebSocket frames: what breaks the protocol ends the connection with its code, all else is told and forgiven."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from socket import SHUT_WR
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.testing import BusServer, eventually
from tests.rawws import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Disconnected,
    Frame,
    RawWebSocket,
    frame_bytes,
)
from tests.refusals import LEAK, MAX_BYTES, check_sentence, nothing_stored

SEND = json.dumps({"type": "send", "to": "framed", "ref": 1}).encode()
PING_JSON = b'{"type":"ping"}'


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame_bytes(CLOSE, struct.pack("!H", code) + reason)


def fragments(*pieces: bytes, opcode: int = TEXT) -> bytes:
    """A message in fragments, all but the last of them."""
    frames = [frame_bytes(CONTINUATION if at else opcode, piece, is_final=False) for at, piece in enumerate(pieces)]
    return b"".join(frames)


@pytest.fixture
def socket(server: BusServer) -> Iterator[RawWebSocket]:
    """A connection; at the end of the test nothing may have been stored, and the server must be well."""
    with RawWebSocket(server.port, "/ws/framer") as connection:
        assert connection.read_json()["type"] == "connection_confirmed"
        with nothing_stored(server):
            yield connection


# ---- what ends the connection

VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "an unmasked frame": (frame_bytes(TEXT, SEND, mask=None), 1002),
    "an unmasked ping": (frame_bytes(PING, mask=None), 1002),
    "the first reserved bit": (frame_bytes(TEXT, SEND, reserved=4), 1002),
    "the second reserved bit": (frame_bytes(TEXT, SEND, reserved=2), 1002),
    "the third reserved bit": (frame_bytes(TEXT, SEND, reserved=1), 1002),
    "a reserved bit in a ping": (frame_bytes(PING, reserved=4), 1002),
    "a reserved bit in a fragment": (frame_bytes(TEXT, SEND, is_final=False, reserved=4), 1002),
    **{f"opcode {opcode:#x}": (frame_bytes(opcode, SEND), 1002) for opcode in (0x3, 0x7, 0xB, 0xF)},
    "a ping in fragments": (frame_bytes(PING, b"x", is_final=False), 1002),
    "a close in fragments": (frame_bytes(CLOSE, is_final=False), 1002),
    "a ping of 126 bytes": (frame_bytes(PING, b"x" * 126), 1002),
    "a pong that announces a terabyte": (frame_bytes(PONG, announced=2**40), 1002),
    "a continuation without a beginning": (frame_bytes(CONTINUATION, SEND), 1002),
    "a continuation after the last fragment": (
        fragments(b'{"type":') + frame_bytes(CONTINUATION, b'"ping"}') + frame_bytes(CONTINUATION, SEND),
        1002,
    ),
    "a message within a message": (fragments(b"{") + frame_bytes(TEXT, SEND), 1002),
    "a second beginning": (fragments(b"{") + frame_bytes(TEXT, SEND, is_final=False), 1002),
    "bad UTF-8": (frame_bytes(TEXT, SEND.replace(b"framed", b"\xff")), 1007),
    "bad UTF-8 that is no JSON": (frame_bytes(TEXT, b"\xc3("), 1007),
    "an encoded surrogate": (frame_bytes(TEXT, b'{"type":"send","to":"x","payload":"\xed\xa0\x80"}'), 1007),
    "an overlong slash": (frame_bytes(TEXT, b'{"type":"\xc0\xaf"}'), 1007),
    "a character that ends early": (frame_bytes(TEXT, '{"type":"ש"}'.encode()[:-3]), 1007),
    "bad UTF-8 over fragments": (fragments(b'{"type":"\xd7') + frame_bytes(CONTINUATION, b'"}'), 1007),
    "binary": (frame_bytes(BINARY, SEND), 1003),
    "binary in fragments": (fragments(SEND, opcode=BINARY), 1003),
    "a frame that announces too much": (frame_bytes(TEXT, announced=MAX_BYTES + 1), 1009),
    "a frame that announces all there is": (frame_bytes(TEXT, announced=2**64 - 1), 1009),
    "fragments that grow too large": (fragments(*[b" " * 400_000] * 3), 1009),
    "many fragments that grow too large": (fragments(b" " * MAX_BYTES, b" "), 1009),
    "a close of one byte": (frame_bytes(CLOSE, b"\x03"), 1002),
    "a close reason that is not UTF-8": (closing(1000, b"\xff"), 1007),
    "a close reason that ends early": (closing(1000, "ש".encode()[:1]), 1007),
    **{
        f"close code {code}": (closing(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_ends_the_connection_after_what_went_before(socket: RawWebSocket, name: str) -> None:
    violation, code = VIOLATIONS[name]
    socket.send_bytes(frame_bytes(TEXT, PING_JSON) + violation + frame_bytes(TEXT, SEND))
    assert socket.read_json()["type"] == "pong"
    end = socket.read_close()
    assert end.close_code == code
    assert not LEAK.search(end.close_reason)
    socket.send_bytes(frame_bytes(TEXT, SEND))  # too late
    socket.send_close(code)
    socket.read_end()


@pytest.mark.parametrize("piece", [1, 3, 7])
def test_a_violation_is_found_however_it_is_cut(socket: RawWebSocket, piece: int) -> None:
    data = frame_bytes(TEXT, PING_JSON, mask=b"mask") + fragments(b"{") + frame_bytes(TEXT, SEND)
    for start in range(0, len(data), piece):
        socket.send_bytes(data[start : start + piece])
    assert socket.read_json()["type"] == "pong"
    assert socket.read_close().close_code == 1002


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1014, 3000, 4999])
def test_a_good_close_is_answered_with_its_code(socket: RawWebSocket, code: int) -> None:
    socket.send_bytes(closing(code, "בסדר".encode()) + frame_bytes(TEXT, SEND))
    assert socket.read_frame().close_code == code
    socket.read_end()


def test_a_close_without_a_code_is_answered_with_1000(socket: RawWebSocket) -> None:
    socket.send_frame(CLOSE)
    assert socket.read_frame().close_code == 1000
    socket.read_end()


# ---- what is told and forgiven

NESTED_33 = "[" * 33 + "]" * 33
NESTED_5000 = "[" * 5000 + "]" * 5000

BAD_FRAMES: dict[str, tuple[str, str, str | None, Any]] = {
    "nothing": ("", "bad_json", None, None),
    "words": ("hello", "bad_json", None, None),
    "half an object": ('{"type": "ping"', "bad_json", None, None),
    "two objects": ('{"type": "ping"}{"type": "ping"}', "bad_json", None, None),
    "a byte-order mark": ('\ufeff{"type": "ping"}', "bad_json", None, None),
    "NaN": ('{"type": "send", "to": "x", "payload": NaN, "ref": 1}', "bad_json", None, None),
    "a lone surrogate": ('{"type": "send", "to": "x", "payload": "\\ud800", "ref": 1}', "bad_json", None, None),
    "a list": ('[{"type": "ping"}]', "not_an_object", None, None),
    "a string": ('"ping"', "not_an_object", None, None),
    "null": ("null", "not_an_object", None, None),
    "no type": ('{"ref": "a"}', "missing_field", "type", "a"),
    "an empty type": ('{"type": "", "ref": 2}', "missing_field", "type", 2),
    "a type that is a number": ('{"type": 5, "ref": "a"}', "bad_field", "type", "a"),
    "an unknown type": ('{"type": "sing", "ref": 0}', "unknown_type", "type", 0),
    "the type of an answer": ('{"type": "message", "ref": 1}', "unknown_type", "type", 1),
    "no recipient": ('{"type": "send", "ref": 1}', "missing_field", "to", 1),
    "a recipient that is a number": ('{"type": "send", "to": 5, "ref": 1}', "bad_field", "to", 1),
    "an empty list of recipients": ('{"type": "send", "to": [], "ref": 1}', "no_recipient", "to", 1),
    "a recipient that begins with $": ('{"type": "send", "to": "$x", "ref": 1}', "bad_name", "to", 1),
    "everybody in a list": ('{"type": "send", "to": ["all"], "ref": 1}', "reserved_name", "to", 1),
    "a message type that is a number": (
        '{"type": "send", "to": "x", "msg_type": 5, "ref": 1}',
        "bad_field",
        "msg_type",
        1,
    ),
    "a message type with a space": (
        '{"type": "send", "to": "x", "msg_type": "a b", "ref": 1}',
        "bad_name",
        "msg_type",
        1,
    ),
    "a ref that is a list": ('{"type": "send", "to": "x", "ref": [1]}', "bad_field", "ref", None),
    "a ref that is a fraction": ('{"type": "send", "to": "x", "ref": 1.5}', "bad_field", "ref", None),
    "33 levels": (f'{{"type": "send", "to": "x", "ref": 1, "payload": {NESTED_33}}}', "too_deep", "payload", 1),
    "5,000 levels": (f'{{"type": "send", "to": "x", "ref": 1, "payload": {NESTED_5000}}}', "too_deep", None, None),
    "an unknown priority": ('{"type": "send", "to": "x", "priority": "urgent", "ref": 1}', "bad_field", "priority", 1),
    "a header that is a number": (
        '{"type": "send", "to": "x", "headers": {"a": 1}, "ref": 1}',
        "bad_field",
        "headers",
        1,
    ),
    "an ack from everybody": (
        '{"type": "send", "to": "all", "require_ack": true, "ref": 1}',
        "ack_needs_names",
        "require_ack",
        1,
    ),
    "ephemeral with a key": (
        '{"type": "send", "to": "x", "ephemeral": true, "idempotency_key": "k", "ref": 1}',
        "ephemeral_conflict",
        "idempotency_key",
        1,
    ),
    "a key that was used": (
        '{"type": "send", "to": "x", "idempotency_key": "taken by a frame", "payload": 2, "ref": 1}',
        "idempotency_key_reused",
        "idempotency_key",
        1,
    ),
    "a second auth": ('{"type": "auth", "token": "t", "ref": 1}', "already_authenticated", "type", 1),
    "a pattern with half a star": ('{"type": "subscribe", "topics": ["a.b*"], "ref": 1}', "bad_pattern", "topics", 1),
    "a pattern that is a number": ('{"type": "subscribe", "topics": [1], "ref": 1}', "bad_field", "topics", 1),
    "an unsubscribe from nothing": ('{"type": "unsubscribe", "topics": [""], "ref": 1}', "bad_pattern", "topics", 1),
    "an ack of nothing": ('{"type": "ack", "ref": 1}', "missing_field", "message_id", 1),
    "a reject of an empty id": ('{"type": "reject", "message_id": "", "ref": 1}', "missing_field", "message_id", 1),
    "an ack of a number": ('{"type": "ack", "message_id": 5, "ref": 1}', "bad_field", "message_id", 1),
    "an ack of an unknown message": ('{"type": "ack", "message_id": "m", "ref": 1}', "unknown_message", None, 1),
    "a nack of attempt 0": ('{"type": "nack", "message_id": "m", "attempt": 0, "ref": 1}', "bad_field", "attempt", 1),
    "a nack with a negative delay": (
        '{"type": "nack", "message_id": "m", "delay": -1, "ref": 1}',
        "bad_field",
        "delay",
        1,
    ),
    "a reject with a reason that is a list": (
        '{"type": "reject", "message_id": "m", "reason": [], "ref": 1}',
        "bad_field",
        "reason",
        1,
    ),
    "a lease of a week": (
        '{"type": "progress", "message_id": "m", "ack_wait": 604800, "ref": 1}',
        "bad_field",
        "ack_wait",
        1,
    ),
    "a ttl of nothing": ('{"type": "send", "to": "x", "ttl": 0, "ref": 1}', "bad_field", "ttl", 1),
    "a delay and a date": (
        '{"type": "send", "to": "x", "delay": 1, "deliver_at": "2030-01-01T00:00:00Z", "ref": 1}',
        "bad_field",
        "deliver_at",
        1,
    ),
    "queues that are a string": ('{"type": "subscribe", "queues": "a", "ref": 1}', "bad_field", "queues", 1),
    "a queue with a space": ('{"type": "subscribe", "queues": ["a", "b c"], "ref": 1}', "bad_name", "queues", 1),
    "no item in flight": (
        '{"type": "subscribe", "queues": ["a"], "max_in_flight": 0, "ref": 1}',
        "bad_field",
        "max_in_flight",
        1,
    ),
    "1,001 items in flight": (
        '{"type": "subscribe", "queues": ["a"], "max_in_flight": 1001, "ref": 1}',
        "bad_field",
        "max_in_flight",
        1,
    ),
    "1,001 queues": (
        json.dumps({"type": "subscribe", "queues": [f"q{n}" for n in range(1001)], "ref": 1}),
        "too_many_queues",
        "queues",
        1,
    ),
    "a request of nobody": ('{"type": "request", "ref": 1}', "missing_field", "to", 1),
    "a request that waits for a minute": (
        '{"type": "request", "to": "x", "wait": 60, "ref": 1}',
        "bad_field",
        "wait",
        1,
    ),
    "a request that is not kept": (
        '{"type": "request", "to": "x", "ephemeral": true, "ref": 1}',
        "bad_field",
        "ephemeral",
        1,
    ),
    "a request for later": ('{"type": "request", "to": "x", "delay": 5, "ref": 1}', "bad_field", "delay", 1),
    "a request of somebody who is away": (
        '{"type": "request", "to": "x", "require_online": true, "ref": 1}',
        "recipient_offline",
        "to",
        1,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _taken_key(server: BusServer) -> None:
    body = {"from": "framer", "to": "x", "payload": 1, "idempotency_key": "taken by a frame"}
    assert server.call("POST", "/api/send", body).status == 200


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_is_told_and_the_connection_stays_usable(socket: RawWebSocket, name: str) -> None:
    text, code, field, ref = BAD_FRAMES[name]
    socket.send_text(text)
    error = socket.read_json()
    assert (error["type"], error["code"], error.get("field"), error.get("ref")) == ("error", code, field, ref)
    assert set(error) <= {"type", "code", "error", "field", "ref"}
    check_sentence(error["error"])
    assert not LEAK.search(str(error))
    socket.send_bytes(fragments(b'{"type":') + frame_bytes(PING, b"between") + frame_bytes(CONTINUATION, b'"ping"}'))
    assert socket.read_frame() == Frame(PONG, b"between")
    assert socket.read_json()["type"] == "pong"


def test_bad_frames_are_answered_in_order_among_good_ones(server: BusServer) -> None:
    with RawWebSocket(server.port, "/ws/juggler") as juggler:
        juggler.read_json()
        good = {"type": "send", "to": "catcher"}
        frames = [{**good, "ref": 1}, {"type": "sing", "ref": 2}, {**good, "ref": 3}, {"ref": 4}, {**good, "ref": 5}]
        juggler.send_bytes(b"".join(frame_bytes(TEXT, json.dumps(frame).encode()) for frame in frames))
        answers = [juggler.read_json() for _ in frames]
    of_errors = [answer["ref"] for answer in answers if answer["type"] == "error"]
    of_sends = [answer["ref"] for answer in answers if answer["type"] == "sent"]
    assert (of_errors, of_sends) == ([2, 4], [1, 3, 5])
    assert server.call("GET", "/api/messages?to=catcher&since=earliest").body["count"] == 3


def test_a_frame_of_the_largest_size_is_taken_in_one_piece_and_in_many(server: BusServer) -> None:
    with RawWebSocket(server.port, "/ws/hauler") as hauler:
        hauler.read_json()
        whole = SEND + b" " * (MAX_BYTES - len(SEND))
        hauler.send_frame(TEXT, whole)
        assert hauler.read_json()["type"] == "sent"
        pieces = [whole[at : at + 1000] for at in range(0, MAX_BYTES, 1000)]
        hauler.send_bytes(fragments(*pieces) + frame_bytes(CONTINUATION))
        assert hauler.read_json()["type"] == "sent"


def test_a_character_may_be_cut_between_fragments(server: BusServer) -> None:
    with RawWebSocket(server.port, "/ws/cutter") as cutter:
        cutter.read_json()
        text = '{"type": "send", "to": "cutter", "payload": "שלום 🌍", "ref": 1}'.encode()
        cutter.send_bytes(fragments(*[text[at : at + 1] for at in range(len(text))]) + frame_bytes(CONTINUATION))
        assert cutter.read_until("message")["message"]["payload"] == "שלום 🌍"
        cutter.send_json({"type": "ping"})
        cutter.read_until("pong")


PONGS = [b"999999999", b"junk", b"-1", b"", b"9" * 125, "٣".encode(), b"\xff"]


def test_a_pong_that_answers_no_ping_confirms_nothing(server: BusServer) -> None:
    def listening(name: str, stack: ExitStack) -> tuple[RawWebSocket, str]:
        """A connection of this client, and the id of a message that it was sent."""
        connection = stack.enter_context(RawWebSocket(server.port, f"/ws/{name}", answers_pings=name == "honest"))
        connection.read_json()
        return connection, server.call("POST", "/api/send", {"from": "writer", "to": name}).body["message_id"]

    def state_of(message_id: str) -> str:
        (recipient,) = server.call("GET", f"/api/messages/{message_id}").body["recipients"]
        return str(recipient["state"])

    with ExitStack() as stack:
        forged = []
        for number, payload in enumerate(PONGS):
            forger, message_id = listening(f"forger{number}", stack)
            assert forger.read_until("message")["message"]["id"] == message_id
            forger.send_bytes(frame_bytes(PONG, payload) + frame_bytes(TEXT, PING_JSON))
            forger.read_until("pong")
            forged.append(message_id)
        honest, confirmed = listening("honest", stack)
        while not honest.pings:  # reading a ping answers it
            honest.read_frame()
        eventually(lambda: state_of(confirmed) == "confirmed", what="what an honest pong confirms")
    eventually(lambda: {state_of(each) for each in forged} == {"handed_over"}, what="what forged pongs leave open")


# ---- anything at all

JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["type", "to", "payload", "ref"]) | st.text(), inner)
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
PAYLOADS = st.binary(max_size=200) | JSON_TEXTS | st.sampled_from([PING_JSON, b'{"type":"subscribe"}', b"\x03\xe8"])
FRAMES = st.builds(
    frame_bytes,
    st.sampled_from([TEXT, CONTINUATION, TEXT, BINARY, PING, PONG, CLOSE, 0x3, 0xF]),
    PAYLOADS,
    is_final=st.booleans() | st.just(True),
    reserved=st.sampled_from([0, 0, 0, 0, 0, 1, 4]),
    mask=st.binary(min_size=4, max_size=4) | st.just(b"mask") | st.none(),
)
STREAMS = st.binary(max_size=2000) | st.lists(FRAMES | st.binary(max_size=4), max_size=12).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(data=STREAMS, cut=st.integers(0, 2000))
def test_no_bytes_kill_the_server(server: BusServer, data: bytes, cut: int) -> None:
    workers = server.worker_pids()
    with RawWebSocket(server.port, "/ws/fuzzer") as fuzzer:
        fuzzer.read_json()
        with suppress(Disconnected, ConnectionError):  # the server may have ended it before all was said
            fuzzer.send_bytes(data[:cut])
            fuzzer.send_bytes(data[cut:])
            with suppress(OSError):
                fuzzer.socket.shutdown(SHUT_WR)
            while True:
                assert not LEAK.search(fuzzer.read_frame().payload.decode(errors="replace"))
    assert server.call("GET", "/health").status == 200
    assert server.worker_pids() == workers
    assert "Traceback" not in server.log
