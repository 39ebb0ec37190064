"""What is forgotten, and when: by the bus's clock, in bounded batches, and nothing that is still of use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.bus import MIGRATIONS
from bus.clock import Clock
from bus.delivery.housekeeper import CLIENT_AGE_US, DAY_US, Housekeeper
from bus.message import Kind, Message, Terms, now_us
from bus.storage import Job, Pending, Transaction
from bus.storage.sqlite import SqliteStore


class LateClock(Clock):
    """A clock that a test sets ahead."""

    def __init__(self) -> None:
        super().__init__(Path("unused"))
        self.ahead_us = 0

    def now_us(self) -> int:
        return now_us() + self.ahead_us


class Store:
    """A store, its writer, and a housekeeper of it."""

    def __init__(self, folder: Path) -> None:
        self.clock = LateClock()
        self.online: set[str] = set()
        store = SqliteStore(
            folder / "bus.db",
            folder / "locks",
            self.clock.now_us,
            durability="relaxed",
            inbox_limit=100,
            queue_limit=100,
        )
        store.open([("core", MIGRATIONS)])
        self.writer = store.writer()
        self.housekeeper = Housekeeper(self.write, self.clock, lambda: self.online)

    def write(self, run: Callable[[Transaction], Any]) -> Any:
        job = Job(run, lambda _: None)
        self.writer.commit([job])
        if job.error is not None:
            raise job.error
        return job.value

    def send(self, sender: str, to: str, key: str | None = None, *, tracked: bool = False) -> Pending:
        message = Message(Kind.CLIENT, to, (to,), sender, "message", b"1", now_us(), int(tracked), terms=Terms())
        item = Pending(message, lambda _: None, key=key)
        self.writer.commit([item])
        return item

    def names(self) -> list[str]:
        return [name for (name,) in self.write(lambda t: t.execute("SELECT name FROM clients ORDER BY name"))]

    def count(self, table: str) -> int:
        return int(self.write(lambda t: t.execute(f"SELECT count(*) FROM {table}"))[0][0])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.writer.close()


def test_a_key_is_kept_for_a_day_and_then_forgotten(store: Store) -> None:
    first = store.send("a", "b", "key").message.seq
    store.clock.ahead_us = DAY_US - 60_000_000
    store.housekeeper.tick()
    repeat = store.send("a", "b", "key")
    assert repeat.outcome is not None
    assert (repeat.outcome.duplicate, repeat.message.seq) == (True, first)
    store.clock.ahead_us = DAY_US + 60_000_000
    store.housekeeper.tick()
    assert store.count("idempotency") == 0
    assert store.send("a", "b", "key").message.seq > first


def test_many_keys_are_forgotten_batch_by_batch(store: Store) -> None:
    def many(transaction: Transaction) -> None:
        for number in range(2500):
            transaction.execute("INSERT INTO idempotency VALUES ('a', ?, x'', 1, 1, x'', NULL, 1)", (str(number),))

    store.write(many)
    store.housekeeper.tick()
    assert store.count("idempotency") == 0


def test_what_was_settled_a_day_ago_and_old_questions_go(store: Store) -> None:
    now = store.clock.now_us()

    def remember(transaction: Transaction) -> None:
        transaction.execute("INSERT INTO settled VALUES (1, 'b', 0, 1, 'b', ?)", (now,))
        transaction.execute("INSERT INTO requests VALUES (1, 'a', 'c', NULL, ?)", (now,))
        transaction.execute("INSERT INTO replies VALUES (1, 2, 'b')")

    store.write(remember)
    store.housekeeper.tick()
    assert [store.count(table) for table in ("settled", "requests", "replies")] == [1, 1, 1]
    store.clock.ahead_us = DAY_US + 60_000_000
    store.housekeeper.tick()
    assert [store.count(table) for table in ("settled", "requests", "replies")] == [0, 0, 0]


def test_a_client_that_nobody_used_for_a_month_is_forgotten_unless_something_waits_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.delivery.housekeeper.now_us", store.clock.now_us)
    store.send("sender", "mailed")
    store.send("sender", "owing", tracked=True)
    store.send("idle", "mailed")
    store.send("connected", "mailed")
    store.online = {"connected"}
    store.clock.ahead_us = CLIENT_AGE_US - 60_000_000
    store.housekeeper.forget_clients()
    assert store.names() == ["connected", "idle", "mailed", "owing", "sender"]
    store.clock.ahead_us = CLIENT_AGE_US + 60_000_000
    store.housekeeper.forget_clients()
    assert store.names() == ["connected", "mailed", "owing"]


def test_a_wall_s_clock_that_was_set_on_forgets_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.send("idle", "idle")
    monkeypatch.setattr("bus.delivery.housekeeper.now_us", lambda: now_us() + 20 * CLIENT_AGE_US)
    store.housekeeper.forget_clients()
    assert store.names() == ["idle"]


def test_an_empty_backlog_goes_and_a_cap_stays(store: Store) -> None:
    store.send("sender", "owing", tracked=True)
    store.write(lambda transaction: transaction.ledger.set_cap("capped", 5, None))
    store.write(lambda transaction: transaction.execute("INSERT INTO backlogs VALUES ('empty', 0, 0, NULL, NULL)"))
    store.housekeeper.forget_clients()
    assert store.write(lambda t: t.execute("SELECT owner FROM backlogs ORDER BY owner")) == [("capped",), ("owing",)]


def test_a_name_that_was_forgotten_elsewhere_is_opened_again(store: Store) -> None:
    store.send("sender", "gone")
    store.write(lambda transaction: transaction.execute("DELETE FROM clients"))
    assert store.send("sender", "gone").error is None
    assert store.names() == ["gone"]
