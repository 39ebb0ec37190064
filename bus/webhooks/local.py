"""Delivery of webhooks from memory, on threads: for programs without a bus. What is owed ends with the process.

Each receiver has a thread and a queue of its own, so no receiver can hold up another, and each is sent to one delivery at a
time: in the order of the events, but for those that failed and come again. The rules are those of the durable engine:
`policy`, and a `Lane` for each receiver. A chat that is owed several events gets them in one message.
"""

from __future__ import annotations

import heapq
import json
import logging
import random
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec

from bus.errors import Malformed
from bus.message import iso
from bus.outbound import Answer, Outbound
from bus.webhooks import body, signing
from bus.webhooks.breaker import LIMITS, Lane
from bus.webhooks.chat import Note
from bus.webhooks.outlet import Failure, Receiver, compose, request_headers, shown
from bus.webhooks.policy import SECOND_US, Step, Verdict, judge, next_step, schedule_of

log = logging.getLogger("bus.webhooks")

MAX_RECEIVERS = 500
"""One thread each."""

MAX_FAILURES = 1000
EXCERPT_BYTES = 4096
MAX_DIGEST = 1000


class Delivery(msgspec.Struct, order=True):
    """One event to one receiver. The first two fields are its place in the queue."""

    due_us: int
    number: int
    id: str
    event_id: str
    name: str
    occurred_us: int
    data: bytes
    attempts: int = 0


class Local:
    """An `Outlet` in memory; thread-safe. One lock guards everything; nobody holds it while a receiver is called.

    `max_queue`: deliveries that wait for one receiver; beyond, an event is a failure of class `overflow` at once.
    `open_outbound` and `default_secret` are called at the first use; the latter tells what signs for receivers without a
    secret of their own, None for nothing. `now_us` must never fall.
    """

    durable = False

    def __init__(
        self,
        max_queue: int,
        open_outbound: Callable[[], Outbound],
        default_secret: Callable[[], str | None] = lambda: None,
        *,
        now_us: Callable[[], int] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        anchor_us = (time.time_ns() - time.monotonic_ns()) // 1000
        self.now_us = now_us or (lambda: anchor_us + time.monotonic_ns() // 1000)
        self.draw = draw
        self.max_queue = max_queue
        self.lock = threading.RLock()
        self.running = False
        self.counts: Counter[str] = Counter()
        self._by_event: Counter[str] = Counter()
        self._lines: dict[str, Line] = {}
        self._failures: deque[Failure] = deque()
        self._open_outbound = open_outbound
        self._default_secret = default_secret
        self._outbound: Outbound | None = None
        self._number = 0

    @property
    def outbound(self) -> Outbound:
        """What calls the receivers."""
        with self.lock:
            if self._outbound is None:
                self._outbound = self._open_outbound()
            return self._outbound

    @cached_property
    def secret(self) -> str | None:
        """What signs for receivers without a secret of their own."""
        return self._default_secret()

    # ---- the verbs of an Outlet

    def add(self, receiver: Receiver) -> str:
        receiver.check()
        self.outbound.check(receiver.url)
        with self.lock:
            line = self._lines.get(receiver.url)
            if line is not None:
                line.replace(receiver)
                return line.id
            if len(self._lines) >= MAX_RECEIVERS:
                raise Malformed(
                    f"{MAX_RECEIVERS} endpoints are registered, and each has a thread; use a bus for more.",
                    code="too_many_endpoints",
                )
            line = self._lines[receiver.url] = Line(self, receiver)
            line.start()
            return line.id

    def remove(self, url: str) -> bool:
        with self.lock:
            line = self._lines.pop(url, None)
            if line is not None:
                line.end()
            return line is not None

    def trigger(self, name: str, data: Any) -> None:
        body.check_name(name)
        text, now_us, event_id = body.encode(data), self.now_us(), f"evt-{uuid.uuid4().hex}"
        with self.lock:
            wanted = [line for line in self._lines.values() if line.wants(name)]
            if any(line.receiver.kind == "http" for line in wanted):
                body.make(name, event_id, now_us, text)  # too large is refused here, not at each attempt
            self._by_event[name] += bool(wanted)
            for line in wanted:
                self.counts["sent"] += 1
                self._number += 1
                delivery = Delivery(now_us, self._number, f"del-{uuid.uuid4().hex}", event_id, name, now_us, text)
                if not line.put(delivery):
                    self.counts["dropped"] += 1
                    self.fail(line.receiver.url, delivery, "overflow", None)

    def stats(self) -> dict[str, Any]:
        with self.lock:
            delivered, failed = self.counts["delivered"], self.counts["failed"]
            return {
                "total_sent": self.counts["sent"],
                "total_delivered": delivered,
                "total_failed": failed,
                "total_attempts": self.counts["attempts"],
                "total_dropped": self.counts["dropped"],
                "by_event": dict(self._by_event),
                "success_rate": delivered / (delivered + failed) if delivered + failed else 0.0,
                "queue_size": sum(len(line.queue) for line in self._lines.values()),
                "failed_recent": len(self._failures),
                "failed_evicted": self.counts["evicted"],
                "endpoints_registered": len(self._lines),
                "endpoints": [line.about() for line in self._lines.values()],
                "durable": self.durable,
            }

    def failures(self, limit: int) -> list[Failure]:
        with self.lock:
            return list(self._failures)[-limit:] if limit > 0 else []

    def retry(self, url: str, delivery_id: str | None) -> int:
        with self.lock:
            line, kept, count = self._lines.get(url), deque[Failure](), 0
            for failure in self._failures:
                meant = failure.url == url and delivery_id in (None, failure.id)
                if meant and line is not None and line.put(self._anew(failure)):
                    count += 1
                else:
                    kept.append(failure)
            self._failures = kept
            return count

    def start(self) -> None:
        with self.lock:
            if not self.running:
                log.info("Webhooks wait in memory and end with the process", extra={"action": "webhooks_local"})
            self.running = True
            for line in self._lines.values():
                line.start()

    def stop(self, timeout_seconds: float) -> None:
        with self.lock:
            self.running = False
            threads = [line.halt() for line in self._lines.values()]
        deadline = time.monotonic() + timeout_seconds
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0))

    # ---- for the lines; with the lock held

    def fail(self, url: str, delivery: Delivery, error: str, answer: Answer | None) -> None:
        """Keep a delivery that is given up; the oldest goes when there are too many."""
        self.counts["failed"] += 1
        if len(self._failures) >= MAX_FAILURES:
            self._failures.popleft()
            self.counts["evicted"] += 1
        self._failures.append(
            Failure(
                id=delivery.id,
                event_id=delivery.event_id,
                url=url,
                event=delivery.name,
                data=delivery.data,
                occurred_us=delivery.occurred_us,
                error=error,
                status=None if answer is None else answer.status,
                attempts=delivery.attempts,
                excerpt=b"" if answer is None else answer.excerpt[:EXCERPT_BYTES],
                failed_us=self.now_us(),
            )
        )
        if delivery.attempts:
            log.warning(
                "A webhook to %s was given up: %s after %d attempts",
                shown(url),
                error,
                delivery.attempts,
                extra={"action": "webhook_failed"},
            )

    def _anew(self, failure: Failure) -> Delivery:
        self._number += 1
        place = self.now_us(), self._number
        return Delivery(*place, failure.id, failure.event_id, failure.event, failure.occurred_us, failure.data)


class Line:
    """What one receiver is owed, its lane, and the thread that sends. All but `_run` and `_call` hold the lock."""

    def __init__(self, local: Local, receiver: Receiver) -> None:
        self.id = f"we-{uuid.uuid4().hex}"
        self.receiver = receiver
        self.queue: list[Delivery] = []
        self.disabled: str | None = None
        self._local = local
        self._lane = Lane()
        self._news = threading.Condition(local.lock)
        self._thread: threading.Thread | None = None
        self._ended = False

    def about(self) -> dict[str, Any]:
        """What an operator sees."""
        state = self.disabled or ("enabled" if self.receiver.enabled else "paused")
        lane = self._lane.state(self._local.now_us())
        return {
            "id": self.id,
            "url": shown(self.receiver.url),
            "state": state,
            "lane": lane,
            "flagged": self._lane.flagged,
            "waiting": len(self.queue),
        }

    def wants(self, name: str) -> bool:
        """Whether an event is owed to it."""
        return self.receiver.enabled and self.disabled is None and body.matches(self.receiver.events, name)

    def put(self, delivery: Delivery) -> bool:
        """Owe it a delivery. False: it is owed too many."""
        if len(self.queue) >= self._local.max_queue:
            return False
        heapq.heappush(self.queue, delivery)
        self._news.notify()
        return True

    def replace(self, receiver: Receiver) -> None:
        """From now on it is this one; whatever had disabled it is forgiven."""
        self.receiver = receiver
        if self.disabled is not None:
            self.disabled = None
            self._lane.enabled_again(self._local.now_us())
        self._news.notify()

    def start(self) -> None:
        """Have a thread that is awake, if the outlet runs."""
        self._news.notify()
        if self._local.running and self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"webhook {self.id}", daemon=True)
            self._thread.start()

    def halt(self) -> threading.Thread | None:
        """Wake the thread, so that it sees whether it may go on."""
        self._news.notify()
        return self._thread

    def end(self) -> None:
        """It was removed: what it is owed fails."""
        self._ended = True
        for delivery in sorted(self.queue):
            self._local.fail(self.receiver.url, delivery, "unregistered", None)
        self.queue.clear()
        self._news.notify()

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._news:
                while not (batch := self._take()):
                    if self._ended or not self._local.running:
                        self._thread = None
                        return
                    self._news.wait(self._seconds_to_wait())
                receiver = self.receiver
            began_us = self._local.now_us()
            try:
                answer = self._call(receiver, batch)
                verdict = judge(answer, receiver.kind, time.time())
            except Exception:  # the thread's edge: a fault of ours must not end the line
                log.exception("A webhook could not be sent", extra={"action": "webhook"})
                answer, verdict = None, Verdict("protocol", "retry")
            with self._news:
                self._settle(batch, verdict, answer, began_us)

    def _call(self, receiver: Receiver, batch: list[Delivery]) -> Answer:
        first = batch[0]
        if receiver.kind == "http":
            url, text = receiver.url, body.make(first.name, first.event_id, first.occurred_us, first.data)
            secret = receiver.secret or self._local.secret
            signed = [] if secret is None else [secret]
            ours = signing.headers(first.event_id, int(time.time()), text, signed)
        else:
            notes = [Note(each.name, json.loads(each.data), each.occurred_us) for each in batch]
            (url, text), ours = compose(receiver.kind, receiver.url, notes), {}
        headers = request_headers(receiver.headers, ours)
        return self._local.outbound.request(
            "POST", url, headers=headers, body=text, timeout_seconds=receiver.timeout_seconds
        )

    # ---- below; with the lock held

    def _take(self) -> list[Delivery]:
        """What may be sent now: one delivery, or for a chat all that is due."""
        local, limits = self._local, LIMITS[self.receiver.kind]
        now_us = local.now_us()
        if not local.running or self._ended or not self._due(now_us) or not self._lane.may_send(now_us, limits):
            return []
        self._lane.began(now_us, limits)
        most = 1 if self.receiver.kind == "http" else MAX_DIGEST
        batch = [heapq.heappop(self.queue)]
        while len(batch) < most and self._due(now_us):
            batch.append(heapq.heappop(self.queue))
        for delivery in batch:
            delivery.attempts += 1
        return batch

    def _due(self, now_us: int) -> bool:
        awake = self.receiver.enabled and self.disabled is None
        return awake and bool(self.queue) and self.queue[0].due_us <= now_us

    def _seconds_to_wait(self) -> float | None:
        """Until something may be sent; None: until something changes."""
        if not self.queue or self.disabled is not None or not self.receiver.enabled:
            return None
        now_us = self._local.now_us()
        next_us = max(self.queue[0].due_us, self._lane.next_us(now_us, LIMITS[self.receiver.kind]))
        return max(next_us - now_us, 1000) / SECOND_US

    def _settle(self, batch: list[Delivery], verdict: Verdict, answer: Answer | None, began_us: int) -> None:
        now_us = self._local.now_us()
        self._local.counts["attempts"] += 1
        self._lane.ended(now_us, verdict, began_us)
        disables = verdict.disables or ("only_failures" if self._lane.worn_out(now_us) else None)
        if disables is not None and self.disabled is None:
            self.disabled = disables
            log.error(
                "The webhook endpoint %s was disabled (%s) at %s; register it again once it is mended",
                shown(self.receiver.url),
                disables,
                iso(now_us).decode(),
                extra={"action": "webhook_disabled"},
            )
        schedule = schedule_of(self.receiver.kind).first(self.receiver.max_retries)
        for delivery in batch:
            step = next_step(
                verdict,
                schedule,
                attempts=delivery.attempts,
                now_us=now_us,
                occurred_us=delivery.occurred_us,
                draw=self._local.draw(),
            )
            self._lane.settled(step)
            self._apply(delivery, step, answer)

    def _apply(self, delivery: Delivery, step: Step, answer: Answer | None) -> None:
        url = self.receiver.url
        if step.state == "done":
            self._local.counts["delivered"] += 1
        elif step.state == "dead" or self._ended:
            self._local.fail(url, delivery, step.cause, answer)
        else:
            delivery.due_us = step.due_us or delivery.due_us
            heapq.heappush(self.queue, delivery)
