"""How often a batch waits for PostgreSQL: what it will ask is asked at once (bus.storage.ahead)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bus.bus import MIGRATIONS
from bus.message import REQUIRES_ACK, Kind, Message, Terms
from bus.protocol import Settle
from bus.storage import Item, Job, Pending, Transaction
from bus.storage.deliveries import Lease, Slot
from bus.storage.postgres import PostgresStore
from bus.storage.postgres_connection import PostgresConnection
from tests.databases import PostgresServer

Commit = Callable[[Sequence[Item]], int]
MANY = 60


@pytest.fixture(scope="module")
def store(postgresql: PostgresServer) -> PostgresStore:
    clock: Any = SimpleNamespace(now_us=lambda: time.time_ns() // 1000, follow=lambda _: None)
    made = PostgresStore(postgresql.make(), clock, durability="full", inbox_limit=1000, queue_limit=1000)
    made.open([("core", MIGRATIONS)])
    return made


@pytest.fixture
def trips(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commit]:
    """A function that commits a batch, and says how often that waited for an answer."""
    writer = store.writer()
    flushed: list[int] = []
    flush = PostgresConnection.flush

    def counted(connection: PostgresConnection) -> None:
        if connection._queue:
            flushed.append(len(connection._queue))
        flush(connection)

    monkeypatch.setattr(PostgresConnection, "flush", counted)

    def commit(items: Sequence[Item]) -> int:
        flushed.clear()
        writer.commit(items)
        assert not any(item.error for item in items if isinstance(item, Pending | Job))
        return len(flushed)

    commit([send("first")])  # statements are prepared, and so on
    yield commit
    writer.close()


def send(to: str, kind: Kind = Kind.CLIENT, *, tracked: bool = False, key: str | None = None) -> Pending:
    names = (to,) if kind == Kind.CLIENT else ()
    flags, terms = (REQUIRES_ACK, Terms()) if tracked else (0, None)
    message = Message(kind, to, names, "ann", "message", b"1", time.time_ns() // 1000, flags, terms=terms)
    return Pending(message, lambda _: None, key=key)


def test_sends_to_many_who_are_away(trips: Commit) -> None:
    assert trips([send(f"away{n}") for n in range(MANY)]) <= 5
    assert trips([send(f"away{n}", tracked=True) for n in range(MANY)]) <= 5


def test_sends_with_keys(trips: Commit) -> None:
    first = [send("keyed", key=f"key{n}") for n in range(MANY)]
    again = [send("keyed", key=f"key{n}") for n in range(MANY)]
    assert trips(first) <= 5
    assert trips([*again, send("keyed", key="one"), send("keyed", key="one")]) <= 6
    assert [item.outcome.duplicate for item in again if item.outcome] == [True] * MANY


def test_leases_and_verdicts(store: PostgresStore, trips: Commit) -> None:
    assert trips([send("jobs", Kind.QUEUE, tracked=True) for _ in range(MANY)]) <= 4
    leases: list[Lease] = []

    def lease(transaction: Transaction) -> None:
        leases.extend(transaction.ledger.lease("queue:jobs", [Slot("bob")] * MANY))

    assert trips([Job(lease, lambda _: None)]) <= 10
    said = [Settle("ack", store.epochs.id_of(each.message.seq).decode(), "bob", each.attempt) for each in leases]
    verdicts: list[str] = []

    def settle(transaction: Transaction) -> None:
        transaction.ledger.look_ahead([*said, *said])
        verdicts.extend(transaction.ledger.settle(each).status for each in [*said, *said[:2]])

    assert trips([Job(settle, lambda _: None)]) <= 20
    assert verdicts == ["acked"] * (MANY + 2)
