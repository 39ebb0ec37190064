"""REST under `/api/` and, identically, `/api/v1/`: requests to bus calls. See `/openapi.json`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from flask import Blueprint, Flask, Response, g, request
from gevent.event import AsyncResult

from bus import __version__
from bus.bus import MAX_UNCOMMITTED
from bus.delivery import whereabouts
from bus.delivery.whereabouts import Whereabouts
from bus.errors import BusError, Malformed, NotFound, Unavailable
from bus.identity import policy
from bus.identity.caller import Right
from bus.message import iso, text_of
from bus.protocol import MAX_WAIT_SECONDS, encode
from bus.resume import Place, place_of
from bus.storage import ClientRow, Filter, Head, Page, Reader, Transaction
from bus.storage.deliveries import Lease
from bus.topics import TopicSet, check_pattern, patterns_of
from bus.transports import answers, parameters
from bus.transports.edge import body_of, caller, json_answer, need_still, spend
from bus.transports.openapi import Operation, Parameter, serve
from bus.transports.sends import Asked, Sends

if TYPE_CHECKING:
    from bus.backplane import Presence
    from bus.bus import Bus

MAX_PAGE_BYTES = 4 * 1024 * 1024
MAX_WAITING_REQUESTS = 4000
"""Long polls of one process; beyond, 503. Well below gunicorn's worker_connections, so that probes always get in."""

Found = tuple[Page, list[Lease]]
"""Plain messages, and what needs an ack."""

CLEARED = (
    "messages",
    "addressed",
    "idempotency",
    "deliveries",
    "settled",
    "scheduled",
    "other_ids",
    "requests",
    "replies",
    "thread_messages",
    "set_aside",
    "undelivered",
    "expired",
)
"""What a clear empties. Dead letters are purged on their own."""


class Rest:
    """The views. Each runs in its request's greenlet and may wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.sends = Sends(bus)
        self._waiting = 0

    # ---- sending

    def send(self) -> Response:
        body = body_of(self.sends.max_bytes)
        return self._publish(self.sends.single(body, request.headers.get, caller()))

    def send_batch(self) -> Response:
        return self._publish(self.sends.batch(body_of(self.sends.max_batch_bytes), request.headers.get, caller()))

    def _publish(self, asked: Asked) -> Response:
        spend(asked.cost - 1)  # the request itself is counted already
        answer = self._answer_to(asked)
        if isinstance(answer, BusError):
            try:
                raise answer
            finally:
                del answer  # it holds this frame, and the frame would hold it: a ring that keeps the body
        return json_answer(answer)

    def _answer_to(self, asked: Asked) -> bytes | BusError:
        settled: Any = AsyncResult()
        self.sends.publish(asked, settled.set)
        return asked.answer(settled.get(), g.request_id)

    # ---- reading

    def messages(self) -> Response:
        bus = self._bus
        name = parameters.acting(bus.names, request.args.get("to"), "to")
        limit, wait = parameters.limit(100), parameters.wait()
        type_, sender = request.args.get("type"), request.args.get("from")
        patterns = patterns_of(request.args.get("topics", ""))
        parameters.need_topics(patterns)
        place = bus.place(name, request.args.get("since"), at_gap_go_to_latest=parameters.at_latest())
        only = Filter(type_, sender, since_us=place.since_us, topics=TopicSet(patterns) if patterns else None)
        page, leases = self._await_page(name, place, only, limit, wait)
        need_still(bus)
        if not parameters.flag("peek"):
            if type_ is None and sender is None and limit:
                bus.cursors.mark(name, page.upto)
            bus.hub.written.messages["http"] += len(page.messages) + len(leases)
        return json_answer(self._page(page, place, leases))

    def _await_page(self, name: str, place: Place, only: Filter, limit: int, wait: float) -> Found:
        """What is there, or comes within `wait` seconds: plain messages after the cursor, and whatever is not acked yet.

        What needs an ack comes first, and leaves half of the page to plain messages if there are that many.
        """
        bus = self._bus

        def job(after: int, reader: Reader) -> Found:
            leases = reader.open_deliveries(name, limit, MAX_PAGE_BYTES // 2, only) if limit else []
            room = limit - min(len(leases), limit // 2)
            page = reader.inbox(name, after, None, room, MAX_PAGE_BYTES // 2, only, only.topics)
            return page, leases[: limit - len(page.messages)]

        if not wait or not limit:
            return self._find(job, place.seq, limit)
        if self._waiting >= MAX_WAITING_REQUESTS:
            raise Unavailable(
                "Too many requests wait already; try again, or connect a WebSocket.", retry_after_seconds=2
            )
        self._waiting += 1
        event = bus.hub.waiter(name, only.topics)
        found: Found = Page([], place.seq, more=False, lost_through=0), []
        timeout = gevent.Timeout(wait)
        try:
            # Before the clock runs: however short the wait, what is there comes.
            found = self._find(job, place.seq, limit)
            timeout.start()
            while not (found[0].messages or found[1] or bus.draining):
                event.wait()
                event.clear()
                found = self._find(job, found[0].upto, limit)
            return found
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            return found
        finally:
            timeout.close()
            bus.hub.forget(name, event)
            self._waiting -= 1

    def _find(self, job: Callable[[int, Reader], Found], after: int, limit: int) -> Found:
        """The first page with a message in it, or the last: one with topics may end early, and be empty."""
        expired = 0
        while True:
            found: Found = self._bus.read(partial(job, after))
            page, leases = found
            page.expired = expired = expired + page.expired
            if page.messages or leases or not page.more or not limit:
                return found
            after = page.upto

    def message(self, message_id: str) -> Response:
        bus = self._bus
        found: Whereabouts | None = bus.read(lambda reader: whereabouts.find(reader, bus.epochs, message_id))
        if found is None or not policy.may_see(caller(), found.message):
            raise NotFound("There is no message with this id; it may have been evicted.", code="unknown_message")
        due = b',"deliver_at":"%b"' % iso(found.due_us) if found.due_us is not None else b""
        body = b'{"message":%b,"recipients":%b%b}' % (
            text_of(found.message, bus.epochs),
            encode(found.recipients),
            due,
        )
        return json_answer(body)

    def log(self) -> Response:
        bus = self._bus
        args, limit = request.args, parameters.limit(100)
        topics = _topic_filter()

        def look(reader: Reader) -> tuple[Place, Filter, int | None]:
            place = place_of(reader, bus.epochs, args.get("since", "earliest"), 0, at_gap_go_to_latest=False)
            until = args.get("until")
            end = place_of(reader, bus.epochs, until, 0, at_gap_go_to_latest=True, field="until") if until else None
            until_us = end.since_us if end else None
            only = Filter(args.get("type"), args.get("from"), args.get("to"), place.since_us, until_us, topics)
            return place, only, end.seq if end and end.since_us is None else None

        place, only, upto = bus.read(look)

        def job(after: int, reader: Reader) -> Found:
            return reader.log(after, upto, limit, MAX_PAGE_BYTES, only), []

        page, _ = self._find(job, place.seq, limit)
        return json_answer(self._page(page, place))

    def _page(self, page: Page, place: Place, leases: list[Lease] | None = None) -> bytes:
        epochs = self._bus.epochs
        texts = [self._bus.courier.text_of(lease) for lease in leases or ()]
        texts += [text_of(message, epochs) for message in page.messages]
        upto = max(page.upto, place.seq)
        tail = b',"gap":%b' % encode(place.gap) if place.gap else b""
        tail += b"" if leases is None else b',"expired":%d' % page.expired
        return b'{"count":%d,"messages":[%b],"cursor":"%b","more":%b%b}' % (
            len(texts),
            b",".join(texts),
            epochs.cursor(upto).encode(),
            b"true" if page.more else b"false",
            tail,
        )

    # ---- clients and status

    def clients(self) -> Response:
        limit, after = parameters.limit(100), request.args.get("cursor", "")
        rows = self._bus.read(lambda reader: reader.clients(after, limit + 1))
        online = self._bus.online()
        listed = [_client(row, online.get(row.name)) for row in rows[:limit]]
        cursor = listed[-1].client if listed else after
        return json_answer(answers.Clients(listed, cursor, len(rows) > limit))

    def client(self, client_id: str) -> Response:
        row = self._bus.read(lambda reader: reader.client(client_id))
        if row is None or not row.known:
            raise NotFound(
                "The bus knows no client of this name; it has neither connected nor sent.", code="unknown_client"
            )
        return json_answer(_client(row, self._bus.online().get(client_id)))

    def status(self) -> Response:
        bus = self._bus
        head, pending_acks = bus.read(_head_and_pending)
        total = bus.counters.total
        online = bus.online()
        metrics = answers.StatusMetrics(
            head.total,
            total("total_connections"),
            sum(presence.connections for presence in online.values()),
            total("errors"),
            bus.heartbeat.messages_per_minute(),
            iso(head.last_stamp_us).decode() if head.last_stamp_us else None,
        )
        by_client = {name: presence.connections for name, presence in online.items()}
        return json_answer(
            answers.Status(
                "draining" if bus.leaving else "running",
                "websocket",
                __version__,
                metrics,
                answers.StatusConnections(sum(by_client.values()), by_client),
                answers.StatusQueue(bus.writer.waiting, MAX_UNCOMMITTED),
                pending_acks,
                answers.Durability(bus.settings.durability, bus.settings.store_name, bus.store.survives),
                bus.epochs.current,
                bus.epochs.cursor(head.seq),
                bus.backplane.size,
            )
        )

    def clear(self) -> Response:

        def job(transaction: Transaction) -> tuple[int, list[Any]]:
            head = transaction.head
            (cleared,) = transaction.execute("SELECT count(*) FROM messages")[0]
            held = transaction.execute(
                "SELECT owner, holder, seq FROM deliveries WHERE state = 1 AND holder LIKE '%/%'"
            )
            for table in CLEARED:
                transaction.execute(f"DELETE FROM {table}")
            transaction.execute("UPDATE backlogs SET waiting = 0, leased = 0")
            transaction.ledger.drop()
            transaction.execute("UPDATE clients SET mark = ?", (head,))
            transaction.execute("UPDATE log_head SET kept_bytes = 0, lost_through = seq")
            return int(cleared), held

        cleared, held = self._bus.write(job)
        self._bus.courier.queues.settled(held, None)
        return json_answer(answers.Cleared("cleared", cleared, self._bus.epochs.cursor(self._bus.hub.tail.delivered)))

    def health(self) -> Response:
        return json_answer(answers.Health("healthy"))


def _topic_filter() -> TopicSet | None:
    pattern = request.args.get("topic")
    if not pattern:
        return None
    if "to" in request.args:
        raise Malformed(
            "`topic` and `to` can't both hold: a message goes to a topic or to clients; give one of them.",
            code="bad_field",
            field="topic",
        )
    return TopicSet([check_pattern(pattern, "topic")])


# ---- answers


def _head_and_pending(reader: Reader) -> tuple[Head, int]:
    pending = reader.execute("SELECT coalesce(sum(waiting + leased), 0) FROM backlogs")
    return reader.head(), int(pending[0][0])


def _client(row: ClientRow, presence: Presence | None) -> answers.Client:
    return answers.Client(
        row.name,
        presence is not None,
        iso(presence.since_us).decode() if presence else None,
        presence.transport if presence else None,
        presence.connections if presence else 0,
        row.waiting,
        iso(row.first_seen_us).decode(),
        iso(row.last_seen_us).decode(),
    )


def _operations(rest: Rest) -> list[Operation]:
    limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
    type_, sender = Parameter("type", "only this type"), Parameter("from", "only this sender")
    on_gap = Parameter("on_gap", "oldest (default) or latest: where to go on when the cursor is gone")
    inbox = (
        Parameter("to", "whose inbox", required=True),
        Parameter("since", "a cursor, an ISO time, latest or earliest; the kept cursor if not given"),
        limit,
        Parameter("wait", f"seconds to wait for a message, 0 to {MAX_WAIT_SECONDS:.0f}", "number"),
        type_,
        sender,
        Parameter("topics", "patterns, parted by commas: also what went to the topics that they match (a.*,b.>)"),
        on_gap,
        Parameter("peek", "true: only look, so that nothing counts as fetched", "boolean"),
    )
    log = (
        Parameter("since", "a cursor or an ISO time; the oldest kept if not given"),
        Parameter("until", "a cursor or an ISO time"),
        limit,
        type_,
        sender,
        Parameter("to", "only what is addressed to this client"),
        Parameter("topic", "only what went to topics that match this pattern (builds.*, builds.>)"),
    )
    key = Parameter("Idempotency-Key", "with it, a repeat is the same message for 24 hours", place="header")
    trace = Parameter("traceparent", "the trace that the message belongs to; it is kept in its headers", place="header")
    listing = (limit, Parameter("cursor", "the cursor of the page before"))
    return [
        Operation(
            "POST",
            "/api/send",
            rest.send,
            "Send a message.",
            answers.Sent,
            answers.SEND_BODY,
            (key, trace),
            (400, 413, 415, 422, 429, 501, 507),
            right=Right.SEND,
        ),
        Operation(
            "POST",
            "/api/send/batch",
            rest.send_batch,
            "Send up to 1,000 messages in one commit.",
            answers.BatchSent,
            answers.BatchBody,
            (),
            (400, 413, 415, 422, 429, 501, 507),
            right=Right.SEND,
        ),
        Operation(
            "GET",
            "/api/messages",
            rest.messages,
            "Read an inbox after a cursor; wait for what comes.",
            answers.Messages,
            None,
            inbox,
            (400,),
            right=Right.READ,
        ),
        Operation(
            "GET",
            "/api/messages/<message_id>",
            rest.message,
            "A message and its delivery state.",
            answers.OneMessage,
            None,
            (),
            (404,),
            right=Right.ANY,
        ),
        Operation(
            "GET",
            "/api/log",
            rest.log,
            "Read the log by cursor or time.",
            answers.Messages,
            None,
            log,
            (400,),
            right=Right.READ_ALL,
        ),
        Operation(
            "GET",
            "/api/clients",
            rest.clients,
            "Who is known, online, and how much waits for them.",
            answers.Clients,
            None,
            listing,
            (400,),
            right=Right.PRESENCE,
        ),
        Operation(
            "GET",
            "/api/clients/<client_id>",
            rest.client,
            "One client.",
            answers.Client,
            None,
            (),
            (404,),
            right=Right.PRESENCE,
        ),
        Operation("GET", "/api/status", rest.status, "How the bus is.", answers.Status, right=Right.PRESENCE),
        Operation(
            "POST",
            "/api/clear",
            rest.clear,
            "Clear all messages; seq never goes back.",
            answers.Cleared,
            None,
            (),
            (507,),
        ),
        Operation(
            "GET", "/health", rest.health, "The process answers.", answers.Health, statuses=(200, 503), right=Right.OPEN
        ),
    ]


def register(app: Flask, bus: Bus) -> None:
    """Serve the REST surface, under /api and /api/v1."""
    rest = Rest(bus)
    blueprint = Blueprint("rest", __name__)
    serve(app, blueprint, _operations(rest))
    app.extensions["rest"] = rest
