"""The ledger by examples, on a clock of the test: who gets what, and when; what counts; what late words are worth."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.errors import Forbidden, Malformed, NotFound
from bus.protocol import Settle
from bus.storage import Transaction
from bus.storage.deliveries import CLIENT_WINDOW, Lease, Settled, Slot
from bus.storage.ledger import Ledger
from tests.model.model import CLASSES, DAY, SECOND, Sending
from tests.model.product import Product, make_template, refusal_of

QUEUE = "queue:jobs"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[Product]:
    """An empty store with a clock of the test's."""
    product = Product(template, tmp_path, 100_000, 100_000)
    yield product
    product.close()


def send(store: Product, to: str = QUEUE, *, live: tuple[str, ...] = (), **more: Any) -> str:
    """Send one message that needs an ack; its id."""
    pending = store.pending(Sending("ann", to, require_ack=True, **more), live, "later")
    store.commit([pending])
    assert refusal_of(pending.error) is None
    return store.id_of(pending.message.seq)


def lease(store: Product, holder: str = "bob", count: int = 1, *, owner: str = QUEUE) -> list[Lease]:
    leases: list[Lease] = store.do(lambda transaction: transaction.ledger.lease(owner, [Slot(holder)] * count))
    return leases


def lease_one(store: Product, holder: str = "bob") -> str:
    """Take one item; its id."""
    (lease_,) = lease(store, holder)
    return store.id_of(lease_.message.seq)


def settle(
    store: Product, verb: str, message_id: str, client: str = "bob", attempt: int | None = None, **more: Any
) -> Settled:
    said = Settle(verb, message_id, client, attempt, **more)
    settled: Settled = store.do(lambda transaction: transaction.ledger.settle(said))
    return settled


def wait(store: Product, seconds: float) -> None:
    """Let time pass, and the reaper see it."""
    store.now += int(seconds * SECOND)
    store.reap()


def standing(store: Product, message_id: str, owner: str = QUEUE) -> tuple[str, int, int]:
    """State, attempt and counted failures of an open delivery."""
    seq = store.epochs.seq_of(message_id)
    assert seq is not None
    return store.look().deliveries[owner, seq][:3]


def reason_of_death(store: Product, message_id: str, owner: str = QUEUE) -> str:
    return store.look().dead[message_id, owner][0]


# ---- order


def test_a_normal_item_that_waited_30_s_goes_level_with_a_fresh_high_one_and_the_older_goes_first(
    store: Product,
) -> None:
    normal = send(store, priority="normal")
    store.now += 30 * SECOND
    high = send(store, priority="high")
    assert [lease_one(store), lease_one(store)] == [normal, high]


def test_a_normal_item_that_waited_a_microsecond_less_goes_behind_a_fresh_high_one(store: Product) -> None:
    normal = send(store, priority="normal")
    store.now += 30 * SECOND - 1
    high = send(store, priority="high")
    assert [lease_one(store), lease_one(store)] == [high, normal]


def test_a_bulk_item_is_level_with_a_critical_one_after_two_minutes(store: Product) -> None:
    bulk = send(store, priority="bulk")
    store.now += 120 * SECOND - 1
    critical = send(store, priority="critical")
    store.now += 1
    level = send(store, priority="critical")
    assert [lease_one(store) for _ in range(3)] == [critical, bulk, level]


def test_nothing_starves_behind_a_stream_of_critical_items(store: Product) -> None:
    bulk = send(store, priority="bulk")
    served = []
    for _ in range(150):
        send(store, priority="critical")
        served.append(lease_one(store))
        settle(store, "ack", served[-1])
        store.now += SECOND
    assert served.index(bulk) == 120


def test_what_failed_keeps_the_rank_of_the_moment_it_first_began_to_wait(store: Product) -> None:
    first, second = send(store), send(store)
    assert lease_one(store) == first
    settle(store, "nack", first, delay_us=10 * SECOND)
    wait(store, 10)
    assert [lease_one(store), lease_one(store)] == [first, second]


def test_ten_thousand_items_are_drained_in_exact_order(store: Product) -> None:
    chance = random.Random(7)
    ranks = []
    for _ in range(100):
        pendings = [
            store.pending(Sending("ann", QUEUE, priority=chance.choice(list(CLASSES))), (), "") for _ in range(100)
        ]
        store.commit(pendings)
        for pending in pendings:
            assert pending.message.terms is not None
            ranks.append((store.now + 30 * SECOND * (pending.message.terms.priority // 2), pending.message.seq))
        store.now += chance.randrange(3 * SECOND)
    drained = []
    while leases := lease(store, count=100):
        drained += [lease_.message.seq for lease_ in leases]
    assert drained == [seq for _, seq in sorted(ranks)]
    assert store.look().backlogs[QUEUE] == (0, 10_000)


# ---- backoff


@pytest.mark.parametrize("chance", [0.0, 0.37, 1.0])
def test_rests_are_5_s_30_s_2_m_10_m_and_a_fifth_more_at_most_and_the_fifth_failure_is_the_end(
    store: Product, chance: float
) -> None:
    store.chance = chance
    message_id = send(store)
    for failures, seconds in enumerate((5, 30, 120, 600), 1):
        assert lease_one(store) == message_id
        settle(store, "nack", message_id)
        assert standing(store, message_id) == ("resting", failures, failures)
        rest = int(seconds * SECOND * (1 + 0.2 * chance))
        store.now += rest - 1
        store.reap()
        assert lease(store) == []
        store.now += 1
        store.reap()
    assert lease_one(store) == message_id
    settled = settle(store, "nack", message_id, reason="no luck")
    assert (settled.status, settled.failure and settled.failure.reason) == ("dead", "max_attempts")
    assert reason_of_death(store, message_id) == "max_attempts"
    attempts = store.look().dead[message_id, QUEUE][3]
    assert [(line.attempt, line.outcome) for line in attempts] == [(n, "nacked") for n in range(1, 6)]


def test_jitter_is_drawn_anew_and_stays_within_its_bounds() -> None:
    ledger = Ledger(lambda *_: None, None, 0)  # type: ignore[arg-type]  # no statement is run
    rests = [ledger._backoff(1) for _ in range(2000)]
    assert 5 * SECOND <= min(rests) < 5.05 * SECOND
    assert 5.95 * SECOND < max(rests) <= 6 * SECOND


def test_the_length_of_an_expired_lease_counts_as_rest(store: Product) -> None:
    short, long = send(store, ack_wait=2 * SECOND), send(store, ack_wait=30 * SECOND)
    lease(store, count=2)
    wait(store, 2)
    assert standing(store, short) == ("resting", 1, 1)
    wait(store, 3)
    assert standing(store, short) == ("waiting", 1, 1)
    wait(store, 25)
    assert standing(store, long) == ("waiting", 1, 1)


def test_a_nack_said_twice_counts_once(store: Product) -> None:
    message_id = send(store)
    lease(store)
    assert settle(store, "nack", message_id, attempt=1).status == "nacked"
    assert settle(store, "nack", message_id, attempt=1).status == "superseded"  # it is nobody's now
    assert standing(store, message_id) == ("resting", 1, 1)


def test_an_inbox_nack_said_twice_counts_once(store: Product) -> None:
    message_id = send(store, "bob", live=("bob",))
    for _ in range(2):
        assert settle(store, "nack", message_id, attempt=1).status == "nacked"
    assert standing(store, message_id, "bob") == ("resting", 1, 1)
    wait(store, 6)
    assert settle(store, "nack", message_id, attempt=1).status == "superseded"
    assert standing(store, message_id, "bob") == ("waiting", 1, 1)


def test_a_release_counts_nothing_however_often(store: Product) -> None:
    message_id = send(store)
    for attempt in range(1, 31):
        assert lease_one(store) == message_id
        assert settle(store, "release", message_id).status == "released"
        assert standing(store, message_id) == ("waiting", attempt, 0)


# ---- progress


def test_progress_prolongs_a_lease_up_to_24_hours_from_its_begin(store: Product) -> None:
    message_id = send(store)
    lease(store)
    begin = store.now
    assert settle(store, "progress", message_id).until_us == begin + 30 * SECOND
    assert settle(store, "progress", message_id, ack_wait_us=DAY).until_us == begin + DAY
    store.now += DAY - SECOND
    assert settle(store, "progress", message_id, ack_wait_us=3600 * SECOND).until_us == begin + DAY
    wait(store, 1)
    assert standing(store, message_id) == ("waiting", 1, 1)


# ---- late words


def test_a_late_ack_by_the_last_holder_is_good_while_nobody_else_has_the_item(store: Product) -> None:
    message_id = send(store)
    lease(store)
    wait(store, 30)
    assert settle(store, "ack", message_id, attempt=1).status == "acked"
    assert store.look().deliveries == {}
    assert settle(store, "ack", message_id, attempt=1).status == "acked"


@pytest.mark.parametrize("verb", ["nack", "progress", "release", "reject"])
def test_after_its_lease_a_holder_is_heard_for_nothing_but_an_ack(store: Product, verb: str) -> None:
    message_id = send(store)
    lease(store)
    wait(store, 30)
    assert settle(store, verb, message_id, attempt=1).status == "superseded"
    assert standing(store, message_id) == ("waiting", 1, 1)


def test_a_late_ack_is_superseded_once_another_has_the_item(store: Product) -> None:
    message_id = send(store)
    lease(store, "bob")
    wait(store, 30)
    lease(store, "cy")
    assert settle(store, "ack", message_id, "bob", attempt=1).status == "superseded"
    assert settle(store, "ack", message_id, "bob").status == "superseded"
    assert standing(store, message_id) == ("leased", 2, 1)
    assert settle(store, "ack", message_id, "cy", attempt=2).status == "acked"
    assert settle(store, "ack", message_id, "bob", attempt=1).status == "superseded"


def test_only_a_recipient_may_settle_and_only_what_has_begun(store: Product) -> None:
    item, mail = send(store), send(store, "bob", live=("bob",))
    lease(store, "bob")
    for message_id in (item, mail):
        with pytest.raises(Forbidden):
            settle(store, "ack", message_id, "eve")
        with pytest.raises(Malformed):
            settle(store, "ack", message_id, "bob", attempt=2)
    with pytest.raises(NotFound):
        settle(store, "ack", store.id_of(99), "bob")


# ---- inboxes


def test_a_client_that_is_online_is_pushed_a_hundred_at_their_commit_and_the_rest_waits(store: Product) -> None:
    ids = [send(store, "bob", live=("bob",)) for _ in range(CLIENT_WINDOW + 1)]
    assert store.look().backlogs["bob"] == (1, 100)
    settle(store, "ack", ids[0])
    (pushed,) = store.do(lambda transaction: transaction.ledger.lease_to_client("bob"))
    assert store.id_of(pushed.message.seq) == ids[100]


def test_what_comes_live_never_overtakes_what_waits(store: Product) -> None:
    first = send(store, "bob")
    send(store, "bob", live=("bob",))
    assert store.look().backlogs["bob"] == (2, 0)
    pushed = store.do(lambda transaction: transaction.ledger.lease_to_client("bob"))
    assert store.id_of(pushed[0].message.seq) == first


def test_a_message_that_is_evicted_from_somebody_s_hands_keeps_that_attempt_in_its_dead_letter(store: Product) -> None:
    message_id = send(store)
    lease(store)
    store.cap_log(0)
    assert reason_of_death(store, message_id) == "overflow"
    (line,) = store.look().dead[message_id, QUEUE][3]
    assert (line.attempt, line.consumer, line.outcome) == (1, "bob", "evicted")


def test_room_that_an_eviction_made_in_an_inbox_can_be_used(store: Product) -> None:
    store.do(lambda transaction: transaction.ledger.set_cap("bob", 3, "refuse"))
    plain = Sending("ann", "bob", b'"1234567890"')
    answers = [store.pending(plain, (), "") for _ in range(7)]
    for pending in answers[:4]:
        store.commit([pending])
    store.cap_log(12)
    for pending in answers[4:]:
        store.commit([pending])
    assert [refusal_of(pending.error) for pending in answers] == [None] * 3 + ["inbox_full"] + [None] * 2 + [
        "inbox_full"
    ]


# ---- clocks


def test_leases_that_begin_in_the_future_are_mended_and_keep_their_length(store: Product) -> None:
    """The clock was set back while nobody ran."""
    message_id = send(store)
    lease(store)
    store.now -= 365 * DAY
    store.kill()
    store.do(lambda transaction: transaction.ledger.recover())
    wait(store, 30 - 1e-6)
    assert standing(store, message_id)[0] == "leased"
    wait(store, 1e-6)
    assert standing(store, message_id) == ("waiting", 1, 1)


def test_what_waited_since_a_future_that_is_no_more_does_not_starve(store: Product) -> None:
    old = send(store)
    store.now -= 365 * DAY
    store.do(lambda transaction: transaction.ledger.recover())
    early = send(store, priority="critical")
    store.now += 120 * SECOND + 1
    send(store, priority="critical")
    assert [lease_one(store), lease_one(store)] == [early, old]


def test_rests_that_begin_in_the_future_are_mended_and_keep_their_length(store: Product) -> None:
    message_id = send(store)
    lease(store)
    settle(store, "nack", message_id)
    store.now -= 365 * DAY
    store.kill()
    store.do(lambda transaction: transaction.ledger.recover())
    wait(store, 5 - 1e-6)
    assert standing(store, message_id)[0] == "resting"
    wait(store, 1e-6)
    assert standing(store, message_id)[0] == "waiting"


# ---- jobs


def test_a_job_that_fails_leaves_no_trace_in_the_counters_of_its_batch(store: Product) -> None:
    send(store)

    def fail(transaction: Transaction) -> None:
        transaction.ledger.lease(QUEUE, [Slot("bob")])
        raise ValueError("as it may happen")

    with pytest.raises(ValueError, match="as it may happen"):
        store.do(fail)
    assert store.look().backlogs[QUEUE] == (1, 0)
    assert len(lease(store)) == 1


def test_a_history_keeps_its_last_twenty_attempts(store: Product) -> None:
    message_id = send(store)
    for _ in range(25):
        lease(store)
        settle(store, "release", message_id)
    (history,) = store.do(lambda transaction: transaction.execute("SELECT history FROM deliveries"))
    assert [line["attempt"] for line in msgspec.json.decode(history[0])] == list(range(6, 26))
