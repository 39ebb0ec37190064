"""REST of the audit trail: its records, and an export. Under /api and, identically, /api/v1, for administrators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Flask, Response, request

from bus.audit import trail
from bus.audit.record import Anchor, Record
from bus.audit.trail import Wanted
from bus.errors import Malformed
from bus.message import parse_time
from bus.protocol import encode
from bus.transports import parameters
from bus.transports.edge import json_answer
from bus.transports.openapi import Operation, Parameter, serve

if TYPE_CHECKING:
    from bus.bus import Bus

OUTCOMES = ("done", "refused", "failed")


class AuditRecords(msgspec.Struct):
    """The youngest first. `cursor` is for the next page, if there is `more`."""

    records: list[Record]
    cursor: str
    more: bool


class AuditViews:
    """Each runs in its request's greenlet and may wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def audit(self) -> Response:
        limit, given, wanted = parameters.limit(100), request.args.get("cursor", ""), _wanted()
        before = _number(given) if given else None
        found = self._bus.read(lambda reader: trail.newest(reader, wanted, before, limit + 1))
        shown = found[:limit]
        cursor = str(shown[-1].number) if shown else given
        return json_answer({"records": shown, "cursor": cursor, "more": len(found) > limit})

    def export(self) -> Response:
        """`{"anchor": …}`, then a line `{"record": …}` for each. A page a read: what is appended meanwhile is in it."""
        wanted = _wanted()
        anchor: Anchor = self._bus.read(lambda reader: trail.anchor(reader.execute))
        return Response(self._lines(anchor, wanted), content_type="application/x-ndjson")

    def _lines(self, anchor: Anchor, wanted: Wanted) -> Iterator[bytes]:
        yield encode({"anchor": anchor}) + b"\n"
        after = anchor.number
        while page := self._page(after, wanted):
            yield b"".join(encode({"record": record}) + b"\n" for record in page)
            after = page[-1].number

    def _page(self, after: int, wanted: Wanted) -> list[Record]:
        found: list[Record] = self._bus.read(lambda reader: trail.following(reader.execute, after, wanted))
        return found


def _wanted() -> Wanted:
    args = request.args
    outcome = args.get("outcome")
    if outcome is not None and outcome not in OUTCOMES:
        raise Malformed(f"`outcome` must be one of {', '.join(OUTCOMES)}.", code="bad_field", field="outcome")
    return Wanted(args.get("actor"), args.get("action"), outcome, _time("since"), _time("until"))


def _time(field: str) -> int | None:
    text = request.args.get(field)
    return None if text is None else parse_time(text, field)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Malformed("`cursor` is none that an answer gave you.", code="bad_cursor", field="cursor")
    return int(text)


def serve_audit(app: Flask, bus: Bus) -> None:
    """Serve the trail under /api and /api/v1."""
    views = AuditViews(bus)
    narrow = (
        Parameter("actor", "only what this caller did: anybody, admin, key:<id>, jwt:<subject>"),
        Parameter("action", "only this operation; `key.*` for all that begin so"),
        Parameter("outcome", "done, refused or failed"),
        Parameter("since", "an ISO time"),
        Parameter("until", "an ISO time"),
    )
    limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
    cursor = Parameter("cursor", "the cursor of the page before")
    operations: list[Any] = [
        Operation(
            "GET", "/api/audit", views.audit, "Who administered the bus, and who was refused.", AuditRecords, None,
            (*narrow, limit, cursor), (400,),
        ),
        Operation(
            "GET", "/api/audit/export", views.export, "The audit trail in order, as JSON lines behind its anchor.",
            str, None, narrow, (400,), media="application/x-ndjson",
        ),
    ]  # fmt: skip
    serve(app, Blueprint("audit", __name__), operations)
