"""REST of identity: API keys, and what a credential may do. Under /api and, identically, /api/v1.

A key's text stands in the answer that made it, and nowhere else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from flask import Blueprint, Flask, Response, request

from bus.errors import Malformed, NotFound
from bus.events import Audited
from bus.identity import keys, policy
from bus.identity.caller import Grant, Right, Scope
from bus.identity.policy import Action
from bus.message import iso
from bus.protocol import read
from bus.storage import Transaction
from bus.transports import parameters
from bus.transports.edge import body_of, caller, json_answer
from bus.transports.openapi import Operation, Parameter, serve

if TYPE_CHECKING:
    from bus.bus import Bus

BODY_BYTES = 256 * 1024
MAX_LIFE_SECONDS = 10 * 366 * 86_400.0


class KeyBody(Grant, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to make: what it grants, what it is for, and when it ends, in seconds from now."""

    label: str = ""
    expires_in: float | None = None


class RotateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How long both keys stay valid, in seconds: a day, if it is not said; and how long the new one lives."""

    grace: float = keys.GRACE_SECONDS
    expires_in: float | None = None


class Granted(msgspec.Struct, kw_only=True):
    """A grant, as it is shown: all of it."""

    scopes: tuple[Scope, ...]
    clients: tuple[str, ...]
    send_to: tuple[str, ...]
    topics: tuple[str, ...]
    queues: tuple[str, ...]
    rate_per_minute: int | None


class KeyShown(Granted, kw_only=True):
    """A key as it is listed. `key`: its text, in the answer that made it only."""

    id: str
    label: str
    state: Literal["active", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    successor: str | None
    key: str | msgspec.UnsetType = msgspec.UNSET


class KeysShown(msgspec.Struct):
    """Keys, by id."""

    keys: list[KeyShown]
    cursor: str
    more: bool


class KeyDeleted(msgspec.Struct):
    """It is gone."""

    status: Literal["deleted"]
    id: str


class Me(Granted, kw_only=True):
    """Who one is, and what one may do."""

    name: str
    admin: bool
    credential: bool
    expires_at: str | None


class ExplainBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to explain: may the key with this id (without one: the caller) do that to whom?"""

    action: str
    target: str = ""
    key_id: str | None = None


class Explained(msgspec.Struct):
    """Whether, and why."""

    caller: str
    action: str
    target: str
    allowed: bool
    why: str


class KeyViews:
    """The views. Each runs in its request's greenlet and may wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def list(self) -> Response:
        limit, after = parameters.limit(100), request.args.get("cursor", "")
        found = self._bus.read(lambda reader: keys.read_keys(reader.execute, "id > ?", (after,)))
        listed = [_shown(key) for key in found[:limit]]
        return json_answer(KeysShown(listed, listed[-1].id if listed else after, len(found) > limit))

    def create(self) -> Response:
        body: KeyBody = read(_decode_key, body_of(BODY_BYTES), "body")
        if len(body.label) > keys.MAX_LABEL:
            raise Malformed(f"`label` may have at most {keys.MAX_LABEL} characters.", code="bad_field", field="label")
        grant = Grant(**_fields(body)).check()
        made = self._make(body.label, grant, body.expires_in)
        self._bus.write(lambda transaction: keys.insert(transaction, made.key))
        self._heeded("key.created", made.key.id, grant)
        return json_answer(_shown(made.key, made.text))

    def show(self, key_id: str) -> Response:
        return json_answer(_shown(self._find(key_id)))

    def rotate(self, key_id: str) -> Response:
        body: RotateBody = read(_decode_rotate, body_of(BODY_BYTES), "body")
        if not 0 <= body.grace <= keys.MAX_GRACE_SECONDS:
            most = f"{keys.MAX_GRACE_SECONDS:.0f}"
            raise Malformed(f"`grace` must be 0 to {most} seconds.", code="bad_field", field="grace")
        old = self._find(key_id)
        made = self._make(old.label, old.grant, body.expires_in)
        grace_us = int(body.grace * 1e6)
        self._bus.write(lambda transaction: keys.rotate(transaction, key_id, made.key, grace_us, _now_us()))
        self._heeded("key.rotated", key_id, old.grant, successor=made.key.id)
        return json_answer(_shown(made.key, made.text))

    def revoke(self, key_id: str) -> Response:
        key: keys.Key = self._bus.write(lambda transaction: keys.revoke(transaction, key_id, _now_us()))
        self._heeded("key.revoked", key_id, key.grant)
        return json_answer(_shown(key))

    def delete(self, key_id: str) -> Response:
        def job(transaction: Transaction) -> keys.Key:
            key = keys.find(transaction.execute, key_id)
            keys.delete(transaction, key_id)
            return key

        key: keys.Key = self._bus.write(job)
        self._heeded("key.deleted", key_id, key.grant)
        return json_answer(KeyDeleted("deleted", key_id))

    def me(self) -> Response:
        me = caller()
        expires = iso(me.expires_us).decode() if me.expires_us is not None else None
        shown = Me(name=me.name, admin=me.admin, credential=me.credential, expires_at=expires, **_fields(me.grant))
        return json_answer(shown)

    def explain(self) -> Response:
        body: ExplainBody = read(_decode_explain, body_of(BODY_BYTES), "body")
        try:
            action = Action(body.action)
        except ValueError:
            known = ", ".join(Action)
            raise Malformed(f"`action` must be one of {known}.", code="bad_field", field="action") from None
        who = caller()
        if body.key_id is not None:
            policy.need(who, Action.ADMINISTER)
            key = self._find(body.key_id)
            who = keys.caller_of(key)
            state = key.state(_now_us())
            if state != "active":
                why = f"The key is {state}: it is refused before it is asked what it may do."
                return json_answer(Explained(who.name, body.action, body.target, allowed=False, why=why))
        decision = policy.decide(who, action, body.target)
        return json_answer(Explained(who.name, body.action, body.target, allowed=decision.allowed, why=decision.why))

    # ---- below

    def _make(self, label: str, grant: Grant, expires_in: float | None) -> keys.Made:
        now = _now_us()
        if expires_in is not None and not 1 <= expires_in <= MAX_LIFE_SECONDS:
            raise Malformed(
                f"`expires_in` must be 1 to {MAX_LIFE_SECONDS:.0f} seconds, or absent.",
                code="bad_field",
                field="expires_in",
            )
        ends = None if expires_in is None else now + int(expires_in * 1e6)
        return keys.make(self._bus.auth.environment, label, grant, now, ends)

    def _find(self, key_id: str) -> keys.Key:
        found: list[keys.Key] = self._bus.read(lambda reader: keys.read_keys(reader.execute, "id = ?", (key_id,)))
        if not found:
            raise NotFound("There is no key with this id.", code="unknown_key")
        return found[0]

    def _heeded(self, action: str, key_id: str, grant: Grant, **more: str) -> None:
        """Have all processes heed a change, and the audit know of it."""
        if self._bus.auth.on:
            self._bus.auth.changed()
        detail = {"scopes": " ".join(grant.scopes), "clients": " ".join(grant.clients)[:500], **more}
        self._bus.emit(Audited(action, caller().name, f"key:{key_id}", "done", detail=detail))


def _shown(key: keys.Key, text: str | msgspec.UnsetType = msgspec.UNSET) -> KeyShown:
    moments = (key.created_us, key.expires_us, key.revoked_us, key.used_us)
    created, expires, revoked, used = (None if at is None else iso(at).decode() for at in moments)
    return KeyShown(
        id=key.id,
        label=key.label,
        state=key.state(_now_us()),  # type: ignore[arg-type]  # one of the three
        **_fields(key.grant),
        created_at=created or "",
        expires_at=expires,
        revoked_at=revoked,
        last_used_at=used,
        successor=key.successor,
        key=text,
    )


def _fields(grant: Grant) -> dict[str, Any]:
    """What a grant says, by name."""
    return {name: getattr(grant, name) for name in Grant.__struct_fields__}


def _now_us() -> int:
    return time.time_ns() // 1000


_decode_key = msgspec.json.Decoder(KeyBody).decode
_decode_rotate = msgspec.json.Decoder(RotateBody).decode
_decode_explain = msgspec.json.Decoder(ExplainBody).decode


def _operations(views: KeyViews) -> list[Operation]:
    limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
    cursor = Parameter("cursor", "the cursor of the page before")
    root, one = "/api/keys", "/api/keys/<key_id>"
    bad = (400, 413, 415, 507)
    return [
        Operation("GET", root, views.list, "API keys, without their secrets.", KeysShown, None, (limit, cursor), (400,)),
        Operation("POST", root, views.create, "Make a key; its text is shown this once.", KeyShown, KeyBody, (), bad),
        Operation("GET", one, views.show, "One key.", KeyShown, None, (), (404,)),
        Operation("POST", f"{one}/rotate", views.rotate, "Give a key a successor; both are valid for a while.", KeyShown,
                  RotateBody, (), (*bad, 404)),
        Operation("POST", f"{one}/revoke", views.revoke, "End a key now, and close its sockets.", KeyShown, None, (),
                  (404, 507)),
        Operation("DELETE", one, views.delete, "Forget a key, which ends it.", KeyDeleted, None, (), (404, 507)),
        Operation("GET", "/api/auth/me", views.me, "Who you are, and what you may do.", Me, right=Right.ANY),
        Operation("POST", "/api/auth/explain", views.explain, "Whether somebody may do something, and why.", Explained,
                  ExplainBody, (), (400, 404, 413, 415), right=Right.ANY),
    ]  # fmt: skip


def register(app: Flask, bus: Bus) -> None:
    """Serve keys, under /api and /api/v1."""
    views = KeyViews(bus)
    serve(app, Blueprint("keys", __name__), _operations(views))
    app.extensions["keys"] = views
