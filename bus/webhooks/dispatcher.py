"""Sends what the outbox owes: one loop a process takes steps (bus.webhooks.claims), and each claim has a greenlet.

A step is one commit, and carries all outcomes that have come since the last. It is taken when something may be due: rows
were committed here, an outcome came, or the moment came that the last step named; else every POLL_SECONDS, for what
another process left. No transaction is open while a receiver is waited for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group

from bus.errors import BusError
from bus.outbound import Answer, Outbound
from bus.storage import Transaction
from bus.webhooks.claims import EXCERPT_BYTES, Claim, Plan, Result, Taken, take_step
from bus.webhooks.endpoints import Endpoint, Rows
from bus.webhooks.outbox import Outbox
from bus.webhooks.policy import Verdict, judge
from bus.webhooks.requests import Request, request_of

log = logging.getLogger("bus.webhooks")

SLOTS, LATE_SLOTS = 100, 50
"""Requests of one process at a time, and how many of them may be for what failed twice, or for receivers that fail."""

POLL_SECONDS = 0.5
PAUSE_SECONDS = 1.0
"""After a step that could not be written."""


class Dispatcher:
    """Event loop only. `endpoints` is replaced as a whole when they change."""

    def __init__(
        self,
        write: Callable[[Callable[[Transaction], Any]], Any],
        read: Callable[[Any], Any],
        now_us: Callable[[], int],
        outbox: Outbox,
        disabled: Callable[[], None],
        attempted: Callable[[Endpoint | None, Result], None],
        secret: str | None = None,
    ) -> None:
        """`write` and `read` are the bus's; `disabled()` is called when a step has disabled an endpoint, `attempted()` after
        each attempt; `secret` signs for endpoints without one."""
        self.endpoints: dict[int, Endpoint] = {}
        self._write = write
        self._read = read
        self._now_us = now_us
        self._outbox = outbox
        self._disabled = disabled
        self._attempted = attempted
        self._secret = secret
        self._wake = Event()
        self._results: list[Result] = []
        self._requests = Group()
        self._busy = self._late = 0
        self._turn = 0
        self._gone: str | None = None
        self._loop: gevent.Greenlet[..., None] | None = None
        self._stopping = False

    def start(
        self, rows: Rows, outbound: Outbound, number: int, process: str, siblings: tuple[int, int] | None
    ) -> None:
        """Begin. `siblings`: the first and last number of this node's processes, if none was there before: then leases of
        those that have not entered since are a dead one's."""
        self._rows = rows
        self._outbound = outbound
        self._number = number
        self._process = process
        self._gone = f"holder = {number:d}"
        if siblings is not None:
            among = "holder BETWEEN {:d} AND {:d}".format(*siblings)
            self._gone += f" OR ({among} AND holder NOT IN (SELECT slot FROM webhook_processes))"
        self._loop = gevent.spawn(self._run)

    def wake(self) -> None:
        """Something may be due."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Claim no more; let what is under way end within `timeout` seconds, and write what came of it."""
        self._stopping = True
        self._requests.join(timeout)
        self._requests.kill()
        self._wake.set()
        if self._loop is not None:
            self._loop.join(2.0)
            self._loop.kill()

    # ---- the loop

    def _run(self) -> None:
        wait: float | None = 0.0
        while True:
            woken = self._wake.wait(wait)
            self._wake.clear()
            idle = not (self._stopping or woken or self._results)
            wait = POLL_SECONDS if idle and not self._is_owing() else self._step()
            if self._stopping and not self._results and not self._requests:
                return

    def _is_owing(self) -> bool:
        if not self.endpoints and self._gone is None:
            return False
        try:
            return bool(
                self._read(lambda reader: reader.execute("SELECT 1 FROM webhook_lanes WHERE pending > 0 LIMIT 1"))
            )
        except Exception:
            log.exception("What is owed could not be read; another look follows", extra={"action": "webhooks"})
            return False

    def _step(self) -> float:
        """Take a step. Returns how long to wait for the next, in seconds."""
        results, self._results = self._results, []
        fresh = 0 if self._stopping else SLOTS - self._busy
        self._turn += 1
        plan = Plan(
            results,
            self.endpoints,
            fresh,
            LATE_SLOTS - self._late,
            self._number,
            self._process,
            time.time_ns() // 1_000_000_000,
            self._gone,
            self._turn,
        )
        try:
            taken: Taken = self._write(partial(take_step, plan=plan, outbox=self._outbox, rows=self._rows))
        except BusError as refusal:
            self._results = results + self._results
            log.warning(
                "Deliveries wait, for nothing can be written: %s", refusal.sentence, extra={"action": "webhooks"}
            )
            return PAUSE_SECONDS
        except Exception:
            self._results = results + self._results
            log.exception("A step of the deliveries failed; it is tried again", extra={"action": "webhooks"})
            return PAUSE_SECONDS
        return self._apply(plan, taken)

    def _apply(self, plan: Plan, taken: Taken) -> float:
        """Go on by what a step gave, now that it is committed."""
        if plan.gone is not None:
            self._gone = None
        for claim in taken.claims:
            self._begin(claim)
        if taken.disabled:
            self._disabled()
        if taken.refused:
            log.warning("%d outcomes came after their lease", taken.refused, extra={"action": "webhook_lease_lost"})
        if taken.next_us is None:
            return POLL_SECONDS
        return min(max((taken.next_us - self._now_us()) / 1e6, 0.0), POLL_SECONDS)

    # ---- one request

    def _begin(self, claim: Claim) -> None:
        self._busy += 1
        self._late += claim.late
        self._requests.spawn(self._deliver, claim)

    def _deliver(self, claim: Claim) -> None:
        result = Result(claim, None)
        try:
            endpoint = self.endpoints.get(claim.endpoint)
            if endpoint is not None and endpoint.sealed is not None:
                result = self._send(claim, endpoint)
        except gevent.GreenletExit:
            result = Result(claim, None, unsent("The server stopped before an answer came."))
        except Exception:
            log.exception("A delivery could not be made", extra={"action": "webhook_delivery"})
            result = Result(claim, Verdict("internal", "retry"), unsent("The server failed on this delivery."))
        finally:
            self._busy -= 1
            self._late -= claim.late
            self._results.append(result)
            self._wake.set()
        self._attempted(self.endpoints.get(claim.endpoint), result)

    def _send(self, claim: Claim, endpoint: Endpoint) -> Result:
        try:
            request = request_of(claim, endpoint, self._now_us(), self._secret)
        except BusError as refusal:
            return Result(claim, Verdict("unfit", "dead"), unsent(refusal.sentence))
        answer = self.call(endpoint, request)
        verdict = judge(answer, endpoint.config.kind, time.time())
        return Result(claim, verdict, row_of(answer, len(request.body), endpoint), answer.refused)

    def call(self, endpoint: Endpoint, request: Request) -> Answer:
        """Send a request to an endpoint; waits for the answer."""
        return self._outbound.request(
            "POST",
            request.url,
            headers=request.headers,
            body=request.body,
            timeout_seconds=endpoint.config.timeout_seconds,
        )


def row_of(answer: Answer, size: int, endpoint: Endpoint) -> tuple[Any, ...]:
    """An answer as the log keeps it."""
    return (
        answer.status,
        answer.detail,
        answer.address,
        answer.dns_ms,
        answer.connect_ms,
        answer.tls_ms,
        answer.ttfb_ms,
        answer.total_ms,
        size,
        endpoint.without_secrets(answer.excerpt)[:EXCERPT_BYTES],
    )


def unsent(detail: str) -> tuple[Any, ...]:
    """What the log keeps of an attempt that never left."""
    return (None, detail, None, None, None, None, None, None, 0, b"")
