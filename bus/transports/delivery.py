"""REST of what needs an ack and what hangs on it: verdicts, queues, dead letters, requests, replays, threads.

Under /api and, identically, /api/v1, like bus.transports.rest.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Flask, Response, request
from gevent.event import AsyncResult

from bus.delivery import dead_letters
from bus.delivery.dead_letters import Choice, DeadLetter, Done
from bus.delivery.replays import MAX_RATE, Replay
from bus.delivery.requests import Answer, new_correlation
from bus.delivery.threads import Thread, read_thread
from bus.delivery.whereabouts import attempt_of
from bus.errors import BusError, Conflict, Malformed, NotFound, Unavailable
from bus.identity import policy
from bus.identity.caller import Right
from bus.identity.policy import Action
from bus.message import is_cursor, iso, now_us, parse_cursor, text_of
from bus.protocol import (
    DEFAULT_REQUEST_WAIT,
    Question,
    Verdict,
    ack_wait_of,
    decode_question,
    decode_verdict,
    draft_of,
    encode,
    read,
    settle_of,
    wait_of,
)
from bus.resume import Place, place_of
from bus.storage import Filter, Reader, Transaction
from bus.storage.deliveries import Settled
from bus.storage.ledger import VERBS
from bus.topics import TopicSet, check_pattern
from bus.trace_context import joined, trace_of
from bus.transports import delivery_answers as answers
from bus.transports import parameters
from bus.transports.edge import body_of, caller, caller_is_gone, json_answer, need_still, still_holds
from bus.transports.openapi import Operation, Parameter, serve

if TYPE_CHECKING:
    from bus.bus import Bus

MAX_CLAIMED = 100
MAX_WAITING = 4000
"""Claims and requests of one process that wait at once; beyond, 503, so that probes always get in."""

MAX_REDRIVEN = 10_000
BODY_BYTES = 64 * 1024


class DeliveryViews:
    """The views. Each runs in its request's greenlet and may wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting = 0

    # ---- verdicts

    def settle(self, message_id: str, verb: str) -> Response:
        body: Verdict = read(decode_verdict, body_of(BODY_BYTES), "body")
        client = parameters.acting(self._bus.names, body.client, "client")
        result: AsyncResult[Settled | BusError] = AsyncResult()
        self._bus.courier.settle(settle_of(verb, body, message_id, client), result.set)
        settled = result.get()
        assert settled is not None  # a get without a timeout waits
        if isinstance(settled, BusError):
            raise settled
        until = iso(settled.until_us).decode() if settled.until_us is not None else msgspec.UNSET
        return json_answer(answers.Settled(message_id, settled.status, settled.attempt, until))

    def cancel(self, message_id: str) -> Response:
        """Take back a message that waits for its time."""

        me = caller()

        def job(transaction: Transaction) -> bool:
            found = transaction.execute("SELECT sender FROM scheduled WHERE id = ?", (message_id,))
            if found:
                policy.need(me, Action.ACT, found[0][0])
                transaction.execute("DELETE FROM scheduled WHERE id = ?", (message_id,))
            return bool(found)

        if not self._bus.write(job):
            rows = self._bus.read(lambda reader: reader.execute("SELECT 1 FROM other_ids WHERE id = ?", (message_id,)))
            if rows or self._bus.epochs.seq_of(message_id) is not None:
                raise Conflict("This message is in the log already; it can't be taken back.", code="already_sent")
            raise NotFound("No message with this id waits for its time.", code="unknown_message")
        return json_answer(answers.Cancelled("cancelled", message_id))

    # ---- queues

    def claim(self, queue: str) -> Response:
        bus = self._bus
        body: answers.ClaimBody = read(_decode_claim, body_of(BODY_BYTES), "body")
        client = parameters.acting(bus.names, body.client, "client")
        owner = f"queue:{bus.names.check(queue, 'queue')}"
        policy.need(caller(), Action.CLAIM, queue)
        if not 1 <= body.limit <= MAX_CLAIMED:
            raise Malformed(f"`limit` must be 1 to {MAX_CLAIMED}.", code="bad_field", field="limit")
        ack_wait_us = None if body.ack_wait is None else ack_wait_of(body.ack_wait)
        wait = self._begin_wait(wait_of(body.wait, 0.0))
        try:
            leases = bus.courier.queues.claim(owner, client, body.limit, wait, ack_wait_us)
        finally:
            self._end_wait(wait)
        if leases and (caller_is_gone() or not still_holds(bus)):
            bus.courier.queues.give_back([(owner, lease.message.seq) for lease in leases], client)
            leases = []  # it may have hung up one way only, and must not work on what others get now
        need_still(bus)
        texts = b",".join(map(bus.courier.hand_out, leases))
        bus.hub.written.messages["http"] += len(leases)
        return json_answer(b'{"messages":[%b]}' % texts)

    def queues(self) -> Response:
        limit, after = parameters.limit(100), request.args.get("cursor", "")
        rows = self._bus.read(
            partial(_queue_rows, after=f"queue:{after}", limit=limit + 1, clock=self._bus.clock.now_us)
        )
        listed = [self._queue(row) for row in rows[:limit]]
        return json_answer(answers.Queues(listed, listed[-1].queue if listed else after, len(rows) > limit))

    def queue(self, queue: str) -> Response:
        self._bus.names.check(queue, "queue")
        return json_answer(self._one_queue(queue))

    def set_queue(self, queue: str) -> Response:
        self._set_cap(f"queue:{self._bus.names.check(queue, 'queue')}")
        return json_answer(self._one_queue(queue))

    def set_inbox(self, client_id: str) -> Response:
        name = self._bus.names.check_client(client_id, "client_id")
        cap = self._set_cap(name)
        return json_answer(answers.Inbox(name, cap.limit or self._bus.settings.inbox_limit, cap.on_full or "refuse"))

    def _set_cap(self, owner: str) -> answers.CapBody:
        body: answers.CapBody = read(_decode_cap, body_of(BODY_BYTES), "body")
        if body.limit is not None and not 1 <= body.limit <= 10_000_000:
            raise Malformed("`limit` must be 1 to 10000000.", code="bad_field", field="limit")
        self._bus.write(lambda transaction: transaction.ledger.set_cap(owner, body.limit, body.on_full))
        return body

    def _one_queue(self, queue: str) -> answers.Queue:
        owner = f"queue:{queue}"
        rows = self._bus.read(partial(_queue_rows, after=None, owner=owner, limit=1, clock=self._bus.clock.now_us))
        return self._queue(rows[0] if rows else (owner, 0, 0, None, None, None))

    def _queue(self, row: tuple[Any, ...]) -> answers.Queue:
        owner, waiting, leased, capacity, on_full, oldest = row
        return answers.Queue(
            owner.removeprefix("queue:"),
            waiting,
            leased,
            oldest,
            self._bus.courier.queues.takers(owner),
            capacity or self._bus.settings.queue_limit,
            on_full or "refuse",
        )

    # ---- dead letters

    def dead_letters(self) -> Response:
        limit, after = parameters.limit(100), dead_letters.parse_rank(request.args.get("cursor", ""))
        choice = _choice()
        letters = self._bus.read(lambda reader: dead_letters.page(reader, choice, after, limit + 1))
        listed = letters[:limit]
        cursor = dead_letters.cursor_of(listed[-1].rank) if listed else request.args.get("cursor", "")
        return self._letters(listed, cursor, more=len(letters) > limit)

    def dead_letter(self, message_id: str) -> Response:
        choice = Choice(id=message_id)
        letters = self._bus.read(lambda reader: dead_letters.page(reader, choice, dead_letters.START, 1000))
        if not letters:
            raise NotFound("There is no dead letter with this id.", code="unknown_dead_letter")
        return self._letters(letters, "", more=False)

    def redrive(self, message_id: str) -> Response:
        body: answers.RedriveOneBody = read(_decode_redrive_one, body_of(BODY_BYTES), "body")
        return self._redriven(self._existing(Choice(owner=body.owner, id=message_id)), 1000)

    def redrive_many(self) -> Response:
        body: answers.RedriveBody = read(_decode_redrive, body_of(BODY_BYTES), "body")
        if not 1 <= body.limit <= MAX_REDRIVEN:
            raise Malformed(f"`limit` must be 1 to {MAX_REDRIVEN}.", code="bad_field", field="limit")
        choice = Choice(body.owner, _reason(body.reason), body.sender)
        if body.dry_run:
            return json_answer(answers.Redriven(self._bus.read(lambda reader: dead_letters.count(reader, choice)), 0))
        return self._redriven(choice, body.limit)

    def _redriven(self, choice: Choice, limit: int) -> Response:
        done: Done = dead_letters.redrive(self._bus.write, choice, limit)
        self._bus.courier.tell_failures(done.failures)
        return json_answer(answers.Redriven(done.matched, done.done))

    def purge(self, message_id: str) -> Response:
        return self._purged(self._existing(Choice(owner=request.args.get("owner"), id=message_id)))

    def purge_many(self) -> Response:
        choice = _choice()
        if parameters.flag("dry_run"):
            return json_answer(answers.Purged(self._bus.read(lambda reader: dead_letters.count(reader, choice)), 0))
        return self._purged(choice)

    def _purged(self, choice: Choice) -> Response:
        done = dead_letters.purge(self._bus.write, choice, MAX_REDRIVEN)
        return json_answer(answers.Purged(done.matched, done.done))

    def _existing(self, choice: Choice) -> Choice:
        if not self._bus.read(lambda reader: dead_letters.count(reader, choice)):
            raise NotFound("There is no dead letter with this id.", code="unknown_dead_letter")
        return choice

    def _letters(self, letters: list[DeadLetter], cursor: str, *, more: bool) -> Response:
        texts = b",".join(self._letter(letter) for letter in letters)
        tail = encode(cursor), b"true" if more else b"false"
        return json_answer(b'{"dead_letters":[%b],"cursor":%b,"more":%b}' % (texts, *tail))

    def _letter(self, letter: DeadLetter) -> bytes:
        attempts = [attempt_of(attempt) for attempt in msgspec.json.decode(letter.attempts)]
        head = {
            "id": letter.message.own_id,
            "owner": letter.owner,
            "reason": letter.reason,
            "detail": letter.detail,
            "died_at": iso(letter.died_us).decode(),
            "attempts": attempts,
        }
        return b'%b,"message":%b}' % (encode(head)[:-1], text_of(letter.message, self._bus.epochs))

    # ---- requests

    def request(self) -> Response:
        bus = self._bus
        body: Question = read(decode_question, body_of(bus.settings.max_message_size), "body")
        sender = parameters.acting(bus.names, body.sender, "from")
        body.headers = joined(body.headers, trace_of(request.headers.get))
        body.idempotency_key = request.headers.get("Idempotency-Key") or body.idempotency_key
        if body.correlation_id is None:
            body.correlation_id = new_correlation(body.idempotency_key)
        draft = draft_of(body, sender, body.type, names=bus.names, stamp_us=now_us())
        policy.authorise(caller(), draft.message, body.on_behalf_of)
        wait = self._begin_wait(wait_of(body.wait, DEFAULT_REQUEST_WAIT))
        bus.metrics.count("bus_sends_total", "http")
        try:
            answer = bus.delivery.requests.ask(draft, wait, require_online=body.require_online)
        finally:
            self._end_wait(wait)
        need_still(bus)
        return self._answer(answer)

    def request_state(self, request_id: str) -> Response:
        wait = self._begin_wait(parameters.wait())
        try:
            answer = self._bus.delivery.requests.look(request_id, wait)
            need_still(self._bus)
            policy.need(caller(), Action.ACT, answer.asker)
            return self._answer(answer)
        finally:
            self._end_wait(wait)

    def _answer(self, answer: Answer) -> Response:
        return json_answer(answer.text(self._bus.epochs), 202 if answer.status == "pending" else 200)

    # ---- replays and threads

    def replay(self) -> Response:
        bus = self._bus
        if bus.vitals.disk.is_on:
            raise bus.vitals.disk.refusal()
        body: answers.ReplayBody = read(_decode_replay, body_of(BODY_BYTES), "body")
        recipient = bus.names.check_client(body.to, "to")
        if body.topic is not None and body.source is not None:
            raise Malformed("`topic` says where it comes from; leave `source` out.", code="bad_field", field="source")
        topics = TopicSet([check_pattern(body.topic, "topic")]) if body.topic is not None else None
        if not 0.1 <= body.rate <= MAX_RATE:
            raise Malformed(f"`rate` must be 0.1 to {MAX_RATE:.0f} messages a second.", code="bad_field", field="rate")

        def places(reader: Reader) -> tuple[Place, Place | None, int]:
            start = place_of(reader, bus.epochs, body.since, 0, at_gap_go_to_latest=False)
            end = body.until and place_of(reader, bus.epochs, body.until, 0, at_gap_go_to_latest=True, field="until")
            return start, end or None, reader.head().seq

        start, end, head = bus.read(places)
        upto = end.seq if end is not None and end.since_us is None else head
        to = recipient if body.source in (None, "inbox") and topics is None else None
        narrow = Filter(body.type, body.sender, to, start.since_us, end.since_us if end is not None else None, topics)
        replay = bus.delivery.replays.begin(recipient, start.seq, upto, narrow, body.rate)
        return json_answer(self._replay(replay), 202)

    def replays(self) -> Response:
        return json_answer(
            answers.Replays([self._replay(r) for r in self._bus.delivery.replays.latest(parameters.limit(100))])
        )

    def replay_state(self, replay_id: str) -> Response:
        return json_answer(self._replay(self._bus.delivery.replays.find(replay_id)))

    def replay_cancel(self, replay_id: str) -> Response:
        return json_answer(self._replay(self._bus.delivery.replays.cancel(replay_id)))

    def _replay(self, replay: Replay) -> answers.Replay:
        cursor = self._bus.epochs.cursor
        return answers.Replay(
            replay.id,
            replay.status,
            replay.recipient,
            cursor(replay.first),
            cursor(replay.upto),
            cursor(replay.position),
            replay.copied,
            replay.rate,
        )

    def thread(self, thread_id: str) -> Response:
        bus = self._bus
        limit, given = parameters.limit(100), request.args.get("cursor", "")
        if given and not is_cursor(given):
            raise Malformed("`cursor` is none that an answer gave you.", code="bad_cursor", field="cursor")
        after = parse_cursor(given, "cursor")[1] if given else 0
        thread: Thread = bus.read(lambda reader: read_thread(reader, thread_id, after, limit))
        if not thread.count:
            raise NotFound("No message carries this thread_id.", code="unknown_thread")
        last = thread.messages[-1].seq if thread.messages else after
        head = {
            "thread_id": thread_id,
            "count": thread.count,
            "participants": thread.participants,
            "started_at": iso(thread.started_us or 0).decode(),
            "last_activity": iso(thread.last_us or 0).decode(),
            "cursor": bus.epochs.cursor(last),
            "more": thread.more,
        }
        texts = b",".join(text_of(message, bus.epochs) for message in thread.messages)
        return json_answer(b'%b,"messages":[%b]}' % (encode(head)[:-1], texts))

    # ---- below

    def _begin_wait(self, wait: float) -> float:
        if not wait or self._bus.draining:
            return 0.0
        if self._waiting >= MAX_WAITING:
            raise Unavailable("Too many requests wait already; try again in a moment.", retry_after_seconds=2)
        self._waiting += 1
        return wait

    def _end_wait(self, wait: float) -> None:
        self._waiting -= 1 if wait else 0


_decode_claim = msgspec.json.Decoder(answers.ClaimBody).decode
_decode_cap = msgspec.json.Decoder(answers.CapBody).decode
_decode_redrive_one = msgspec.json.Decoder(answers.RedriveOneBody).decode
_decode_redrive = msgspec.json.Decoder(answers.RedriveBody).decode
_decode_replay = msgspec.json.Decoder(answers.ReplayBody).decode

_QUEUES = """
SELECT b.owner, b.waiting, b.leased, b.capacity, b.on_full,
       (SELECT min(m.stamp) FROM messages m WHERE m.seq = (SELECT min(d.seq) FROM deliveries d WHERE d.owner = b.owner))
  FROM backlogs b WHERE {where} ORDER BY b.owner LIMIT ?"""


def _queue_rows(
    reader: Reader, *, after: str | None, limit: int, clock: Any, owner: str | None = None
) -> list[tuple[Any, ...]]:
    """(owner, waiting, leased, capacity, on_full, age of the oldest in seconds)."""
    if owner is not None:
        rows = reader.execute(_QUEUES.format(where="b.owner = ?"), (owner, limit))
    else:
        rows = reader.execute(_QUEUES.format(where="b.owner > ? AND b.owner < 'queue;'"), (after, limit))
    now = clock()
    return [(*row[:5], None if row[5] is None else max((now - row[5]) / 1e6, 0.0)) for row in rows]


def _choice() -> Choice:
    args = request.args
    return Choice(args.get("owner"), _reason(args.get("reason")), args.get("from"))


def _reason(reason: str | None) -> str | None:
    if reason is not None and reason not in dead_letters.REASONS:
        raise Malformed(f"`reason` must be one of {', '.join(dead_letters.REASONS)}.", code="bad_field", field="reason")
    return reason


def _operations(views: DeliveryViews) -> list[Operation]:
    limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
    wait = Parameter("wait", "seconds to wait, 0 to 50", "number")
    cursor = Parameter("cursor", "the cursor of the page before")
    owner = Parameter("owner", "a client, or queue:<name>")
    choice = (owner, Parameter("reason", f"one of {', '.join(dead_letters.REASONS)}"), Parameter("from", "the sender"))
    dry_run = Parameter("dry_run", "true: only count", "boolean")
    key = Parameter("Idempotency-Key", "with it, a repeat is the same message for 24 hours", place="header")
    trace = Parameter(
        "traceparent", "the trace that the question belongs to; it is kept in its headers", place="header"
    )
    get, post, put, delete = "GET", "POST", "PUT", "DELETE"
    letters, letter = "/api/dead-letters", "/api/dead-letters/<message_id>"
    replay = "/api/replays/<replay_id>"
    bad = (400, 413, 415)
    told = "What a recipient says of a message: "
    verbs = {
        "ack": "it is done.",
        "nack": "try again later; counted.",
        "progress": "more time, please.",
        "release": "somebody else should; not counted.",
        "reject": "it can't be done; a dead letter.",
    }
    return [
        *(
            Operation(
                post, f"/api/messages/<message_id>/{verb}", partial(views.settle, verb=verb), told + verbs[verb],
                answers.Settled, Verdict, (), (*bad, 403, 404, 507), name=verb, right=Right.READ,
            )
            for verb in sorted(VERBS)
        ),
        Operation(delete, "/api/messages/<message_id>", views.cancel, "Take back a message that waits for its time.",
                  answers.Cancelled, None, (), (404, 409, 507), right=Right.SEND),
        Operation(get, "/api/queues", views.queues, "The queues: depth, age, takers.", answers.Queues, None,
                  (limit, cursor), (400,), right=Right.PRESENCE),
        Operation(get, "/api/queues/<queue>", views.queue, "One queue.", answers.Queue, None, (), (400,),
                  right=Right.PRESENCE),
        Operation(put, "/api/queues/<queue>", views.set_queue, "Cap a queue.", answers.Queue, answers.CapBody, (),
                  (*bad, 507)),
        Operation(put, "/api/clients/<client_id>", views.set_inbox, "Cap an inbox.", answers.Inbox, answers.CapBody, (),
                  (*bad, 507)),
        Operation(post, "/api/queues/<queue>/claim", views.claim, "Take items of a queue, each with a lease.",
                  answers.Claimed, answers.ClaimBody, (), (*bad, 507), right=Right.READ),
        Operation(get, letters, views.dead_letters, "Dead letters, the oldest first.", answers.DeadLetters, None,
                  (*choice, limit, cursor), (400,)),
        Operation(get, letter, views.dead_letter, "The dead letters of one message, one for each owner.",
                  answers.DeadLetters, None, (), (404,)),
        Operation(post, f"{letter}/redrive", views.redrive, "Send a dead letter again.", answers.Redriven,
                  answers.RedriveOneBody, (), (*bad, 404, 507)),
        Operation(post, f"{letters}/redrive", views.redrive_many, "Send many again; they are counted first.",
                  answers.Redriven, answers.RedriveBody, (), (*bad, 507)),
        Operation(delete, letter, views.purge, "Throw a dead letter away.", answers.Purged, None, (owner,), (404, 507)),
        Operation(delete, letters, views.purge_many, "Throw many away; they are counted first.", answers.Purged, None,
                  (*choice, dry_run), (400, 507)),
        Operation(post, "/api/request", views.request, "Send a message and wait for its answer.", answers.Answer,
                  answers.REQUEST_BODY, (key, trace), (*bad, 409, 422, 429, 507), statuses=(200, 202), right=Right.SEND),
        Operation(get, "/api/requests/<request_id>", views.request_state, "How a request stands.", answers.Answer, None,
                  (wait,), (400, 404), statuses=(200, 202), right=Right.ANY),
        Operation(post, "/api/replay", views.replay, "Put a range of the log into an inbox again.", answers.Replay,
                  answers.ReplayBody, (), (*bad, 409, 507), statuses=(202,)),
        Operation(get, "/api/replays", views.replays, "Replays, the youngest first.", answers.Replays, None,
                  (limit,), (400,)),
        Operation(get, replay, views.replay_state, "One replay.", answers.Replay, None, (), (404,)),
        Operation(delete, replay, views.replay_cancel, "Stop a replay where it is.", answers.Replay, None, (), (404, 507)),
        Operation(get, "/api/threads/<path:thread_id>", views.thread, "The messages of a thread, in order.",
                  answers.Thread, None, (limit, cursor), (400, 404), right=Right.READ_ALL),
    ]  # fmt: skip


def register(app: Flask, bus: Bus) -> None:
    """Serve the delivery surface, under /api and /api/v1."""
    views = DeliveryViews(bus)
    blueprint = Blueprint("delivery", __name__)
    serve(app, blueprint, _operations(views))
    app.extensions["delivery"] = views
