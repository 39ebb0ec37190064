"""What histories against the model have found: one example each, so that it is found at once if it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.message import Kind, Message, Terms
from bus.protocol import Settle
from bus.storage import MAKE_KNOWN, Job, Pending
from bus.storage.deliveries import Slot
from tests.model.model import DAY, SECOND, Sending
from tests.model.product import Choice, Product, make_template, refusal_of, unheard

HOUR = 3600 * SECOND


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[Product]:
    product = Product(template, tmp_path, 3, 3)
    yield product
    product.close()


def send(store: Product, *sendings: Sending, own_id: str = "") -> list[Pending]:
    pendings = [store.pending(sending, (), own_id) for sending in sendings]
    for pending in pendings:
        store.commit([pending])
    return pendings


def test_a_repeat_under_a_key_is_a_duplicate_also_when_one_of_its_recipients_was_refused(store: Product) -> None:
    send(store, *[Sending("ann", "bob", require_ack=True)] * 3)
    twice = Sending("ann", ("bob", "cy"), require_ack=True, key="k")
    first, second = send(store, twice, twice)
    assert first.outcome is not None
    assert first.outcome.refused == ("bob",)
    assert refusal_of(second.error) is None
    assert second.outcome is not None
    assert second.outcome.duplicate


def test_an_overflow_takes_nothing_but_its_own_message_from_an_inbox(store: Product) -> None:
    """What was sent to all before it is still to be read."""
    store.do(lambda transaction: transaction.ledger.set_cap("bob", 2, "dead_letter"))
    store.do(lambda transaction: transaction.execute(MAKE_KNOWN, ("bob", 0, 0)))
    to_all = Message(Kind.ALL, "", (), "ann", "message", b"1", store.wall)
    store.commit([Pending(to_all, unheard)])
    send(store, *[Sending("ann", "bob")] * 3)
    row = store.reader.client("bob")
    assert row is not None
    assert row.cursor < to_all.seq


def test_a_lease_that_one_consumer_made_shorter_is_not_shorter_for_the_next(store: Product) -> None:
    send(store, Sending("ann", "queue:jobs", ack_wait=30 * SECOND))
    store.do(lambda transaction: transaction.ledger.lease("queue:jobs", [Slot("bob", SECOND)]))
    store.do(lambda transaction: transaction.ledger.release_all([("queue:jobs", 1)], "bob"))
    (lease,) = store.do(lambda transaction: transaction.ledger.lease("queue:jobs", [Slot("cy")]))
    assert lease.until_us == store.now + 30 * SECOND


def test_a_key_is_kept_a_day_whatever_the_wall_s_clock_says(store: Product) -> None:
    store.skew = -2 * DAY
    send(store, Sending("ann", "bob", key="k"))
    store.keep_house()
    (again,) = send(store, Sending("ann", "bob", key="k"))
    assert again.outcome is not None
    assert again.outcome.duplicate


def test_a_reading_by_time_is_not_misled_by_messages_that_were_delayed(store: Product) -> None:
    """Their stamps are older than their neighbours', and the bisection may land on one."""
    for number in range(3):
        send(store, Sending("ann", f"c{number}", delay=2 * HOUR), own_id=f"d{number}")
    store.now += 2 * HOUR - 30 * SECOND
    send(store, *[Sending("ann", f"a{number}") for number in range(20)])
    store.now += 30 * SECOND
    store.reap()
    send(store, *[Sending("ann", f"b{number}") for number in range(20)])
    assert store.reader.seq_before(store.now - HOUR) == 0


def test_a_redriven_message_keeps_its_ack_wait(store: Product) -> None:
    send(store, Sending("ann", "queue:jobs", ack_wait=300 * SECOND))
    store.do(lambda transaction: transaction.ledger.lease("queue:jobs", [Slot("bob")]))
    store.do(lambda transaction: transaction.ledger.settle(Settle("reject", store.id_of(1), "bob")))
    store.redrive(Choice(), 9)
    (lease,) = store.do(lambda transaction: transaction.ledger.lease("queue:jobs", [Slot("cy")]))
    assert lease.until_us == store.now + 300 * SECOND


def test_a_nack_of_what_was_only_read_counts_once_and_the_push_after_it_is_another_attempt(store: Product) -> None:
    send(store, Sending("ann", "bob", require_ack=True))
    for _ in range(2):
        store.do(lambda transaction: transaction.ledger.settle(Settle("nack", store.id_of(1), "bob", 1, 0)))
    (lease,) = store.do(lambda transaction: transaction.ledger.lease_to_client("bob"))
    assert (lease.attempt, store.look().deliveries["bob", 1][2]) == (2, 1)


def test_messages_of_one_moment_enter_as_they_were_sent_whatever_the_wall_s_clock_says(store: Product) -> None:
    for own_id, store.skew in (("s1", HOUR), ("s2", 0)):
        send(store, Sending("ann", "bob", delay=SECOND), own_id=own_id)
    store.now += SECOND
    store.reap()
    assert store.reader.execute("SELECT id FROM other_ids ORDER BY seq") == [("s1",), ("s2",)]


def test_equal_times_of_delivery_stay_equal_also_when_the_clocks_differ(store: Product) -> None:
    """The two clocks are not read at once: how far they are apart is never twice the same."""
    for number, store.skew in enumerate((HOUR + 3, HOUR, HOUR - 3)):
        later = store.pending(Sending("ann", "bob", delay=SECOND), (), f"s{number}")
        later.message.terms = Terms(deliver_us=store.now + 2 * HOUR)
        store.commit([later])
    assert set(store.look().scheduled.values()) == {store.now + HOUR}


def test_what_is_pushed_in_place_of_what_was_set_aside_takes_no_room(store: Product) -> None:
    store.do(lambda transaction: transaction.ledger.set_cap("bob", 1, "dead_letter"))
    tracked = Sending("ann", "bob", require_ack=True)
    send(store, tracked)
    pushed, waits = store.pending(tracked, ["bob"], ""), store.pending(tracked, (), "")
    store.commit([pushed, waits])
    assert (pushed.message.leased_to, refusal_of(waits.error)) == (("bob",), None)
    assert [owner for _, owner in store.look().dead] == ["bob"]


def test_what_a_commit_hands_out_makes_room_for_what_it_takes_in_after_that(store: Product) -> None:
    store.do(lambda transaction: transaction.ledger.set_cap("bob", 1, None))
    first, second = (store.pending(Sending("ann", "bob", require_ack=True), (), "") for _ in range(2))
    store.commit([first, Job(lambda transaction: transaction.ledger.lease_to_client("bob"), unheard), second])
    assert (refusal_of(first.error), refusal_of(second.error)) == (None, None)
