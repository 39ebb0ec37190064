"""What a partitioned log would cost and save on PostgreSQL: why expired messages are deleted there, and not dropped.

    python -m benchmarks.partitions [--messages 60000] [--turns 300]

The store's own statements run against its table as it is, against one in ranges of seq, and against one by lifetime and
then in ranges; all in turn, on one server. It measures processor time, of PostgreSQL and of the asking thread, so it can be
done beside other work. Then messages are removed as the sweep does it, with and without the DELETE that a drop would save,
and it says what that writes to the WAL.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from bus.bus import MIGRATIONS
from bus.message import Kind, Message, now_us
from bus.storage import Burst, Job, Transaction, eviction, log_reader, work
from bus.storage.postgres import PostgresStore
from bus.storage.postgres_connection import PostgresConnection
from tests.databases import PostgresServer

BATCH = 500
CLIENTS = 100
HOUR_US = 3_600_000_000
LIVES_US = (HOUR_US // 60, 24 * HOUR_US, 168 * HOUR_US, None)
RANGES = 5
PAYLOAD = b'{"text":"%s"}' % (b"x" * 200)

_LIFETIME = f"""(CASE WHEN expires_at IS NULL THEN 3 WHEN expires_at - stamp <= {HOUR_US} THEN 0
 WHEN expires_at - stamp <= {25 * HOUR_US} THEN 1 ELSE 2 END)"""
_WRITTEN = "SELECT CAST(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') AS BIGINT)"
_INDEXES = (
    "CREATE INDEX ON messages (kind, address, seq) WHERE kind <> 1",
    "CREATE INDEX ON messages (expires_at) WHERE flags & 8 <> 0",
    "CREATE INDEX ON messages (seq, address) WHERE kind = 3",
)


def in_ranges(parent: str, ranges: int, width: int) -> Iterator[str]:
    """Partitions of `width` seqs each."""
    for n in range(ranges):
        yield f"CREATE TABLE {parent}_{n} PARTITION OF {parent} FOR VALUES FROM ({n * width}) TO ({(n + 1) * width})"
    yield f"CREATE TABLE {parent}_rest PARTITION OF {parent} DEFAULT"


def by_seq(messages: int) -> Iterator[str]:
    """`messages` in four times RANGES ranges."""
    yield "CREATE TABLE messages (LIKE plain, PRIMARY KEY (seq)) PARTITION BY RANGE (seq)"
    yield from _INDEXES
    yield from in_ranges("messages", 4 * RANGES, messages // (4 * RANGES))


def by_lifetime(messages: int) -> Iterator[str]:
    """Four lifetimes, each in RANGES ranges. The lifetime is no column: seq can't be a primary key."""
    yield f"CREATE TABLE messages (LIKE plain) PARTITION BY LIST ({_LIFETIME})"
    yield "CREATE INDEX ON messages (seq)"
    yield from _INDEXES
    for lifetime in range(len(LIVES_US)):
        name = f"messages_{lifetime}"
        yield f"CREATE TABLE {name} PARTITION OF messages FOR VALUES IN ({lifetime}) PARTITION BY RANGE (seq)"
        yield from in_ranges(name, RANGES, messages // RANGES)


class Backend:
    """A connection to a log, and the processor time that it takes on both sides."""

    def __init__(self, store: PostgresStore, scripts: Iterator[str] | None = None) -> None:
        store.open([("core", MIGRATIONS)])
        self.connection = store.connect(None)
        if scripts is not None:
            self.connection.execute("ALTER TABLE messages RENAME TO plain")
            for script in scripts:
                self.connection.execute(script)
        self._schedule = schedule_of(self.connection)
        self.spent: dict[str, list[float]] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note what is spent meanwhile."""
        began = time.thread_time() + seconds_of(self._schedule)
        yield
        self.connection.flush()
        self.spent.setdefault(what, []).append(time.thread_time() + seconds_of(self._schedule) - began)


def schedule_of(connection: PostgresConnection) -> Path:
    """Where the kernel tells the processor time of a connection's backend."""
    return Path(f"/proc/{connection.execute('SELECT pg_backend_pid()').get}/schedstat")


def seconds_of(schedule: Path) -> float:
    """Processor time so far."""
    return int(schedule.read_text(encoding="ascii").split()[0]) / 1e9


def rows(first: int, count: int, stamp: int) -> list[Any]:
    """Values of messages to clients, with all lifetimes in turn."""
    values: list[Any] = []
    for seq in range(first, first + count):
        life = LIVES_US[seq % len(LIVES_US)]
        expires = None if life is None else stamp + life
        values += [seq, 0, f"client{seq % CLIENTS}", "ann", "message", stamp, expires, 0, b"", PAYLOAD]
    return values


def questions(head: int, stamp: int) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """What readers, acks and sweeps ask."""
    some = [random.randrange(1, head) for _ in range(20)]
    anything = (None, None, None, None)
    return {
        "a message by its seq": ("SELECT seq, payload FROM messages m WHERE m.seq = ?", (some[0],)),
        "20 messages by their seqs": (eviction._DUE, (msgspec.json.encode(some).decode(), stamp)),
        "the log's last 100": (log_reader.LOG, ("", head - 100, head, 100, *anything)),
        "100 of the log's middle": (log_reader.LOG, ("", head // 2, head, 100, *anything)),
        "an inbox's first 20": (log_reader.INBOX, ("client7", 0, head, 20, *anything)),
        "an inbox's last 20": (log_reader.INBOX, ("client7", head - 20 * CLIENTS, head, 20, *anything)),
    }


def compare(backends: dict[str, Backend], messages: int, turns: int) -> None:
    """Insert and ask, each in its turn."""
    stamp, head = now_us(), 0
    for size in (1, 64):
        for _ in range(turns if size == 1 else (messages - head) // size):
            values = rows(head + 1, size, stamp)
            head += size
            for backend in backends.values():
                with backend.timed(f"insert {size}"):
                    backend.connection.execute("BEGIN")
                    backend.connection.execute(work._INSERTS[size], values)
                    backend.connection.execute("COMMIT")
    for backend in backends.values():
        backend.connection.execute("ANALYZE").load()
    for _ in range(turns):
        for what, (statement, bindings) in questions(head, stamp).items():
            for backend in backends.values():
                with backend.timed(what):
                    backend.connection.execute(statement, bindings).load()
    print(f"microseconds of processor time   {'   '.join(backends)}")
    for what in next(iter(backends.values())).spent:
        medians = [statistics.median(backend.spent[what]) * 1e6 for backend in backends.values()]
        print(f"{what:32}", "   ".join(f"{m:{len(name)}.0f}" for name, m in zip(backends, medians, strict=True)))


def remove(store: PostgresStore, messages: int) -> None:
    """Let messages expire, and take them out: with all that hangs on them, and with all but themselves."""
    store.open([("core", MIGRATIONS)])
    with closing(store.writer()) as writer, closing(store.connect(None)) as other:

        def write(run: Callable[[Transaction], Any]) -> Any:
            job = Job(run, lambda _: None)
            writer.commit([job])
            if job.error is not None:
                raise job.error
            return job.value

        def wal_of(what: Callable[[], None]) -> float:
            """Bytes for a message. A page that changes is written whole the first time after a checkpoint."""
            other.execute("CHECKPOINT").load()
            start = other.execute(_WRITTEN).get
            what()
            return float(other.execute(_WRITTEN).get - start) / messages

        def send() -> None:
            for first in range(0, messages, BATCH):
                sent = [message_to(f"client{n % CLIENTS}") for n in range(first, first + BATCH)]
                writer.commit([Burst(sent, [None] * BATCH, lambda *_: None, lambda *_: None, present=[True] * BATCH)])

        whole = eviction._HANGS_ON
        spent: dict[str, list[float]] = {"whole": [], "without the DELETE of its row": []}

        def sweep() -> None:
            schedule = Path(f"/proc/{write(lambda t: t.execute('SELECT pg_backend_pid()'))[0][0]}/schedstat")
            for first in range(0, messages, BATCH):
                batch = list(range(first + 1, first + BATCH + 1))
                halves = zip(spent, (batch[1::2], batch[::2]), (whole, whole[1:]), strict=True)
                for which, seqs, eviction._HANGS_ON in halves:
                    began = time.thread_time() + seconds_of(schedule)
                    write(lambda transaction, seqs=seqs: eviction.remove(transaction, seqs, eviction.EXPIRED))
                    spent[which].append(time.thread_time() + seconds_of(schedule) - began)
            eviction._HANGS_ON = whole
            write(lambda transaction: transaction.execute("DELETE FROM messages"))

        write(end_at_once)
        print(f"bytes of WAL for a message: {wal_of(send):.0f} to send it", end="")
        print(f", {wal_of(sweep):.0f} to remove it", end="")
        print(f", {wal_of(lambda: other.execute('VACUUM messages').load()):.0f} for VACUUM then")
    for which, seconds in spent.items():
        print(f"to remove a message, {which}: {statistics.median(seconds) * 1e6 / (BATCH // 2):.2f} microseconds")


def end_at_once(transaction: Transaction) -> None:
    """Let every message that is sent from now on expire in its moment."""
    transaction.execute("INSERT INTO policies VALUES ('$default', 'custom', 1, 0, 'setting', 0)")
    transaction.execute("UPDATE log_head SET policies = policies + 1")


def message_to(name: str) -> Message:
    """One to a client."""
    return Message(Kind.CLIENT, name, (name,), "ann", "message", PAYLOAD, now_us())


def main() -> None:
    """Make a server, measure, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--turns", type=int, default=300)
    options = parser.parse_args()
    server = PostgresServer(settings=["full_page_writes=on"])
    server.start()
    clock: Any = SimpleNamespace(now_us=now_us, follow=lambda _: None)

    def store() -> PostgresStore:
        return PostgresStore(server.make(), clock, durability="full", inbox_limit=10**9, queue_limit=10**9)

    try:
        backends = {
            "as it is": Backend(store()),
            f"{4 * RANGES} ranges": Backend(store(), by_seq(options.messages)),
            f"4 lifetimes x {RANGES} ranges": Backend(store(), by_lifetime(options.messages)),
        }
        compare(backends, options.messages, options.turns)
        for backend in backends.values():
            backend.connection.close()
        remove(store(), options.messages)
    finally:
        server.close()


if __name__ == "__main__":
    main()
