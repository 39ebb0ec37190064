"""The indexer follows the log in small jobs, and takes out what has left; without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bus import search
from bus.bus import MIGRATIONS
from bus.message import Kind, Message
from bus.metrics import Metrics
from bus.search import indexer
from bus.search.finder import Finder, Place
from bus.search.indexer import Host, Indexer, progress
from bus.search.query import Wanted, parse
from bus.search.sqlite_index import SQLITE
from bus.storage import Job, Pending, Transaction
from bus.storage.eviction import evict
from bus.storage.sqlite import SqliteStore

COUNT = "SELECT count(*) FROM search_index_docsize"


class Bench:
    """A store, and an indexer whose pauses are noted."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore(
            folder / "bus.db", folder / "locks", lambda: 1, durability="relaxed", inbox_limit=10**6, queue_limit=10
        )
        self.store.open([("core", MIGRATIONS), ("search", Path(search.__file__).parent / "migrations")])
        self.writer, self.reader = self.store.writer(), self.store.reader()
        self.pauses: list[float] = []
        self.jobs = 0
        self.busy = False
        self.used_seconds, self.used_in_a_pause = 0.0, 0.0
        self.begin()

    def begin(self) -> None:
        """Another process begins to index."""
        host = Host(
            lambda job: job(self.reader),
            self.write,
            self.head,
            lambda: self.busy,
            self.pause,
            lambda: self.used_seconds,
            Metrics(),
        )
        self.indexer = Indexer(host, SQLITE)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.used_seconds += self.used_in_a_pause

    def head(self) -> int:
        return self.reader.head().seq

    def write(self, run: Callable[[Transaction], Any]) -> Any:
        self.jobs += 1
        job = Job(run, lambda _: None)
        self.writer.commit([job])
        if job.error is not None:
            raise job.error
        return job.value

    def send(self, *texts: str) -> None:
        messages = [Message(Kind.CLIENT, "b", ("b",), "a", "t", msgspec.json.encode(text), 1) for text in texts]
        self.writer.commit([Pending(message, lambda _: None, present=True) for message in messages])

    def tick(self, *, tidy: bool = False) -> None:
        if tidy:
            self.indexer._tidied_at -= indexer.TIDY_SECONDS
        self.indexer.tick()

    def find(self, text: str) -> list[int]:
        finder = Finder(SQLITE, Wanted(parse(text)), 1000, by_rank=False, may_see=lambda _: True)
        return [message.seq for message, _ in finder.page(self.reader, Place()).results]

    @property
    def indexed(self) -> int:
        return int(self.reader.execute(COUNT)[0][0])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.writer.close()
    made.reader.close()


def test_it_goes_on_from_where_a_former_process_got_to(bench: Bench) -> None:
    bench.send("one", "two")
    bench.tick()
    bench.begin()
    bench.send("two", "three")
    bench.tick()
    assert (bench.find("two"), bench.indexed, progress(bench.reader)) == ([3, 2], 4, 4)


def test_what_another_process_has_indexed_meanwhile_is_not_indexed_twice(bench: Bench) -> None:
    first = bench.indexer
    bench.send("one")
    bench.tick()
    bench.begin()
    bench.send("two")
    bench.tick()
    bench.indexer = first
    bench.tick()
    bench.send("three")
    bench.tick()
    assert (bench.indexed, bench.find("three"), bench.find("two")) == (3, [3], [2])


def test_a_backlog_is_indexed_in_small_jobs_with_pauses_between(bench: Bench) -> None:
    bench.busy = True
    for _ in range(4):
        bench.send(*["some words of a message"] * 500)
    bench.tick()
    assert (bench.indexed, progress(bench.reader)) == (2000, 2000)
    assert bench.jobs >= 2000 / indexer.BATCH
    assert len(bench.pauses) == bench.jobs
    assert 0 < max(bench.pauses) <= 1.0


def test_where_messages_need_all_of_the_processor_it_takes_the_least_and_waits_the_longest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()  # every look at the clock takes a millisecond, so every step takes as long
    monkeypatch.setattr(indexer, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1000))
    bench.send(*["some words of a message"] * 1000)
    bench.busy, bench.used_in_a_pause = True, 1.0
    bench.tick()
    assert bench.jobs == 1000 / indexer.FEWEST
    twentieth, *hundredths = bench.pauses
    assert hundredths == pytest.approx([twentieth / 19 * 99] * len(hundredths))
    bench.send(*["some words of a message"] * 1000)
    bench.used_in_a_pause = 0.0
    bench.tick()
    assert bench.jobs < 1.5 * 1000 / indexer.FEWEST, "Where there is time, the jobs grow."
    assert progress(bench.reader) == 2000


def test_the_index_stays_in_few_parts(bench: Bench) -> None:
    for number in range(120):
        bench.send(f"one{number}", "two")
        bench.tick()
    (parts,) = bench.reader.execute("SELECT count(DISTINCT segid) FROM search_index_idx")[0]
    assert parts < 20
    assert len(bench.find("two")) == 120


def test_large_payloads_are_indexed_a_few_at_a_time(bench: Bench) -> None:
    bench.send(*[f"begin{n} " + "x" * 2_000_000 for n in range(8)])
    bench.tick()
    assert bench.jobs >= 2
    assert bench.find("begin7") == [8]


def test_an_idle_bus_is_not_written_to(bench: Bench) -> None:
    bench.send("one")
    bench.tick()
    bench.jobs = 0
    for _ in range(3):
        bench.tick()
        bench.tick(tidy=True)
    assert bench.jobs == 0


def test_what_has_left_the_log_leaves_the_index(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "WINDOW", 10)
    bench.send(*["word"] * 30)
    bench.tick()
    bench.write(lambda transaction: evict(transaction, 12, 0))
    bench.write(lambda transaction: transaction.execute("DELETE FROM messages WHERE seq = 25"))
    assert bench.find("word") == [seq for seq in range(30, 12, -1) if seq != 25]
    for _ in range(4):
        bench.tick(tidy=True)
    assert bench.indexed == 17
    assert bench.find("word") == [seq for seq in range(30, 12, -1) if seq != 25]


def test_after_a_clear_the_index_is_emptied_at_once(bench: Bench) -> None:
    bench.send(*["word"] * 600)
    bench.tick()
    bench.write(lambda transaction: transaction.execute("DELETE FROM messages"))
    bench.jobs = 0
    bench.tick(tidy=True)
    assert (bench.indexed, bench.jobs, bench.find("word")) == (0, 1, [])
    bench.send("word")
    bench.tick()
    assert bench.find("word") == [601]


def test_payloads_of_every_sort_are_indexed(bench: Bench) -> None:
    odd = [
        b"null",
        b"1e400",
        b'"\\ud83d\\ude00 smile"',
        b"1" * 5000,
        b'{"a":' * 30 + b"{}" + b"}" * 30,
        b'"\\u0000zero"',
    ]
    messages = [Message(Kind.ALL, "", (), "a", "t", payload, 1) for payload in odd]
    bench.writer.commit([Pending(message, lambda _: None) for message in messages])
    bench.tick()
    assert bench.indexed == len(odd)
    assert (bench.find("smile"), bench.find("zero")) == ([3], [6])
