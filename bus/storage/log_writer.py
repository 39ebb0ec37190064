"""The writer thread of a process: group commit with no timer.

It takes what gathered while the last batch committed, writes it in one transaction, and hands the block of new
messages to the event loop. It never waits for company: an idle bus commits a single send at once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from _queue import SimpleQueue
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gevent
from gevent.event import AsyncResult

from bus.errors import BusError, Unavailable
from bus.message import Message
from bus.nodes.leases import fenced
from bus.storage import Burst, Group, Item, Job, Pending, Transaction, Writer
from bus.threads import Mailbox, drain, start_native

log = logging.getLogger("bus.writer")

ROWS_A_COMMIT = 2000
"""At most about this many items a transaction: more gains nothing and lengthens the wait of the next."""

OnBlock = Callable[[int, list[Message]], None]


class LogWriter:
    """Submit on the event loop; settle on the event loop; everything between is the thread's.

    `on_commit(seconds, writes, new messages)` and `on_failed(error)` hear what became of each batch, on the event loop.
    `waiting` counts rows submitted and not yet settled; `waiting_bytes` their payloads. They are what
    back-pressure looks at, and only the event loop changes them. `committed_at`: when the last commit was heard of, by the
    monotonic clock.
    """

    def __init__(self, mailbox: Mailbox, open_writer: Callable[[], Writer], on_block: OnBlock) -> None:
        """`on_block(first seq, messages)` gets each commit's new messages, on the event loop, before they are settled."""
        self._mailbox = mailbox
        self._open_writer = open_writer
        self._on_block = on_block
        self._queue: Any = SimpleQueue()
        self._ended = False
        self.waiting = 0
        self.waiting_bytes = 0
        self.committed_at = time.monotonic()
        self.on_relief: Callable[[], None] | None = None
        self.on_commit: Callable[[float, int, list[Message]], None] | None = None
        self.on_failed: Callable[[BaseException], None] | None = None

    def start(self) -> None:
        start_native(self._run)

    def submit(self, items: Sequence[Item]) -> None:
        """Queue items for the next batch, in order."""
        for chunk in _parted(items):
            self.waiting += chunk.rows
            self.waiting_bytes += chunk.weight
            self._queue.put(chunk)

    def call(self, run: Callable[[Transaction], Any], *, lazy: bool = False) -> Any:
        """Run a write job and wait for its value in the calling greenlet; `lazy` as in `Job`. Raises what it raised,
        and LeaseLost if the greenlet works under a lease that is lost."""
        result: AsyncResult[Any] = AsyncResult()

        def settled(job: Job) -> None:
            if job.error is None:
                result.set(job.value)
            else:
                result.set_exception(job.error)

        self.submit([Job(fenced(run), settled, lazy=lazy)])
        return result.get()

    def stop(self) -> None:
        """Commit what is queued, end the thread, and wait for it (at most 10 s). In a greenlet."""
        self._queue.put(None)
        for _ in range(1000):
            if self._ended:
                return
            gevent.sleep(0.01)

    # ---- on the thread

    def _run(self) -> None:
        writer: Writer | None = None
        chunks: list[Any] = []
        while None not in chunks:
            chunks = [self._queue.get()]
            # Each chunk is one turn of the event loop; the batch ends at the first that makes it large.
            while sum(chunk.rows for chunk in chunks if chunk is not None) < ROWS_A_COMMIT:
                count = len(chunks)
                drain(self._queue, chunks, count + 1)
                if len(chunks) == count:
                    break
            batch = _together([chunk for chunk in chunks if chunk is not None])
            if not batch.items:
                continue
            try:
                if writer is None:
                    writer = self._open_writer()
                began = time.perf_counter()
                first, messages = writer.commit(batch.items)
                seconds = time.perf_counter() - began
            except BaseException as error:  # noqa: BLE001  # handled and logged on the loop
                self._mailbox.post(self._failed, batch, error)
            else:
                self._mailbox.post(self._committed, batch, first, messages, seconds)
        # Whoever closes the log last folds its WAL in. Readers could not, so each process ends with a writer.
        with contextlib.suppress(Exception):
            (writer or self._open_writer()).close()
        self._ended = True

    # ---- on the event loop

    def _committed(self, batch: _Chunk, first: int, messages: list[Message], seconds: float) -> None:
        self.committed_at = time.monotonic()
        if messages:
            self._on_block(first, messages)
        if self.on_commit is not None:
            self.on_commit(seconds, len(batch.items), messages)
        self._settle(batch)

    def _failed(self, batch: _Chunk, error: BaseException) -> None:
        refusal = (
            error if isinstance(error, BusError) else Unavailable("The log failed; nothing was stored. Try again.")
        )
        log.error(
            "A batch was not stored: %r",
            error.__cause__ or error,
            extra={"action": "commit_failed", "items": len(batch.items)},
        )
        if self.on_failed is not None:
            self.on_failed(error)
        for item in batch.items:
            if isinstance(item, Burst):
                item.errors = dict.fromkeys(range(len(item.messages)), refusal)
                for message in item.messages:
                    message.seq = 0
                continue
            for part in item.members if isinstance(item, Group) else (item,):
                part.error = refusal
                if isinstance(part, Pending):
                    part.message.seq = 0
        self._settle(batch)

    def _settle(self, batch: _Chunk) -> None:
        self.waiting -= batch.rows
        self.waiting_bytes -= batch.weight
        for item in batch.items:
            try:
                if isinstance(item, Group):
                    for member in item.members:
                        member.settled(member)
                else:
                    item.settled(item)  # type: ignore[arg-type, misc]
            except Exception:
                log.exception("A settled write could not be answered", extra={"action": "settle"})
        if self.on_relief is not None:
            self.on_relief()


class _Chunk(NamedTuple):
    """Items that belong into one commit, about how many rows they write, and the bytes of their payloads."""

    items: Sequence[Item]
    rows: int
    weight: int


def _parted(items: Sequence[Item]) -> Iterator[_Chunk]:
    """One turn of the loop may bring more than a commit should hold: parts of it."""
    start = rows = weight = 0
    for at, item in enumerate(items):
        if type(item) is Pending:
            more, bytes_more = 1 + item.more_rows, len(item.message.payload)
        else:
            more, bytes_more = _measure(item)
        if rows and rows + more > ROWS_A_COMMIT:
            yield _Chunk(items[start:at], rows, weight)
            start, rows, weight = at, 0, 0
        rows += more
        weight += bytes_more
    yield _Chunk(items[start:] if start else items, rows, weight)


def _together(chunks: Sequence[_Chunk]) -> _Chunk:
    if len(chunks) == 1:
        return chunks[0]
    items = [item for chunk in chunks for item in chunk.items]
    return _Chunk(items, sum(chunk.rows for chunk in chunks), sum(chunk.weight for chunk in chunks))


def _measure(item: Item) -> tuple[int, int]:
    """About how many rows an item writes (a list has some for each name), and the bytes of its payloads."""
    if isinstance(item, Burst):
        return len(item.messages), item.weight
    if isinstance(item, Job):
        return item.rows, 0
    members = item.members if isinstance(item, Group) else (item,)
    return sum(1 + member.more_rows for member in members), sum(len(member.message.payload) for member in members)
