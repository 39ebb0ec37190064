"""A worker of a queue: it claims jobs, runs a handler for each, and keeps their leases alive meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import msgspec

from bus.client.errors import passes
from bus.client.handlers import Handler
from bus.client.received import Message
from bus.client.reconnection import Backoff, Ending
from bus.client.verdicts import Verdict
from bus.errors import BusError

log = logging.getLogger("bus.client")

CLAIM_SECONDS = 20.0
"""How long one claim waits for a job."""
SETTLE_SECONDS = 60.0
"""How long to go on saying that a job is done while the bus is away."""


class _Job(msgspec.Struct, eq=False):
    """A job whose handler runs, and when to extend its lease next (monotonic seconds)."""

    message: Message
    due: float


class Worker:
    """Takes jobs and handles up to `max_in_flight` at once. `run` it once; `stop` it from any other thread.

    Every job taken is settled: acked when its handler returned, nacked when it raised, or as the handler said itself,
    by the message's own verbs or by raising Nack, Reject or Release.
    """

    def __init__(
        self,
        claim: Callable[[int, float], list[Message]],
        handler: Handler,
        *,
        max_in_flight: int = 1,
        ack_wait: float = 30.0,
        count: int | None = None,
    ) -> None:
        """`claim(limit, wait)` takes jobs, with leases of `ack_wait` seconds. `count`: stop after so many (None: never)."""
        self._take = claim
        self._handler = handler
        self._max_in_flight = max_in_flight
        self._ack_wait = ack_wait
        self._left = count
        # Guards what follows, and tells who waits for it.
        self._changed = threading.Condition()
        # By arrival; at most `max_in_flight`.
        self._jobs: dict[int, _Job] = {}
        self._taken = 0
        self._handled = 0
        self._over = False
        self._backoff = Backoff()
        # Set once: no more claims.
        self._stopping = threading.Event()
        # `handles` is set on the threads of the handlers.
        self._inside = threading.local()
        self._began = threading.Event()
        self._ended = threading.Event()

    def run(self) -> int:
        """Work until `count` jobs were taken or `stop` was called, and the last handler has ended; returns how many did.

        A bus that goes away is waited for. Raises what it refused for good, once the running handlers have ended.
        """
        self._began.set()
        keeper = threading.Thread(target=self._keep_leases, name="bus-worker-leases", daemon=True)
        keeper.start()
        try:
            with ThreadPoolExecutor(self._max_in_flight, thread_name_prefix="bus-worker") as pool:
                while free := self._free_slots():
                    for message in self._claim(free):
                        pool.submit(self._handle, self._begin(message), message)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            keeper.join()
            self._ended.set()
        return self._handled

    def stop(self) -> None:
        """Take no more jobs; `run` returns when the running handlers have ended. A job that comes late goes back."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def join(self, timeout: float | None) -> bool:
        """Wait up to `timeout` seconds (None: for ever) for the end of `run`; False when it is not there.

        Returns at once inside of a handler, which could wait for itself only.
        """
        return self._ended.wait(0 if getattr(self._inside, "handles", False) else timeout)

    @property
    def is_running(self) -> bool:
        """True while `run` does."""
        return self._began.is_set() and not self._ended.is_set()

    @property
    def has_ended(self) -> bool:
        """True once `run` has ended."""
        return self._ended.is_set()

    @property
    def running(self) -> list[Message]:
        """The jobs whose handlers run now."""
        with self._changed:
            return [job.message for job in self._jobs.values()]

    # ---- inside

    def _free_slots(self) -> int:
        """How many jobs to claim; waits for the first free slot. 0 when no more are wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping.is_set() or len(self._jobs) < self._max_in_flight)
            if self._stopping.is_set():
                return 0
            free = self._max_in_flight - len(self._jobs)
            return free if self._left is None else min(free, self._left)

    def _claim(self, limit: int) -> list[Message]:
        """Take jobs, and wait for them; none when there are none for now, or when it is to stop."""
        claiming: Future[list[Message]] = Future()
        # On a thread of its own, so that stopping need not wait; a daemon, since it may wait longer than the process.
        threading.Thread(target=self._fetch, args=(limit, claiming), name="bus-worker-claim", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: claiming.done() or self._stopping.is_set())
            if not claiming.done():
                claiming.cancel()
                return []
        try:
            messages = claiming.result()
        except BusError as error:
            if not passes(error):
                raise
            pause = self._backoff.pause(Ending(reason=error.sentence, after_seconds=error.retry_after_seconds))
            log.warning("No jobs for now: %s Again in %.1f s", error.sentence, pause, extra={"action": "claim_failed"})
            self._stopping.wait(pause)
            return []
        self._backoff = Backoff()
        return messages

    def _fetch(self, limit: int, claiming: Future[list[Message]]) -> None:
        """Claim, and bring what came; what nobody waits for any more goes back."""
        messages: list[Message] = []
        failure: Exception | None = None
        try:
            messages = self._take(limit, CLAIM_SECONDS)
        except Exception as error:  # noqa: BLE001 - it is raised where the claim is waited for
            failure = error
        with self._changed:
            wanted = claiming.set_running_or_notify_cancel()
            if wanted and failure is not None:
                claiming.set_exception(failure)
            elif wanted:
                claiming.set_result(messages)
            self._changed.notify_all()
        for message in messages if not wanted else ():
            self._say(message, message.release)

    def _begin(self, message: Message) -> int:
        with self._changed:
            self._taken += 1
            if self._left is not None:
                self._left -= 1
            self._jobs[self._taken] = _Job(message, time.monotonic() + self._ack_wait / 2)
            self._changed.notify_all()
            return self._taken

    def _handle(self, arrival: int, message: Message) -> None:
        self._inside.handles = True
        try:
            self._handler(message)
        except Verdict as verdict:
            self._say(message, partial(verdict.settle, message))
        except Exception as error:
            log.exception("A handler failed on a job", extra={"action": "handler_failed", "message_id": message.id})
            self._say(message, partial(message.nack, reason=type(error).__name__))
        else:
            self._say(message, message.ack)
        finally:
            with self._changed:
                del self._jobs[arrival]
                self._handled += 1
                self._changed.notify_all()

    def _say(self, message: Message, verb: Callable[[], str | None]) -> None:
        """Settle a job, unless its handler did. Goes on through a restart of the bus: a lease outlives that."""
        backoff, deadline = Backoff(), time.monotonic() + SETTLE_SECONDS
        about = {"action": "settle_failed", "message_id": message.id}
        while not message.is_settled:
            try:
                word = verb()
            except BusError as error:
                if not passes(error) or time.monotonic() >= deadline:
                    log.error("What became of a job could not be said: %s", error.sentence, extra=about)
                    return
                time.sleep(backoff.pause(Ending(reason=error.sentence, after_seconds=error.retry_after_seconds)))
            else:
                if word == "superseded":
                    log.warning("A lease had ended before its job: it may be done twice", extra=about)

    def _keep_leases(self) -> None:
        while (job := self._await_due()) is not None:
            about = {"action": "lease_lost", "message_id": job.message.id}
            try:
                word = job.message.progress(self._ack_wait)
            except BusError as error:
                log.warning("A lease could not be extended: %s", error.sentence, extra=about)
            else:
                if word != "extended":
                    log.warning("A lease is lost (%s): its job may be done twice", word, extra=about)

    def _await_due(self) -> _Job | None:
        """Wait for the next lease to extend; None when `run` is over."""
        with self._changed:
            while not self._over:
                now = time.monotonic()
                job = min(self._jobs.values(), key=lambda job: job.due, default=None)
                if job is not None and job.due <= now:
                    job.due = now + self._ack_wait / 2
                    return job
                self._changed.wait(None if job is None else job.due - now)
            return None
