"""The log of deliveries: what was owed to whom, every attempt, what is dead, and how an endpoint fares. Reads only, but for
`set_aside`, and `forget`, which takes what is old.

The log may have a million rows. A job of the writer holds everybody up, so those name the index that they use: without
statistics SQLite would pick one by which it reads far too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from bus.errors import Malformed, NotFound
from bus.storage import Reader, Transaction
from bus.webhooks.breaker import Lane
from bus.webhooks.claims import DEAD, DONE
from bus.webhooks.endpoints import Endpoint

STATES = ("waiting", "leased", "behind", "done", "dead")
"""By their numbers; what waits for an endpoint that is not enabled is shown as held."""

KEPT_US = 30 * 86_400_000_000
KEPT_DELIVERIES = 1_000_000
"""What has ended is kept so long, and at most so many."""

AT_ONCE = 500
DAY_US = 86_400_000_000
SAMPLE = 10_000
"""Attempts that the percentiles of an endpoint are taken from: the latest of a day."""


class Choice(msgspec.Struct, frozen=True):
    """Which deliveries; None means any. `endpoint` is a number, the times are when the event was noted, `seq` is the place
    of the message that the event is about."""

    endpoint: int | None = None
    state: str | None = None
    event: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    seq: int | None = None

    def where(self) -> tuple[str, list[Any]]:
        """Conditions on `d`, a delivery, and `e`, its event, and their bindings."""
        terms, bindings = ["true"], []
        for term, value in (
            ("d.endpoint = ?", self.endpoint),
            ("e.name = ?", self.event),
            ("d.made_at >= ?", self.since_us),
            ("d.made_at < ?", self.until_us),
            ("e.seq = ?", self.seq),
        ):
            if value is not None:
                terms.append(term)
                bindings.append(value)
        if self.state is not None:
            terms.append(f"d.state = {STATES.index(self.state)}")
        return " AND ".join(terms), bindings


class Delivery(msgspec.Struct):
    """One event to one endpoint. `endpoint` is its id, None when it is deleted; `attempts` were begun."""

    number: int
    endpoint: str | None
    event_id: str
    event: str
    state: str
    attempts: int
    made_us: int
    due_us: int
    ended_us: int | None
    cause: str | None
    sequence: int | None
    replayed: bool
    data: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def id(self) -> str:
        """What it is called outside."""
        return f"dlv-{self.number}"


class Attempt(msgspec.Struct, array_like=True):
    """One request, or the end of a lease."""

    attempt: int
    due_us: int
    began_us: int
    ended_us: int
    outcome: str
    status: int | None
    detail: str
    address: str | None
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    ttfb_ms: float | None
    total_ms: float | None
    size: int
    folded: int
    replay: bool
    process: str
    excerpt: bytes


class Stats(msgspec.Struct):
    """How an endpoint fares. Rates and times are of the last 24 hours."""

    pending: int
    oldest_pending_seconds: float | None
    dead: int
    attempts: int
    successes: int
    success_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    lane: str
    rests_until_us: int | None
    flagged: bool


def parse_id(text: str) -> int:
    """The number in a delivery's id. Raises NotFound."""
    digits = text.removeprefix("dlv-")
    if digits == text or not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise NotFound("There is no delivery with this id.", code="unknown_delivery")
    return int(digits)


def check_state(state: str | None) -> str | None:
    """A state to choose by. Raises Malformed."""
    if state is not None and state not in STATES:
        raise Malformed(f"`state` must be one of {', '.join(STATES)}.", code="bad_field", field="state")
    return state


def page(reader: Reader, choice: Choice, before: int | None, limit: int) -> list[Delivery]:
    """Deliveries, the youngest first, older than the number `before`."""
    where, bindings = choice.where()
    rows = reader.execute(
        f"SELECT {_COLUMNS} {_FROM} WHERE {where} AND d.number < ? ORDER BY d.number DESC LIMIT ?",
        (*bindings, before if before is not None else 2**62, limit),
    )
    return [_delivery(row) for row in rows]


def count(reader: Reader | Transaction, choice: Choice) -> int:
    """How many match."""
    where, bindings = choice.where()
    return int(reader.execute(f"SELECT count(*) {_FROM} WHERE {where}", bindings)[0][0])


def find(reader: Reader, number: int) -> tuple[Delivery, list[Attempt]]:
    """A delivery with its data, and its attempts in order. Raises NotFound."""
    rows = reader.execute(f"SELECT {_COLUMNS}, e.data {_FROM} WHERE d.number = ?", (number,))
    if not rows:
        raise NotFound("There is no delivery with this id; it may be too old.", code="unknown_delivery")
    delivery = _delivery(rows[0][:-1])
    delivery.data = msgspec.Raw(rows[0][-1])
    attempts = reader.execute(_ATTEMPTS, (number,))
    return delivery, [msgspec.convert(row, Attempt, strict=False) for row in attempts]


def _delivery(row: tuple[Any, ...]) -> Delivery:
    number, endpoint, of_endpoint, event_id, event, state, attempts, made, due, ended, cause, sequence, replayed = row
    shown = STATES[state] if state in (DONE, DEAD) or of_endpoint == "enabled" else "held"
    return Delivery(
        number, endpoint, event_id, event, shown, attempts, made, due, ended, cause, sequence, replayed is not None
    )


def owed(reader: Reader, endpoint: int) -> int:
    """How many deliveries wait for an endpoint, or are held for it."""
    return int(reader.execute("SELECT pending FROM webhook_lanes WHERE endpoint = ?", (endpoint,))[0][0])


def set_aside(transaction: Transaction, endpoint: int, now_us: int) -> int:
    """Let a batch of what waits for an endpoint be dead, so that it is sent by a replay only. Returns how many."""
    rows = transaction.execute(_SET_ASIDE, (now_us, endpoint, AT_ONCE))
    transaction.execute(
        "UPDATE webhook_lanes SET pending = pending - ?, pending_bytes = pending_bytes - ? WHERE endpoint = ?",
        (len(rows), sum(size for (size,) in rows), endpoint),
    )
    return len(rows)


def stats(reader: Reader, endpoint: Endpoint, now_us: int) -> Stats:
    """How an endpoint fares."""
    number = endpoint.number
    pending, policy = reader.execute("SELECT pending, policy FROM webhook_lanes WHERE endpoint = ?", (number,))[0]
    (oldest,) = reader.execute(OLDEST, (number,))[0]
    (dead,) = reader.execute("SELECT count(*) FROM webhook_deliveries WHERE endpoint = ? AND state = 4", (number,))[0]
    since = now_us - DAY_US
    attempts, successes = reader.execute(_TALLY, (number, since))[0]
    times = sorted(row[0] for row in reader.execute(_TIMES, (number, since, SAMPLE)))
    lane = Lane.load(policy)
    limits = endpoint.config.limits
    next_us = lane.next_us(now_us, limits)
    return Stats(
        pending=pending,
        oldest_pending_seconds=None if oldest is None else max((now_us - oldest) / 1e6, 0.0),
        dead=dead,
        attempts=attempts,
        successes=successes,
        success_rate=successes / attempts if attempts else None,
        p50_ms=_quantile(times, 0.5),
        p95_ms=_quantile(times, 0.95),
        lane=lane.state(now_us),
        rests_until_us=next_us if next_us > now_us else None,
        flagged=lane.flagged,
    )


def _quantile(times: list[float], share: float) -> float | None:
    return times[min(int(len(times) * share), len(times) - 1)] if times else None


def forgettable(reader: Reader, now_us: int) -> list[tuple[int, int]]:
    """What is to go, as numbers of deliveries and of their events: what was owed to endpoints that are gone, what is old,
    and what is too much. At most AT_ONCE."""
    found = reader.execute(_GONE, (AT_ONCE,)) or reader.execute(_OLD, (now_us - KEPT_US, AT_ONCE))
    if not found:
        (kept,) = reader.execute(_KEPT, (KEPT_DELIVERIES + AT_ONCE,))[0]
        found = reader.execute(_OLD, (now_us, max(kept - KEPT_DELIVERIES, 0)))
    return found


def forget(transaction: Transaction, found: Sequence[tuple[int, int]]) -> None:
    """Let it go; but for what was put back in the meantime."""
    for number, event in found:
        if transaction.execute(_FORGET, (number,)):
            transaction.execute("DELETE FROM webhook_attempts WHERE delivery = ?", (number,))
            transaction.execute(_UNUSED, (event,))


_FROM = """
FROM webhook_deliveries d JOIN webhook_events e ON e.number = d.event
LEFT JOIN webhook_endpoints w ON w.number = d.endpoint"""
_COLUMNS = """
d.number, w.id, w.state, e.id, e.name, d.state, d.attempts, d.made_at, d.due_at, d.ended_at, d.cause, d.sequence,
d.replayed_at"""
_ATTEMPTS = """
SELECT attempt, due_at, began_at, ended_at, outcome, status, detail, address, dns_ms, connect_ms, tls_ms, ttfb_ms,
       total_ms, bytes, folded, replay, process, excerpt
  FROM webhook_attempts WHERE delivery = ? ORDER BY number"""
_SET_ASIDE = """
UPDATE webhook_deliveries SET state = 4, ended_at = ?1, cause = 'set_aside' WHERE number IN
 (SELECT number FROM webhook_deliveries INDEXED BY webhook_deliveries_waiting WHERE endpoint = ?2 AND state = 0
   UNION ALL
  SELECT number FROM webhook_deliveries INDEXED BY webhook_deliveries_in_order
   WHERE endpoint = ?2 AND order_key IS NOT NULL AND state < 3 AND state = 2 LIMIT ?3) RETURNING bytes"""
OLDEST = """
SELECT min(made_at) FROM
 (SELECT * FROM (SELECT made_at FROM webhook_deliveries INDEXED BY webhook_deliveries_waiting
                  WHERE endpoint = ?1 AND state = 0 AND class = 0 ORDER BY due_at, number LIMIT 1) o
   UNION ALL
  SELECT made_at FROM webhook_deliveries INDEXED BY webhook_deliveries_waiting
   WHERE endpoint = ?1 AND state = 0 AND class > 0
   UNION ALL
  SELECT made_at FROM webhook_deliveries INDEXED BY webhook_deliveries_leased WHERE endpoint = ?1 AND state = 1) o"""
"""When the oldest was made that an endpoint is owed; to a few seconds, since of what is fresh only the first that is due is
looked at."""

_TALLY = """
SELECT count(*), count(*) FILTER (WHERE outcome = 'ok') FROM webhook_attempts WHERE endpoint = ? AND ended_at >= ?"""
_TIMES = """
SELECT total_ms FROM webhook_attempts WHERE endpoint = ? AND ended_at >= ? AND total_ms IS NOT NULL
 ORDER BY ended_at DESC LIMIT ?"""
_GONE = """
WITH RECURSIVE owners (endpoint) AS
 (SELECT min(endpoint) FROM webhook_deliveries
   UNION ALL
  SELECT (SELECT min(d.endpoint) FROM webhook_deliveries d WHERE d.endpoint > owners.endpoint) FROM owners
   WHERE owners.endpoint IS NOT NULL)
SELECT number, event FROM webhook_deliveries
 WHERE endpoint IN (SELECT endpoint FROM owners EXCEPT SELECT number FROM webhook_endpoints) LIMIT ?"""
_OLD = "SELECT number, event FROM webhook_deliveries WHERE state >= 3 AND ended_at < ? ORDER BY ended_at LIMIT ?"
_KEPT = "SELECT count(*) FROM (SELECT 1 FROM webhook_deliveries WHERE state >= 3 LIMIT ?) k"
_FORGET = """
DELETE FROM webhook_deliveries
 WHERE number = ? AND (state >= 3 OR endpoint NOT IN (SELECT number FROM webhook_endpoints)) RETURNING 1"""
_UNUSED = """
DELETE FROM webhook_events WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM webhook_deliveries WHERE event = ?1)"""
