"""REST of what stands for a credential: tickets for sockets, sessions for browsers, and the end of JWTs."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal

import msgspec
from flask import Blueprint, Flask, Response, g, request

from bus.errors import Forbidden, Malformed, NotFound
from bus.events import Audited
from bus.identity import tokens
from bus.identity.caller import Right
from bus.identity.origins import origin_of
from bus.identity.policy import Action, need
from bus.identity.tickets import LIFE_SECONDS as TICKET_SECONDS
from bus.message import iso
from bus.protocol import read
from bus.transports.edge import body_of, caller, json_answer
from bus.transports.openapi import Operation, serve
from bus.transports.pages import cookie_name

if TYPE_CHECKING:
    from bus.bus import Bus

BODY_BYTES = 16 * 1024


class TicketBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """For whom the ticket is: without `client` for any name that you may use; `origin`: the page's, if it was not it that
    asked."""

    client: str | None = None
    origin: str | None = None


class TicketMade(msgspec.Struct):
    """A ticket, good for one handshake at `/ws/<client>?ticket=…` within `expires_in` seconds."""

    ticket: str
    expires_in: int
    client: str | None
    origin: str | None


class SessionMade(msgspec.Struct):
    """Whom the cookie stands for, and until when; with auth off there is none, and no end."""

    name: str
    expires_at: str | None


class SessionEnded(msgspec.Struct):
    """It has ended, and its streams and sockets end."""

    status: Literal["ended"]


class RevokeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which JWT: by its `jti`, or whole."""

    jti: str | None = None
    token: str | None = None


class TokenRevoked(msgspec.Struct):
    """It is refused from now on; `until`: then it would have expired anyway, and is forgotten."""

    status: Literal["revoked"]
    id: str
    until: str


class SessionViews:
    """The views. Each runs in its request's greenlet and may wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def buy_ticket(self) -> Response:
        body: TicketBody = read(_decode_ticket, body_of(BODY_BYTES), "body")
        me = caller()
        if body.client is not None:
            need(me, Action.READ, self._bus.names.check_client(body.client, "client"))
        origin = g.origin if body.origin is None else origin_of(body.origin)
        if body.origin is not None and origin is None:
            raise Malformed("`origin` must be like https://app.example:8443.", code="bad_field", field="origin")
        text = self._bus.auth.buy_ticket(me, body.client, origin)
        self._tell("ticket.created", client=body.client or "", origin=origin or "")
        return json_answer(TicketMade(text, TICKET_SECONDS, body.client, origin))

    def begin(self) -> Response:
        me = caller()
        if not self._bus.auth.on:
            return json_answer(SessionMade(me.name, None))
        if g.get("session") is not None:
            raise Forbidden("A session can't be made from a session; log in with the key.", code="needs_credential")
        cookie, session = self._bus.auth.begin_session(me)
        response = json_answer(SessionMade(me.name, iso(session.expires_us).decode()))
        self._set_cookie(response, cookie, math.ceil((session.expires_us - _now_us()) / 1e6))
        self._tell("session.created", session=session.id)
        return response

    def end(self) -> Response:
        session = g.get("session")
        if session is None and self._bus.auth.on:
            raise NotFound("This request came without a session's cookie.", code="no_session")
        if session is not None:
            self._bus.auth.revoke(session.revocable, session.expires_us)
            self._tell("session.ended", session=session.id)
        response = json_answer(SessionEnded("ended"))
        self._set_cookie(response, "", 0)
        return response

    def revoke(self) -> Response:
        body: RevokeBody = read(_decode_revoke, body_of(BODY_BYTES), "body")
        if (body.jti is None) == (body.token is None):
            raise Malformed("Name the JWT by `jti`, or give it whole as `token`.", code="missing_field", field="jti")
        token_id = tokens.id_of_jti(body.jti) if body.jti is not None else tokens.id_of_token(body.token or "")
        until_us = _now_us() + (tokens.MAX_LIFE_SECONDS + 3 * tokens.LEEWAY_SECONDS) * 1_000_000
        self._bus.auth.revoke(token_id, until_us)
        return json_answer(TokenRevoked("revoked", token_id, iso(until_us).decode()))

    # ---- below

    def _set_cookie(self, response: Response, value: str, seconds: int) -> None:
        response.set_cookie(
            cookie_name(),
            value,
            max_age=seconds,
            path="/",
            secure=request.is_secure,
            httponly=True,
            samesite="Strict",
        )

    def _tell(self, action: str, **detail: str) -> None:
        me = caller().name
        self._bus.emit(Audited(action, me, me, "done", request.remote_addr or "", g.request_id, detail))


def _now_us() -> int:
    return time.time_ns() // 1000


_decode_ticket = msgspec.json.Decoder(TicketBody).decode
_decode_revoke = msgspec.json.Decoder(RevokeBody).decode


def _operations(views: SessionViews) -> list[Operation]:
    bad = (400, 413, 415, 507)
    session = "/api/session"
    return [
        Operation("POST", "/api/tickets", views.buy_ticket, f"A ticket for one WebSocket, good for {TICKET_SECONDS} s.",
                  TicketMade, TicketBody, (), bad, right=Right.ANY),
        Operation("POST", session, views.begin, "Log in: a cookie stands for the key.", SessionMade, None, (), (400, 507),
                  right=Right.ANY),
        Operation("DELETE", session, views.end, "Log out: the session ends, on all workers.", SessionEnded, None, (),
                  (404, 409, 507), right=Right.ANY),
        Operation("POST", "/api/tokens/revoke", views.revoke, "End a JWT before it expires.", TokenRevoked, RevokeBody, (),
                  (*bad, 409)),
    ]  # fmt: skip


def register(app: Flask, bus: Bus) -> None:
    """Serve tickets, sessions and revocations, under /api and /api/v1."""
    views = SessionViews(bus)
    serve(app, Blueprint("sessions", __name__), _operations(views))
    app.extensions["sessions"] = views
