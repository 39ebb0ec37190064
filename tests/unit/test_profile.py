"""What is measured becomes a table: sums, shares and quantiles, of one worker and of several."""

from __future__ import annotations

import pytest

from bus.message import Kind, Message
from bus.profile import MAX_SAMPLES, MAX_UNDER_WAY, WAITS, Measured, Ways, quantile, table_of
from bus.storage import STORED, Pending
from bus.tracing import IDLE, OTHER, Spent


def measured(worker: int, messages: int, **more: object) -> Measured:
    stages = [
        Spent("loop", "read", 250_000, 10, 0),
        Spent("loop", "mesh", 0, 0, 0),
        Spent("loop", OTHER, 750_000, 0, 0),
        Spent("loop", IDLE, 1_000_000, 0, 0),
        Spent("writer", "commit", 500_000, 2, messages),
    ]
    given = {"ways": [], "stride": 1, "commits": {messages: 1}, **more}
    return Measured(worker, 0.002, 0.0005, messages, stages, **given)  # type: ignore[arg-type]


def test_a_table_adds_up_and_leaves_out_what_was_not_passed() -> None:
    table = table_of([measured(3, 100)], 3)
    assert [(each.stage, each.us_a_message, each.share) for each in table.stages] == [
        ("read", 2.5, 0.25),
        (OTHER, 7.5, 0.75),
        ("commit", 5.0, 1.0),
    ]
    assert (table.worker, table.busy, table.loop_cpu) == (3, {"loop": 0.5, "writer": 0.25}, 0.25)


def test_the_table_of_all_is_by_the_messages_of_all() -> None:
    table = table_of([measured(0, 300), measured(1, 100)], None)
    assert (table.messages, table.seconds, table.busy["loop"]) == (400, 0.002, 0.5)
    assert table.stages[0].us_a_message == round(500 / 400, 3)
    assert (table.stages[0].calls, table.commits.count, table.commits.mean, table.commits.max) == (20, 2, 200.0, 300)


def test_a_bus_that_does_nothing_has_a_table_too() -> None:
    table = table_of([measured(0, 0)], None)
    assert (table.stages[0].us_a_message, table.waits, table.commits.count) == (None, [], 0)


@pytest.mark.parametrize(("part", "expected"), [(0.5, 2), (0.99, 9), (0.0, 1)])
def test_quantiles_are_weighed(part: float, expected: int) -> None:
    assert quantile([(9, 1), (1, 40), (2, 40)], part) == expected


def test_few_workers_ways_weigh_as_much_as_they_stand_for() -> None:
    slow, quick = (5000,) * len(WAITS), (1000,) * len(WAITS)
    table = table_of([measured(0, 1, ways=[slow], stride=4), measured(1, 1, ways=[quick] * 3)], None)
    assert [(each.wait, each.p50_ms) for each in table.waits] == [(name, 5.0) for name in WAITS]


class Flow:
    """Messages through the steps that `Ways` watches; `delivered` is the tail."""

    def __init__(self) -> None:
        self.ways = Ways(lambda: self.delivered)
        self.delivered = 0
        self.head = 0

    def accept(self) -> Pending:
        pending = Pending(Message(Kind.ALL, "", (), "a", "t", b"", 0), lambda _: None)
        self.ways.accepted((), pending)
        return pending

    def commit(self, batch: list[Pending]) -> tuple[list[Pending], int, list[Message]]:
        self.ways.taken(())
        first = self.head + 1
        for pending in batch:
            self.head += 1
            pending.message.seq, pending.outcome = self.head, STORED
        self.ways.stored((), (first, batch))
        return batch, first, [pending.message for pending in batch]

    def come_back(self, done: tuple[list[Pending], int, list[Message]]) -> None:
        self.ways.came_back(done)
        self.delivered = self.head
        self.ways.flushed((), None)


def test_a_way_is_kept_when_its_message_was_written() -> None:
    flow = Flow()
    first, second = flow.accept(), flow.accept()
    done = flow.commit([first])
    also = flow.commit([second])
    flow.ways.came_back(done)
    flow.ways.flushed((), None)
    assert flow.ways.kept == [], "the tail has not passed it on"
    flow.delivered = 1
    flow.ways.flushed((), None)
    assert len(flow.ways.kept) == 1, "the second commit has not come back"
    flow.come_back(also)
    assert [len(way) for way in flow.ways.kept] == [len(WAITS)] * 2
    assert flow.ways.commits == {1: 2}


def test_what_is_refused_has_no_way_and_stops_no_other() -> None:
    flow = Flow()
    refused, good = flow.accept(), flow.accept()
    refused.error = object()  # type: ignore[assignment]
    flow.come_back(flow.commit([good]))
    assert len(flow.ways.kept) == 1


def test_ways_are_bounded_however_many_messages_there_are() -> None:
    flow = Flow()
    for _ in range(4 * MAX_SAMPLES):
        flow.come_back(flow.commit([flow.accept()]))
    assert MAX_SAMPLES / 2 <= len(flow.ways.kept) < MAX_SAMPLES
    assert flow.ways.stride == 8
    stuck = Flow()
    for _ in range(2 * MAX_UNDER_WAY):
        stuck.accept()
    assert len(stuck.ways._accepted) == MAX_UNDER_WAY
