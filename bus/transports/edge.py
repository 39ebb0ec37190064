"""The edge of the HTTP side: what holds for every request, whatever its route.

A request id; the bus must be running; Host, Origin and credential; bodies that are bounded while they inflate; and every
refusal as JSON with a stable code and a sentence. Exceptions' texts stay in the log, under the request id.
"""

from __future__ import annotations

import logging
import random
import re
import select
import socket
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from flask import Flask, Response, current_app, g, request
from gevent.monkey import get_original
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, HTTPException
from werkzeug.routing.exceptions import WebsocketMismatch

from bus.errors import (
    BusError,
    Malformed,
    RateLimited,
    TooLarge,
    TooSlow,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from bus.events import Audited
from bus.identity import policy
from bus.identity.caller import Caller, Right
from bus.limits.limits import headers_of as rate_headers
from bus.logs import request_id
from bus.protocol import encode, error_body
from bus.transports.pages import Pages, check_query, ticket_of_request
from bus.transports.patience import read_in_time

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.limits.limits import Allowance

log = logging.getLogger("bus.http")

FIXED_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
"""On every answer that does not say otherwise."""

OPEN_PATHS = frozenset(
    {"/health", "/ready", "/metrics", "/openapi.json", "/docs", "/console", "/", "/client.js", "/favicon.ico"}
)
OPEN_PREFIXES = ("/health/", "/static/", "/console/")
EXEMPT_PATHS = frozenset({"/health", "/ready", "/metrics"})
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
_SENTENCES = {
    404: "There is nothing at this path; /openapi.json lists what there is.",
    405: "This path does not know the method; /openapi.json says which it knows.",
}


def json_answer(body: object, status: int = 200) -> Response:
    """An answer with a JSON body; bytes are taken as JSON text that is ready."""
    text = body if isinstance(body, bytes) else encode(body)
    return Response(text, status, content_type="application/json")


def is_open(path: str) -> bool:
    """True for the paths that need no key and no known Host: probes and scrapers come under other names."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def is_exempt(path: str) -> bool:
    """True for probes, scrapers and the console's files, whose requests are not counted."""
    return path in EXEMPT_PATHS or path.startswith(("/health/", "/console"))


def body_of(max_bytes: int, *, as_it_came: bool = False) -> bytes:
    """The request's body, inflated if it says so, at most `max_bytes` long; `as_it_came`: of any type.

    Raises TooLarge, TooSlow, UnsupportedMedia, Malformed.
    """
    if not as_it_came and (request.mimetype or "") != "application/json":
        # A page of a stranger can't send this type without asking first, so it protects a bus on localhost, too.
        raise UnsupportedMedia("Send the body as JSON, with Content-Type: application/json.")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    sock = request.environ.get("gunicorn.socket")
    try:
        raw = read_in_time(request.stream.read, max_bytes + 1) if sock else request.stream.read(max_bytes + 1)
    except TooSlow:
        assert sock is not None
        sock.shutdown(socket.SHUT_RD)  # else gunicorn would go on to read it
        raise
    except (OSError, ParseException):
        raise cut_short() from None
    if len(raw) > max_bytes:
        raise _too_large(max_bytes)
    if len(raw) < (request.content_length or 0):
        raise cut_short()
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if coding == "identity" or as_it_came:
        return raw
    if coding not in ("gzip", "deflate"):
        raise UnsupportedMedia("Content-Encoding must be gzip, deflate or identity.")
    return _inflate(raw, coding, max_bytes)


def _inflate(raw: bytes, coding: str, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        text = inflater.decompress(raw, max_bytes + 1)
    except zlib.error:
        raise Malformed(f"The body is not {coding}.", code="bad_encoding") from None
    if len(text) > max_bytes:
        raise _too_large(max_bytes)
    if not inflater.eof:
        raise Malformed(f"The {coding} body ends early.", code="bad_encoding")
    if inflater.unused_data:
        raise Malformed(f"Something follows the end of the {coding} body; send one stream.", code="bad_encoding")
    return text


def cut_short() -> Malformed:
    """The refusal of a body that ends early."""
    return Malformed("The body is not what its length or its chunks announced; send all of it.", code="bad_body")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body may have at most {max_bytes} bytes, inflated; send less, or raise MAX_MESSAGE_SIZE.")


def caller_is_gone() -> bool:
    """True when whoever made the present request has hung up: what is handed out now would reach nobody."""
    sock = request.environ.get("gunicorn.socket")
    if sock is None or not hasattr(select, "POLLRDHUP"):
        return False
    poll = get_original("select", "poll")()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def id_of_request(given: str | None) -> str:
    """The id of a request: the one that it brought in X-Request-ID, if that is sane, or a fresh one."""
    return given if given and _SANE_ID.match(given) else f"{random.getrandbits(64):016x}"


def headers_of(refusal: BusError) -> dict[str, str]:
    """The headers that a refusal's status asks for."""
    headers = {}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(int(refusal.retry_after_seconds))
    if isinstance(refusal, RateLimited):
        headers.update(refusal.headers)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def our_fault(error: BaseException, path: str) -> BusError:
    """What the caller hears of an error of our own: the log has the story, the caller the request id."""
    log.error("A request failed", exc_info=error, extra={"action": "request_failed", "path": path})
    return BusError("The server failed on this request; its log has the request id.")


class Edge:
    """The hooks around every request."""

    def __init__(self, app: Flask, bus: Bus) -> None:
        self._app = app
        self._bus = bus
        self._pages = Pages(bus.auth)
        self._rights: dict[tuple[str, str], Right] = {}  # by method and rule; read at the first request
        self.on_answer: Callable[[int], None] | None = None  # hears the status of each, within its request

    def before(self) -> Response | None:
        """Give the request its id, then refuse it if it may not come in. Answers only what a browser asks in advance."""
        g.request_id = id_of_request(request.headers.get("X-Request-ID"))
        request_id.set(g.request_id)
        g.caller = g.allowance = None
        g.began = time.perf_counter()
        bus = self._bus
        if not bus.running:
            raise Unavailable(
                "The bus is not running in this process: start it with `python server_ws.py`, or with gunicorn from the"
                " project's folder, so that gunicorn.conf.py is read.",
                code="not_running",
            )
        if self._pages.asks_in_advance():
            return self._pages.answer_in_advance()
        g.right = right = self._right()
        if right in (Right.OPEN, Right.SIGNED):
            if bus.limits.on and not is_exempt(request.path):
                self._count_open(right)
            return None
        bus.auth.check_host(request.host)
        self._pages.check_origin()
        if bus.auth.on:
            check_query(request.query_string)
        g.caller = self._caller()
        if g.caller is not None and bus.limits.on:
            g.allowance = bus.limits.of(g.caller, address())
            spend(1)
        if request.blueprint == "ws":  # a socket may bring its credential in its first frame
            return None
        if g.caller is None:
            self._count_stranger(1)
            raise Unauthenticated("A key is needed; send it as X-API-Key or as Authorization: Bearer.")
        policy.need_right(g.caller, right)
        if request.blueprint in ("rest", "delivery"):
            bus.counters.add("rest_requests")
        return None

    def _caller(self) -> Caller | None:
        """Who calls; None without a credential. A wrong one counts against its address before anything is looked up."""
        auth = self._bus.auth
        try:
            found = auth.caller(request.headers) or self._pages.caller_by_cookie()
        except (Unauthenticated, Unavailable):
            self._count_stranger(1)
            return auth.caller_anew(request.headers) or self._pages.caller_by_cookie()
        if found is not None:
            return found
        self._count_stranger(0)
        ticket = ticket_of_request()
        if ticket is None:
            return None
        try:
            return auth.use_ticket(ticket, (request.view_args or {})["client_id"], g.origin)
        except Unauthenticated:
            self._count_stranger(1)
            raise

    def _count_stranger(self, cost: int) -> None:
        """Take from what may be asked from this address without a valid credential; 0 only looks. Raises RateLimited."""
        allowance = self._bus.limits.of_stranger(address())
        if allowance is not None:
            allowance.take(cost)

    def _count_open(self, right: Right) -> None:
        """Count a request for which no credential is asked: its caller's, if it shows a good one all the same.

        A signature is a credential, too, but the view checks it: what it refuses is counted then.
        """
        auth = self._bus.auth
        if auth.on and right is Right.SIGNED:
            self._count_stranger(0)
            return
        try:
            found = auth.caller(request.headers)
        except (Unauthenticated, Unavailable):
            found = None
        limits = self._bus.limits
        g.allowance = limits.of(found, address()) if found is not None else limits.of_stranger(address())
        spend(1)

    def _right(self) -> Right:
        """What the route asks for: what its Operation says; else, unless its path is open, an administrator."""
        if is_open(request.path):
            return Right.OPEN
        if request.url_rule is None:
            return Right.ANY  # nothing is there, but that is for callers to know
        if not self._rights:
            for operation in self._app.config["OPERATIONS"]:
                for path in (operation.path, operation.path.replace("/api/", "/api/v1/", 1)):
                    self._rights[operation.method, path] = operation.right
        method = "GET" if request.method == "HEAD" else request.method
        return self._rights.get((method, request.url_rule.rule), Right.ADMIN)

    def after(self, response: Response) -> Response:
        """Put the id and the headers of safety on the answer; have what was administered known."""
        response.headers["X-Request-ID"] = g.get("request_id", "")
        self._pages.let_read(response)
        for name, value in FIXED_HEADERS.items():
            response.headers.setdefault(name, value)
        if grants := g.get("grants"):
            response.headers.update(rate_headers(grants))
        if self.on_answer is not None:
            self.on_answer(response.status_code)
        if g.get("right") is Right.ADMIN and request.method not in ("GET", "HEAD", "OPTIONS") and g.caller is not None:
            self._tell(request.method, request.path, "done" if response.status_code < 400 else "failed")
        return response

    def _tell(self, action: str, target: str, outcome: str, **detail: str) -> None:
        """Have the audit hear of the present request."""
        actor = g.caller.name if g.get("caller") is not None else "nobody"
        self._bus.emit(Audited(action, actor, target, outcome, address(), g.get("request_id", ""), detail))

    def refused(self, error: BusError) -> Response:
        """A refusal as JSON."""
        if self._bus.running:
            self._bus.counters.add("errors")
            if error.status == 401 and g.get("right") is Right.SIGNED:
                error = self._counted(error)
            if error.status in (401, 403):
                self._bus.metrics.count("bus_auth_failures_total", error.code)
                g.right = None
                self._tell(request.method, request.path, "refused", code=error.code)
        response = json_answer(error_body(error, g.get("request_id", "")), error.status)
        response.headers.update(headers_of(error))
        return response

    def _counted(self, error: BusError) -> BusError:
        """Count a signature that is wrong. What is to be answered: the refusal, or that there were too many."""
        try:
            self._count_stranger(1)
        except RateLimited as too_many:
            return too_many
        return error

    def http_error(self, error: HTTPException) -> Response:
        """What Flask and Werkzeug refuse, in the same form."""
        status = error.code or 500
        if isinstance(error, ClientDisconnected):
            return json_answer({}, 400)
        sentence = _SENTENCES.get(status, "The request can't be read; compare it with /openapi.json.")
        code = _CODES.get(status, "malformed")
        if isinstance(error, WebsocketMismatch):
            sentence, code = "/ws/<client_id> speaks WebSocket, every other path plain HTTP.", "websocket_mismatch"
        refusal = BusError(sentence, code=code)
        refusal.status = status
        response = self.refused(refusal)
        if status == 405 and getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))  # type: ignore[attr-defined]
        return response

    def crashed(self, error: Exception) -> Response:
        """Whatever a view let through."""
        return self.refused(our_fault(error, request.path))


def caller() -> Caller:
    """Who the present request comes from."""
    assert g.caller is not None
    return g.caller  # type: ignore[no-any-return]


def address() -> str:
    """Whose address the present request comes from; see bus.limits.peers. Empty where there is no bus."""
    found: str | None = g.get("address")
    if found is None:
        bus: Bus | None = current_app.extensions.get("bus")
        peer = request.environ.get("REMOTE_ADDR") or ""
        forwarded = request.headers.get("X-Forwarded-For")
        found = g.address = bus.limits.peers.address(peer, forwarded) if bus is not None else ""
    return found


def spend(cost: int) -> None:
    """Take from what the present caller may ask; an answer tells what is left. Raises RateLimited."""
    allowance: Allowance | None = g.get("allowance")
    if allowance is not None and cost:
        g.grants = allowance.take(cost)


def still_holds(bus: Bus) -> bool:
    """False when the caller's credential has ended since the request began, while it waited: it gets nothing any more."""
    me = caller()
    return not me.credential or bus.auth.holds(me)


def need_still(bus: Bus) -> None:
    """Go on only while the caller's credential holds. Raises Unauthenticated."""
    if not still_holds(bus):
        raise Unauthenticated("The credential ended while the request waited.", code="bad_credential")


def present_caller() -> Caller | None:
    """As `caller`; None where there is no bus, whose edge would have looked."""
    me: Caller | None = g.get("caller")
    return me


def register(app: Flask, bus: Bus) -> None:
    """Put the hooks around every request of the app."""
    edge = Edge(app, bus)
    app.url_map.merge_slashes = False  # else a doubled slash is answered with a redirect, which is no JSON refusal
    app.before_request(edge.before)
    app.after_request(edge.after)
    app.register_error_handler(BusError, edge.refused)
    app.register_error_handler(HTTPException, edge.http_error)
    app.register_error_handler(Exception, edge.crashed)
    app.extensions["edge"] = edge
