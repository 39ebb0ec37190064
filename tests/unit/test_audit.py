"""The audit trail without a server: what is gathered, how records chain, what the table refuses, how its start moves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from bus.audit import trail
from bus.audit.at_rest import exported, stored
from bus.audit.gatherer import ADDRESSES, MAX_WAITING, SPARE, Gatherer
from bus.audit.record import GENESIS, TRIMMED, Anchor, Broken, Chain, Entry, Record
from bus.audit.recorder import Recorder, Retention
from bus.bus import MIGRATIONS
from bus.errors import DiskFull
from bus.events import Audited
from bus.nodes.leases import FileLeases
from bus.retention import policies
from bus.storage import Job
from bus.storage.sqlite import SqliteStore

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_700_000_000 * SECOND


class Bench:
    """A store with an audit trail, and a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        self.path = folder / "bus.db"
        self.store = SqliteStore(
            self.path, folder / "locks", lambda: self.now, durability="relaxed", inbox_limit=10, queue_limit=10
        )
        retention = Path(policies.__file__).parent / "migrations"
        self.store.open([("core", MIGRATIONS), ("retention", retention), ("audit", trail.MIGRATIONS)])
        self.writer, self.reader = self.store.writer(), self.store.reader()
        self.retention = Retention(lambda job: job(self.reader), self.write, lambda: self.now)

    def write(self, run: Any) -> Any:
        job = Job(run, lambda _: None)
        self.writer.commit([job])
        if job.error is not None:
            raise job.error
        return job.value

    def add(self, *operations: str, user: str = "admin") -> None:
        entries = [Entry(self.now, operation, "done", user) for operation in operations]
        self.write(lambda transaction: trail.append(transaction, entries))

    def records(self) -> list[Record]:
        return [record for page in trail.pages(self.reader.execute) for record in page]

    def verify(self, expected: Anchor | None = None) -> Chain:
        with stored(self.path) as (anchor, records):
            chain = Chain(anchor, expected=expected).add(records)
            chain.close()
            return chain

    def tamper(self, *statements: str) -> None:
        """What somebody does who owns the file, and takes the triggers away first."""
        connection = apsw.Connection(str(self.path))
        for trigger in ("audit_logs_in_order", "audit_logs_stay_as_written", "audit_logs_stay"):
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("DROP TRIGGER audit_anchor_moves_forwards")
        for statement in statements:
            connection.execute(statement)
        connection.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.reader.close()
    made.writer.close()


# ---- the chain


def test_each_hash_is_over_the_one_before_and_the_record_as_documented(bench: Bench) -> None:
    bench.add("key.created", "key.revoked", user="שלום")
    before = GENESIS
    for record in bench.records():
        fields = {name: getattr(record, name) for name in Record.__struct_fields__ if name != "hash"}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        assert record.hash == hashlib.sha256(bytes.fromhex(before) + text.encode()).hexdigest()
        before = record.hash
    assert bench.verify().end == Anchor(2, before)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE audit_logs SET user_id = 'other' WHERE number = 2", "Record 2, or one before it, was changed"),
        ("UPDATE audit_logs SET timestamp = timestamp + 1 WHERE number = 3", "Record 3"),
        ("DELETE FROM audit_logs WHERE number = 2", "Record 2 is missing"),
        ("DELETE FROM audit_logs WHERE number = 1", "Record 1 is missing"),
        ("UPDATE audit_anchor SET number = 1, hash = (SELECT hash FROM audit_logs WHERE number = 1)", "no record says"),
    ],
)
def test_what_was_changed_or_taken_shows(bench: Bench, statement: str, finding: str) -> None:
    bench.add("one", "two", "three")
    assert bench.verify().records == 3
    bench.tamper(statement, *(["DELETE FROM audit_logs WHERE number = 1"] if "anchor" in statement else []))
    with pytest.raises(Broken, match=finding):
        bench.verify()


def test_a_cut_end_and_a_trail_written_anew_show_against_what_was_noted(bench: Bench) -> None:
    bench.add("one", "two", "three")
    noted = bench.verify().end
    bench.add("four")
    assert bench.verify(noted).records == 4
    bench.tamper("DELETE FROM audit_logs WHERE number >= 3")
    assert bench.verify().records == 2, "The chain alone can't tell."
    with pytest.raises(Broken, match="Record 3, which was noted, is missing"):
        bench.verify(noted)
    bench.add("another")
    with pytest.raises(Broken, match="not the one that was noted"):
        bench.verify(noted)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_logs SET user_id = 'other'",
        "DELETE FROM audit_logs",
        "DELETE FROM audit_logs WHERE number = 2",
        "INSERT OR REPLACE INTO audit_logs SELECT * FROM audit_logs WHERE number = 1",
        "UPDATE audit_logs SET number = 9 WHERE number = 2",
        "UPDATE audit_anchor SET number = 1, hash = (SELECT hash FROM audit_logs WHERE number = 1)",
        "UPDATE audit_anchor SET number = 7",
        "DELETE FROM audit_anchor",
        "INSERT OR REPLACE INTO audit_anchor VALUES (1, 5, 'x')",
    ],
)
def test_the_table_refuses_whatever_is_no_appending(bench: Bench, statement: str) -> None:
    bench.add("one", "two")
    with pytest.raises(apsw.ConstraintError):
        bench.write(lambda transaction: transaction.execute(statement))
    assert bench.verify().records == 2


# ---- retention


def test_after_ninety_days_the_start_moves_and_the_chain_still_holds(bench: Bench) -> None:
    bench.add("old", "older")
    first = bench.records()[1]
    bench.now += 60 * DAY
    bench.add("young")
    bench.now += 30 * DAY
    bench.retention.tick()
    assert [record.operation for record in bench.records()] == ["old", "older", "young"]
    bench.now += DAY + 1
    bench.retention.tick()
    young, trimmed = bench.records()
    assert (young.operation, young.number) == ("young", 3)
    assert (trimmed.operation, trimmed.record_id, trimmed.user_id) == (TRIMMED, "2", "retention")
    assert trimmed.new_values is not None
    assert (trimmed.new_values["hash"], trimmed.new_values["records"]) == (first.hash, "2")
    assert bench.verify().records == 2
    assert bench.verify(Anchor(2, first.hash)).records == 2
    with pytest.raises(Broken, match="Record 2 is not the one that was noted"):
        bench.verify(Anchor(2, young.hash))
    with pytest.raises(Broken, match="retention took all up to 2"):
        bench.verify(Anchor(1, first.hash))
    bench.retention.tick()
    assert len(bench.records()) == 2, "Nothing is due, so nothing is recorded."
    bench.now += 200 * DAY
    bench.retention.tick()
    assert [record.operation for record in bench.records()] == [TRIMMED]
    assert bench.verify().records == 1


def test_the_policy_says_how_long_and_may_say_for_ever(bench: Bench) -> None:
    bench.add("one")
    bench.write(policies.put(policies.policy_of("$audit", "permanent", None, archive=False), to_stored=False))
    bench.now += 3000 * DAY
    bench.retention.tick()
    assert len(bench.records()) == 1
    bench.write(policies.put(policies.policy_of("$audit", None, 60.0, archive=False), to_stored=False))
    bench.retention.tick()
    assert [record.operation for record in bench.records()] == [TRIMMED]


# ---- gathering


class Clock:
    now = START

    def __call__(self) -> int:
        return self.now


def refused(target: str = "/api/clear", address: str = "10.0.0.1") -> Audited:
    return Audited("auth.refused", "anybody", target, "refused", address)


def test_equal_refusals_of_a_second_are_one_entry_with_a_count() -> None:
    clock = Clock()
    gatherer = Gatherer(clock)
    for _ in range(50):
        assert not gatherer.hear(refused())
    gatherer.hear(refused(address="10.0.0.2"))
    assert gatherer.take() == []
    clock.now += SECOND
    assert [(entry.address, entry.times) for entry in gatherer.take()] == [("10.0.0.1", 50), ("10.0.0.2", 1)]
    assert gatherer.is_empty


def test_what_an_administrator_did_is_written_at_once_and_one_by_one() -> None:
    gatherer = Gatherer(Clock())
    event = Audited(
        "key.revoked", "admin", "api_keys:k1", "done", "::1", "r1", {"old.state": "live", "state": "revoked"}
    )
    assert gatherer.hear(event)
    gatherer.hear(event)
    entry, again = gatherer.take()
    assert (entry.table_name, entry.record_id, entry.user_id) == ("api_keys", "k1", "admin")
    assert (entry.old_values, entry.new_values) == ({"state": "live"}, {"state": "revoked"})
    assert (entry.times, again) == (1, entry)


def test_a_flood_of_different_refusals_costs_a_bounded_number_of_records() -> None:
    clock = Clock()
    gatherer = Gatherer(clock)
    written: list[Entry] = []
    for second in range(600):
        for number in range(40):
            gatherer.hear(refused(f"/{second}/{number}", f"10.0.{second % 100}.{number}"))
        clock.now += SECOND
        written += gatherer.take()
    clock.now += 61 * SECOND
    written += gatherer.take()
    assert len(written) <= SPARE + 600 / 30 + 600 / 60 + 2
    assert sum(entry.times for entry in written) == 600 * 40, "None is uncounted."
    summaries = [entry for entry in written if entry.operation == "audit.summarised"]
    assert all(len(entry.new_values or {}) <= ADDRESSES + 1 for entry in summaries)


def test_while_nothing_can_be_written_memory_is_bounded_and_the_loss_is_recorded() -> None:
    gatherer = Gatherer(Clock())
    for _ in range(MAX_WAITING + 5):
        gatherer.hear(Audited("log.cleared", "admin", "messages", "done"))
    taken = gatherer.take()
    gatherer.put_back(taken)
    gatherer.hear(Audited("log.cleared", "admin", "messages", "done"))
    taken = gatherer.take()
    assert len(taken) == MAX_WAITING + 1
    assert (taken[-1].operation, taken[-1].times) == ("audit.lost", 6)
    assert gatherer.is_empty


def test_what_could_not_be_written_is_written_later(bench: Bench) -> None:
    failures: list[Exception] = [DiskFull("The disk is full."), apsw.ConstraintError("tampered with")]

    def write(job: Any) -> None:
        if failures:
            raise failures.pop(0)
        bench.write(job)

    recorder = Recorder(write, lambda: bench.now)
    for action in ("one", "two", "three"):
        recorder.start(FileLeases(Path()))
        recorder.hear(Audited(action, "admin", "things:1", "done"))
        recorder.stop()
    assert [record.operation for record in bench.records()] == ["one", "two", "three"]
    assert bench.verify().records == 3


def test_an_export_that_is_no_trail_is_refused_in_a_sentence() -> None:
    with pytest.raises(Exception, match="no anchor"):
        exported([b'{"record": null}'])
