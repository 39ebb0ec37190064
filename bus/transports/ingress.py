"""REST of signed ingress: where webhooks come in, the integrations, and the log. Under /api and, identically, /api/v1.

What comes in is let in by its signature alone; all else needs the right to administer. A secret is shown in the answer that
made it, and masked ever after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Flask, Response, g, request
from msgspec import UNSET
from msgspec.structs import replace

from bus.errors import Conflict, Malformed, UnsupportedMedia
from bus.identity.caller import Right
from bus.ingress import journal
from bus.ingress.gate import Gate, Taken, Visit
from bus.ingress.integrations import Config, Integration, Rate, secret_of
from bus.ingress.signatures import Request
from bus.message import iso
from bus.protocol import read
from bus.storage import Transaction
from bus.transports import ingress_answers as answers
from bus.transports import parameters
from bus.transports.edge import address, body_of, json_answer
from bus.transports.openapi import Operation, Parameter, serve
from bus.webhooks.endpoints import MAX_GRACE_SECONDS, Secret, renewed

if TYPE_CHECKING:
    from bus.bus import Bus

BODY_BYTES = 256 * 1024
ROOT = "/api/integrations"
WEBHOOK = f"{ROOT}/webhook"


class IngressViews:
    """The views. Each runs in its request's greenlet and may wait."""

    def __init__(self, bus: Bus, gate: Gate) -> None:
        self._bus = bus
        self._gate = gate

    def receive(self, integration_id: str) -> Response:
        """Where senders post to. The body is taken as it came: what was signed are these bytes."""
        body = body_of(self._bus.settings.max_message_size, as_it_came=True)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMedia("Send the body as it was signed, without a Content-Encoding.")
        visit = Visit(
            integration_id=integration_id,
            request=Request(request.headers, body),
            path=_path_as_sent(),
            address=address(),
            request_id=g.request_id,
        )
        taken = self._gate.take(visit)
        return json_answer(taken, 202 if taken.status == "accepted" else 200)

    # ---- integrations

    def list(self) -> Response:
        limit, after = parameters.limit(100), _cursor("0")
        found = self._bus.read(lambda reader: self._gate.rows.page(reader, after or 0, limit + 1))
        shown = found[:limit]
        cursor = str(shown[-1].number if shown else after)
        return json_answer(answers.Integrations([self._shown(each) for each in shown], cursor, len(found) > limit))

    def create(self) -> Response:
        body: answers.IntegrationBody = read(_decode_body, body_of(BODY_BYTES), "body")
        config = _config(Config(scheme=body.scheme, to=body.to), body).check(self._bus.names)
        has_default = bool(self._bus.settings.webhook_signature_secret)
        secret = secret_of(body.scheme, body.secret, has_default=has_default)
        kept = () if secret is None else (Secret(secret),)

        def job(transaction: Transaction) -> Integration:
            made = self._gate.rows.insert(transaction, config, kept, self._now())
            return made if body.enabled else self._gate.rows.set_enabled(transaction, made, False)

        return json_answer(self._shown(self._bus.write(job), secret))

    def show(self, integration_id: str) -> Response:
        return json_answer(self._shown(self._find(integration_id)))

    def change(self, integration_id: str) -> Response:
        body: answers.IntegrationChange = read(_decode_change, body_of(BODY_BYTES), "body")
        seen = self._find(integration_id)
        config = _config(seen.config, body)
        config = (config if body.to is UNSET else replace(config, to=body.to)).check(self._bus.names)

        def job(transaction: Transaction) -> Integration:
            known = self._gate.rows.find(transaction, integration_id)
            if known.changed_us != seen.changed_us:
                raise Conflict("Somebody else has just changed this integration; look at it, and try again.")
            return self._gate.rows.update(transaction, known, config, _kept(known), self._now())

        return json_answer(self._shown(self._bus.write(job)))

    def delete(self, integration_id: str) -> Response:
        rows = self._gate.rows
        self._bus.write(lambda transaction: rows.delete(transaction, rows.find(transaction, integration_id)))
        return json_answer(answers.IntegrationDeleted("deleted", integration_id))

    def pause(self, integration_id: str) -> Response:
        return self._enable(integration_id, False)

    def resume(self, integration_id: str) -> Response:
        return self._enable(integration_id, True)

    def rotate(self, integration_id: str) -> Response:
        body: answers.NewSecret = read(_decode_secret, body_of(BODY_BYTES), "body")
        if not 0 <= body.grace_seconds <= MAX_GRACE_SECONDS:
            raise Malformed(
                f"`grace_seconds` must be 0 to {MAX_GRACE_SECONDS:.0f}.", code="bad_field", field="grace_seconds"
            )
        scheme = self._find(integration_id).config.scheme
        secret = secret_of(scheme, body.secret, has_default=False)
        if secret is None:
            raise Malformed(f"`secret` is missing: {scheme} gives you one.", code="missing_field", field="secret")

        def job(transaction: Transaction) -> Integration:
            known = self._gate.rows.find(transaction, integration_id)
            kept = renewed(known.secrets or (), secret, body.grace_seconds, self._now())
            return self._gate.rows.update(transaction, known, known.config, kept, self._now())

        return json_answer(self._shown(self._bus.write(job), secret))

    def events(self, integration_id: str | None = None) -> Response:
        limit, before = parameters.limit(100), _cursor("")
        outcome = request.args.get("outcome")
        found = self._bus.read(lambda reader: journal.page(reader, integration_id, outcome, before, limit + 1))
        shown = [self._event(entry) for entry in found[:limit]]
        cursor = str(shown[-1].number) if shown else request.args.get("cursor", "")
        return json_answer(answers.IntegrationEvents(shown, cursor, len(found) > limit))

    # ---- below

    def _now(self) -> int:
        return self._bus.clock.now_us()

    def _find(self, integration_id: str) -> Integration:
        found: Integration = self._bus.read(lambda reader: self._gate.rows.find(reader, integration_id))
        return found

    def _enable(self, integration_id: str, enabled: bool) -> Response:
        rows = self._gate.rows

        def job(transaction: Transaction) -> Integration:
            return rows.set_enabled(transaction, rows.find(transaction, integration_id), enabled)

        return json_answer(self._shown(self._bus.write(job)))

    def _state(self, known: Integration) -> str:
        if known.secrets is None:
            return "unreadable"
        if not known.enabled:
            return "paused"
        has_one = known.valid(self._now(), self._bus.settings.webhook_signature_secret)
        return "enabled" if has_one else "no_secret"

    def _shown(self, known: Integration, secret: str | None = None) -> answers.Integration:
        config = known.config
        path = f"{WEBHOOK.replace('/api/', '/api/v1/')}/{known.id}"
        return answers.Integration(
            id=known.id,
            path=path,
            url=None if config.public_url is None else config.public_url.rstrip("/") + path,
            state=self._state(known),
            scheme=config.scheme,
            to=config.to,
            type=config.type,
            sender=config.sender,
            description=config.description,
            require_ack=config.require_ack,
            priority=config.priority,
            ttl=config.ttl,
            allowed_ips=None if config.allowed_ips is None else [*config.allowed_ips],
            rate=None if config.rate is None else answers.RateBody(config.rate.count, config.rate.seconds),
            public_url=config.public_url,
            created=_time(known.created_us),
            changed=_time(known.changed_us),
            secrets=[
                "***" if kept.until_us is None else f"*** until {_time(kept.until_us)}" for kept in known.secrets or ()
            ],
            template=config.template,
            secret=UNSET if secret is None else secret,
        )

    def _event(self, entry: journal.Entry) -> answers.IntegrationEvent:
        return answers.IntegrationEvent(
            number=entry.number,
            integration=entry.integration_id,
            timestamp=_time(entry.timestamp_us),
            outcome=entry.outcome,
            count=entry.count,
            address=entry.address,
            request_id=entry.request_id,
            bytes=entry.size,
            event=entry.event,
            delivery=entry.delivery,
            message_id=None if entry.seq is None else self._bus.epochs.id_of(entry.seq).decode(),
        )


_decode_body = msgspec.json.Decoder(answers.IntegrationBody).decode
_decode_change = msgspec.json.Decoder(answers.IntegrationChange).decode
_decode_secret = msgspec.json.Decoder(answers.NewSecret).decode

_PLAIN = ("type", "sender", "description", "require_ack", "priority", "ttl", "public_url")


def _config(config: Config, body: answers.Fields) -> Config:
    """The config with what a body says; the rest as it was."""
    changes: dict[str, Any] = {name: getattr(body, name) for name in _PLAIN}
    if bytes(body.template):
        changes["template"] = body.template
    allowed, rate = body.allowed_ips, body.rate
    changes["allowed_ips"] = tuple(allowed) if isinstance(allowed, list) else allowed
    changes["rate"] = Rate(rate.count, rate.seconds) if isinstance(rate, answers.RateBody) else rate
    return replace(config, **{name: value for name, value in changes.items() if value is not UNSET})


def _kept(known: Integration) -> tuple[Secret, ...]:
    if known.secrets is None:
        raise Malformed("The secrets can't be read any more; rotate them first.", code="wrong_key")
    return known.secrets


def _path_as_sent() -> str:
    """Path and query in the very characters that were sent, since some schemes sign them."""
    raw = str(request.environ.get("RAW_URI", ""))
    return raw if raw.startswith("/") else request.full_path.removesuffix("?")


def _cursor(otherwise: str) -> int | None:
    text = request.args.get("cursor", otherwise)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Malformed("`cursor` is none that an answer gave you.", code="bad_cursor", field="cursor")
    return int(text)


def _time(stamp_us: int) -> str:
    return iso(stamp_us).decode()


def _operations(views: IngressViews) -> list[Operation]:
    limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
    cursor = Parameter("cursor", "the cursor of the page before")
    outcome = Parameter("outcome", "only of this outcome")
    get, post, patch, delete = "GET", "POST", "PATCH", "DELETE"
    one, shown = f"{ROOT}/<integration_id>", answers.Integration
    bad = (400, 413, 415)
    log = (limit, cursor, outcome)
    made = [
        Operation(post, f"{WEBHOOK}/<integration_id>", views.receive, "Where a sender posts its signed webhooks.", Taken,
                  None, (), (*bad, 401, 403, 409, 429, 507), (200, 202), right=Right.SIGNED),
        Operation(get, ROOT, views.list, "Integrations: who may send webhooks here.", answers.Integrations, None,
                  (limit, cursor), (400,)),
        Operation(post, ROOT, views.create, "Make an integration; its secret is shown this once.", shown,
                  answers.IntegrationBody, (), (*bad, 507)),
        Operation(get, f"{ROOT}/events", views.events, "What came of webhooks, the youngest first.",
                  answers.IntegrationEvents, None, log, (400,)),
        Operation(get, one, views.show, "One integration.", shown, None, (), (404,)),
        Operation(patch, one, views.change, "Change an integration.", shown, answers.IntegrationChange, (),
                  (*bad, 404, 409, 507)),
        Operation(delete, one, views.delete, "Delete an integration.", answers.IntegrationDeleted, None, (), (404, 507)),
        Operation(post, f"{one}/pause", views.pause, "Take nothing from it for now.", shown, None, (), (404, 507)),
        Operation(post, f"{one}/resume", views.resume, "Take what it sends again.", shown, None, (), (404, 507)),
        Operation(post, f"{one}/rotate", views.rotate, "Give it a new secret; old ones stay valid for a while.", shown,
                  answers.NewSecret, (), (*bad, 404, 507)),
        Operation(get, f"{one}/events", views.events, "What came of its webhooks, the youngest first.",
                  answers.IntegrationEvents, None, log, (400,), name="ingress_events_of"),
    ]  # fmt: skip
    return [replace(each, name=each.name or f"ingress_{each.view.__name__}") for each in made]


def serve_ingress(app: Flask, bus: Bus, gate: Gate) -> None:
    """Serve the surface, under /api and /api/v1."""
    serve(app, Blueprint("ingress", __name__), _operations(IngressViews(bus, gate)))
