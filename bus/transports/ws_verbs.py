"""The WebSocket verbs beside `send`: what recipients say of messages, subscriptions, requests. On the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import gevent

from bus.connection import Connection
from bus.delivery.requests import new_correlation
from bus.errors import BusError, Malformed, Unavailable
from bus.identity import policy
from bus.identity.caller import Caller
from bus.identity.policy import Action
from bus.message import now_us
from bus.protocol import (
    DEFAULT_REQUEST_WAIT,
    Draft,
    Frame,
    acked_frame,
    draft_of,
    encode,
    error_frame,
    settle_of,
    subscribed_frame,
    wait_of,
)
from bus.storage import ledger
from bus.storage.deliveries import Settled
from bus.topics import check_patterns

if TYPE_CHECKING:
    from bus.bus import Bus

DEFAULT_IN_FLIGHT, MAX_IN_FLIGHT = 10, 1000
MAX_QUEUES = 1000
MAX_ASKING = 4000
"""Requests over sockets that wait for their answers, on one process; beyond, an error that says so."""


class Verbs:
    """One for all connections of a process. Each verb raises BusError for what can't be done."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._asking = 0

    # ---- what recipients say

    def settle(self, connection: Connection, frame: Frame) -> None:
        """ack, nack, progress, release, reject."""
        if not frame.message_id:
            raise Malformed("`message_id` is missing; say which message.", code="missing_field", field="message_id")
        said = settle_of(frame.type, frame, frame.message_id, connection.client)
        self._bus.courier.settle(said, partial(self._settled, connection, frame.ref, frame.message_id))

    def _settled(
        self, connection: Connection, ref: str | int | None, message_id: str, answer: Settled | BusError
    ) -> None:
        if isinstance(answer, BusError):
            self._bus.counters.add("errors")
            connection.reply(error_frame(answer, ref))
        elif ref is not None:
            connection.reply(acked_frame(ref, message_id, answer.status, answer.attempt))

    # ---- subscriptions

    def subscribe(self, connection: Connection, frame: Frame) -> None:
        """Change what the connection subscribed to, all of it or nothing, and say what that is now."""
        bus = self._bus
        if len(frame.queues or ()) > MAX_QUEUES:
            raise _too_many_queues()
        patterns = check_patterns(frame.topics or ())
        owners = [f"queue:{bus.names.check(name, 'queues')}" for name in frame.queues or ()]
        limit = frame.max_in_flight
        if limit is None:  # as it was
            limit = (connection.consumer and connection.consumer.max_in_flight) or DEFAULT_IN_FLIGHT
        if not 1 <= limit <= MAX_IN_FLIGHT:
            raise Malformed(f"`max_in_flight` must be 1 to {MAX_IN_FLIGHT}.", code="bad_field", field="max_in_flight")
        taking = connection.consumer.queues if connection.consumer else {}
        if frame.type == "subscribe":
            _check_rights(connection, patterns, frame.queues or ())
            if len(taking.keys() | set(owners)) > MAX_QUEUES:
                raise _too_many_queues()
            bus.audience.subscribe(connection, patterns)
            if owners or (taking and frame.max_in_flight is not None):
                bus.courier.queues.subscribe(bus.courier.consumer_of(connection), owners, limit)
        else:
            bus.audience.unsubscribe(connection, patterns)
            if connection.consumer is not None:
                bus.courier.queues.unsubscribe(connection.consumer, owners)
        topics = sorted(connection.topics.patterns) if connection.topics else []
        queues = sorted(
            owner.removeprefix("queue:") for owner in (connection.consumer.queues if connection.consumer else ())
        )
        connection.reply(subscribed_frame(topics, queues, frame.ref))

    # ---- requests

    def request(self, connection: Connection, frame: Frame) -> None:
        """Ask, and answer with one `reply` frame."""
        if frame.correlation_id is None:
            frame.correlation_id = new_correlation(frame.idempotency_key)
        wait = wait_of(frame.wait, DEFAULT_REQUEST_WAIT)
        draft = draft_of(frame, connection.client, frame.msg_type, names=self._bus.names, stamp_us=now_us())
        policy.authorise(caller_of(connection), draft.message, frame.on_behalf_of)
        if self._asking >= MAX_ASKING:
            raise Unavailable("Too many requests of this process wait already; try again.", retry_after_seconds=2)
        self._asking += 1
        self._bus.metrics.count("bus_sends_total", "websocket")
        gevent.spawn(self._ask, connection, frame, draft, wait)

    def _ask(self, connection: Connection, frame: Frame, draft: Draft, wait: float) -> None:
        try:
            answer = self._bus.delivery.requests.ask(draft, wait, require_online=frame.require_online)
        except BusError as refusal:
            connection.reply(error_frame(refusal, frame.ref))
        else:
            ref = b"" if frame.ref is None else b'"ref":%b,' % encode(frame.ref)
            connection.reply(b'{"type":"reply",%b%b' % (ref, answer.text(self._bus.epochs)[1:]))
        finally:
            self._asking -= 1


def caller_of(connection: Connection) -> Caller:
    """Whose credential opened a connection that has been admitted."""
    assert connection.caller is not None
    return connection.caller


def _check_rights(connection: Connection, patterns: Iterable[str], queues: Iterable[str]) -> None:
    caller = caller_of(connection)
    for pattern in patterns:
        policy.need(caller, Action.SUBSCRIBE, pattern)
    for queue in queues:
        policy.need(caller, Action.CLAIM, queue)


def _too_many_queues() -> Malformed:
    return Malformed(f"A connection may take from {MAX_QUEUES} queues.", code="too_many_queues", field="queues")


VERBS: dict[str, Callable[[Verbs, Connection, Frame], None]] = {
    **dict.fromkeys(ledger.VERBS, Verbs.settle),
    "subscribe": Verbs.subscribe,
    "unsubscribe": Verbs.subscribe,
    "request": Verbs.request,
}
