"""The table of answers, schedules and Retry-After."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.webhooks.policy import (
    CHAT,
    MAX_PAUSE_SECONDS,
    SECOND_US,
    STANDARD,
    Schedule,
    Step,
    Verdict,
    judge,
    next_step,
    retry_after,
)

NOW = 1_800_000_000
RETRIED = {408, 409, 425, 429}


@dataclass
class Answer:
    status: int | None
    error: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    excerpt: bytes = b""


def judged(status: int | None, kind="http", *, error=None, excerpt=b"", **headers: str) -> Verdict:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(Answer(status, error, named, excerpt), kind, NOW)


# ---- statuses


def test_each_status_has_its_class_and_its_consequence() -> None:
    for status in range(100, 600):
        check_plain(status)


def check_plain(status: int) -> None:
    verdict = judged(status)
    if status < 200:
        assert (verdict.name, verdict.result) == ("protocol", "retry")
    elif status < 300:
        assert (verdict.name, verdict.result) == ("ok", "done")
    elif status < 400:
        assert (verdict.name, verdict.result) == ("redirect", "retry")
    elif status == 410:
        assert (verdict.name, verdict.result, verdict.disables) == ("gone", "held", "gone")
    elif status < 500:
        assert (verdict.name, verdict.result) == ("http_4xx", "retry" if status in RETRIED else "brief")
    else:
        assert (verdict.name, verdict.result) == ("http_5xx", "retry")
    assert verdict.overloaded == (status in (429, 502, 504))
    assert verdict.ok == (200 <= status < 300)
    assert verdict.pause_seconds is None
    assert (verdict.disables is not None) == (status == 410)


@pytest.mark.parametrize("error", ["dns", "connect", "tls", "timeout", "protocol", "reset", "redirect"])
def test_no_answer_follows_the_schedule(error: str) -> None:
    assert judged(None, error=error) == Verdict(error, "retry")


@pytest.mark.parametrize("error", ["forbidden_target", "bad_request"])
def test_what_can_not_be_sent_as_it_is_set_up_is_a_mistake_of_somebodys(error: str) -> None:
    assert judged(None, error=error) == Verdict(error, "brief")


@pytest.mark.parametrize(
    ("status", "error"), [(None, None), (None, "novel"), (0, None), (99, None), (600, None), (-1, None)]
)
def test_garbage_is_no_http(status: int | None, error: str | None) -> None:
    assert judged(status, error=error) == Verdict("protocol", "retry")


def test_a_success_counts_when_its_body_came_or_was_too_long_to_be_read() -> None:
    assert judged(200, error="body_too_big").ok
    assert judged(200, error="timeout") == Verdict("timeout", "retry")
    assert judged(500, error="reset").name == "http_5xx"


def test_a_receiver_steers_its_deliveries() -> None:
    assert judged(500, webhook_delivery="abort-message") == Verdict("aborted", "dead")
    assert judged(500, webhook_delivery=" Disable ").disables == "receiver_asked"
    assert judged(500, webhook_delivery="disable").result == "held"
    assert judged(204, webhook_delivery="disable") == Verdict("ok", "done", disables="receiver_asked")
    assert judged(200, webhook_delivery="abort-message").ok
    assert judged(500, webhook_delivery="dance").result == "retry"


# ---- chats


@pytest.mark.parametrize("kind", ["slack", "discord"])
def test_chats_differ_only_where_they_say_so(kind: str) -> None:
    for status in range(100, 600):
        check_chat(status, kind)


def check_chat(status: int, kind: str) -> None:
    verdict, plain = judged(status, kind), judged(status)
    if status == 400:
        assert verdict == Verdict("http_4xx", "dead")
    elif kind == "discord" and status in (401, 403, 404):
        assert (verdict.result, verdict.disables) == ("held", f"discord_{status}")
        assert verdict.invalid == (status != 404)
    elif kind == "discord" and status == 429:
        assert verdict.invalid
    else:
        assert verdict == plain


@pytest.mark.parametrize(
    ("status", "word"), [(404, b"no_service"), (403, b"action_prohibited"), (410, b"channel_is_archived\n")]
)
def test_a_word_from_slack_disables(status: int, word: bytes) -> None:
    verdict = judged(status, "slack", excerpt=word)
    assert (verdict.result, verdict.disables) == ("held", f"slack_{word.strip().decode()}")


def test_a_page_that_is_not_slacks_own_does_not_disable() -> None:
    assert judged(403, "slack", excerpt=b"<html>Blocked by your proxy</html>") == Verdict("http_4xx", "brief")


def test_discords_rate_limits_are_obeyed_wherever_they_stand() -> None:
    assert (
        judged(429, "discord", retry_after="1", excerpt=b'{"message": "x", "retry_after": 64.57}').pause_seconds
        == 64.57
    )
    assert judged(429, "discord", retry_after="65", excerpt=b'{"retry_after": 0.5}').pause_seconds == 65
    assert judged(429, "discord", retry_after="0.4").pause_seconds == 0.4
    assert judged(204, "discord", x_ratelimit_remaining="0", x_ratelimit_reset_after="1.25").pause_seconds == 1.25
    assert judged(204, "discord", x_ratelimit_remaining="1", x_ratelimit_reset_after="1.25").pause_seconds is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"retry_after": "soon"}', b'{"retry_after": -1}', b"\xff", b"[" * 9000]
)
def test_garbage_in_discords_body_asks_for_nothing(body: bytes) -> None:
    assert judged(429, "discord", excerpt=body).pause_seconds is None


# ---- Retry-After


def http_date(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("0", 0),
        ("-5", None),
        ("1e9", None),
        ("1.5", None),
        ("abc", None),
        ("", None),
        ("٣٠", None),
        ("86401", MAX_PAUSE_SECONDS),
        ("9" * 5000, MAX_PAUSE_SECONDS),
        ("30, 60", 60),
        ("60, abc", 60),
        (http_date(90), 90),
        (http_date(-90), 0),
        (http_date(10**7), MAX_PAUSE_SECONDS),
        ("Fri, 99 Foo 2026 00:00:00 GMT", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, pause: float | None) -> None:
    assert retry_after(value, NOW) == pause


@given(value=st.text(max_size=60) | st.from_regex(r"\w{3}, \d\d? \w{3} \d{1,5} \d\d:\d\d:\d\d [+-]?\w{1,5}"))
def test_no_retry_after_costs_a_delivery(value: str) -> None:
    pause = retry_after(value, NOW)
    assert pause is None or 0 <= pause <= MAX_PAUSE_SECONDS


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_only_429_and_503_may_ask_for_a_pause(status: int) -> None:
    assert judged(status, retry_after="30").pause_seconds == (30 if status in (429, 503) else None)


# ---- schedules


def walk(schedule: Schedule, verdict: Verdict, *, draw: float = 0.0) -> tuple[list[float], Step]:
    """Fail until the end: the seconds after the event at which attempts began, and the last step."""
    now_us, begun = NOW * SECOND_US, [0.0]
    for attempts in range(1, 100):
        step = next_step(verdict, schedule, attempts=attempts, now_us=now_us, occurred_us=NOW * SECOND_US, draw=draw)
        if step.due_us is None:
            break
        now_us = step.due_us
        begun.append(now_us / SECOND_US - NOW)
    return begun, step


FAILED = Verdict("http_5xx", "retry")


def test_the_standard_schedule_is_ten_attempts_in_75_hours_and_35_minutes() -> None:
    begun, last = walk(STANDARD, FAILED)
    hours = 3600
    pauses = [5, 300, 1800, 2 * hours, 5 * hours, 10 * hours, 14 * hours, 20 * hours, 24 * hours]
    assert begun == [sum(pauses[:n]) for n in range(10)]
    assert begun[-1] == 75 * hours + 35 * 60 + 5
    assert last == Step("dead", "http_5xx")


def test_the_schedule_of_chats_ends_within_six_hours() -> None:
    assert walk(CHAT, FAILED)[0] == [0, 5, 35, 155, 755, 4355]
    assert walk(CHAT, Verdict("http_4xx", "retry", pause_seconds=5000.0))[1] == Step("dead", "expired")


@pytest.mark.parametrize(("retries", "attempts"), [(-1, 1), (0, 1), (3, 4), (9, 10), (12, 13)])
def test_so_many_retries_are_retries_behind_one_attempt(retries: int, attempts: int) -> None:
    begun, _ = walk(STANDARD.first(retries), FAILED)
    assert len(begun) == attempts
    if attempts == 13:
        assert begun[-1] - begun[-2] == 24 * 3600


@pytest.mark.parametrize("schedule", [STANDARD, CHAT])
def test_jitter_is_added_and_never_taken(schedule: Schedule) -> None:
    for attempts, pause in enumerate(schedule.steps_seconds):
        low, high = schedule.pause_seconds(attempts, 0.0), schedule.pause_seconds(attempts, 0.999_999)
        assert low == pause
        most = min(max(2, pause / 5), 900) if attempts else 0
        assert high == pytest.approx(pause + most, rel=1e-5)


def test_a_thousand_that_fail_together_come_back_apart() -> None:
    draw = random.Random(7).random
    due = [STANDARD.pause_seconds(2, draw()) for _ in range(1000)]
    bins = [int(pause) for pause in due]
    assert min(due) >= 300
    assert max(bins.count(second) for second in set(bins)) < 100


def test_a_refusal_gets_three_attempts_then_it_is_a_config_error() -> None:
    begun, last = walk(STANDARD, Verdict("http_4xx", "brief"))
    assert begun == [0, 5, 305]
    assert last == Step("dead", "config_error")
    assert walk(STANDARD.first(0), Verdict("http_4xx", "brief")) == ([0], Step("dead", "config_error"))


def test_a_pause_that_was_asked_for_moves_the_retry_but_never_nearer() -> None:
    for pause, due in ((1.0, 5), (60.0, 60)):
        verdict = Verdict("http_4xx", "retry", pause_seconds=pause)
        step = next_step(verdict, STANDARD, attempts=1, now_us=0, occurred_us=0, draw=0.0)
        assert step.due_us == due * SECOND_US


@pytest.mark.parametrize(("result", "state"), [("done", "done"), ("dead", "dead"), ("held", "held")])
def test_what_is_decided_is_decided(result, state) -> None:
    step = next_step(Verdict("x", result), STANDARD, attempts=1, now_us=0, occurred_us=0, draw=0.5)
    assert step == Step(state, "x")
