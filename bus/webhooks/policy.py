"""What an attempt's answer means, and when the next attempt is due. Tables and pure functions; the engines obey them.

`judge` turns an answer into a Verdict; `next_step` turns a Verdict, the schedule and the attempts made into a Step.

    answer                                     class           then
    2xx                                        ok              done
    3xx, never followed                        redirect        the schedule
    410                                        gone            the endpoint is disabled, its deliveries are held
    429, 502, 504                              http_4xx/5xx    the schedule, and the lane begins slowly again
    408, 409, 425, 5xx                         http_4xx/5xx    the schedule
    other 4xx; forbidden_target, bad_request   http_4xx/…      three attempts, then dead as config_error
    no answer, 1xx, no HTTP                    timeout, dns…   the schedule
    header webhook-delivery: abort-message     aborted         dead at once
    header webhook-delivery: disable           as above        the endpoint is disabled

`Retry-After` on 429 and 503 rests the whole lane. Chats have rules of their own: `_judge_chat`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal, Protocol

import msgspec

SECOND_US = 1_000_000
MAX_PAUSE_SECONDS = 24 * 3600.0
"""The longest rest that a receiver can ask for."""

MAX_JITTER_SECONDS = 15 * 60.0
CONFIG_ERROR = "config_error"
CONFIG_ERROR_ATTEMPTS = 3
"""A refusal that looks like a mistake of somebody's gets so many attempts: long enough for a deployment to end."""

Kind = Literal["http", "slack", "discord"]

_FOLLOW_SCHEDULE = {408, 409, 425, 429}
_OVERLOADED = {429, 502, 504}
_ERRORS = {"dns", "connect", "tls", "timeout", "protocol", "body_too_big", "reset", "redirect"}
_MISTAKES = {"forbidden_target", "bad_request"}
_SLACK_WORD = re.compile(rb"[a-z][a-z_]{2,63}")
_DIGITS = re.compile(r"[0-9]+")


class Answered(Protocol):
    """What `judge` needs of an answer; bus.outbound.Answer has it."""

    @property
    def status(self) -> int | None:
        """The HTTP status, None if none came."""

    @property
    def error(self) -> str | None:
        """The class of what went wrong on the way: dns, connect, tls, timeout, …"""

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""

    @property
    def excerpt(self) -> bytes:
        """The beginning of the body."""


class Verdict(msgspec.Struct, frozen=True):
    """What an attempt's answer means.

    `name`: the class that the log shows. `result`: done; retry, on the whole schedule; brief, three attempts; dead;
    held, for when the endpoint is enabled again. `pause_seconds`: how long the lane rests, because the receiver said so.
    `overloaded`: the lane begins slowly again. `disables`: why the endpoint is disabled, if it is. `invalid`: counts
    against the budget of requests that Discord forgives.
    """

    name: str
    result: Literal["done", "retry", "brief", "dead", "held"]
    pause_seconds: float | None = None
    overloaded: bool = False
    disables: str | None = None
    invalid: bool = False

    @property
    def ok(self) -> bool:
        """Whether the receiver took the delivery."""
        return self.result == "done"

    @property
    def steered(self) -> bool:
        """Whether the receiver is well, and said itself what it wants: no reason to doubt it."""
        return self.pause_seconds is not None or self.name == "aborted"


class Schedule(msgspec.Struct, frozen=True):
    """When attempts are made: the pause before each, in seconds, and the age at which a delivery is no longer wanted."""

    steps_seconds: tuple[float, ...]
    ttl_seconds: float | None = None

    def first(self, retries: int) -> Schedule:
        """This schedule with so many retries; beyond its end the last pause is repeated."""
        steps = self.steps_seconds + self.steps_seconds[-1:] * (retries + 1 - len(self.steps_seconds))
        return Schedule(steps[: max(retries, 0) + 1], self.ttl_seconds)

    def pause_seconds(self, attempts: int, draw: float) -> float | None:
        """The pause after so many attempts, None when they were all. `draw`, from [0, 1), adds jitter, and never takes."""
        if attempts >= len(self.steps_seconds):
            return None
        pause = self.steps_seconds[attempts]
        return pause + draw * min(max(2.0, pause / 5), MAX_JITTER_SECONDS) if pause else pause


STANDARD = Schedule((0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400))
"""Ten attempts in 75 h 35 min and some jitter."""

CHAT = Schedule((0, 5, 30, 120, 600, 3600), ttl_seconds=6 * 3600)
"""Six attempts: a notice in a chat is noise when it is old."""


def schedule_of(kind: Kind) -> Schedule:
    """The schedule of a kind of endpoint that brings none of its own."""
    return STANDARD if kind == "http" else CHAT


class Step(msgspec.Struct, frozen=True):
    """What becomes of a delivery: done, due again at `due_us`, dead, or held. `cause` is the class it ends with."""

    state: Literal["done", "due", "dead", "held"]
    cause: str
    due_us: int | None = None


def next_step(
    verdict: Verdict, schedule: Schedule, *, attempts: int, now_us: int, occurred_us: int, draw: float
) -> Step:
    """What becomes of a delivery after so many attempts, this one included."""
    if verdict.result in ("done", "dead", "held"):
        return Step(verdict.result, verdict.name)
    brief = verdict.result == "brief"
    pause = schedule.pause_seconds(attempts, draw)
    if pause is None or (brief and attempts >= CONFIG_ERROR_ATTEMPTS):
        return Step("dead", CONFIG_ERROR if brief else verdict.name)
    due_us = now_us + int(max(pause, verdict.pause_seconds or 0) * SECOND_US)
    if schedule.ttl_seconds is not None and due_us > occurred_us + schedule.ttl_seconds * SECOND_US:
        return Step("dead", "expired")
    return Step("due", verdict.name, due_us)


def judge(answer: Answered, kind: Kind, now_seconds: float) -> Verdict:
    """What an answer means. `now_seconds`: the wall's clock, for a Retry-After that is a date. Never raises."""
    status = answer.status
    if status is None or not 200 <= status <= 599:
        return _judge_error(answer.error)
    if status < 300:
        return _judge_success(answer, kind)
    control = answer.headers.get("webhook-delivery", "").strip().lower()
    if control == "abort-message":
        return Verdict("aborted", "dead")
    if control == "disable":
        return Verdict(_class_of(status), "held", disables="receiver_asked")
    if kind != "http" and (chat := _judge_chat(answer, status, kind)) is not None:
        return chat
    if status == 410:
        return Verdict("gone", "held", disables="gone")
    if 400 <= status < 500 and status not in _FOLLOW_SCHEDULE:
        return Verdict("http_4xx", "brief")
    return Verdict(
        _class_of(status),
        "retry",
        pause_seconds=_asked_pause(answer, kind, now_seconds) if status in (429, 503) else None,
        overloaded=status in _OVERLOADED,
        invalid=kind == "discord" and status == 429,
    )


def retry_after(value: str | None, now_seconds: float) -> float | None:
    """Seconds that a Retry-After asks for, at most a day; None for garbage. Of several values, the longest counts."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if numbers := [part for part in parts if _DIGITS.fullmatch(part)]:
        return max(
            MAX_PAUSE_SECONDS if len(number) > 9 else min(float(number), MAX_PAUSE_SECONDS) for number in numbers
        )
    try:
        date = parsedate_to_datetime(value)
        until = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(until - now_seconds, 0.0), MAX_PAUSE_SECONDS)


# ---- below


def _class_of(status: int) -> str:
    return "redirect" if status < 400 else "http_4xx" if status < 500 else "http_5xx"


def _judge_error(error: str | None) -> Verdict:
    if error in _MISTAKES:
        return Verdict(error, "brief")
    return Verdict(error if error in _ERRORS else "protocol", "retry")


def _judge_success(answer: Answered, kind: Kind) -> Verdict:
    """A 2xx whose body did not come may be a proxy's that died: once more is better than never. A long one did come."""
    if answer.error not in (None, "body_too_big"):
        return _judge_error(answer.error)
    disables = "receiver_asked" if answer.headers.get("webhook-delivery", "").strip().lower() == "disable" else None
    spent = kind == "discord" and answer.headers.get("x-ratelimit-remaining", "").strip() == "0"
    pause = _seconds(answer.headers.get("x-ratelimit-reset-after")) if spent else None
    return Verdict("ok", "done", pause_seconds=pause, disables=disables)


def _judge_chat(answer: Answered, status: int, kind: Kind) -> Verdict | None:
    """Slack and Discord mean what they say: a webhook that is gone stays gone, and what was refused once is refused always.

    Slack says why in a word (no_service, channel_is_archived); a 403 or 404 without one is not from Slack itself.
    """
    if status == 400:
        return Verdict("http_4xx", "dead")
    if kind == "discord" and status in (401, 403, 404):
        return Verdict("http_4xx", "held", disables=f"discord_{status}", invalid=status != 404)
    if kind == "slack" and status in (403, 404, 410):
        word = answer.excerpt[:100].strip()
        if _SLACK_WORD.fullmatch(word):
            return Verdict("gone" if status == 410 else "http_4xx", "held", disables=f"slack_{word.decode()}")
    return None


def _asked_pause(answer: Answered, kind: Kind, now_seconds: float) -> float | None:
    header = retry_after(answer.headers.get("retry-after"), now_seconds)
    if kind != "discord":
        return header
    found = [header, _seconds(answer.headers.get("retry-after")), _seconds(_body_retry_after(answer.excerpt))]
    return max((pause for pause in found if pause is not None), default=None)


class _RateLimited(msgspec.Struct):
    retry_after: float


def _body_retry_after(excerpt: bytes) -> float | None:
    try:
        return msgspec.json.decode(excerpt, type=_RateLimited).retry_after
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _seconds(value: str | float | None) -> float | None:
    """Discord's seconds, which have decimals."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return min(seconds, MAX_PAUSE_SECONDS) if math.isfinite(seconds) and seconds >= 0 else None
