"""REST of webhooks: endpoints, tests, the log of deliveries, replays. Under /api and, identically, /api/v1.

Every call needs the right to administer. A secret is shown in the answer that made it, and masked ever after.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from flask import Blueprint, Flask, Response, request
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from bus.delivery.whereabouts import seq_of
from bus.errors import Malformed, Unavailable
from bus.masking import masked
from bus.message import iso, parse_time
from bus.protocol import read
from bus.storage import Reader, Transaction
from bus.transports import parameters
from bus.transports import webhook_answers as answers
from bus.transports.edge import body_of, json_answer
from bus.transports.openapi import Operation, Parameter, serve
from bus.webhooks import deliveries, replays, signing
from bus.webhooks.breaker import Rate
from bus.webhooks.claims import EXCERPT_BYTES
from bus.webhooks.deliveries import Choice
from bus.webhooks.endpoints import (
    MAX_GRACE_SECONDS,
    Config,
    Endpoint,
    Sealed,
    Secret,
    State,
    check_sealed,
    default_config,
    rotated,
)
from bus.webhooks.engine import Webhooks
from bus.webhooks.outlet import kind_of
from bus.webhooks.policy import judge
from bus.webhooks.requests import test_request

if TYPE_CHECKING:
    from bus.bus import Bus

BODY_BYTES = 256 * 1024
MAX_TESTS = 20
"""Tests of one process at once; each waits for a stranger."""

T = TypeVar("T")


class WebhookViews:
    """The views. Each runs in its request's greenlet and may wait."""

    def __init__(self, bus: Bus, webhooks: Webhooks) -> None:
        self._bus = bus
        self._webhooks = webhooks
        self._testing = 0

    # ---- endpoints

    def list(self) -> Response:
        limit, after = parameters.limit(100), request.args.get("cursor", "0")
        if not (after.isascii() and after.isdigit() and len(after) < 19):
            raise Malformed("`cursor` is none that an answer gave you.", code="bad_cursor", field="cursor")
        _, found = self._bus.read(self._webhooks.rows.all)
        page = [endpoint for endpoint in found if endpoint.number > int(after)][: limit + 1]
        shown = page[:limit]
        cursor = str(shown[-1].number) if shown else after
        return json_answer(answers.Endpoints([_shown(each) for each in shown], cursor, len(page) > limit))

    def create(self) -> Response:
        body: answers.CreateBody = read(_decode_create, body_of(BODY_BYTES), "body")
        kind = body.kind or kind_of(body.url)
        config = default_config(_config(Config(events=tuple(body.events), kind=kind), body)).check()
        if body.ed25519 and kind != "http":
            raise Malformed("`ed25519` is for receivers of kind http.", code="bad_field", field="ed25519")
        secret = body.secret
        if secret is None and not self._bus.settings.webhook_secret and kind == "http":
            secret = signing.new_secret()
        kept = () if secret is None else (Secret(secret),)
        pairs = (Secret(signing.new_private_key()),) if body.ed25519 else ()
        sealed = check_sealed(Sealed(body.url, kept, _given(body.headers, {}), pairs))
        self._webhooks.check(body.url)
        state: State = "enabled" if body.enabled else "paused"

        def job(transaction: Transaction) -> Endpoint:
            return self._webhooks.rows.insert(transaction, config, sealed, state, self._now())

        endpoint = self._webhooks.change(job)
        return json_answer(_shown(endpoint, secret))

    def show(self, webhook_id: str) -> Response:
        return json_answer(_shown(self._find(webhook_id)))

    def change(self, webhook_id: str) -> Response:
        body: answers.ChangeBody = read(_decode_change, body_of(BODY_BYTES), "body")
        if isinstance(body.url, str):
            self._webhooks.check(body.url)

        def job(transaction: Transaction) -> Endpoint:
            rows = self._webhooks.rows
            endpoint = rows.find(transaction, webhook_id)
            config = _config(endpoint.config, body).check()
            old = endpoint.sealed or Sealed("")
            sealed = replace(old, url=_given(body.url, old.url), headers=_given(body.headers, old.headers))
            if not sealed.url:
                raise Malformed("The URL can't be read any more; give it again.", code="missing_field", field="url")
            return rows.update(transaction, endpoint, config, check_sealed(sealed))

        return json_answer(_shown(self._webhooks.change(job)))

    def delete(self, webhook_id: str) -> Response:
        rows = self._webhooks.rows
        self._webhooks.change(lambda transaction: rows.delete(transaction, rows.find(transaction, webhook_id)))
        return json_answer(answers.Deleted("deleted", webhook_id))

    def pause(self, webhook_id: str) -> Response:

        def job(transaction: Transaction) -> Endpoint:
            rows = self._webhooks.rows
            endpoint = rows.find(transaction, webhook_id)
            rows.set_state(transaction, endpoint.number, "paused", None, self._now())
            return rows.find(transaction, webhook_id)

        return json_answer(_shown(self._webhooks.change(job)))

    def resume(self, webhook_id: str) -> Response:
        body: answers.ResumeBody = read(_decode_resume, body_of(BODY_BYTES), "body")
        endpoint = self._find(webhook_id)
        held = self._bus.read(lambda reader: deliveries.owed(reader, endpoint.number))
        if body.dry_run:
            return json_answer(answers.Resumed("counted", held))
        while body.held == "set_aside" and self._bus.write(
            lambda transaction: deliveries.set_aside(transaction, endpoint.number, self._now())
        ):
            continue
        self._webhooks.enable(webhook_id)
        return json_answer(answers.Resumed("resumed", held))

    def rotate(self, webhook_id: str) -> Response:
        body: answers.RotateBody = read(_decode_rotate, body_of(BODY_BYTES), "body")
        if not 0 <= body.grace_seconds <= MAX_GRACE_SECONDS:
            raise Malformed(
                f"`grace_seconds` must be 0 to {MAX_GRACE_SECONDS:.0f}.", code="bad_field", field="grace_seconds"
            )
        secret = body.secret or signing.new_secret()

        def job(transaction: Transaction) -> Endpoint:
            rows = self._webhooks.rows
            endpoint = rows.find(transaction, webhook_id)
            if endpoint.sealed is None:
                raise Malformed("The endpoint can't be read any more; give it its URL again first.", code="wrong_key")
            old, default = endpoint.sealed, self._bus.settings.webhook_secret
            if default and not old.secrets:
                old = replace(old, secrets=(Secret(default),))
            sealed = rotated(old, secret, body.grace_seconds, self._now())
            return rows.update(transaction, endpoint, endpoint.config, check_sealed(sealed))

        return json_answer(_shown(self._webhooks.change(job), secret))

    def test(self, webhook_id: str) -> Response:
        """Send one event now, whatever the lane says; it counts nowhere."""
        endpoint = self._find(webhook_id)
        if endpoint.sealed is None:
            raise Malformed("The endpoint can't be read any more; give it its URL again first.", code="wrong_key")
        if self._testing >= MAX_TESTS:
            raise Unavailable(
                "Too many tests wait for receivers already; try again in a moment.", retry_after_seconds=2
            )
        self._testing += 1
        try:
            made = test_request(endpoint, self._now(), int(time.time()), self._bus.settings.webhook_secret)
            answer = self._webhooks.dispatcher.call(endpoint, made)
        finally:
            self._testing -= 1
        verdict = judge(answer, endpoint.config.kind, time.time())
        return json_answer(
            answers.Tested(
                dns_ms=answer.dns_ms,
                connect_ms=answer.connect_ms,
                tls_ms=answer.tls_ms,
                ttfb_ms=answer.ttfb_ms,
                total_ms=answer.total_ms,
                ok=verdict.ok,
                outcome=verdict.name,
                status=answer.status,
                detail=answer.detail,
                address=answer.address,
                response=_text(endpoint.without_secrets(answer.excerpt)[:EXCERPT_BYTES]),
            )
        )

    def stats(self, webhook_id: str) -> Response:
        endpoint = self._find(webhook_id)
        found: deliveries.Stats = self._bus.read(lambda reader: deliveries.stats(reader, endpoint, self._now()))
        fields = {name: getattr(found, name) for name in _STATS}
        rests = None if found.rests_until_us is None else _time(found.rests_until_us)
        lane = answers.Lane(found.lane, rests, found.flagged)
        return json_answer(answers.Stats(id=endpoint.id, state=endpoint.state, **fields, lane=lane))

    # ---- the log

    def deliveries(self) -> Response:
        args, limit = request.args, parameters.limit(100)
        given = args.get("cursor", "")
        before = deliveries.parse_id(given) if given else None
        choice = self._choice(
            args.get("webhook"), args.get("state"), args.get("event"), args.get("since"), args.get("until")
        )
        message_id = args.get("message")

        def look(reader: Reader) -> list[deliveries.Delivery]:
            if message_id is None:
                return deliveries.page(reader, choice, before, limit + 1)
            seq = seq_of(reader, self._bus.epochs, message_id)
            return deliveries.page(reader, replace(choice, seq=-1 if seq is None else seq), before, limit + 1)

        found = self._bus.read(look)
        shown = found[:limit]
        cursor = shown[-1].id if shown else given
        return json_answer(answers.Deliveries([_delivery(each) for each in shown], cursor, len(found) > limit))

    def delivery(self, delivery_id: str) -> Response:
        number = deliveries.parse_id(delivery_id)
        found, attempts = self._bus.read(lambda reader: deliveries.find(reader, number))
        tried = [_attempt(attempt) for attempt in attempts]
        return json_answer(answers.OneDelivery(_delivery(found), msgspec.Raw(found.data), tried))

    def replay_one(self, delivery_id: str) -> Response:
        number = deliveries.parse_id(delivery_id)
        done = self._bus.write(lambda transaction: replays.replay_one(transaction, number, self._now()))
        self._webhooks.dispatcher.wake()
        return json_answer(answers.ReplayedOne(done))

    def replay(self) -> Response:
        body: answers.ReplayBody = read(_decode_replay, body_of(BODY_BYTES), "body")
        choice = self._choice(body.webhook, body.state, body.event, body.since, body.until)
        matched = self._bus.read(lambda reader: replays.matching(reader, choice, self._now()))
        if body.dry_run:
            return json_answer(answers.Replay(None, "counted", matched, 0))
        replay = self._bus.write(lambda transaction: replays.begin(transaction, choice, matched, self._now()))
        return json_answer(_replay(replay), 202)

    def replays(self) -> Response:
        limit = parameters.limit(100)
        found = self._bus.read(lambda reader: replays.latest(reader, limit))
        return json_answer(answers.Replays([_replay(replay) for replay in found]))

    def replay_state(self, replay_id: str) -> Response:
        return json_answer(_replay(self._bus.read(lambda reader: replays.find(reader, replay_id))))

    def replay_cancel(self, replay_id: str) -> Response:
        self._bus.write(lambda transaction: replays.cancel(transaction, replay_id))
        return self.replay_state(replay_id)

    # ---- below

    def _now(self) -> int:
        return self._bus.clock.now_us()

    def _find(self, webhook_id: str) -> Endpoint:
        found: Endpoint = self._bus.read(lambda reader: self._webhooks.rows.find(reader, webhook_id))
        return found

    def _choice(
        self, webhook: str | None, state: str | None, event: str | None, since: str | None, until: str | None
    ) -> Choice:
        return Choice(
            None if webhook is None else self._find(webhook).number,
            deliveries.check_state(state),
            event,
            None if since is None else parse_time(since, "since"),
            None if until is None else parse_time(until, "until"),
        )


_decode_create = msgspec.json.Decoder(answers.CreateBody).decode
_decode_change = msgspec.json.Decoder(answers.ChangeBody).decode
_decode_resume = msgspec.json.Decoder(answers.ResumeBody).decode
_decode_rotate = msgspec.json.Decoder(answers.RotateBody).decode
_decode_replay = msgspec.json.Decoder(answers.ReplayBody).decode

_STATS = ("pending", "oldest_pending_seconds", "dead", "attempts", "successes", "success_rate", "p50_ms", "p95_ms")
_PLAIN = ("description", "max_retries", "timeout_seconds", "ordered")
_LISTS = ("events", "clients", "topics", "types")


def _given(value: T | UnsetType, otherwise: T) -> T:
    return otherwise if isinstance(value, UnsetType) else value


def _config(config: Config, body: answers.Filters) -> Config:
    """The config with what a body says; the rest as it was."""
    changes: dict[str, Any] = {name: getattr(body, name) for name in _PLAIN}
    changes |= {name: v if (v := getattr(body, name)) is UNSET else tuple(v) for name in _LISTS}
    steps, rate = body.schedule_seconds, body.rate
    changes["schedule_seconds"] = tuple(steps) if isinstance(steps, list) else steps
    changes["rate"] = Rate(rate.count, rate.seconds) if isinstance(rate, answers.RateBody) else rate
    return replace(config, **{name: value for name, value in changes.items() if value is not UNSET})


def _time(stamp_us: int) -> str:
    return iso(stamp_us).decode()


def _text(excerpt: bytes) -> str:
    return masked(excerpt.decode(errors="replace"))


def _shown(endpoint: Endpoint, secret: str | None = None) -> answers.Endpoint:
    config, sealed = endpoint.config, endpoint.sealed or Sealed("")
    return answers.Endpoint(
        id=endpoint.id,
        url=endpoint.shown_url,
        kind=config.kind,
        state=endpoint.state if endpoint.sealed is not None else "unreadable",
        reason=endpoint.reason,
        since=_time(endpoint.since_us),
        created=_time(endpoint.created_us),
        events=[*config.events],
        description=config.description,
        clients=[*config.clients],
        topics=[*config.topics],
        types=[*config.types],
        max_retries=config.max_retries,
        timeout_seconds=config.timeout_seconds,
        schedule_seconds=[*config.schedule.steps_seconds],
        rate=[answers.RateBody(rate.count, rate.seconds) for rate in config.limits.rates],
        ordered=config.ordered,
        headers=sorted(sealed.headers),
        secrets=[_until("***", known) for known in sealed.secrets],
        public_keys=[_until(signing.public_key_of(known.text), known) for known in sealed.key_pairs],
        secret=UNSET if secret is None else secret,
    )


def _until(shown: str, known: Secret) -> str:
    return shown if known.until_us is None else f"{shown} until {_time(known.until_us)}"


def _delivery(delivery: deliveries.Delivery) -> answers.Delivery:
    return answers.Delivery(
        id=delivery.id,
        webhook=delivery.endpoint,
        event_id=delivery.event_id,
        event=delivery.event,
        state=delivery.state,
        attempts=delivery.attempts,
        created=_time(delivery.made_us),
        due=_time(delivery.due_us) if delivery.ended_us is None else None,
        ended=None if delivery.ended_us is None else _time(delivery.ended_us),
        cause=delivery.cause,
        sequence=delivery.sequence,
        replayed=delivery.replayed,
    )


def _attempt(attempt: deliveries.Attempt) -> answers.Attempt:
    fields = msgspec.structs.asdict(attempt)
    due, began, ended = (_time(fields.pop(name)) for name in ("due_us", "began_us", "ended_us"))
    return answers.Attempt(
        due=due, began=began, ended=ended, response=_text(fields.pop("excerpt")), bytes=fields.pop("size"), **fields
    )


def _replay(replay: replays.Replay) -> answers.Replay:
    return answers.Replay(replay.id, replay.status, replay.matched, replay.replayed)


def _operations(views: WebhookViews) -> list[Operation]:
    limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
    cursor = Parameter("cursor", "the cursor of the page before")
    choice = (
        Parameter("webhook", "only of this endpoint"),
        Parameter("state", f"one of {', '.join(deliveries.STATES)}"),
        Parameter("event", "only of this name"),
        Parameter("message", "only what is about the message with this id"),
        Parameter("since", "an ISO 8601 time"),
        Parameter("until", "an ISO 8601 time"),
    )
    get, post, patch, delete = "GET", "POST", "PATCH", "DELETE"
    root, one = "/api/webhooks", "/api/webhooks/<webhook_id>"
    log, replay = f"{root}/deliveries", f"{root}/replays"
    bad = (400, 413, 415)
    made = [
        Operation(get, root, views.list, "Endpoints of webhooks.", answers.Endpoints, None, (limit, cursor), (400,)),
        Operation(post, root, views.create, "Make an endpoint; its secret is shown this once.", answers.Endpoint,
                  answers.CreateBody, (), (*bad, 507)),
        Operation(get, log, views.deliveries, "The log of deliveries, the youngest first.", answers.Deliveries, None,
                  (*choice, limit, cursor), (400, 404)),
        Operation(get, f"{log}/<delivery_id>", views.delivery, "One delivery, with every attempt.", answers.OneDelivery,
                  None, (), (404,)),
        Operation(post, f"{log}/<delivery_id>/replay", views.replay_one, "Send one again.", answers.ReplayedOne, None, (),
                  (404, 507)),
        Operation(post, replay, views.replay, "Send many again; count them first with dry_run.", answers.Replay,
                  answers.ReplayBody, (), (*bad, 404, 409, 507), (200, 202)),
        Operation(get, replay, views.replays, "Replays, the youngest first.", answers.Replays, None, (limit,), (400,)),
        Operation(get, f"{replay}/<replay_id>", views.replay_state, "One replay.", answers.Replay, None, (), (404,)),
        Operation(delete, f"{replay}/<replay_id>", views.replay_cancel, "Stop a replay where it is.", answers.Replay,
                  None, (), (404, 507)),
        Operation(get, one, views.show, "One endpoint.", answers.Endpoint, None, (), (404,)),
        Operation(patch, one, views.change, "Change an endpoint.", answers.Endpoint, answers.ChangeBody, (),
                  (*bad, 404, 507)),
        Operation(delete, one, views.delete, "Delete an endpoint, and what it is owed.", answers.Deleted, None, (),
                  (404, 507)),
        Operation(post, f"{one}/pause", views.pause, "Keep what is due to it, and send nothing.", answers.Endpoint, None,
                  (), (404, 507)),
        Operation(post, f"{one}/resume", views.resume, "Send again; count what is held first with dry_run.",
                  answers.Resumed, answers.ResumeBody, (), (*bad, 404, 507)),
        Operation(post, f"{one}/rotate", views.rotate, "Give it a new secret; old ones stay valid for a while.",
                  answers.Endpoint, answers.RotateBody, (), (*bad, 404, 507)),
        Operation(post, f"{one}/test", views.test, "Send a test event now, and say what came of it.", answers.Tested,
                  None, (), (400, 404)),
        Operation(get, f"{one}/stats", views.stats, "How an endpoint fares.", answers.Stats, None, (), (404,)),
    ]  # fmt: skip
    return [replace(operation, name=f"webhooks_{operation.view.__name__}") for operation in made]


def serve_webhooks(app: Flask, bus: Bus, webhooks: Webhooks) -> None:
    """Serve the surface, under /api and /api/v1."""
    serve(app, Blueprint("webhooks", __name__), _operations(WebhookViews(bus, webhooks)))
