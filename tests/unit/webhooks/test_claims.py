"""Steps of the deliveries by a clock that the test turns: leases, rests, breakers, order, what several processes may do."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import apsw
import pytest

from bus.webhooks import deliveries, replays
from bus.webhooks.breaker import Rate
from bus.webhooks.claims import CLAIM_BYTES, LEASE_MARGIN_US, Claim, Plan, Result, Taken, take_step
from bus.webhooks.deliveries import Choice
from bus.webhooks.dispatcher import unsent
from bus.webhooks.endpoints import Config, Endpoint, Rows, Sealed
from bus.webhooks.engine import MIGRATIONS
from bus.webhooks.matching import Matcher, Subject
from bus.webhooks.outbox import Outbox
from bus.webhooks.policy import Verdict
from bus.webhooks.vault import Vault

SECOND = 1_000_000
OK = Verdict("ok", "done")
FAILED = Verdict("http_5xx", "retry")
TIMED_OUT = Verdict("timeout", "retry")


class Store:
    """The tables in memory, and a clock."""

    def __init__(self, **config: Any) -> None:
        connection = apsw.Connection(":memory:")
        connection.execute((MIGRATIONS / "0001_webhooks.sql").read_text())
        self.plans: dict[str, list[str]] = {}
        self._connection = connection
        self.ledger = SimpleNamespace(now=1_000 * SECOND)
        self.rows = Rows(Vault(bytes(32)))
        self.outbox = Outbox(lambda: self.ledger.now, None)  # type: ignore[arg-type]
        sealed = Sealed("http://127.0.0.1/")
        made = self.rows.insert(self, Config(events=("*",), **config), sealed, "enabled", self.ledger.now)  # type: ignore[arg-type]
        self.load()
        self.number = made.number

    def execute(self, statement: str, bindings: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement, and note how it is run."""
        if statement not in self.plans:
            explained = self._connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings)
            self.plans[statement] = [row[3] for row in explained]
        return self._connection.execute(statement, bindings).fetchall()

    def load(self) -> None:
        _, found = self.rows.all(self)  # type: ignore[arg-type]
        self.endpoints: dict[int, Endpoint] = {endpoint.number: endpoint for endpoint in found}
        self.outbox.matcher = Matcher(found)

    def owe(self, count: int = 1, to: str = "a") -> None:
        for _ in range(count):
            self.outbox.write(self, "x", Subject(to=to), b"{}")  # type: ignore[arg-type]

    def step(
        self, *results: Result, fresh: int = 100, late: int = 50, holder: int = 0, gone: str | None = None
    ) -> Taken:
        plan = Plan(list(results), self.endpoints, fresh, late, holder, "test", self.ledger.now // SECOND, gone)
        return take_step(self, plan, self.outbox, self.rows)  # type: ignore[arg-type]

    def turn(self, seconds: float) -> None:
        self.ledger.now += int(seconds * SECOND)

    def states(self) -> list[int]:
        return [state for (state,) in self.execute("SELECT state FROM webhook_deliveries ORDER BY number")]


def came(claim: Claim, verdict: Verdict | None) -> Result:
    return Result(claim, verdict, unsent(""))


def test_a_delivery_is_claimed_once_and_done_by_its_outcome() -> None:
    store = Store()
    store.owe()
    (claim,) = store.step().claims
    assert store.step().claims == []
    assert store.step(came(claim, OK)).refused == 0
    assert store.states() == [3]
    assert store.execute("SELECT pending FROM webhook_lanes") == [(0,)]


def test_an_outcome_after_its_lease_changes_nothing() -> None:
    store = Store()
    store.owe()
    (late,) = store.step(holder=1).claims
    store.turn(15 + LEASE_MARGIN_US / SECOND + 1)
    (taken_over,) = store.step(holder=2).claims
    assert taken_over.items[0].event_id == late.items[0].event_id
    assert store.step(came(late, FAILED)).refused == 1
    assert store.states() == [1]
    assert store.step(came(taken_over, OK)).refused == 0
    assert store.states() == [3]
    assert [outcome for (outcome,) in store.execute("SELECT outcome FROM webhook_attempts")] == [
        "lease_expired",
        "http_5xx",
        "ok",
    ]


def test_the_leases_of_a_dead_process_end_when_another_takes_its_place() -> None:
    store = Store(rate=Rate(1000))
    store.owe(2)
    assert len(store.step(holder=3).claims) == 2
    assert store.step(holder=1).claims == []
    assert len(store.step(holder=3, gone="holder = 3").claims) == 2


def test_who_is_alone_ends_all_leases_but_those_of_who_has_entered_since() -> None:
    store = Store(rate=Rate(1000))
    store.owe(3)
    for holder in (0, 1, 2):
        store.step(holder=holder, fresh=1)
    store.execute("INSERT INTO webhook_processes VALUES (0, 'this server'), (2, 'this server')")
    gone = "holder = 0 OR holder NOT IN (SELECT slot FROM webhook_processes)"
    assert store.step(fresh=0, gone=gone).reaped == 2
    assert store.states() == [0, 0, 1]


def test_a_request_that_a_stop_cut_off_is_logged_and_costs_no_attempt_of_the_schedule() -> None:
    store = Store(rate=Rate(1000), schedule_seconds=(0.0,))
    store.owe(2)
    sent, unsent_ = store.step().claims
    store.step(came(sent, None), Result(unsent_, None), fresh=0)
    again, first = store.step().claims
    assert [(claim.items[0].attempts, claim.items[0].tried) for claim in (again, first)] == [(2, 0), (1, 0)]
    assert store.execute("SELECT attempt, outcome FROM webhook_attempts") == [(1, "stopped")]


def test_a_stamp_does_not_go_back_when_the_clock_does() -> None:
    store = Store(schedule_seconds=(0.0, 0.0))
    store.owe()
    (claim,) = store.step().claims
    plan = Plan([came(claim, FAILED)], store.endpoints, 10, 10, 0, "test", 5)
    (again,) = take_step(store, plan, store.outbox, store.rows).claims  # type: ignore[arg-type]
    assert again.items[0].stamp == claim.items[0].stamp == 1000


def test_a_rest_that_was_asked_for_holds_a_hundred_for_thirty_seconds_then_they_begin_slowly() -> None:
    store = Store()
    store.owe(101)
    first, *others = store.step(fresh=1).claims
    assert others == []
    assert store.step(came(first, Verdict("http_4xx", "retry", pause_seconds=30.0, overloaded=True))).claims == []
    for _ in range(29):
        store.turn(1)
        assert store.step().claims == []
    store.turn(1)
    sent = []
    for _ in range(40):
        claims = store.step().claims
        sent.append(len(claims))
        store.step(*(came(claim, OK) for claim in claims), fresh=0)
        store.turn(0.1)
    seconds = [sum(sent[at : at + 10]) for at in range(0, 40, 10)]
    assert 1 <= seconds[0] <= 2
    assert seconds == sorted(seconds)
    assert seconds[3] <= 10
    assert store.execute("SELECT max(tried) FROM webhook_deliveries WHERE number > 1 AND state = 0") == [(0,)]


def test_an_open_breaker_lets_one_probe_through_whoever_asks() -> None:
    store = Store(rate=Rate(1000))
    store.owe(200)
    for _ in range(5):
        (claim,) = store.step(fresh=1).claims
        store.step(came(claim, TIMED_OUT), fresh=0)
    assert store.step(holder=1).claims == []
    store.turn(31)
    taken = [store.step(holder=holder).claims for holder in range(4)]
    assert [len(claims) for claims in taken] == [1, 0, 0, 0]
    store.step(came(taken[0][0], OK), fresh=0)
    store.turn(2)
    assert store.step().claims


def test_a_digest_holds_as_many_as_wait_and_no_more_than_can_be_read() -> None:
    store = Store(kind="slack")
    store.owe(2)
    (one,) = store.step().claims
    assert len(one.items) == 1  # few come one by one
    store.step(came(one, OK), fresh=0)
    store.owe(300)
    for _ in range(3):
        store.outbox.write(store, "x", Subject(), b'"%s"' % (b"y" * (CLAIM_BYTES // 2)))  # type: ignore[arg-type]
    folded = []
    while store.execute("SELECT 1 FROM webhook_deliveries WHERE state = 0"):
        store.turn(5)
        for claim in store.step().claims:
            folded.append(len(claim.items))
            store.step(came(claim, OK), fresh=0)
    assert folded == [200, 102, 1, 1]


def test_no_more_are_under_way_than_an_endpoint_takes_however_many_processes_send() -> None:
    store = Store(rate=Rate(1000))
    store.owe(50)
    claims = [claim for holder in range(4) for claim in store.step(holder=holder).claims]
    assert len(claims) == 10


def test_a_replay_takes_each_delivery_once_in_batches_and_stops_when_it_is_told() -> None:
    store: Any = Store()
    store.owe(1200)
    deliveries.set_aside(store, store.number, store.ledger.now)
    deliveries.set_aside(store, store.number, store.ledger.now)
    assert store.states().count(4) == 1000
    now, choice = store.ledger.now, Choice(store.number, "dead")
    assert replays.matching(store, choice, now) == 1000
    first, again = (replays.begin(store, choice, 1000, now) for _ in range(2))
    batch = replays.next_batch(store, now)
    assert batch is not None
    for _ in range(2):  # a process died before it knew that its batch was written
        replays.put_back(store, batch, now)
    assert store.states().count(4) == 500
    while batch := replays.next_batch(store, now):
        replays.put_back(store, batch, now)
    assert store.states().count(4) == 0
    assert [replays.find(store, each.id).status for each in (first, again)] == ["done", "done"]
    assert replays.find(store, first.id).replayed + replays.find(store, again.id).replayed == 1000
    assert store.execute("SELECT pending FROM webhook_lanes") == [(1200,)]
    deliveries.set_aside(store, store.number, store.ledger.now)
    store.turn(61)
    third = replays.begin(store, choice, 500, store.ledger.now)
    batch = replays.next_batch(store, store.ledger.now)
    assert batch is not None
    replays.cancel(store, third.id)
    replays.put_back(store, batch, store.ledger.now)
    assert store.states().count(4) == 500


def test_what_is_old_and_what_nobody_has_any_more_is_forgotten() -> None:
    store: Any = Store(schedule_seconds=(0.0,), rate=Rate(1000))
    store.owe(3)
    store.step(*(came(claim, OK) for claim in store.step(fresh=2).claims), fresh=0)
    assert deliveries.forgettable(store, store.ledger.now + deliveries.KEPT_US) == []
    found = deliveries.forgettable(store, store.ledger.now + deliveries.KEPT_US + 1)
    assert [number for number, _ in found] == [1, 2]
    assert replays.replay_one(store, 2, store.ledger.now) == 1  # in the meantime
    deliveries.forget(store, found)
    counted = [
        store.execute(f"SELECT count(*) FROM webhook_{what}")[0][0] for what in ("deliveries", "events", "attempts")
    ]
    assert counted == [2, 2, 1]
    store.rows.delete(store, store.endpoints[store.number])
    deliveries.forget(store, deliveries.forgettable(store, store.ledger.now))
    counted = [
        store.execute(f"SELECT count(*) FROM webhook_{what}")[0][0] for what in ("deliveries", "events", "attempts")
    ]
    assert counted == [0, 0, 0]


def test_what_holds_writers_up_never_reads_the_whole_log() -> None:
    store = Store(ordered="to", schedule_seconds=(0.0,))
    store.owe(3)
    store.owe(1, to="b")
    for _ in range(3):
        store.step(*(came(claim, OK) for claim in store.step().claims), gone="holder = 0")
    deliveries.set_aside(store, store.number, store.ledger.now)  # type: ignore[arg-type]
    assert replays.replay_one(store, 1, store.ledger.now) == 1  # type: ignore[arg-type]
    open_ones = ("waiting", "leased", "in_order")
    for statement, plan in store.plans.items():
        for step in plan:
            index = re.search(r"INDEX webhook_deliveries_(\w+)", step)
            if index is not None:
                assert index[1] in open_ones, (statement, step)
            elif re.match(r"SCAN (webhook_)?(deliveries|events|attempts|d|e)\b", step):
                pytest.fail(f"{step} in {statement}")


@pytest.mark.parametrize(("order", "first"), [("endpoint", 1), ("to", 2)])
def test_in_order_only_the_first_of_a_key_goes(order: str, first: int) -> None:
    store = Store(ordered=order, schedule_seconds=(0.0, 60.0))
    for to in ("a", "b", "a", "b"):
        store.owe(to=to)
    claims = store.step().claims
    assert [claim.items[0].sequence for claim in claims] == [1, 2][:first]
    store.step(came(claims[0], FAILED), *(came(claim, OK) for claim in claims[1:]), fresh=0)
    store.turn(1)
    assert [claim.items[0].sequence for claim in store.step().claims] == ([] if order == "endpoint" else [4])


def test_what_ends_endures_as_dead_and_gone_disables() -> None:
    store = Store(schedule_seconds=(0.0,))
    store.owe(2)
    one, two = store.step().claims
    taken = store.step(came(one, FAILED), came(two, Verdict("gone", "held", disables="gone")))
    assert taken.disabled
    assert taken.claims == []
    assert store.states()[:2] == [4, 0]
    assert store.step().claims == []  # also of a process that has not heard of it
    store.load()
    assert store.endpoints[store.number].state == "disabled"
    count = len(store.states())
    store.owe()
    assert len(store.states()) == count
