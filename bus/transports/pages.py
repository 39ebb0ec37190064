"""Browsers at the edge: which pages may call and what they may read (CORS), and what a cookie alone can't do (CSRF).

A page is known by its Origin, which must be the bus's own or in ALLOWED_ORIGINS, for every method and for sockets. What a
page asks in advance is answered before any credential is looked at. A session's cookie comes with every request of a
browser, so what changes anything needs more: an Origin, and a header or a type of body that no form of a stranger can send.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flask import Response, g, request

from bus.errors import Forbidden, Malformed
from bus.identity.caller import Right

if TYPE_CHECKING:
    from bus.auth import Auth
    from bus.identity.caller import Caller

COOKIE, SECURE_COOKIE = "bus_session", "__Host-bus_session"
"""The cookie's name over http, and over https, where browsers hold the prefix to Secure, one host, and the whole path."""

SUBPROTOCOL, TICKET_SUBPROTOCOL = "bus", "ticket."
"""`new WebSocket(url, ["bus", "ticket." + ticket])` keeps a ticket out of the URL: the bus agrees to the first."""

PREFLIGHT_SECONDS = 600
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
HEADERS = (
    "Authorization, Content-Type, Content-Encoding, X-API-Key, X-Request-ID, X-Requested-With, Idempotency-Key,"
    " Last-Event-ID, traceparent, tracestate"
)
EXPOSED = "X-Request-ID, X-Resumed-From, Retry-After, RateLimit, RateLimit-Policy"

_SAFE = ("GET", "HEAD", "OPTIONS")
_CREDENTIAL = re.compile(
    rb"(?:^|&)(?:api[_-]?key|x-api-key|key|token|access_token|auth|authorization|jwt|secret)=[^&]"
    rb"|bus_[a-z0-9]{1,16}_[a-z0-9]{12}_[A-Za-z0-9]{8}"
    rb"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{4,}\.",
    re.IGNORECASE,
)


class Pages:
    """The checks. They look at the present request, and may wait."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    def asks_in_advance(self) -> bool:
        """True for a preflight: a browser asks whether a page may call."""
        return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers

    def answer_in_advance(self) -> Response:
        """What an allowed page may do. Raises Forbidden for others."""
        self.check_origin()
        headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        }
        return Response(status=204, headers=headers)

    def check_origin(self) -> None:
        """Refuse pages of strangers; without an Origin it is no page, or one of our own. Raises Forbidden."""
        origin = request.headers.get("Origin")
        if origin is None and request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            origin = (
                "null"  # a stranger's image or link can't be read by it, but it would take what is due to the client
            )
        g.origin = None if origin is None else self._auth.origins.check(origin, request.scheme, request.host)

    def let_read(self, response: Response) -> None:
        """Let the page read the answer, if it may."""
        is_open = g.get("right") is Right.OPEN  # the same for whoever asks
        if (request.method in _SAFE and not is_open) or "Origin" in request.headers:  # what a cache may keep
            response.vary.add("Origin")
        if g.get("origin") is not None:
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Allow-Credentials"] = "true"
            response.headers["Access-Control-Expose-Headers"] = EXPOSED

    def caller_by_cookie(self) -> Caller | None:
        """Whom the session's cookie stands for; None without one, or beside a ticket. Raises Unauthenticated, Forbidden."""
        cookie = request.cookies.get(cookie_name())
        if not cookie or ticket_of_request() is not None:
            return None
        caller, g.session = self._auth.session_caller(cookie)
        is_socket = request.blueprint == "ws"
        if (is_socket or request.method not in _SAFE) and g.origin is None:
            raise Forbidden(
                "With a session's cookie a socket, and what changes anything, needs the page's Origin; programs send a key.",
                code="origin_missing",
            )
        if not is_socket and request.method not in _SAFE and not _is_asked_for_first():
            raise Forbidden(
                "With a session's cookie what changes anything needs Content-Type: application/json, or the header"
                " X-Requested-With.",
                code="csrf_header_missing",
            )
        return caller


def _is_asked_for_first() -> bool:
    """True for what no form can send: a browser asks in advance, and strangers are refused."""
    return request.mimetype == "application/json" or "X-Requested-With" in request.headers


def cookie_name() -> str:
    """What the session's cookie is called, as the present request came."""
    return SECURE_COOKIE if request.is_secure else COOKIE


def ticket_of_request() -> str | None:
    """The ticket of a WebSocket's handshake: `?ticket=`, or a subprotocol."""
    if request.blueprint != "ws":
        return None
    ticket = request.args.get("ticket")
    if ticket is None:
        offered = [item.strip() for item in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        ticket = next(
            (item.removeprefix(TICKET_SUBPROTOCOL) for item in offered if item.startswith(TICKET_SUBPROTOCOL)), None
        )
    return ticket


def check_query(query: bytes) -> None:
    """Refuse credentials in a URL, where logs and histories keep them. Raises Malformed."""
    if query and _CREDENTIAL.search(query):
        raise Malformed(
            "A credential in a URL ends up in logs: send it as X-API-Key, or open a socket with a ticket of POST"
            " /api/tickets. Change the one that you have just sent.",
            code="credential_in_url",
        )
