"""REST of retention: policies by type, more time for one message, what expires soon, figures, and the archive.

Under /api and, identically, /api/v1. All but the reading of policies and figures needs an administrator.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
from flask import Blueprint, Flask, Response, request

from bus.errors import Malformed
from bus.identity.caller import Right
from bus.message import Names, iso, parse_time
from bus.protocol import encode, read
from bus.retention import policies
from bus.retention.policies import RECORDS, SECOND_US, Policy
from bus.retention.retention import Retention, Wanted
from bus.storage.lifetimes import DEFAULT
from bus.transports import parameters
from bus.transports.answers import MessageBody
from bus.transports.edge import body_of, json_answer
from bus.transports.openapi import Operation, Parameter, serve

BODY_BYTES = 64 * 1024
MAX_RESTORED = 10_000

# ---- bodies and answers


class PolicyBody(msgspec.Struct, forbid_unknown_fields=True):
    """A policy by name (immediate, short, medium, long, permanent) or by seconds.

    `apply_to_stored`: whether stored messages of the type get it, too; what is their own to expire stays as it is.
    """

    policy: str | None = None
    ttl_seconds: float | None = None
    archive_before_delete: bool = False
    apply_to_stored: bool = True


class PolicyAnswer(msgspec.Struct):
    """`ttl_seconds` null: for ever, or, of `immediate`, until it is delivered. `origin`: standard, setting, code, admin."""

    type: str
    policy: str
    ttl_seconds: float | None
    archive_before_delete: bool
    origin: str


class Policies(msgspec.Struct):
    """By type; `$default` holds for every type that has none. `applying`: stored messages are being given a changed one."""

    policies: list[PolicyAnswer]
    applying: bool


class PolicyChanged(msgspec.Struct):
    """`stored`: `applied` (stored messages get it in the next seconds) or `untouched`."""

    status: str
    policy: PolicyAnswer
    stored: str


class ExtendBody(msgspec.Struct, forbid_unknown_fields=True):
    """How much is added to what is left, in seconds."""

    additional_seconds: float


class Extended(msgspec.Struct):
    """When the message expires now; null: never, or once it is delivered."""

    status: str
    message_id: str
    expires_at: str | None


class ExpiringMessage(msgspec.Struct):
    """A message, and when it expires, whichever policy set that."""

    expires_at: str
    message: MessageBody


class ExpiringMessages(msgspec.Struct):
    """In log order. A page may be short, or empty, and still have `more` behind its cursor."""

    messages: list[ExpiringMessage]
    cursor: str
    more: bool


class Removed(msgspec.Struct):
    """What the sweep has removed under a policy, and why: expired, delivered."""

    policy: str
    reason: str
    messages: int
    archived: int
    bytes: int


class ArchiveSize(msgspec.Struct):
    files: int
    messages: int
    bytes: int


class RetentionStats(msgspec.Struct):
    """Figures of one moment. `total_messages` ever; `expired` and `delivered` have been removed, `archived` of both."""

    total_messages: int
    kept_bytes: int
    expired: int
    delivered: int
    archived: int
    removed: list[Removed]
    archive: ArchiveSize
    waiting_for_delivery: int
    applying_policies: bool
    swept_at: str | None


class SweepAsked(msgspec.Struct):
    status: str


class ArchiveFile(msgspec.Struct):
    """A file of the archive: JSON lines, gzipped. The times are those of the oldest and the youngest message."""

    number: int
    file: str
    reason: str
    messages: int
    bytes: int
    oldest: str
    youngest: str
    made_at: str


class ArchiveFiles(msgspec.Struct):
    files: list[ArchiveFile]
    cursor: str
    more: bool


class ArchivedMessage(msgspec.Struct):
    """A message as its recipients got it, when it went, and why."""

    archived_at: str
    reason: str
    message: MessageBody


class ArchivedMessages(msgspec.Struct):
    """In the order in which they went. A page may be short, or empty, and still have `more` behind its cursor.

    `elsewhere`: files of the catalogue that were passed over, since another node's DATA_DIR/archive has them.
    """

    messages: list[ArchivedMessage]
    cursor: str
    more: bool
    elsewhere: list[str]


class RestoreBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which archived messages (times are the messages' own), and to whom; their first recipients if not said."""

    id: str | None = None
    since: str | None = None
    until: str | None = None
    type: str | None = None
    sender: str | None = msgspec.field(default=None, name="from")
    to: str | None = None
    limit: int = 1000


class Restored(msgspec.Struct):
    """`restored` of those found entered the log again; the others are in it. `elsewhere`: as in a search."""

    found: int
    restored: int
    elsewhere: list[str]


_decode_policy = msgspec.json.Decoder(PolicyBody).decode
_decode_extend = msgspec.json.Decoder(ExtendBody).decode
_decode_restore = msgspec.json.Decoder(RestoreBody).decode
_PLACE = re.compile(r"([0-9]{1,15}):([0-9]{1,9})\Z")


# ---- views


class RetentionViews:
    """Each runs in its request's greenlet and may wait."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._names = Names()

    def policies(self) -> Response:
        known = [_policy(policy) for policy in self._retention.policies()]
        return json_answer(Policies(known, bool(self._retention.figures()["applying_policies"])))

    def put_policy(self, message_type: str) -> Response:
        type_ = self._type(message_type)
        body: PolicyBody = read(_decode_policy, body_of(BODY_BYTES), "body")
        policy = policies.policy_of(type_, body.policy, body.ttl_seconds, archive=body.archive_before_delete)
        self._retention.put(policy, to_stored=body.apply_to_stored)
        return json_answer(PolicyChanged("set", _policy(policy), _stored(applied=body.apply_to_stored)))

    def delete_policy(self, message_type: str) -> Response:
        type_ = self._type(message_type)
        applied = "apply_to_stored" not in request.args or parameters.flag("apply_to_stored")
        self._retention.delete(type_, to_stored=applied)
        default = next(policy for policy in self._retention.policies() if policy.type == DEFAULT)
        return json_answer(PolicyChanged("deleted", _policy(default), _stored(applied=applied)))

    def stats(self) -> Response:
        figures = self._retention.figures()
        swept_us = figures.pop("swept_us")
        swept_at = iso(swept_us).decode() if swept_us is not None else None
        return json_answer(msgspec.convert({**figures, "swept_at": swept_at}, RetentionStats))

    def expiring(self) -> Response:
        limit, within = parameters.limit(100), _within()
        after = _whole("cursor", request.args.get("cursor") or "0")
        found, place, more = self._retention.expiring(round(within * SECOND_US), after, limit)
        lines = b",".join(
            b'{"expires_at":"%b","message":%b}' % (iso(moment), self._retention.text_of(message))
            for message, moment in found
        )
        return json_answer(b'{"messages":[%b],"cursor":"%d","more":%b}' % (lines, place, encode(more)))

    def sweep(self) -> Response:
        self._retention.ask_for_sweep()
        return json_answer(SweepAsked("asked"), 202)

    def extend(self, message_id: str) -> Response:
        body: ExtendBody = read(_decode_extend, body_of(BODY_BYTES), "body")
        life = self._retention.extend(message_id, body.additional_seconds)
        expires_at = None if life.expires_us is None else iso(life.expires_us).decode()
        return json_answer(Extended("permanent" if expires_at is None else "extended", message_id, expires_at))

    # ---- the archive

    def files(self) -> Response:
        limit, after = parameters.limit(100), _whole("cursor", request.args.get("cursor") or "0")
        found = self._retention.files(after, limit + 1, _time("since"), _time("until"))
        listed = [
            ArchiveFile(
                entry.number,
                entry.file,
                entry.reason,
                entry.messages,
                entry.bytes,
                iso(entry.first_us).decode(),
                iso(entry.last_us).decode(),
                iso(entry.made_us).decode(),
            )
            for entry in found[:limit]
        ]
        return json_answer(ArchiveFiles(listed, str(listed[-1].number if listed else after), len(found) > limit))

    def archived(self) -> Response:
        args = request.args
        wanted = Wanted(_time("since"), _time("until"), args.get("type"), args.get("from"), args.get("id"))
        found = self._retention.search(wanted, _place(args.get("cursor") or "0:0"), parameters.limit(100))
        lines = b",".join(
            b'{"archived_at":"%b","reason":"%b","message":%b}'
            % (line.archived_at.encode(), line.reason.encode(), bytes(line.message))
            for line in found.lines
        )
        cursor = b"%d:%d" % found.cursor
        end = b'"cursor":"%b","more":%b,"elsewhere":%b' % (cursor, encode(found.more), encode(found.elsewhere))
        return json_answer(b'{"messages":[%b],%b}' % (lines, end))

    def restore(self) -> Response:
        body: RestoreBody = read(_decode_restore, body_of(BODY_BYTES), "body")
        if not 1 <= body.limit <= MAX_RESTORED:
            raise Malformed(f"`limit` must be 1 to {MAX_RESTORED}.", code="bad_field", field="limit")
        to = None if body.to is None else self._names.check_client(body.to, "to")
        since = None if body.since is None else parse_time(body.since, "since")
        until = None if body.until is None else parse_time(body.until, "until")
        wanted = Wanted(since, until, body.type, body.sender, body.id)
        return json_answer(Restored(*self._retention.restore(wanted, to, body.limit)))

    def _type(self, given: str) -> str:
        return given if given in (DEFAULT, *RECORDS) else self._names.check(given, "message_type")


def _policy(policy: Policy) -> PolicyAnswer:
    return msgspec.convert(policies.document(policy), PolicyAnswer)


def _stored(*, applied: bool) -> str:
    return "applied" if applied else "untouched"


def _within() -> float:
    try:
        within = float(request.args.get("within", "3600"))
    except ValueError:
        within = math.nan
    if not 0 <= within <= policies.MAX_SECONDS:
        raise Malformed(
            f"`within` must be a number of seconds from 0 to {policies.MAX_SECONDS:.0f}.",
            code="bad_field",
            field="within",
        )
    return within


def _whole(field: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Malformed(f"`{field}` is none that an answer gave you.", code="bad_cursor", field=field)
    return int(text)


def _place(text: str) -> tuple[int, int]:
    match = _PLACE.match(text)
    if match is None:
        raise Malformed("`cursor` is none that an answer gave you.", code="bad_cursor", field="cursor")
    return int(match[1]), int(match[2])


def _time(field: str) -> int | None:
    text = request.args.get(field)
    return None if not text else parse_time(text, field)


def _operations(views: RetentionViews) -> list[Operation]:
    limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
    cursor = Parameter("cursor", "the cursor of the page before")
    since, until = Parameter("since", "an ISO time"), Parameter("until", "an ISO time")
    narrow = (
        Parameter("type", "only this type"),
        Parameter("from", "only this sender"),
        Parameter("id", "only this id"),
    )
    within = Parameter("within", "seconds from now; 3600 if not given", "number")
    stored = Parameter("apply_to_stored", "true (default) or false: whether stored messages get the default policy")
    policy, expiring = "/api/ttl/policies/<message_type>", "/api/ttl/expiring"
    bad = (400, 413, 415, 507)
    body: Any = PolicyBody
    return [
        Operation("GET", "/api/ttl/policies", views.policies, "How long messages live, by type.", Policies,
                  right=Right.PRESENCE),
        Operation("PUT", policy, views.put_policy, "Make or change a policy.", PolicyChanged, body, (), (*bad, 409)),
        Operation(
            "DELETE", policy, views.delete_policy, "Give a type back to the default policy.", PolicyChanged, None,
            (stored,), (400, 404, 409, 507),
        ),
        Operation("GET", "/api/ttl/stats", views.stats, "What is kept, and what has gone.", RetentionStats,
                  right=Right.PRESENCE),
        Operation(
            "GET", expiring, views.expiring, "What expires soon.", ExpiringMessages, None, (within, limit, cursor), (400,)
        ),
        Operation(
            "POST", "/api/ttl/sweep", views.sweep, "Sweep now, also if the sweep is held.", SweepAsked, None, (), (507,),
            (202,),
        ),
        Operation(
            "POST", "/api/messages/<message_id>/extend", views.extend, "Add to what is left of a message's life.",
            Extended, ExtendBody, (), (*bad, 404),
        ),
        Operation(
            "GET", "/api/archive/files", views.files, "The archive's files.", ArchiveFiles, None,
            (since, until, limit, cursor), (400,),
        ),
        Operation(
            "GET", "/api/archive/messages", views.archived, "Search the archive by time.", ArchivedMessages, None,
            (since, until, *narrow, limit, cursor), (400,),
        ),
        Operation(
            "POST", "/api/archive/restore", views.restore, "Put archived messages into the log again.", Restored,
            RestoreBody, (), (*bad, 429),
        ),
    ]  # fmt: skip


def serve_retention(app: Flask, retention: Retention) -> None:
    """Serve retention under /api and /api/v1."""
    serve(app, Blueprint("retention", __name__), _operations(RetentionViews(retention)))
