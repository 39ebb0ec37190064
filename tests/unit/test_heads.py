"""Plain heads: what the lane takes, gunicorn would take, too, and read the same."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from hypothesis import example, given
from hypothesis import strategies as st

from bus.auth import Auth
from bus.settings import Settings
from bus.transports.heads import HEADS_REMEMBERED, MAX_HEAD_BYTES, Head, Heads

GOOD = (
    b"POST /api/send HTTP/1.1\r\nHost: localhost:5001\r\nUser-Agent: a/1 (b; c)\r\nAccept: */*\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nX-API-Key: k\r\nContent-Length: 20\r\n\r\n"
)


class NoSends:
    """Stands in for what reads bodies, which no head does."""

    max_bytes = 1000
    max_batch_bytes = 16_000

    def single(self, body: bytes, key: str | None) -> Any: ...

    def batch(self, body: bytes, key: str | None) -> Any: ...


def heads() -> Heads:
    return Heads(NoSends(), Auth(Settings()), max_fields=100, max_bytes=0)  # type: ignore[arg-type]


def found(text: bytes) -> Head | None:
    return heads().find(text)


def with_field(line: bytes) -> bytes:
    return GOOD.replace(b"Accept: */*", line)


@pytest.mark.parametrize("path", [b"/api/send", b"/api/v1/send", b"/api/send/batch", b"/api/v1/send/batch"])
def test_a_plain_head_is_found_and_read(path: bytes) -> None:
    head = found(GOOD.replace(b"/api/send", path))
    assert head is not None
    assert (head.path, head.length, head.keep_alive) == (path.decode(), 20, True)
    assert (head.get("x-api-KEY"), head.get("X-Request-ID")) == ("k", None)
    closing = found(with_field(b"CONNECTION:close "))
    assert closing is not None
    assert not closing.keep_alive


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace(b"POST", b"post"),
        GOOD.replace(b"/api/send", b"/api/send/"),
        GOOD.replace(b"/api/send", b"/api/send?a"),
        GOOD.replace(b"/api/send", b"http://localhost/api/send"),
        GOOD.replace(b"1.1\r\n", b"1.0\r\n"),
        GOOD.replace(b"Content-Length: 20", b"Content-Length: 1001"),
        GOOD.replace(b"Content-Length: 20", b"Content-Length: +20"),
        GOOD.replace(b"Content-Length: 20\r\n", b""),
        GOOD.replace(b"json;", b"jsonp;"),
        GOOD.replace(b"localhost", b"example.com"),
        GOOD.replace(b"localhost", b"localhost, localhost"),
        with_field(b"Host: localhost"),
        with_field(b"x-api-key: l"),
        with_field(b"Transfer-Encoding: chunked"),
        with_field(b"Expect: 100-continue"),
        with_field(b"Upgrade: h2c\r\nConnection: upgrade"),
        with_field(b"Connection: keep-alive, close"),
        with_field(b"Content-Encoding: gzip"),
        with_field(b"Origin: http://localhost:5001"),
        with_field(b"X_API_Key: k"),
        with_field(b"A: b\r\n folded"),
        with_field(b"A : b"),
        with_field(b"A: b\0"),
        with_field(b"A: b\nB: c"),
        with_field(b"\r\n".join(b"A%d: b" % number for number in range(96))),
    ],
)
def test_what_is_not_plain_is_flasks(text: bytes) -> None:
    assert found(GOOD) is not None
    assert found(text) is None


BITS = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b"\0", b"\x7f", b"\xe9", b"_", b"close", b"chunked", b"5"]
LINES = [line + b"\r\n" for line in (b"Host: a", *GOOD.split(b"\r\n")[1:-2])]


@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 8), st.sampled_from(BITS + LINES)), max_size=3))
@example([(GOOD.index(b"Content-Length"), 0, b"Content-Length : 5\r\n")])
def test_gunicorn_would_take_and_read_alike_what_the_lane_takes(changes: list[tuple[int, int, bytes]]) -> None:
    text = GOOD
    for place, removed, put in changes:
        text = text[:place] + put + text[place + removed :]
    end = text.find(b"\r\n\r\n") + 4
    head = found(text[:end])
    if end < 4 or head is None:
        return
    try:
        request = Request(Config(), IterUnreader([text]), ("127.0.0.1", 1))
    except ParseException as error:
        pytest.fail(f"gunicorn refuses it: {error!r}")
    assert (request.method, request.path, request.query, request.version) == ("POST", head.path, "", (1, 1))
    assert request.body.reader.length == head.length
    assert request.should_close() is not head.keep_alive
    assert {name.lower(): head.get(name) for name, _ in request.headers} == {n.lower(): v for n, v in request.headers}


def test_a_beginning_is_waited_for_while_it_can_become_plain() -> None:
    finder = heads()
    assert all(finder.may_become(GOOD[:size]) for size in range(len(GOOD)))
    assert not finder.may_become(b"GET")
    assert not finder.may_become(b"POST /api/sent")
    assert not finder.may_become(GOOD.ljust(MAX_HEAD_BYTES, b"x"))


def test_heads_are_remembered_within_bounds() -> None:
    finder = heads()
    assert finder.find(GOOD) is finder.find(bytes(bytearray(GOOD)))
    own = with_field(b"X-Request-ID: 1")
    assert finder.find(own) is not finder.find(own)
    for number in range(HEADS_REMEMBERED + 1):
        assert finder.find(with_field(b"A: %d" % number)) is not None
    assert len(finder._plain) <= HEADS_REMEMBERED
