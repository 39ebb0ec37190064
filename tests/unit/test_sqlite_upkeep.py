"""The files of the SQLite store are kept in shape: the WAL is written again from its beginning, and cut when it is large."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from bus.bus import MIGRATIONS
from bus.message import Kind, Message
from bus.storage import Pending
from bus.storage.sqlite import SqliteStore
from bus.storage.sqlite_upkeep import SqliteUpkeep

PAYLOAD = b'"' + b"x" * 1_000_000 + b'"'
FULL = 3
"""So many of these payloads fill the WAL, as the fixture sets it."""


class Bench:
    def __init__(self, folder: Path) -> None:
        self.wal = folder / "bus.db-wal"
        self.store = SqliteStore(
            folder / "bus.db", folder / "locks", lambda: 0, durability="full", inbox_limit=100, queue_limit=100
        )
        self.store.open([("core", MIGRATIONS)])
        self.writer, self.reader, self.upkeep = self.store.writer(), self.store.reader(), self.store.upkeep()

    def close(self) -> None:
        for part in (self.reader, self.upkeep, self.writer):
            part.close()

    def write(self, count: int) -> int:
        """Commit so many large messages, one by one. Returns how long the WAL is then."""
        for _ in range(count):
            self.writer.commit([Pending(Message(Kind.ALL, "", (), "ann", "text", PAYLOAD, 0), lambda _: None)])
        return self.wal.stat().st_size

    def stored(self) -> int:
        return len(self.reader.execute("SELECT seq FROM messages WHERE payload = ?", (PAYLOAD,)))


class LateCommit:
    """The writers' lock; but a writer was faster, each time."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.lock = bench.store._writers_lock()

    def __enter__(self) -> None:
        self.bench.write(1)
        self.lock.__enter__()

    def __exit__(self, *raised: object) -> None:
        self.lock.__exit__(*raised)

    def close(self) -> None:
        self.lock.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(SqliteUpkeep, "RECYCLE_AT_FRAMES", 500)
    monkeypatch.setattr(SqliteUpkeep, "TRUNCATE_AT_BYTES", 4 * FULL * len(PAYLOAD))
    made = Bench(tmp_path)
    yield made
    made.close()


def test_the_wal_is_written_again_from_its_beginning_though_others_write(bench: Bench) -> None:
    upkeep = SqliteUpkeep(bench.store._connect(apsw.SQLITE_OPEN_READWRITE), LateCommit(bench), bench.store.wal_bytes)
    lengths = []
    for _ in range(6):
        lengths.append(bench.write(FULL))
        upkeep.tick()
    upkeep.close()
    assert lengths[2:] == [lengths[1]] * 4, "It grew."
    assert bench.stored() == 6 * (FULL + 1)


def test_a_reader_in_the_middle_of_a_page_only_puts_it_off(bench: Bench) -> None:
    bench.write(FULL)
    bench.reader.execute("BEGIN")
    assert bench.stored() == FULL
    bench.write(FULL)
    bench.upkeep.tick()
    longer = bench.write(FULL)
    assert bench.stored() == FULL, "A reader sees what was there when it began."
    bench.reader.execute("ROLLBACK")
    bench.upkeep.tick()
    assert bench.write(FULL) == longer
    assert bench.stored() == 4 * FULL


def test_a_wal_that_grew_large_is_cut(bench: Bench) -> None:
    assert bench.write(5 * FULL) > SqliteUpkeep.TRUNCATE_AT_BYTES
    bench.upkeep.tick()
    assert bench.wal.stat().st_size == 0
    assert bench.stored() == 5 * FULL


@pytest.mark.timeout(8)
def test_no_send_waits_while_a_reader_keeps_a_large_wal_from_being_cut(bench: Bench) -> None:
    bench.write(1)
    bench.reader.execute("BEGIN")
    assert bench.stored() == 1
    large = bench.write(5 * FULL)
    bench.upkeep.tick()
    assert bench.write(1) > large
    bench.reader.execute("ROLLBACK")
    bench.upkeep.tick()
    assert bench.wal.stat().st_size == 0


def test_what_has_been_moved_is_left_alone(bench: Bench) -> None:
    bench.write(FULL)
    bench.upkeep.tick()
    with bench.store._writers_lock():  # a second tick that wanted it would wait for ever
        bench.upkeep.tick()
