"""A lane: rates, pauses, the breaker, slow start and the auto-disable, on a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.webhooks.breaker import LIMITS, PROBE_US, Budget, Lane, Limits, Rate
from bus.webhooks.policy import SECOND_US, Step, Verdict

T0 = 1_800_000_000 * SECOND_US
HOUR_US = 3600 * SECOND_US
OK = Verdict("ok", "done")
FAILED = Verdict("http_5xx", "retry")
TIMEOUT = Verdict("timeout", "retry")
OVERLOADED = Verdict("http_5xx", "retry", overloaded=True)
ASKED_30 = Verdict("http_4xx", "retry", pause_seconds=30.0, overloaded=True)
WIDE = Limits((Rate(1000),), 10)


def run(
    lane: Lane,
    limits: Limits,
    answer: Callable[[int], Verdict],
    *,
    start_us: int = T0,
    seconds: float,
    takes_us: int = 1,
) -> list[int]:
    """Send whenever the lane allows; the moments at which attempts began."""
    begun: list[int] = []
    now_us, end_us = start_us, start_us + int(seconds * SECOND_US)
    while (now_us := lane.next_us(now_us, limits)) < end_us:
        for _ in range(lane.may_send(now_us, limits)):
            lane.began(now_us, limits)
            begun.append(now_us)
        for _ in range(begun.count(now_us)):
            lane.ended(now_us + takes_us, answer(now_us), now_us)
        now_us += takes_us
    return begun


def most_within(begun: list[int], window_us: int) -> int:
    """The most attempts in any window, wherever it begins."""
    most = first = 0
    for last, moment in enumerate(begun):
        while moment - begun[first] >= window_us:
            first += 1
        most = max(most, last - first + 1)
    return most


# ---- rates


@pytest.mark.parametrize("kind", LIMITS)
def test_500_events_at_once_never_exceed_the_rate_in_any_window_and_come_near_to_it(kind) -> None:
    begun = run(Lane(), LIMITS[kind], lambda _: OK, seconds=300)
    for rate in LIMITS[kind].rates:
        assert most_within(begun, int(rate.seconds * SECOND_US)) <= rate.count
    slowest = min(rate.count / rate.seconds for rate in LIMITS[kind].rates)
    assert len(begun) >= 0.88 * slowest * 300


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.5, 1.0, 2.0, 60.0])), min_size=1, max_size=3),
    pauses_us=st.lists(st.integers(0, 3 * SECOND_US), max_size=60),
)
def test_no_window_holds_more_than_its_rate_whenever_sends_come(counts, pauses_us) -> None:
    limits = Limits(tuple(Rate(*pair) for pair in counts), in_flight=1000)
    lane, now_us, begun = Lane(), T0, []
    for pause_us in pauses_us:
        now_us += pause_us
        count = lane.may_send(now_us, limits)
        lane.began(now_us, limits, count)
        begun += [now_us] * count
    for rate in limits.rates:
        assert most_within(begun, int(rate.seconds * SECOND_US)) <= rate.count


def test_what_is_in_flight_takes_room() -> None:
    lane = Lane()
    assert lane.may_send(T0, WIDE) == 10
    assert lane.may_send(T0, WIDE, in_flight=9) == 1
    assert lane.may_send(T0, WIDE, in_flight=11) == 0


# ---- a value


verdicts = st.sampled_from([OK, FAILED, TIMEOUT, OVERLOADED, ASKED_30, Verdict("aborted", "dead")])
moves = st.lists(st.tuples(st.integers(0, 100 * SECOND_US), st.integers(0, 5 * SECOND_US), verdicts), max_size=80)


@settings(max_examples=300, deadline=None)
@given(moves=moves, limits=st.sampled_from([*LIMITS.values(), WIDE]))
def test_next_us_is_the_first_moment_at_which_something_may_be_sent(moves, limits) -> None:
    lane, now_us = Lane(), T0
    for wait_us, takes_us, verdict in moves:
        now_us += wait_us
        next_us = lane.next_us(now_us, limits)
        assert (next_us == now_us) == (lane.may_send(now_us, limits) > 0)
        assert lane.may_send(next_us, limits) > 0
        if next_us > now_us:
            assert lane.may_send(next_us - 1, limits) == 0
        lane.began(next_us, limits)
        lane.ended(next_us + takes_us, verdict, next_us)
        now_us = next_us + takes_us
        assert lane == Lane.load(lane.dump())


@settings(max_examples=200, deadline=None)
@given(moves=moves, back_us=st.integers(0, 10**15))
def test_a_clock_that_was_set_back_holds_a_lane_for_a_day_at_most(moves, back_us) -> None:
    lane, now_us = Lane(), T0
    for wait_us, takes_us, verdict in moves:
        now_us = lane.next_us(now_us + wait_us, WIDE)
        lane.began(now_us, WIDE)
        lane.ended(now_us + takes_us, verdict, now_us)
    earlier_us = max(now_us - back_us, SECOND_US)
    free_us = earlier_us
    while not lane.may_send(free_us, WIDE):
        free_us = max(free_us + 1, lane.next_us(free_us, WIDE))
        assert free_us <= earlier_us + 24 * HOUR_US + PROBE_US


def test_a_lane_is_a_short_text() -> None:
    lane = Lane()
    run(lane, LIMITS["discord"], lambda _: ASKED_30, seconds=3600)
    assert Lane.load(None) == Lane.load(b"") == Lane()
    assert len(lane.dump()) < 256


# ---- pauses and slow start


def test_retry_after_30_with_100_queued_sends_nothing_for_30_s_then_begins_slowly() -> None:
    lane = Lane()
    lane.began(T0, WIDE)
    lane.ended(T0, ASKED_30, T0)
    assert lane.state(T0) == "paused"
    begun = run(lane, WIDE, lambda _: OK, seconds=42)
    first_us = T0 + 30 * SECOND_US
    assert begun[0] == first_us
    per_second = [sum(first_us + n * SECOND_US <= b < first_us + (n + 1) * SECOND_US for b in begun) for n in range(8)]
    assert per_second[:6] == pytest.approx([1, 2, 4, 8, 16, 32], abs=1)
    assert per_second[7] > 500


def test_the_longest_pause_that_was_asked_for_holds() -> None:
    lane = Lane()
    lane.ended(T0, ASKED_30, T0)
    lane.ended(T0 + 1, Verdict("http_4xx", "retry", pause_seconds=5.0), T0)
    assert lane.next_us(T0 + 2, WIDE) == T0 + 30 * SECOND_US


def test_an_overloaded_receiver_is_sent_to_slowly_again() -> None:
    lane = Lane()
    lane.ended(T0, OVERLOADED, T0)
    assert len(run(lane, WIDE, lambda _: OK, seconds=0.999)) == 1


def test_a_budget_that_discord_tells_with_a_success_pauses_without_a_slow_start() -> None:
    lane = Lane()
    lane.ended(T0, Verdict("ok", "done", pause_seconds=1.5), T0)
    assert lane.next_us(T0, WIDE) == T0 + 1_500_000
    assert lane.may_send(T0 + 1_500_000, WIDE) == 10


# ---- the breaker


def test_a_sink_that_is_down_for_20_minutes_gets_a_handful_of_requests_then_drains_slowly() -> None:
    lane = Lane()
    end_us = T0 + 1200 * SECOND_US
    begun = run(lane, LIMITS["http"], lambda now_us: FAILED if now_us < end_us else OK, seconds=1830)
    assert 10 <= sum(moment < end_us for moment in begun) <= 25
    later = [moment for moment in begun if moment >= end_us]
    assert later[0] <= end_us + 600 * SECOND_US
    assert most_within(later, SECOND_US) <= 25
    assert sum(moment < later[0] + SECOND_US for moment in later) <= 3


def test_openings_double_from_30_s_to_10_min() -> None:
    begun = run(Lane(), WIDE, lambda _: FAILED, seconds=3000)
    probes = begun[9:]  # the last of the ten that opened it, then one a time
    pauses = [round((after - before) / SECOND_US) for before, after in pairwise(probes)]
    assert pauses[:6] == [30, 60, 120, 240, 480, 600]


def test_ten_attempts_of_which_seven_failed_open_it_and_nine_do_not() -> None:
    lane = Lane()
    for verdict in [OK] * 3 + [FAILED] * 6:
        lane.ended(T0, verdict, T0)
    assert lane.state(T0) == "closed"
    lane.ended(T0, FAILED, T0)
    assert lane.state(T0) == "open"
    assert lane.may_send(T0, WIDE) == 0


def test_failures_of_long_ago_do_not_count() -> None:
    lane = Lane()
    for minutes in range(0, 60, 2):
        now_us = T0 + minutes * 60 * SECOND_US
        lane.ended(now_us, FAILED, now_us)
        assert lane.state(now_us) == "closed"


def test_five_timeouts_in_a_row_open_it_and_one_answer_between_does_not() -> None:
    lane = Lane()
    for verdict in [TIMEOUT] * 4 + [FAILED] + [TIMEOUT] * 4:
        lane.ended(T0, verdict, T0)
        assert lane.state(T0) == "closed"
    lane = Lane()
    for _ in range(5):
        lane.ended(T0, TIMEOUT, T0)
    assert lane.state(T0) == "open"


def opened() -> tuple[Lane, int]:
    """A lane whose breaker is open, and the moment at which it is half open."""
    lane = Lane()
    for _ in range(10):
        lane.ended(T0, FAILED, T0)
    return lane, T0 + 30 * SECOND_US


def test_half_open_lets_one_probe_through_whoever_asks() -> None:
    lane, now_us = opened()
    assert lane.state(now_us) == "half_open"
    assert lane.may_send(now_us, WIDE) == 1
    lane.began(now_us, WIDE)
    elsewhere = Lane.load(lane.dump())
    assert elsewhere.may_send(now_us + 20 * SECOND_US, WIDE) == 0
    elsewhere.ended(now_us + 20 * SECOND_US, OK, now_us)
    assert elsewhere.state(now_us + 20 * SECOND_US) == "closed"


def test_a_probe_that_is_never_reported_is_followed_by_another() -> None:
    lane, now_us = opened()
    lane.began(now_us, WIDE)
    assert lane.next_us(now_us, WIDE) == now_us + PROBE_US
    assert lane.may_send(now_us + PROBE_US, WIDE) == 1


def test_an_answer_to_an_attempt_from_before_the_opening_is_no_probe() -> None:
    lane, now_us = opened()
    lane.ended(now_us, FAILED, T0)
    lane.began(now_us, WIDE)
    lane.ended(now_us + 1, OK, T0)
    assert lane.state(now_us + 1) == "half_open"
    lane.ended(now_us + 2, FAILED, now_us)
    assert lane.state(now_us + 2) == "open"


def test_a_receiver_that_says_when_to_come_back_is_well() -> None:
    lane, now_us = opened()
    lane.began(now_us, WIDE)
    lane.ended(now_us, ASKED_30, now_us)
    assert lane.state(now_us) == "paused"
    assert lane.opened == 0


# ---- the auto-disable


def test_five_days_of_failures_wear_a_lane_out() -> None:
    lane = Lane()
    for hour in range(12 + 5 * 24):
        lane.ended(T0 + hour * HOUR_US, FAILED, T0)
        assert not lane.worn_out(T0 + hour * HOUR_US)
    assert lane.worn_out(T0 + (12 + 5 * 24) * HOUR_US)


@pytest.mark.parametrize("verdict", [OK, Verdict("aborted", "dead")])
def test_one_success_resets_the_five_days(verdict: Verdict) -> None:
    lane = Lane()
    for hour in range(200):
        lane.ended(T0 + hour * HOUR_US, verdict if hour == 100 else FAILED, T0)
    assert not lane.worn_out(T0 + 200 * HOUR_US)


def test_two_failures_with_a_week_between_wear_nothing_out() -> None:
    lane = Lane()
    for hours in (0, 7 * 24):
        lane.ended(T0 + hours * HOUR_US, FAILED, T0)
        assert not lane.worn_out(T0 + hours * HOUR_US)


def test_an_endpoint_that_is_enabled_again_is_forgiven_and_begins_slowly() -> None:
    lane, _ = opened()
    lane.enabled_again(T0)
    assert lane.state(T0) == "closed"
    assert len(run(lane, WIDE, lambda _: OK, seconds=0.999)) == 1


def test_three_config_errors_in_a_row_flag_an_endpoint() -> None:
    lane = Lane()
    for step in [Step("dead", "config_error")] * 2 + [Step("done", "ok")] + [Step("dead", "config_error")] * 3:
        assert not lane.flagged
        lane.settled(step)
    assert lane.flagged


# ---- the budget


def test_a_budget_is_spent_and_comes_back() -> None:
    budget = Budget(limit=3, window_us=10 * SECOND_US)
    for second in range(3):
        assert budget.left(T0 + second * SECOND_US) == 3 - second
        budget.spend(T0 + second * SECOND_US)
    assert budget.left(T0 + 9 * SECOND_US) == 0
    assert budget.left(T0 + 10 * SECOND_US) == 1
    assert budget.left(T0 + 60 * SECOND_US) == 3
