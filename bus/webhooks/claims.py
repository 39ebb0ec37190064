"""One step of the deliveries, inside one write transaction: outcomes in, lost leases ended, new claims out.

Everything that decides stands in the rows: how many requests an endpoint has on their way is counted there, and so are
rates, pauses and breakers (bus.webhooks.breaker). Any number of processes may take steps; none holds anything between
them but the claims it is working on, each under a lease with a random token. What comes with another token is refused.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from bus.storage import Transaction
from bus.webhooks import body
from bus.webhooks.breaker import Budget, Lane, Limits, Rate
from bus.webhooks.endpoints import Endpoint, Rows
from bus.webhooks.matching import Subject
from bus.webhooks.outbox import Outbox
from bus.webhooks.policy import Step, Verdict, next_step

WAITING, LEASED, BEHIND, DONE, DEAD = range(5)
FRESH, LATE, REPLAYED = range(3)
LATE_FROM = 2
"""Attempts after which a delivery counts as late: the slots of the others are not for it."""

LEASE_MARGIN_US = 30_000_000
MAX_LAPSES = 10
FOLD_ABOVE, FOLD_MOST = 3, 200
"""A chat that is owed more than the one gets up to the other in one message."""

EXCERPT_BYTES = 4096
REAPED_AT_ONCE = 500
CLAIM_BYTES = 4 * 1024 * 1024
"""What one step reads at most (or one delivery), so that no commit waits long."""


class Item(msgspec.Struct):
    """One delivery in a claim. `attempts`, this one included, `tried` without it."""

    number: int
    event_id: str
    name: str
    occurred_us: int
    seq: int | None
    data: bytes
    attempts: int
    tried: int
    due_us: int
    stamp: int
    sequence: int | None
    replay: bool


class Claim(msgspec.Struct):
    """Deliveries that go with one request: one, or for a chat several. Ours until the lease ends."""

    endpoint: int
    token: str
    began_us: int
    items: list[Item]
    late: bool = False
    """It takes one of the slots for what fails."""


class Result(msgspec.Struct):
    """What came of a claim. `row`: status, detail, address, five times in ms, bytes and excerpt for the log.

    `verdict` None: it goes back as it was; with a `row`, after it was sent. `refused`: why the target was forbidden.
    """

    claim: Claim
    verdict: Verdict | None
    row: tuple[Any, ...] = ()
    refused: str | None = None


class Plan(msgspec.Struct):
    """What a process brings to a step. `fresh` and `late` are its free slots; `gone` says in SQL whose leases are a dead
    process's; `wall` is Unix seconds, `start` the lane whose turn it is."""

    results: list[Result]
    endpoints: dict[int, Endpoint]
    fresh: int
    late: int
    holder: int
    process: str
    wall: int
    gone: str | None = None
    start: int = 0


class Taken(msgspec.Struct):
    """What a step gave: claims, when to look again (bus clock), whether endpoints were disabled, refused late outcomes."""

    claims: list[Claim]
    next_us: int | None = None
    disabled: bool = False
    refused: int = 0
    reaped: int = 0


def take_step(transaction: Transaction, plan: Plan, outbox: Outbox, rows: Rows) -> Taken:
    """Take a step. For a job of the writer."""
    return _Step(transaction, plan, outbox, rows).run()


class _Step:
    """`_lanes` are the lanes that were looked at; those that changed are written back at the end."""

    def __init__(self, transaction: Transaction, plan: Plan, outbox: Outbox, rows: Rows) -> None:
        self._execute = transaction.execute
        self._transaction = transaction
        self._plan = plan
        self._outbox = outbox
        self._rows = rows
        self._now = transaction.ledger.now
        self._lanes: dict[int, tuple[Lane, Lane]] = {}
        self._touched: set[int] = set()
        self._ended: dict[int, tuple[int, int]] = {}  # by endpoint: deliveries that are no longer pending, their bytes
        self._budget: Budget | None = None
        self._taken = Taken([])

    def run(self) -> Taken:
        for result in self._plan.results:
            self._settle(result)
        self._reap()
        if self._plan.fresh > 0:
            self._claim_all()
        for number in self._touched:
            lane, replays = self._lane(number)
            ended, size = self._ended.pop(number, (0, 0))
            self._execute(_WRITE_LANE, (lane.dump(), replays.dump(), ended, size, number))
        if self._budget is not None:
            self._execute("UPDATE webhook_state SET budget = ?", (msgspec.json.encode(self._budget),))
        return self._taken

    def _lane(self, number: int) -> tuple[Lane, Lane]:
        lanes = self._lanes.get(number)
        if lanes is None:
            found = self._execute("SELECT policy, replays FROM webhook_lanes WHERE endpoint = ?", (number,))
            policy, replays = found[0] if found else (None, None)
            lanes = self._lanes[number] = Lane.load(policy), Lane.load(replays)
        return lanes

    # ---- outcomes

    def _settle(self, result: Result) -> None:
        claim, verdict = result.claim, result.verdict
        endpoint = self._plan.endpoints.get(claim.endpoint)
        lane, _ = self._lane(claim.endpoint)
        if verdict is not None:
            lane.ended(self._now, verdict, claim.began_us)
            self._touched.add(claim.endpoint)
            if verdict.invalid:
                self._discord().spend(self._now)
        for item in claim.items:
            if verdict is None or endpoint is None:
                self._give_back(result, item)
            else:
                self._settle_one(result, item, endpoint, verdict, lane)
        if endpoint is not None and verdict is not None:
            reason = verdict.disables or ("failing_for_5_days" if lane.worn_out(self._now) else None)
            if reason is not None:
                self._disable(endpoint, reason)

    def _settle_one(self, result: Result, item: Item, endpoint: Endpoint, verdict: Verdict, lane: Lane) -> None:
        claim = result.claim
        step = next_step(
            verdict,
            endpoint.config.schedule,
            attempts=item.tried + 1,
            now_us=self._now,
            occurred_us=item.occurred_us,
            draw=random.random(),
        )
        if self._move(claim, item, step):
            lane.settled(step)
        else:
            self._taken.refused += 1
        outcome = verdict.name if step.state != "dead" else step.cause
        self._log(claim, item, outcome, result.row)

    def _move(self, claim: Claim, item: Item, step: Step) -> bool:
        """Write what becomes of a delivery. False: the lease was lost, and nothing is written."""
        ending = step.state in ("done", "dead")
        if ending:
            state, due = (DONE if step.state == "done" else DEAD), item.due_us
        else:
            state, due = WAITING, step.due_us or self._now
        tried = item.tried + (step.state != "held")
        class_ = REPLAYED if item.replay else LATE if tried >= LATE_FROM else FRESH
        moved = self._execute(
            _MOVE,
            (state, due, tried, class_, self._now if ending else None, step.cause, item.number, LEASED, claim.token),
        )
        if moved and ending:
            size, key = moved[0]
            self._count_out(claim.endpoint, size)
            self._promote(claim.endpoint, key)
        return bool(moved)

    def _count_out(self, endpoint: int, size: int) -> None:
        count, total = self._ended.get(endpoint, (0, 0))
        self._ended[endpoint] = count + 1, total + size
        self._touched.add(endpoint)

    def _promote(self, endpoint: int, key: str | None) -> None:
        """The next of a key has its turn."""
        if key is not None:
            self._execute(_PROMOTE, (self._now, endpoint, key))

    def _give_back(self, result: Result, item: Item) -> None:
        sent, token = bool(result.row), result.claim.token
        self._execute(_GIVE_BACK, (WAITING, 0 if sent else 1, item.number, token))
        if sent and result.verdict is None:
            self._log(result.claim, item, "stopped", result.row)

    def _log(self, claim: Claim, item: Item, outcome: str, row: Sequence[Any]) -> None:
        self._execute(
            _LOG,
            (item.number, claim.endpoint, item.attempts, item.due_us, claim.began_us, self._now, outcome,
             len(claim.items), int(item.replay), self._plan.process, *row),
        )  # fmt: skip

    def _disable(self, endpoint: Endpoint, reason: str) -> None:
        if not self._rows.set_state(self._transaction, endpoint.number, "disabled", reason, self._now):
            return
        self._taken.disabled = True
        data = body.encode({"endpoint": endpoint.id, "url": endpoint.masked_url, "reason": reason})
        self._outbox.write(self._transaction, "endpoint.disabled", Subject(), data)

    def _discord(self) -> Budget:
        if self._budget is None:
            (text,) = self._execute("SELECT budget FROM webhook_state")[0]
            self._budget = msgspec.json.decode(text, type=Budget) if text else Budget()
        return self._budget

    # ---- leases that ended with their process

    def _reap(self) -> None:
        lost = self._execute(_LAPSED.format(gone=self._plan.gone or "false"), (self._now, REAPED_AT_ONCE))
        for number, endpoint, attempts, due_us, began_us, lapses, size, key in lost:
            dead = lapses + 1 >= MAX_LAPSES
            state = DEAD if dead else WAITING
            self._execute(_END_LEASE, (state, self._now, lapses + 1, self._now if dead else None, number))
            self._execute(
                _LOG,
                (number, endpoint, attempts, due_us, began_us, self._now, "lease_expired", 1, 0, self._plan.process, None,
                 "The process that sent it ended before it could say what came of it.",
                 None, None, None, None, None, None, size, b""),
            )  # fmt: skip
            if dead:
                self._count_out(endpoint, size)
                self._promote(endpoint, key)
        self._taken.reaped = len(lost)

    # ---- claims

    def _claim_all(self) -> None:
        plan = self._plan
        busy = [number for (number,) in self._execute(_BUSY)]
        if not busy:
            return
        under_way: dict[int, int] = {}
        replaying: dict[int, int] = {}
        for number, class_, count in self._execute(_UNDER_WAY):
            under_way[number] = under_way.get(number, 0) + count
            if class_ == REPLAYED:
                replaying[number] = count
        turn = plan.start % len(busy)
        size = 0
        for number in busy[turn:] + busy[:turn]:
            endpoint = plan.endpoints.get(number)
            if endpoint is None or not endpoint.awake:
                continue
            if plan.fresh <= 0 or size > CLAIM_BYTES:
                self._look_again(self._now)
                break
            size += self._claim_lane(endpoint, under_way.get(number, 0), replaying.get(number, 0))

    def _claim_lane(self, endpoint: Endpoint, under_way: int, replaying: int) -> int:
        """Claim what one endpoint may be sent now. Returns about how many bytes that are."""
        lane, replays = self._lane(endpoint.number)
        limits = endpoint.config.limits
        if endpoint.config.kind == "discord" and self._discord().left(self._now) <= 0:
            self._look_again(self._now + 1_000_000)
            return 0
        room = lane.may_send(self._now, limits, under_way)
        size = count = 0
        ailing = lane.timeouts > 0 or lane.opened > 0
        if room > 0 and endpoint.config.kind != "http":
            size = self._claim_for_chat(endpoint, lane)
            room = 0
        for class_ in (FRESH, LATE, REPLAYED):
            if room - count <= 0:
                break
            slots = self._plan.fresh if class_ == FRESH and not ailing else min(self._plan.fresh, self._plan.late)
            free = min(room - count, slots)
            half = _halved(limits)
            if class_ == REPLAYED:
                free = min(free, replays.may_send(self._now, half, replaying))
            found = self._due(endpoint.number, class_, free) if free > 0 else []
            late = class_ != FRESH or ailing
            for row in found:
                size += self._take(endpoint, [row], late=late)
            count += len(found)
            self._plan.fresh -= len(found)
            self._plan.late -= len(found) if late else 0
            if class_ == REPLAYED and found:
                replays.began(self._now, half, len(found))
        if count:
            lane.began(self._now, limits, count)
            self._touched.add(endpoint.number)
        self._look_again_for(endpoint, lane, replays, limits)
        return size

    def _claim_for_chat(self, endpoint: Endpoint, lane: Lane) -> int:
        """One message: of one event, or of all that wait, if these are many."""
        fitting = {class_: self._fitting(endpoint.number, class_) for class_ in (FRESH, LATE, REPLAYED)}
        most = FOLD_MOST if sum(fitting.values()) > FOLD_ABOVE else 1
        rows: list[tuple[Any, ...]] = []
        for class_, count in fitting.items():
            rows += self._due(endpoint.number, class_, min(count, most - len(rows)))
        if not rows:
            return 0
        size = self._take(endpoint, rows, late=False)
        lane.began(self._now, endpoint.config.limits, 2 if len(rows) > 1 else 1)  # what is folded comes more seldom
        self._touched.add(endpoint.number)
        self._plan.fresh -= 1
        return size

    def _fitting(self, number: int, class_: int) -> int:
        """How many of a class are due and together not too much to be read; one always is."""
        left, count = CLAIM_BYTES, 0
        for (size,) in self._execute(_SIZES, (number, class_, self._now, FOLD_MOST)):
            left -= size
            if left < 0 and count:
                break
            count += 1
        return count

    def _due(self, number: int, class_: int, limit: int) -> list[tuple[Any, ...]]:
        return self._execute(_DUE, (number, class_, self._now, limit))

    def _take(self, endpoint: Endpoint, rows: list[tuple[Any, ...]], *, late: bool) -> int:
        token = secrets.token_hex(8)
        until = self._now + int(endpoint.config.timeout_seconds * 1e6) + LEASE_MARGIN_US
        items = []
        for number, event_id, name, occurred, seq, data, attempts, tried, due, stamp, sequence, class_ in rows:
            stamp_now = max(stamp, self._plan.wall)  # a clock that was set back must not turn it back
            self._execute(_LEASE, (self._plan.holder, token, until, self._now, stamp_now, number))
            item = Item(
                number, event_id, name, occurred, seq, data, attempts + 1, tried, due, stamp_now, sequence, False
            )
            item.replay = class_ == REPLAYED
            items.append(item)
        self._taken.claims.append(Claim(endpoint.number, token, self._now, items, late))
        return sum(len(item.data) for item in items)

    # ---- when to look again

    def _look_again_for(self, endpoint: Endpoint, lane: Lane, replays: Lane, limits: Limits) -> None:
        """Note when the endpoint may be owed something that may be sent. What waits for a slot is looked at with the next
        outcome."""
        for class_, due in self._execute(_NEXT_DUE, (endpoint.number,)):
            if due is None:
                continue
            moment = max(due, lane.next_us(self._now, limits))
            if class_ == REPLAYED:
                moment = max(moment, replays.next_us(self._now, _halved(limits)))
            if moment > self._now:
                self._look_again(moment)

    def _look_again(self, moment_us: int) -> None:
        next_us = self._taken.next_us
        self._taken.next_us = moment_us if next_us is None else min(next_us, moment_us)


def _halved(limits: Limits) -> Limits:
    """What may be replayed beside what is new: half of it."""
    rates = tuple(Rate(rate.count, rate.seconds * 2) for rate in limits.rates)
    return Limits(rates, max(limits.in_flight // 2, 1))


_BUSY = """
SELECT l.endpoint FROM webhook_lanes l JOIN webhook_endpoints w ON w.number = l.endpoint
 WHERE l.pending > 0 AND w.state = 'enabled' ORDER BY l.endpoint"""
_WRITE_LANE = """
UPDATE webhook_lanes SET policy = ?, replays = ?, pending = max(pending - ?, 0), pending_bytes = max(pending_bytes - ?, 0)
 WHERE endpoint = ?"""
_MOVE = """
UPDATE webhook_deliveries SET state = ?, due_at = ?, tried = ?, class = ?, ended_at = ?, cause = ?, token = NULL,
 holder = NULL, lease_until = NULL WHERE number = ? AND state = ? AND token = ? RETURNING bytes, order_key"""
_GIVE_BACK = """
UPDATE webhook_deliveries SET state = ?, token = NULL, holder = NULL, lease_until = NULL, attempts = attempts - ?
 WHERE number = ? AND token = ?"""
_PROMOTE = """
UPDATE webhook_deliveries SET state = 0, due_at = ? WHERE number =
 (SELECT number FROM webhook_deliveries INDEXED BY webhook_deliveries_in_order
   WHERE endpoint = ? AND order_key = ? AND state < 3 AND state = 2 ORDER BY sequence LIMIT 1)"""
_LOG = """
INSERT INTO webhook_attempts (delivery, endpoint, attempt, due_at, began_at, ended_at, outcome, folded, replay, process,
 status, detail, address, dns_ms, connect_ms, tls_ms, ttfb_ms, total_ms, bytes, excerpt)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_LAPSED = """
SELECT number, endpoint, attempts, due_at, began_at, lapses, bytes, order_key
  FROM webhook_deliveries INDEXED BY webhook_deliveries_leased
 WHERE state = 1 AND (lease_until <= ? OR {gone}) LIMIT ?"""
_END_LEASE = """
UPDATE webhook_deliveries SET state = ?, due_at = ?, lapses = ?, ended_at = ?, token = NULL, holder = NULL,
 lease_until = NULL, cause = 'lease_expired' WHERE number = ?"""
_UNDER_WAY = """
SELECT endpoint, class, count(DISTINCT token) FROM webhook_deliveries INDEXED BY webhook_deliveries_leased
 WHERE state = 1 GROUP BY endpoint, class"""
_DUE = """
SELECT d.number, e.id, e.name, e.occurred_at, e.seq, e.data, d.attempts, d.tried, d.due_at, d.stamp, d.sequence, d.class
  FROM webhook_deliveries d INDEXED BY webhook_deliveries_waiting JOIN webhook_events e ON e.number = d.event
 WHERE d.endpoint = ? AND d.state = 0 AND d.class = ? AND d.due_at <= ? ORDER BY d.due_at, d.number LIMIT ?"""
_SIZES = """
SELECT bytes FROM webhook_deliveries INDEXED BY webhook_deliveries_waiting
 WHERE endpoint = ? AND state = 0 AND class = ? AND due_at <= ? ORDER BY due_at, number LIMIT ?"""
_LEASE = """
UPDATE webhook_deliveries SET state = 1, holder = ?, token = ?, lease_until = ?, began_at = ?, stamp = ?,
 attempts = attempts + 1 WHERE number = ?"""
_NEXT_DUE = """
SELECT c.class, (SELECT min(d.due_at) FROM webhook_deliveries d INDEXED BY webhook_deliveries_waiting
                   WHERE d.endpoint = ?1 AND d.state = 0 AND d.class = c.class)
  FROM (SELECT 0 AS class UNION ALL SELECT 1 UNION ALL SELECT 2) c"""
