"""Native threads that work for the event loop: jobs go in by a raw queue, results come back by one `async_` wake-up.

A native thread must not touch anything that gevent patched (locks, logging, sockets): a thread that logged through
the patched `logging` starved the loop for 1.3 s. So a job only blocks in C (SQLite, file system), and its result,
or its exception, is handled on the loop.
"""

from __future__ import annotations

import logging
from _queue import Empty, SimpleQueue
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.monkey import get_original

log = logging.getLogger("bus.threads")

OVERFLOW_SECONDS = 30.0
"""How long a thread beyond a pool's size waits for work before it ends."""

Callback = Callable[[Any, BaseException | None], None]


class Mailbox:
    """Carries calls from native threads to the event loop. Thread-safe in `post`; `close` on the loop.

    `_calls` is a deque (append and popleft are atomic); libev's async watcher folds many wake-ups into one.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._run)

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have `call(*arguments)` run on the event loop, in the order of posting."""
        self._calls.append((call, arguments))
        self._wake.send()

    def _run(self) -> None:
        calls = self._calls
        for _ in range(len(calls)):
            call, arguments = calls.popleft()
            try:
                call(*arguments)
            except Exception:
                log.exception("A result could not be handled", extra={"action": "mailbox"})

    def close(self) -> None:
        self._wake.stop()
        self._wake.close()


def start_native(run: Callable[[], None]) -> None:
    """Start an operating-system thread, whatever gevent has patched."""
    get_original("_thread", "start_new_thread")(run, ())


class WorkerPool:
    """A few native threads, each with a resource of its own (a read connection), taking jobs in order.

    `jobs` waiting are bounded by who submits them: one page a connection, one request a greenlet.
    """

    def __init__(self, mailbox: Mailbox, open_resource: Callable[[], Any], *, size: int, overflow: int = 0) -> None:
        """`overflow`: how many more threads there may be while jobs wait; each ends when it had none for a while."""
        self._mailbox = mailbox
        self._open_resource = open_resource
        self._size = size
        self._overflow = overflow
        self._jobs: Any = SimpleQueue()
        self._begun = 0
        self._ended = 0

    def start(self) -> None:
        for _ in range(self._size):
            self._begin()

    def _begin(self, patience: float | None = None) -> None:
        self._begun += 1
        start_native(lambda: self._work(patience))

    def submit(self, job: Callable[[Any], Any], then: Callback) -> None:
        """Run `job(resource)` on a thread, then `then(value, error)` on the event loop."""
        self._jobs.put((job, then))
        if self._overflow and self._jobs.qsize() > 1 and self._begun - self._ended < self._size + self._overflow:
            self._begin(OVERFLOW_SECONDS)

    def call(self, job: Callable[[Any], Any]) -> Any:
        """As `submit`, but wait for it in the calling greenlet. Raises what the job raised."""
        result: AsyncResult[Any] = AsyncResult()

        def settle(value: Any, error: BaseException | None) -> None:
            if error is None:
                result.set(value)
            else:
                result.set_exception(error)

        self.submit(job, settle)
        return result.get()

    def stop(self) -> None:
        """Let the threads end after what is queued, and wait for it for at most 5 s. In a greenlet."""
        for _ in range(self._begun - self._ended):
            self._jobs.put(None)
        for _ in range(500):
            if self._ended == self._begun:
                return
            gevent.sleep(0.01)

    def _work(self, patience: float | None) -> None:
        resource = None
        while True:
            try:
                entry = self._jobs.get(timeout=patience)
            except Empty:
                break
            if entry is None:
                break
            job, then = entry
            try:
                if resource is None:
                    resource = self._open_resource()
                value, error = job(resource), None
            except BaseException as raised:  # noqa: BLE001  # crosses to the loop, where it is handled
                value, error = None, raised
            self._mailbox.post(then, value, error)
        if resource is not None:
            resource.close()
        self._mailbox.post(self._count_ended)

    def _count_ended(self) -> None:
        self._ended += 1


def drain(queue: Any, into: list[Any], most: int) -> None:
    """Take what is in a SimpleQueue without waiting, until `into` has `most` items."""
    try:
        while len(into) < most:
            into.append(queue.get_nowait())
    except Empty:
        return
