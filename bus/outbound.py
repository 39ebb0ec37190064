"""The one way by which the product calls strangers: one HTTP/1.1 request, guarded, with one deadline over all of it.

`Outbound.request` reads the URL (bus/guard.py), asks for the name's addresses (bus/resolver.py), vets all of them, and
connects to a vetted one (bus/wire.py); `Host`, SNI and the certificate keep the name. h11 writes the request and reads
the answer. At most 16 KB of a body (unless told) and 48 KB beside are read, nothing is decoded, no redirect is followed, no
proxy of the environment is used, and each connection serves one request.

    guard = Guard(settings.targets(), https_only=settings.webhook_https_only, extra_ports=settings.target_ports())
    outbound = Outbound(guard)
    answer = outbound.request("POST", url, headers={"Content-Type": "application/json"}, body=b"{}", timeout_seconds=15)
    if answer.error is None: …
"""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import islice

import h11
from msgspec import Struct
from msgspec.structs import replace

from bus import __version__
from bus.errors import ForbiddenTarget
from bus.guard import Guard, Target
from bus.resolver import Resolver, Unresolved
from bus.wire import Deadline, PlainWire, SecureWire, Wire, dial

__all__ = ["Answer", "ForbiddenTarget", "Guard", "Outbound", "Target"]

USER_AGENT = f"multi-agent-bridge/{__version__}"
DNS_SECONDS = 3.0
CONNECT_SECONDS = 5.0
EXCERPT_BYTES = 16 * 1024
MAX_FIELD_BYTES = 32 * 1024
"""Of one head, of the fields after a chunked body, of one chunk's size line."""
MORE_BYTES = 48 * 1024
"""Beside a body, so that neither interim answers nor the framing of chunks can go on for ever."""
MAX_HEADERS = 64

OURS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "expect", "te", "upgrade"}
)
"""Headers that only this module sets."""


class Answer(Struct, frozen=True, kw_only=True):
    """What came of a request.

    `status` is there once a head came whole, also when what followed failed. `error` is None, or one of:
    forbidden_target, dns, connect, tls, timeout, reset, protocol, body_too_big, redirect, and bad_request, which is
    our own fault. `detail` is a sentence for people, without secrets. `headers` has names in lower case, repeated ones
    joined by a comma, and at most 64. `excerpt` is the body as it came, at most 16 KB. `address` is the one that took
    the connection, or the first that was tried. Times are milliseconds of each stage, None where it was not finished;
    `ttfb_ms` is from then to the head of the answer; `started_us` is by the clock that `Outbound` was given. `refused`
    says of a forbidden_target why, in a word of bus.guard.REASONS.
    """

    status: int | None
    headers: dict[str, str]
    excerpt: bytes
    error: str | None
    detail: str
    address: str | None
    started_us: int
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    ttfb_ms: float | None
    total_ms: float
    refused: str | None = None


class Failed(Exception):
    """The call ended without a good answer: the class, and a sentence."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail


class Outbound:
    """Thread-safe; works in greenlets where gevent has patched the process, and in plain threads elsewhere.

    `tls` replaces the context that trusts the system's authorities (those of SSL_CERT_FILE and SSL_CERT_DIR, if set)
    and asks for TLS 1.2 or newer. `now_us` tells `started_us`. A body longer than `max_body_bytes` is cut there, an error.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        max_body_bytes: int = EXCERPT_BYTES,
    ) -> None:
        self._guard = guard
        self._given = tls
        self._resolver = resolver or Resolver()
        self._now_us = now_us
        self._max_body_bytes = max_body_bytes

    def check(self, url: str) -> Target:
        """Judge a URL as a call would, now. Raises ForbiddenTarget; a name that nobody knows yet passes."""
        target = self._guard.check_url(url)
        try:
            self._addresses(target, Deadline(DNS_SECONDS))
        except Failed:
            return target  # a receiver may come up later, and each call judges again
        return target

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"", timeout_seconds: float
    ) -> Answer:
        """Call a stranger. Whatever it does, this returns within `timeout_seconds`, and raises nothing."""
        call = Call(self._now_us(), self._max_body_bytes)
        deadline = Deadline(timeout_seconds)
        try:
            self._perform(call, method, url, headers, body, deadline)
        except Failed as failure:
            return call.answer(failure.error, failure.detail)
        except ForbiddenTarget as refusal:
            return replace(call.answer(refusal.code, refusal.sentence), refused=refusal.reason)
        except TimeoutError:
            return call.answer("timeout", f"No end within {timeout_seconds:g} s: {call.stage}.")
        return call.answer(None, "")

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made at the first call: reading the system's authorities takes a while."""
        if self._given is not None:
            return self._given
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _addresses(self, target: Target, deadline: Deadline) -> list[str]:
        """Where to connect: every address that the name has now, each of them vetted."""
        if target.addresses:
            return self._guard.vet(target.addresses, target.port)
        try:
            found = self._resolver.addresses(target.host, deadline.left(DNS_SECONDS))
        except Unresolved as unresolved:
            raise Failed("dns", str(unresolved)) from None
        return self._guard.vet(found, target.port)

    def _perform(
        self, call: Call, method: str, url: str, headers: Mapping[str, str], body: bytes, deadline: Deadline
    ) -> None:
        target = self._guard.check_url(url)
        connection, request = written(method, target, headers, body)
        addresses = self._addresses(target, deadline)
        call.finish("dns", next_stage="the receiver did not take the connection")
        call.address = addresses[0]
        try:
            sock, call.address = dial(addresses, target.port, deadline, CONNECT_SECONDS)
        except TimeoutError:
            raise
        except OSError as error:
            raise Failed("connect", f"The receiver can't be reached: {said(error)}.") from None
        try:
            call.finish("connect", next_stage="the TLS handshake did not end")
            wire: Wire = PlainWire(sock, deadline)
            if target.secure:
                wire = self._secured(PlainWire(sock, deadline), target)
                call.finish("tls", next_stage="")
            call.stage = "the receiver did not answer"
            converse(call, connection, wire, request)
        finally:
            sock.close()

    def _secured(self, wire: PlainWire, target: Target) -> SecureWire:
        secure = SecureWire(wire, self._tls, target.host)
        try:
            secure.shake_hands()
        except ssl.SSLCertVerificationError as error:
            raise Failed("tls", f"The receiver's certificate is refused: {error.verify_message.rstrip('.')}.") from None
        except ssl.SSLError as error:
            raise Failed("tls", f"The TLS handshake failed: {error.reason or 'the connection ended'}.") from None
        except TimeoutError:
            raise
        except OSError as error:
            raise Failed("reset", f"The receiver broke the TLS handshake off: {said(error)}.") from None
        return secure


class Call:
    """One request under way: what is known of it so far. `stage` says what is waited for."""

    def __init__(self, started_us: int, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.stage = "the name server did not answer"
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.excerpt = bytearray()
        self.address: str | None = None
        self._started_us = started_us
        self._started = self._lap = time.perf_counter()
        self._took: dict[str, float] = {}

    def finish(self, stage: str, *, next_stage: str) -> None:
        """A stage is over: note how long it took."""
        now = time.perf_counter()
        self._took[stage] = milliseconds(now - self._lap)
        self._lap = now
        self.stage = next_stage

    def take_head(self, response: h11.Response) -> None:
        self.finish("ttfb", next_stage="the body of the answer did not end")
        self.status = response.status_code
        for name, value in islice(response.headers, MAX_HEADERS):
            key, text = name.decode("latin-1"), value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def answer(self, error: str | None, detail: str) -> Answer:
        return Answer(
            status=self.status,
            headers=self.headers,
            excerpt=bytes(self.excerpt),
            error=error,
            detail=detail,
            address=self.address,
            started_us=self._started_us,
            dns_ms=self._took.get("dns"),
            connect_ms=self._took.get("connect"),
            tls_ms=self._took.get("tls"),
            ttfb_ms=self._took.get("ttfb"),
            total_ms=milliseconds(time.perf_counter() - self._started),
        )


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def said(error: OSError) -> str:
    """What the system says of an error, and nothing of ours."""
    return os.strerror(error.errno).lower() if error.errno else "the connection failed"


def written(method: str, target: Target, headers: Mapping[str, str], body: bytes) -> tuple[h11.Connection, bytes]:
    """The request as bytes, and the connection of h11 that will read the answer. Headers of OURS are left out.

    Without a User-Agent some receivers (Discord among them) refuse a request, so there is one.
    """
    fields = [("Host", target.authority), ("Accept-Encoding", "identity"), ("Connection", "close")]
    if not any(name.lower() == "user-agent" for name in headers):
        fields.append(("User-Agent", USER_AGENT))
    fields += [(name, value) for name, value in headers.items() if name.lower() not in OURS]
    if body or method not in ("GET", "HEAD"):
        fields.append(("Content-Length", str(len(body))))
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_FIELD_BYTES)
    try:
        parts = [connection.send(h11.Request(method=method, target=target.path, headers=fields))]
    except (h11.LocalProtocolError, UnicodeEncodeError):
        raise Failed("bad_request", "A header of the request has characters that HTTP can't carry.") from None
    parts += [connection.send(h11.Data(data=body)), connection.send(h11.EndOfMessage())]
    return connection, b"".join(part for part in parts if part)


def converse(call: Call, connection: h11.Connection, wire: Wire, request: bytes) -> None:
    """Send the request, read the answer into `call`. Raises Failed, or TimeoutError."""
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(request)  # one that reads no further may have answered before
        read_answer(call, connection, wire)
    except h11.RemoteProtocolError:
        raise Failed("protocol", "The answer is not HTTP, or more of it than a head may have.") from None
    except ssl.SSLError as error:
        raise Failed("tls", f"The TLS connection failed: {error.reason or 'it ended'}.") from None
    except TimeoutError:
        raise
    except OSError as error:
        raise Failed("reset", f"The receiver broke the connection off: {said(error)}.") from None


def read_answer(call: Call, connection: h11.Connection, wire: Wire) -> None:
    """Read until the answer is whole, or enough."""
    unread = call.max_body_bytes + MORE_BYTES
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = wire.receive()
            unread -= len(data)
            if unread < 0:
                raise too_much(call)
            if not data:
                finish(connection, call)
                return
            connection.receive_data(data)
            time.sleep(0)  # others have their turn: what comes in tiny pieces takes a while to read
        elif isinstance(event, h11.Response):
            call.take_head(event)
            judge(event.status_code)
        elif isinstance(event, h11.Data):
            call.excerpt += event.data[: call.max_body_bytes + 1 - len(call.excerpt)]
            if len(call.excerpt) > call.max_body_bytes:
                del call.excerpt[call.max_body_bytes :]
                raise too_much(call)
        elif isinstance(event, h11.EndOfMessage):
            return


def finish(connection: h11.Connection, call: Call) -> None:
    """The peer has ended the connection: good for an answer that has no other end."""
    connection.receive_data(b"")
    try:
        whole = isinstance(connection.next_event(), h11.EndOfMessage)
    except h11.RemoteProtocolError:
        whole = False
    if not whole:
        when = "in the middle of its answer" if call.status else "without an answer"
        raise Failed("reset", f"The receiver ended the connection {when}.")


def too_much(call: Call) -> Failed:
    if call.status is None:
        return Failed("protocol", f"No answer within the first {(call.max_body_bytes + MORE_BYTES) // 1024} KB.")
    return Failed("body_too_big", f"The answer is longer than {call.max_body_bytes // 1024} KB; the rest was not read.")


def judge(status: int) -> None:
    """Refuse a head whose body is not worth reading."""
    if status > 599:
        raise Failed("protocol", f"The receiver answered {status}, a status that HTTP does not have.")
    if 300 <= status <= 399:
        raise Failed("redirect", f"The receiver answered {status}; redirects are not followed, so give the final URL.")
