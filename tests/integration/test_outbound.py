"""The guarded client against receivers that are well, ill, or mean ill: in greenlets, and in threads without gevent."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from itertools import cycle

import h11
import pytest
import trustme
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bus.errors import ForbiddenTarget
from bus.outbound import Answer, Guard, Outbound
from bus.resolver import MOST_QUESTIONS, Resolver, Unresolved
from tests import callers, sinks
from tests.callers import RUNTIMES, Job
from tests.certificates import serving, trusting
from tests.sinks import Mode, Sink, answer, head, in_turn, raw

LOOPBACK = Guard([ip_network("127.0.0.0/8")])
SELF = Guard([ip_network("127.0.0.1")])
"""Allows one address of loopback, so that the others are what is forbidden."""

DEADLINE_SECONDS = 1.5

ILL: dict[Mode, tuple[int | None, str]] = {
    sinks.silent: (None, "timeout"),
    sinks.slow_head: (None, "timeout"),
    sinks.slow_informational: (None, "timeout"),
    sinks.slow_body: (200, "timeout"),
    sinks.early_end: (None, "reset"),
    sinks.half_answer: (200, "reset"),
    sinks.reset: (None, "reset"),
    sinks.garbage: (None, "protocol"),
    sinks.endless_informational: (None, "protocol"),
    sinks.endless_head: (None, "protocol"),
    sinks.endless_line: (None, "protocol"),
    sinks.endless_chunk_size: (200, "protocol"),
    sinks.endless_trailer: (200, "protocol"),
    sinks.huge_body: (200, "body_too_big"),
    sinks.gzip_bomb: (200, "body_too_big"),
    sinks.redirect("http://169.254.169.254/"): (302, "redirect"),
    raw(head(200, {"Transfer-Encoding": "chunked"}) + b"1\r\na\r\n" * 20_000): (200, "body_too_big"),
    raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"): (None, "protocol"),
    raw(b"HTTP/1.1 999 No\r\n\r\n"): (999, "protocol"),
}
"""What a receiver does, and what is made of it."""


def post(url: str, *, outbound: Outbound | None = None, body: bytes = b"{}", seconds: float = 10) -> Answer:
    return (outbound or Outbound(LOOPBACK)).request(
        "POST", url, headers={"Content-Type": "application/json"}, body=body, timeout_seconds=seconds
    )


def resolving(look_up: Callable[[str], list[str]], guard: Guard = SELF) -> Outbound:
    """A client whose names are looked up by a stub."""
    return Outbound(guard, resolver=Resolver(look_up))


@contextlib.contextmanager
def one_connection(act: Callable[[socket.socket], object]) -> Iterator[int]:
    """A port where the first caller is treated by `act`, before it has said a word."""

    def run() -> None:
        sock, _ = listener.accept()
        with sock:
            act(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


# ---- well


def test_what_is_sent_is_what_was_given_and_nothing_else() -> None:
    with Sink() as sink:
        got = Outbound(LOOPBACK).request(
            "POST",
            sink.url + "?q=ü",
            headers={
                "user-agent": "own",
                "X-Own": "v",
                "host": "evil",
                "Content-Length": "1",
                "accept-encoding": "gzip",
                "TE": "x",
            },
            body="שלום".encode(),
            timeout_seconds=10,
        )
        post(sink.url)
    hit, second = sink.hits
    assert second.headers["user-agent"].startswith("multi-agent-bridge/")
    assert (got.status, got.error, got.detail, got.address) == (200, None, "", "127.0.0.1")
    assert (
        hit.raw
        == (
            b"POST /hook?q=%%C3%%BC HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nConnection: close\r\n"
            b"user-agent: own\r\nX-Own: v\r\nContent-Length: 8\r\n\r\n" % sink.port
        )
        + "שלום".encode()
    )


def test_an_answer_has_its_status_headers_body_and_times() -> None:
    headers = {"Retry-After": "120", "X-A": "1", "x-a": "2", **{f"X-{n}": "v" for n in range(100)}}
    with Sink(answer(503, headers, b"later")) as sink:
        got = post(sink.url)
    assert (got.status, got.error, got.excerpt) == (503, None, b"later")
    assert got.headers["retry-after"] == "120"
    assert got.headers["x-a"] == "1, 2"
    assert len(got.headers) < 65
    assert None not in (got.dns_ms, got.connect_ms, got.ttfb_ms)
    assert got.tls_ms is None
    assert got.started_us > 0


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384])
def test_a_body_up_to_16_kb_is_whole(size: int) -> None:
    with Sink(answer(200, body=b"a" * size)) as sink:
        assert (post(sink.url).error, len(post(sink.url).excerpt)) == (None, size)


def test_a_longer_body_is_cut_and_the_connection_closed() -> None:
    with Sink(answer(200, body=b"a" * 16_385)) as sink:
        got = post(sink.url)
    assert (got.status, got.error, len(got.excerpt)) == (200, "body_too_big", 16_384)


def test_nothing_is_decoded() -> None:
    with Sink(answer(200, {"Content-Encoding": "gzip"}, b"\x1f\x8bno gzip")) as sink:
        assert post(sink.url).excerpt == b"\x1f\x8bno gzip"


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n", b"abc"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_every_good_form_of_an_answer_is_understood(sent: bytes, body: bytes) -> None:
    with Sink(raw(sent)) as sink:
        got = post(sink.url)
    assert (got.error, got.excerpt) == (None, body)


@pytest.mark.parametrize("reads_on", [True, False])
def test_one_that_answers_before_it_has_read_all_is_heard(reads_on: bool) -> None:
    def refuse(sock: socket.socket) -> None:
        sock.sendall(head(413, {"Content-Length": "0"}))
        while reads_on and sock.recv(65536):  # else the kernel sends a reset
            pass

    with one_connection(refuse) as port:
        got = post(f"http://127.0.0.1:{port}/", body=b"a" * 8_000_000)
    assert (got.status, got.error) == (413, None)


def test_every_status_has_its_class() -> None:
    with Sink() as sink:
        for status in range(100, 600):
            sink.mode = raw(head(status, {"Content-Length": "0"}))
            got = post(sink.url)
            if status < 200:
                expected: tuple[int | None, str | None] = (None, "protocol" if status == 101 else "reset")
            else:
                expected = (status, "redirect" if 300 <= status < 400 else None)
            assert (got.status, got.error) == expected
            assert len(sink.hits) == status - 99  # nobody was sent elsewhere


# ---- ill


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_whatever_a_receiver_does_the_call_ends_in_time_with_its_class_and_memory_stays(runtime: str) -> None:
    with contextlib.ExitStack() as stack:
        open_sinks = [stack.enter_context(Sink(mode)) for mode in ILL]
        full = stack.enter_context(Sink(accepts=False))
        secure = [stack.enter_context(Sink(mode, tls=serving("127.0.0.1"))) for mode in ILL]
        mute = [sink.url.replace("http:", "https:") for sink in open_sinks[:1]]  # never says a word of TLS
        urls = [sink.url for sink in [*open_sinks, *secure, full]] + mute
        done = callers.call(runtime, Job(urls=urls, timeout_seconds=DEADLINE_SECONDS))
        expected = [*ILL.values(), *ILL.values(), (None, "timeout"), (None, "timeout")]
        assert [(got.status, got.error) for got in done.answers] == expected
    for got in done.answers:
        assert got.total_ms <= (DEADLINE_SECONDS + 1) * 1000, got
        assert len(got.excerpt) <= 16 * 1024
        assert got.detail.endswith(".")
    assert done.grown_kb < 10 * 1024


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_name_server_that_is_silent_holds_up_nobody_else(runtime: str) -> None:
    with Sink() as sink:
        urls = [*(f"http://hangs{n % 4}.example/" for n in range(40)), sink.url.replace("127.0.0.1", "good.example")]
        names = {f"hangs{n}.example": [None] for n in range(4)} | {"good.example": [["127.0.0.1"]]}
        done = callers.call(runtime, Job(urls=urls, timeout_seconds=1, names=names))
    *hung, good = done.answers
    assert (good.status, good.error, good.place) == (200, None, 0)
    assert {(got.status, got.error) for got in hung} == {(None, "dns")}


def test_nobody_listening_is_a_class_of_its_own() -> None:
    with Sink() as sink:
        pass
    got = post(sink.url)
    assert (got.status, got.error, got.address) == (None, "connect", "127.0.0.1")


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X\r\nY": "b"}, {"X": "ü"}, {"": "x"}, {"X": "a\0b"}])
def test_a_header_that_would_break_the_request_is_not_sent(headers: dict[str, str]) -> None:
    with Sink() as sink:
        got = Outbound(LOOPBACK).request("POST", sink.url, headers=headers, timeout_seconds=10)
        assert (got.error, sink.connections) == ("bad_request", 0)


LINES = st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 204", b"HTTP/1.1 100", b"HTTP/1.1 101 x", b"HTTP/2 200", b""])
FIELDS = st.sampled_from(
    [
        b"Content-Length: 3",
        b"Content-Length: 99999999999999999999999",
        b"Content-Length: -1",
        b"Content-Length: 3, 4",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Connection: upgrade",
        b"X: \xff\x00",
        b" folded",
        b"no colon",
    ]
)
ENDS = st.sampled_from([b"\r\n\r\n", b"\n\n", b"\r\n", b""])
HTTP = st.builds(
    lambda line, fields, end, body: b"\r\n".join([line, *fields]) + end + body,
    LINES,
    st.lists(FIELDS, max_size=4),
    ENDS,
    st.binary(max_size=40) | st.sampled_from([b"3\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffffffffff\r\n", b"-1\r\n"]),
)


@pytest.fixture(scope="module")
def speaking() -> Sink:
    """A sink whose mode each example sets."""
    return Sink()


def test_whatever_bytes_come_there_is_an_answer(speaking: Sink) -> None:
    outbound = Outbound(LOOPBACK)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.binary(max_size=200) | HTTP, min_size=1, max_size=3))
    @example([b"HTTP/1.1 200 OK\r\n\r\n"])
    def property_(parts: list[bytes]) -> None:
        speaking.mode = raw(*parts)
        got = post(speaking.url, outbound=outbound)
        assert (got.error is None) == (got.status is not None and got.detail == "")
        assert got.error in {None, "reset", "protocol", "redirect", "body_too_big"}

    with speaking:
        property_()


# ---- where a name leads


def test_a_name_that_changes_its_mind_reaches_nobody_else() -> None:
    with Sink() as good, Sink(host="127.0.0.2", port=good.port) as canary:
        asked = cycle([["127.0.0.1"], ["127.0.0.2"]])
        looked_up: list[str] = []

        def flip(name: str) -> list[str]:
            looked_up.append(name)
            return next(asked)

        outbound = resolving(flip)
        url = f"http://rebinding.example:{good.port}/"
        answers = [post(url, outbound=outbound) for _ in range(100)]
        assert [got.error for got in answers] == [None, "forbidden_target"] * 50
        assert (len(looked_up), good.connections, canary.connections) == (100, 50, 0)
        assert {hit.headers["host"] for hit in good.hits} == {f"rebinding.example:{good.port}"}


def test_between_check_and_connect_nothing_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sink() as good:
        outbound = resolving(lambda name: ["127.0.0.1"])
        for name in ("getaddrinfo", "gethostbyname", "create_connection"):
            monkeypatch.setattr(socket, name, None)
        assert post(f"http://pinned.example:{good.port}/", outbound=outbound).status == 200


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1", "::1"],
        ["::1", "127.0.0.1"],
        ["127.0.0.1", "127.0.0.2"],
        ["127.0.0.1", "::ffff:127.0.0.2"],
        ["127.0.0.1", "64:ff9b::7f00:2"],
        ["127.0.0.1", "fe80::1%1"],
        ["::ffff:127.0.0.2"],
        ["0.0.0.0"],
        ["::"],
    ],
    ids=str,
)
def test_a_name_with_one_bad_address_is_not_called_at_all(addresses: list[str]) -> None:
    with Sink() as good, Sink(host="127.0.0.2", port=good.port) as canary, Sink(host="::1", port=good.port) as six:
        got = post(f"http://two-faced.example:{good.port}/", outbound=resolving(lambda name: addresses))
        assert (got.status, got.error) == (None, "forbidden_target")
        assert (good.connections, canary.connections, six.connections) == (0, 0, 0)


def test_without_an_allowance_nothing_on_this_machine_is_reached() -> None:
    with Sink() as sink, Sink(host="::1", port=sink.port) as six:
        port = sink.port
        outbound = resolving(lambda name: ["127.0.0.1"], Guard(extra_ports=[port]))
        hosts = ["127.0.0.1", "localhost", "name.example", "2130706433", "0x7f.1", "0177.1", "127.1", "0", "[::1]"]
        hosts += ["[::ffff:7f00:1]", "[::1%25lo]", "127.0.0.1.", "localhost.", "①②⑦.0.0.1", "[64:ff9b::7f00:1]", "[::]"]
        hosts += ["a@127.0.0.1", "127.0.0.1\0", "127.0.0.1%00"]
        for host in hosts:
            assert post(f"http://{host}:{port}/", outbound=outbound).error == "forbidden_target", host
        assert (sink.connections, six.connections) == (0, 0)


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with Sink() as good:
        outbound = resolving(lambda name: ["127.0.0.3", "127.0.0.1"], LOOPBACK)
        got = post(f"http://two.example:{good.port}/", outbound=outbound)
    assert (got.status, got.address) == (200, "127.0.0.1")


def test_a_machine_without_ipv6_goes_on_to_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = socket.socket

    def without(family: int = -1, *how: int, **more: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return whole(family, *how, **more)

    outbound = resolving(
        lambda name: ["2606:2800:220:1::1", "127.0.0.1"], Guard([ip_network("0.0.0.0/0"), ip_network("::/0")])
    )
    with Sink() as good:
        monkeypatch.setattr(socket, "socket", without)
        assert post(f"http://two.example:{good.port}/", outbound=outbound).address == "127.0.0.1"


def test_a_url_can_be_judged_before_it_is_kept() -> None:
    names = {"good.example": ["127.0.0.1"], "bad.example": ["10.0.0.1"], "later.example": []}
    outbound = resolving(names.__getitem__)
    for url in ("http://good.example/", "http://later.example/", "http://127.0.0.1:9/"):
        outbound.check(url)
    for url in ("http://bad.example/", "http://10.0.0.1/", "http://good.example:99999/"):
        with pytest.raises(ForbiddenTarget):
            outbound.check(url)


@pytest.mark.parametrize(
    "failure", [socket.gaierror(socket.EAI_NONAME, "x"), socket.gaierror(socket.EAI_AGAIN, "x"), OSError(24, "x"), None]
)
def test_a_name_without_addresses_is_a_failure_of_dns(failure: OSError | None) -> None:
    def fail(name: str) -> list[str]:
        if failure is not None:
            raise failure
        return []

    got = post("http://nobody.example/", outbound=resolving(fail))
    assert (got.status, got.error) == (None, "dns")


def test_questions_without_end_are_bounded_and_a_name_is_asked_once_at_a_time() -> None:
    ours, theirs = socket.socketpair()
    asked: list[str] = []

    def hang(name: str) -> list[str]:
        asked.append(name)
        theirs.recv(1)
        return ["127.0.0.1"]

    resolver = Resolver(hang)
    with ours, theirs:
        for n in [*range(MOST_QUESTIONS), 0, 1]:
            with pytest.raises(Unresolved, match="No name server answered"):
                resolver.addresses(f"n{n}.example", 0.001)
        with pytest.raises(Unresolved, match="other names wait"):
            resolver.addresses("one-more.example", 10)
        ours.sendall(b"!" * 3 * MOST_QUESTIONS)
        for n in range(MOST_QUESTIONS):
            assert resolver.addresses(f"n{n}.example", 10) == ["127.0.0.1"]
        assert resolver.addresses("one-more.example", 10) == ["127.0.0.1"]


# ---- TLS


def test_an_own_authority_can_be_trusted_and_the_name_is_what_counts() -> None:
    with Sink(answer(200, body=b"ok"), tls=serving("receiver.example")) as sink:
        outbound = Outbound(LOOPBACK, tls=trusting(), resolver=Resolver(lambda name: ["127.0.0.1"]))
        got = post(f"https://receiver.example.:{sink.port}/hook", outbound=outbound)
    assert (got.status, got.error, got.excerpt) == (200, None, b"ok")
    assert got.tls_ms is not None
    assert (sink.hits[0].sni, sink.hits[0].headers["host"]) == ("receiver.example", f"receiver.example:{sink.port}")


def old_tls() -> ssl.SSLContext:
    context = serving("127.0.0.1")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    "server",
    [
        lambda: serving("127.0.0.1", expired=True),
        lambda: serving("elsewhere.example"),
        lambda: serving("127.0.0.2"),
        lambda: serving("127.0.0.1", by=trustme.CA()),
        old_tls,
    ],
    ids=["expired", "another host", "another address", "unknown authority", "TLS 1.1"],
)
def test_a_certificate_or_protocol_that_is_not_good_is_refused(server: Callable[[], ssl.SSLContext]) -> None:
    with Sink(tls=server()) as sink:
        got = post(sink.url, outbound=Outbound(LOOPBACK, tls=trusting()))
        assert (got.status, got.error, sink.hits) == (None, "tls", [])
        assert got.detail.endswith(".")


def test_the_systems_authorities_do_not_know_the_tests_authority() -> None:
    with Sink(tls=serving("127.0.0.1")) as sink:
        assert post(sink.url).error == "tls"


def test_plain_http_on_a_tls_port_is_a_failure_of_tls() -> None:
    with one_connection(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert post(f"https://127.0.0.1:{port}/").error == "tls"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_authorities_of_ssl_cert_file_are_trusted_in_both_runtimes(runtime: str) -> None:
    with Sink(tls=serving("127.0.0.1")) as good, Sink(tls=serving("127.0.0.1", expired=True)) as expired:
        urls = [good.url, expired.url]
        done = callers.call(runtime, Job(urls=urls, timeout_seconds=10, body="a" * 300_000))
        assert [(got.status, got.error) for got in done.answers] == [(200, None), (None, "tls")]
        assert len(good.hits[0].body) == 300_000


# ---- the environment


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sink() as proxy, Sink() as sink:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert post(sink.url).status == 200
        assert proxy.connections == 0


def test_calls_in_turn_see_a_receiver_recover() -> None:
    with Sink(in_turn(answer(500), sinks.reset, answer(200))) as sink:
        assert [(got.status, got.error) for got in (post(sink.url) for _ in range(3))] == [
            (500, None),
            (None, "reset"),
            (200, None),
        ]


def test_the_parser_that_is_trusted_with_strangers_is_the_one_that_was_looked_at() -> None:
    assert tuple(map(int, h11.__version__.split(".")[:2])) >= (0, 16)  # before: lenient chunk framing (CVE-2025-43859)
