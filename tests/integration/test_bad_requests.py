"""Bad REST requests: each is refused with its status, a stable code and a sentence, and leaves no trace in the store."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from bus.testing import HOST, BusServer
from tests.refusals import GOOD, LEAK, MAX_BYTES, check, exchange, sending

EPOCH = "0123456789ab"
RESERVED = ["all", ".", "..", "topic:", "topic:builds", "queue:", "queue:reviews"]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def with_payload(text: str) -> bytes:
    """The body of a send whose payload is this text, JSON or not."""
    return b'{"from": "asker", "to": "asked", "payload": %b}' % text.encode("utf-8", "surrogatepass")


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A POST of JSON as bytes; the headers are complete but for the body's length."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


# ---- the body of a send

NOT_JSON: dict[str, tuple[bytes, str]] = {
    "nothing at all": (b"", "bad_json"),
    "half an object": (b'{"from": "asker", "to"', "bad_json"),
    "two objects": (sending() + sending(), "bad_json"),
    "a trailing comma": (b'{"from": "asker", "to": "asked",}', "bad_json"),
    "single quotes": (b"{'from': 'asker', 'to': 'asked'}", "bad_json"),
    "a comment": (b"/* send */" + sending(), "bad_json"),
    "a form": (b"from=asker&to=asked", "bad_json"),
    "a byte-order mark": (b"\xef\xbb\xbf" + sending(), "bad_json"),
    "UTF-16": (sending().decode().encode("utf-16"), "bad_utf8"),
    "Latin-1": ('{"from": "asker", "to": "asked", "payload": "é"}'.encode("latin-1"), "bad_utf8"),
    "an encoded surrogate": (with_payload('"\ud800"'), "bad_utf8"),
    "an escaped lone surrogate": (with_payload('"\\ud800"'), "bad_json"),
    "an escaped low surrogate": (with_payload('"\\udc00 and more"'), "bad_json"),
    "a bare newline in a string": (with_payload('"a\nb"'), "bad_json"),
    "an unknown escape": (with_payload(r'"\x41"'), "bad_json"),
    "NaN": (with_payload("NaN"), "bad_json"),
    "Infinity": (with_payload("[-Infinity]"), "bad_json"),
    "a leading zero": (with_payload("007"), "bad_json"),
    "5,000 levels": (with_payload(nested(5000)), "too_deep"),
    "5,000 levels under an unknown name": (b'{"more": %b}' % nested(5000).encode(), "too_deep"),
    "a list": (b"[%b]" % sending(), "not_an_object"),
    "an empty list": (b"[]", "not_an_object"),
    "a string": (json.dumps(sending().decode()).encode(), "not_an_object"),
    "null": (b"null", "not_an_object"),
    "a number": (b"5", "not_an_object"),
}

WRONG_FIELDS: dict[str, tuple[bytes, int, str, str]] = {
    "an empty object": (b"{}", 400, "missing_field", "from"),
    "no sender": (b'{"to": "asked"}', 400, "missing_field", "from"),
    "no recipient": (b'{"from": "asker"}', 400, "missing_field", "to"),
    "a null recipient": (sending(to=None), 400, "missing_field", "to"),
    "a sender that is a number": (sending(**{"from": 5}), 400, "bad_field", "from"),
    "a sender that is a list": (sending(**{"from": ["asker"]}), 400, "bad_field", "from"),
    "a recipient that is a number": (sending(to=5), 400, "bad_field", "to"),
    "a recipient that is an object": (sending(to={"name": "asked"}), 400, "bad_field", "to"),
    "a list with a number": (sending(to=["asked", 5]), 400, "bad_field", "to"),
    "an empty list of recipients": (sending(to=[]), 400, "no_recipient", "to"),
    "1,001 recipients": (sending(to=[f"r{n}" for n in range(1001)]), 400, "too_many_recipients", "to"),
    "an empty name": (sending(to=""), 400, "bad_name", "to"),
    "a name of 129 characters": (sending(to="n" * 129), 400, "bad_name", "to"),
    "a name with a space": (sending(to="the asked"), 400, "bad_name", "to"),
    "a name with a newline": (sending(to="asked\n"), 400, "bad_name", "to"),
    "a name in Hebrew": (sending(to="שלום"), 400, "bad_name", "to"),
    "a name with a quote": (sending(to='"asked"'), 400, "bad_name", "to"),
    "a recipient that begins with $": (sending(to="$stream"), 400, "bad_name", "to"),
    "a sender that begins with $": (sending(**{"from": "$stream"}), 400, "bad_name", "from"),
    "everybody in a list": (sending(to=["asked", "all"]), 400, "reserved_name", "to"),
    "a star in a list": (sending(to=["*"]), 400, "bad_name", "to"),
    "a queue in a list": (sending(to=["asked", "queue:reviews"]), 400, "reserved_name", "to"),
    "a topic without a name": (sending(to="topic:"), 400, "bad_name", "to"),
    "a queue that begins with $": (sending(to="queue:$dead"), 400, "bad_name", "to"),
    "an empty type": (sending(type=""), 400, "bad_name", "type"),
    "a type that begins with $": (sending(type="$system"), 400, "bad_name", "type"),
    "a type that is a number": (sending(type=5), 400, "bad_field", "type"),
    "a type that is null": (sending(type=None), 400, "bad_field", "type"),
    "33 levels": (with_payload(nested(33)), 400, "too_deep", "payload"),
    "33 levels behind brackets in a string": (with_payload(f'["]]]]", {nested(32)}]'), 400, "too_deep", "payload"),
    "an unknown priority": (sending(priority="urgent"), 400, "bad_field", "priority"),
    "a priority between two": (sending(priority=2), 400, "bad_field", "priority"),
    "a priority beyond any integer": (sending(priority=10**30), 400, "bad_field", "priority"),
    "a priority that is true": (sending(priority=True), 400, "bad_field", "priority"),
    "an empty correlation id": (sending(correlation_id=""), 400, "bad_field", "correlation_id"),
    "a long reply_to": (sending(reply_to="r" * 256), 400, "bad_field", "reply_to"),
    "a thread id that is a number": (sending(thread_id=5), 400, "bad_field", "thread_id"),
    "headers that are a list": (sending(headers=["a"]), 400, "bad_field", "headers"),
    "a header that is a number": (sending(headers={"a": 1}), 400, "bad_field", "headers"),
    "65 headers": (sending(headers={f"h{n}": "" for n in range(65)}), 400, "bad_field", "headers"),
    "require_ack that is a string": (sending(require_ack="yes"), 400, "bad_field", "require_ack"),
    "an ack from everybody": (sending(to="all", require_ack=True), 400, "ack_needs_names", "require_ack"),
    "an ack from a topic": (sending(to="topic:builds", require_ack=True), 400, "ack_needs_names", "require_ack"),
    "a ttl that is a string": (sending(ttl="1h"), 400, "bad_field", "ttl"),
    "an empty idempotency key": (sending(idempotency_key=""), 400, "bad_field", "idempotency_key"),
    "a long idempotency key": (sending(idempotency_key="k" * 256), 400, "bad_field", "idempotency_key"),
    "an idempotency key that is a number": (sending(idempotency_key=5), 400, "bad_field", "idempotency_key"),
    "ephemeral with an ack": (sending(ephemeral=True, require_ack=True), 400, "ephemeral_conflict", "require_ack"),
    "ephemeral to a queue": (sending(ephemeral=True, to="queue:reviews"), 400, "ephemeral_conflict", "to"),
    "ephemeral with a delay": (sending(ephemeral=True, delay=5), 400, "ephemeral_conflict", "delay"),
    "ephemeral with a date": (sending(ephemeral=True, deliver_at="2030"), 400, "ephemeral_conflict", "deliver_at"),
    "ephemeral with a key": (
        sending(ephemeral=True, idempotency_key="k"),
        400,
        "ephemeral_conflict",
        "idempotency_key",
    ),
    "an ack that waits for an hour and a day": (sending(ack_wait=90000), 400, "bad_field", "ack_wait"),
    "a lease of nothing": (sending(require_ack=True, ack_wait=0), 400, "bad_field", "ack_wait"),
    "a ttl of nothing": (sending(ttl=0), 400, "bad_field", "ttl"),
    "a ttl below nothing": (sending(ttl=-5), 400, "bad_field", "ttl"),
    "a delay below nothing": (sending(delay=-1), 400, "bad_field", "delay"),
    "a delay of two years": (sending(delay=2 * 366 * 86400), 400, "bad_field", "delay"),
    "a delay that is a string": (sending(delay="5s"), 400, "bad_field", "delay"),
    "a date that is none": (sending(deliver_at="tomorrow"), 400, "bad_time", "deliver_at"),
    "a date beyond all": (sending(deliver_at="9999-12-31T00:00:00Z"), 400, "bad_field", "deliver_at"),
    "a delay and a date": (sending(delay=1, deliver_at="2030-01-01T00:00:00Z"), 400, "bad_field", "deliver_at"),
}


@pytest.mark.parametrize("path", ["/api/send", "/api/v1/send"])
@pytest.mark.parametrize("name", NOT_JSON)
def test_a_body_that_is_no_json_object_is_refused(untouched: BusServer, path: str, name: str) -> None:
    body, code = NOT_JSON[name]
    check(untouched.call("POST", path, raw=body), 400, code)


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_wrong_field_is_refused_and_named(untouched: BusServer, name: str) -> None:
    body, status, code, field = WRONG_FIELDS[name]
    assert f"`{field}`" in check(untouched.call("POST", "/api/send", raw=body), status, code, field)


@pytest.mark.parametrize("field", ["from", "to"])
@pytest.mark.parametrize("name", RESERVED)
def test_nobody_can_be_called_by_a_reserved_name(untouched: BusServer, field: str, name: str) -> None:
    named = [name] if field == "to" else name  # alone, they are addresses
    check(untouched.call("POST", "/api/send", raw=sending(**{field: named})), 400, "reserved_name", field)
    if field == "to":
        check(untouched.call("GET", f"/api/messages?to={name}"), 400, "reserved_name", "to")


# ---- how the body travels


def test_a_body_that_is_not_called_json_is_refused(untouched: BusServer) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""):
        answer = untouched.call("POST", "/api/send", raw=sending(), headers={"Content-Type": kind})
        check(answer, 415, "unsupported_media_type")
    unnamed = exchange(untouched, f"POST /api/send HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n".encode())
    check(unnamed, 415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "", "utf-8"])
def test_an_unknown_encoding_is_refused(untouched: BusServer, coding: str) -> None:
    answer = untouched.call("POST", "/api/send", raw=sending(), headers={"Content-Encoding": coding})
    check(answer, 415, "unsupported_media_type")


SQUEEZED = gzip.compress(sending())


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        pytest.param("gzip", SQUEEZED[:-1], id="gzip that lacks its last byte"),
        pytest.param("gzip", SQUEEZED[:20], id="gzip that breaks off"),
        pytest.param("gzip", b"", id="gzip that is empty"),
        pytest.param("gzip", sending(), id="gzip that is plain"),
        pytest.param("gzip", zlib.compress(sending()), id="gzip that is deflate"),
        pytest.param("deflate", SQUEEZED, id="deflate that is gzip"),
        pytest.param("gzip", SQUEEZED[:-8] + bytes(8), id="gzip with a wrong checksum"),
        pytest.param("gzip", SQUEEZED + b"more", id="gzip with something behind it"),
        pytest.param("gzip", SQUEEZED + SQUEEZED, id="gzip twice"),
        pytest.param("deflate", zlib.compress(sending())[:-2], id="deflate that breaks off"),
    ],
)
def test_a_body_that_does_not_inflate_is_refused(untouched: BusServer, coding: str, body: bytes) -> None:
    answer = untouched.call("POST", "/api/send", raw=body, headers={"Content-Encoding": coding})
    check(answer, 400, "bad_encoding")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize(("path", "megabytes"), [("/api/send", 20), ("/api/send/batch", 20)])
def test_a_bomb_of_20_kilobytes_is_refused(untouched: BusServer, coding: str, path: str, megabytes: int) -> None:
    text = b'{"messages":[%b' % (b" " * megabytes * MAX_BYTES)
    bomb = gzip.compress(text) if coding == "gzip" else zlib.compress(text)
    assert len(bomb) < 25_000
    check(untouched.call("POST", path, raw=bomb, headers={"Content-Encoding": coding}), 413, "too_large")


@pytest.mark.one_node("the memory of one worker")
def test_a_bomb_is_not_inflated_past_the_limit(untouched: BusServer) -> None:
    (worker,) = untouched.worker_pids()
    status = Path(f"/proc/{worker}/status")
    if not status.exists():
        pytest.skip("This system has no /proc, where the most memory ever used is told.")

    def peak_kilobytes() -> int:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])  # type: ignore[index]

    bomb = gzip.compress(b" " * 200 * MAX_BYTES)
    before = peak_kilobytes()
    check(untouched.call("POST", "/api/send", raw=bomb, headers={"Content-Encoding": "gzip"}), 413, "too_large")
    assert peak_kilobytes() - before < 50 * 1024


@pytest.mark.parametrize(("path", "factor"), [("/api/send", 1), ("/api/send/batch", 16)])
def test_an_announced_size_is_refused_before_the_body_is_there(untouched: BusServer, path: str, factor: int) -> None:
    announced = f"Content-Length: {factor * MAX_BYTES + 1}"
    check(exchange(untouched, post(path, b"", announced)), 413, "too_large")


def test_a_body_of_unannounced_size_is_refused_when_it_grows_too_large(untouched: BusServer) -> None:
    endless = b"%x\r\n%b" % (20 * MAX_BYTES, b" " * (MAX_BYTES + 8192))  # the rest of the chunk never comes
    check(exchange(untouched, post("/api/send", endless, "Transfer-Encoding: chunked")), 413, "too_large")


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param(f"Content-Length: {len(sending()) + 1}", sending(), id="one byte is missing"),
        pytest.param("Transfer-Encoding: chunked", b"ff\r\n" + sending(), id="the chunk is not whole"),
        pytest.param("Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (len(sending()), sending()), id="no last chunk"),
        pytest.param("Transfer-Encoding: chunked", b"zz\r\n" + sending(), id="the chunk's size is no number"),
        pytest.param("Transfer-Encoding: chunked", b"5\r\n" + sending(), id="the chunk is longer than it says"),
    ],
)
def test_a_body_that_is_not_what_was_announced_is_refused(untouched: BusServer, header: str, body: bytes) -> None:
    check(exchange(untouched, post("/api/send", body, header), ends=True), 400, "bad_body")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HELLO\r\n\r\n", id="no request line"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", id="an unknown version"),
        pytest.param(b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * 5000), id="a long request line"),
        pytest.param(b"GET / HTTP/1.1\r\nA: %b\r\n\r\n" % (b"a" * 9000), id="a long header"),
        pytest.param(b"GET / HTTP/1.1\r\n%b\r\n" % b"".join(b"A%d: a\r\n" % n for n in range(200)), id="200 headers"),
        pytest.param(post("/api/send", b"", "Content-Length: many"), id="a length that is no number"),
        pytest.param(post("/api/send", b"", "Content-Length: -1"), id="a negative length"),
        pytest.param(post("/api/send", b"", "Content-Length: 5", "Content-Length: 6"), id="two lengths"),
        pytest.param(post("/api/send", b"", "Transfer-Encoding: chunked", "Content-Length: 5"), id="length and chunks"),
    ],
)
def test_what_is_no_http_is_refused_without_a_leak(untouched: BusServer, head: bytes) -> None:
    answer = exchange(untouched, head, ends=True)
    assert 400 <= answer.status < 500
    assert not LEAK.search(str(answer))


# ---- batches

WRONG_BATCHES: dict[str, tuple[Any, int, str, str | None]] = {
    "no messages": ({}, 400, "missing_field", "messages"),
    "a bare list": ([GOOD], 400, "not_an_object", None),
    "messages that are an object": ({"messages": GOOD}, 400, "bad_field", "messages"),
    "atomic that is a string": ({"messages": [GOOD], "atomic": "yes"}, 400, "bad_field", "atomic"),
    "1,001 messages": ({"messages": [GOOD] * 1001}, 400, "batch_too_long", "messages"),
    "atomic, with one that is bad": (
        {"messages": [GOOD, {**GOOD, "to": "$x"}, GOOD], "atomic": True},
        400,
        "bad_name",
        "to",
    ),
    "atomic, with one that is no object": ({"messages": [GOOD, "x"], "atomic": True}, 400, "not_an_object", None),
    "atomic, with one that is over before it begins": (
        {"messages": [GOOD, {**GOOD, "ttl": 0}], "atomic": True},
        400,
        "bad_field",
        "ttl",
    ),
    "atomic, with one too large": (
        {"messages": [GOOD, {**GOOD, "payload": "x" * MAX_BYTES}], "atomic": True},
        413,
        "too_large",
        None,
    ),
    "atomic, with an ephemeral one": (
        {"messages": [GOOD, {**GOOD, "ephemeral": True}], "atomic": True},
        400,
        "ephemeral_conflict",
        "atomic",
    ),
    "atomic, with a key that was used": (
        {"messages": [GOOD, {**GOOD, "idempotency_key": "taken"}], "atomic": True},
        422,
        "idempotency_key_reused",
        "idempotency_key",
    ),
}


@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_a_wrong_batch_is_refused_whole(untouched: BusServer, name: str) -> None:
    body, status, code, field = WRONG_BATCHES[name]
    check(untouched.call("POST", "/api/send/batch", body), status, code, field)


def test_bad_messages_of_a_batch_are_refused_one_by_one(untouched: BusServer) -> None:
    bad = ["x", {}, {**GOOD, "to": 5}, {**GOOD, "delay": -1}, {**GOOD, "payload": "x" * MAX_BYTES}]
    answer = untouched.call("POST", "/api/send/batch", {"messages": bad})
    assert answer.status == 200
    codes = [(result["code"], result.get("field")) for result in answer.body["results"]]
    assert codes == [
        ("not_an_object", None),
        ("missing_field", "from"),
        ("bad_field", "to"),
        ("bad_field", "delay"),
        ("too_large", None),
    ]
    assert {result["request_id"] for result in answer.body["results"]} == {answer.headers["x-request-id"]}
    assert not LEAK.search(str(answer))


# ---- parameters, paths, methods, headers


@pytest.mark.parametrize(
    ("path", "status", "code", "field"),
    [
        ("/api/messages", 400, "missing_field", "to"),
        ("/api/messages?to=", 400, "bad_name", "to"),
        ("/api/messages?to=%24stream", 400, "bad_name", "to"),
        ("/api/messages?to=asked%00", 400, "bad_name", "to"),
        *[
            (f"/api/messages?to=asked&limit={bad}", 400, "bad_field", "limit")
            for bad in ("", "abc", "-1", "1.5", "1001")
        ],
        *[(f"/api/messages?to=asked&limit={bad}", 400, "bad_field", "limit") for bad in ("%D9%A3", "9" * 3000)],
        *[
            (f"/api/messages?to=asked&wait={bad}", 400, "bad_field", "wait")
            for bad in ("", "x", "-1", "50.1", "nan", "inf")
        ],
        *[(f"/api/messages?to=asked&on_gap={bad}", 400, "bad_field", "on_gap") for bad in ("", "newest")],
        *[
            (f"/api/messages?to=asked&since={bad}", 400, "bad_cursor", "since")
            for bad in ("", "5", "yesterday", "2026-01-01")
        ],
        (f"/api/messages?to=asked&since={EPOCH}", 400, "bad_cursor", "since"),
        (f"/api/messages?to=asked&since={EPOCH}:", 400, "bad_cursor", "since"),
        (f"/api/messages?to=asked&since={EPOCH}:-1", 400, "bad_cursor", "since"),
        (f"/api/messages?to=asked&since={EPOCH}:%D9%A3", 400, "bad_cursor", "since"),
        (f"/api/messages?to=asked&since={EPOCH}:9999999999999999999", 400, "bad_cursor", "since"),
        (f"/api/messages?to=asked&since={EPOCH.upper()}:1", 400, "bad_cursor", "since"),
        ("/api/messages?to=asked&since=T", 400, "bad_time", "since"),
        ("/api/messages?to=asked&since=2026-13-01T00:00:00", 400, "bad_time", "since"),
        ("/api/log?since=5", 400, "bad_cursor", "since"),
        ("/api/log?until=5", 400, "bad_cursor", "until"),
        ("/api/log?until=2026-02-30T00:00", 400, "bad_time", "until"),
        ("/api/log?limit=all", 400, "bad_field", "limit"),
        ("/api/log?topic=builds.>.x", 400, "bad_pattern", "topic"),
        ("/api/messages?to=asked&topics=builds.*,", 400, "bad_pattern", "topics"),
        ("/api/clients?limit=1e3", 400, "bad_field", "limit"),
        ("/api/clients/nobody", 404, "unknown_client", None),
        ("/api/clients/%00", 404, "unknown_client", None),
        ("/api/messages/5", 404, "unknown_message", None),
        (f"/api/messages/msg-{EPOCH}-000000000001", 404, "unknown_message", None),
        (f"/api/messages/msg-{EPOCH}-ffffffffffff", 404, "unknown_message", None),
        ("/nothing", 404, "not_found", None),
        ("/api", 404, "not_found", None),
        ("/api/", 404, "not_found", None),
        ("/api/nothing", 404, "not_found", None),
        ("/api/v2/status", 404, "not_found", None),
        ("/api//status", 404, "not_found", None),
        ("/api/status/", 404, "not_found", None),
        ("/api/../bus/bus.py", 404, "not_found", None),
        ("/static/%2e%2e/server_ws.py", 404, "not_found", None),
        ("/%ff%00", 404, "not_found", None),
        ("/ws/asked", 400, "websocket_mismatch", None),
    ],
)
def test_a_bad_query_or_path_is_refused(
    untouched: BusServer, path: str, status: int, code: str, field: str | None
) -> None:
    check(untouched.call("GET", path), status, code, field)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/send", "OPTIONS, POST"),
        ("PUT", "/api/v1/send", "OPTIONS, POST"),
        ("GET", "/api/clear", "OPTIONS, POST"),
        ("POST", "/api/status", "GET, HEAD, OPTIONS"),
        ("DELETE", "/api/messages", "GET, HEAD, OPTIONS"),
        ("PATCH", "/api/clients/asked", "GET, HEAD, OPTIONS, PUT"),
        ("GET", "/api/queues/jobs/claim", "OPTIONS, POST"),
        ("GET", "/api/messages/m/ack", "OPTIONS, POST"),
        ("POST", "/api/v1/dead-letters", "DELETE, GET, HEAD, OPTIONS"),
        ("PUT", "/api/replays", "GET, HEAD, OPTIONS"),
        ("FETCH", "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/ws/asked", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_refused_with_the_right_ones(
    untouched: BusServer, method: str, path: str, allowed: str
) -> None:
    answer = untouched.call(method, path)
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_a_redirect_never_moves_a_send(untouched: BusServer) -> None:
    check(untouched.call("POST", "/api//send", raw=sending()), 404, "not_found")


def test_an_idempotency_key_in_the_header_is_checked_like_the_field(untouched: BusServer) -> None:
    answer = untouched.call("POST", "/api/send", raw=sending(), headers={"Idempotency-Key": "k" * 256})
    check(answer, 400, "bad_field", "idempotency_key")
    answer = untouched.call("POST", "/api/send", raw=sending(ephemeral=True), headers={"Idempotency-Key": "k"})
    check(answer, 400, "ephemeral_conflict", "idempotency_key")
    answer = untouched.call("POST", "/api/send", raw=sending(payload=2), headers={"Idempotency-Key": "taken"})
    check(answer, 422, "idempotency_key_reused", "idempotency_key")


# ---- the edges from within, and the request's id


def test_what_is_just_within_the_limits_is_taken(server: BusServer) -> None:
    full = with_payload(nested(32))
    for body in (
        full + b" " * (MAX_BYTES - len(full)),
        sending(to="n" * 128, type="t" * 128, correlation_id="c" * 255, headers={f"h{n}": "" for n in range(64)}),
        sending(to=[f"r{n}" for n in range(1000)]),
        sending(idempotency_key="k" * 255),
    ):
        assert server.call("POST", "/api/send", raw=body).status == 200
    for coding, squeeze in (("gzip", gzip.compress), ("Deflate", zlib.compress), ("identity", bytes)):
        body = squeeze(full + b" " * (MAX_BYTES - len(full)))
        assert server.call("POST", "/api/send", raw=body, headers={"Content-Encoding": coding}).status == 200
    over = full + b" " * (MAX_BYTES - len(full) + 1)
    check(server.call("POST", "/api/send", raw=over), 413, "too_large")
    check(
        server.call("POST", "/api/send", raw=gzip.compress(over), headers={"Content-Encoding": "gzip"}),
        413,
        "too_large",
    )


def test_a_sane_request_id_is_kept_and_any_other_replaced(untouched: BusServer) -> None:
    for given in ("trace-1.2:3_4", "x" * 64):
        assert untouched.call("GET", "/api/nothing", headers={"X-Request-ID": given}).body["request_id"] == given
    seen = set()
    for given in ("", "x" * 65, "two words", '"<script>', "é"):
        answer = untouched.call("GET", "/api/nothing", headers={"X-Request-ID": given})
        check(answer, 404, "not_found")
        seen.add(answer.body["request_id"])
        assert given not in seen
    assert len(seen) == 5
