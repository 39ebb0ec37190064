"""What webhooks count: attempts, how long they took, how late deliveries were, and what is owed to whom.

Fills the `bus_webhook_…` families of bus.families, whose classes are those of an answer as an operator reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from bus.metrics import Detail, Metrics
from bus.webhooks.breaker import Lane
from bus.webhooks.claims import Result
from bus.webhooks.endpoints import Endpoint

_CLASSES = {
    "ok": "2xx",
    "redirect": "3xx",
    "http_4xx": "4xx",
    "gone": "4xx",
    "http_5xx": "5xx",
    "timeout": "timeout",
    "connect": "connect",
    "dns": "dns",
    "tls": "tls",
    "forbidden_target": "blocked",
    "body_too_big": "too_large",
    "bad_request": "config_error",
    "unfit": "config_error",
}
_STATUS, _TOTAL_MS = 0, 7
"""Where an attempt's row has them (bus.webhooks.dispatcher.row_of)."""

_PER_ENDPOINT = """
SELECT e.id, e.state, coalesce(l.pending, 0), l.policy,
       (SELECT min(d.due_at) FROM webhook_deliveries d WHERE d.endpoint = e.number AND d.state = 0 AND d.class = 0),
       (SELECT min(d.due_at) FROM webhook_deliveries d WHERE d.endpoint = e.number AND d.state = 0 AND d.class = 1)
  FROM webhook_endpoints e LEFT JOIN webhook_lanes l ON l.endpoint = e.number"""
_ONE = f"{_PER_ENDPOINT} WHERE e.id = ?"
_PAGE = f"""{_PER_ENDPOINT}
 WHERE e.number > coalesce((SELECT number FROM webhook_endpoints WHERE id = ?), 0) ORDER BY e.number LIMIT ?"""


class _Owed(msgspec.Struct):
    """What one endpoint is owed. `overdue_seconds`: how long its delivery that is due longest has waited; replays are
    left out, since they come after all else."""

    id: str
    state: str
    pending: int
    lane: Lane
    overdue_seconds: float


class Measures:
    """Event loop only; `watch` before the start."""

    def __init__(self, metrics: Metrics, read: Callable[[Any], Any], now_us: Callable[[], int]) -> None:
        """`read` and `now_us` are the bus's."""
        self._metrics = metrics
        self._read = read
        self._now_us = now_us
        self._owed: list[_Owed] | None = None

    def watch(self) -> None:
        """Have what the store knows asked for by a scrape."""
        self._metrics.prepare(self._look_at_all)
        read = self._metrics.read
        read("bus_webhook_pending", lambda: sum(each.pending for each in self._all()))
        read("bus_webhook_oldest_pending_seconds", self._longest_wait)
        read("bus_webhook_breaker_open", lambda: sum(_is_cut_off(each) for each in self._all()))
        for state in ("enabled", "paused", "disabled"):
            read("bus_webhook_endpoints", partial(self._count, state), state)
        read("bus_webhook_endpoints", lambda: sum(_is_flagged(each) for each in self._all()), "flagged")
        self._metrics.detail("webhook", self._details)

    def attempted(self, endpoint: Endpoint | None, result: Result) -> None:
        """An attempt has ended."""
        if endpoint is None or result.verdict is None:
            return
        metrics = self._metrics
        kind = "standard" if endpoint.config.kind == "http" else endpoint.config.kind
        status, total_ms = result.row[_STATUS], result.row[_TOTAL_MS]
        by_status = "other" if status is None else f"{status // 100}xx"
        class_ = "429" if status == 429 else _CLASSES.get(result.verdict.name, by_status)
        metrics.count("bus_webhook_attempts_total", kind, class_)
        if total_ms is not None:
            metrics.observe("bus_webhook_attempt_duration_seconds", total_ms / 1000, kind)
        if result.refused is not None:
            self.refused(result.refused)
        if result.verdict.result == "done":
            now_us = self._now_us()
            for item in result.claim.items:
                metrics.observe("bus_webhook_delivery_lag_seconds", max(now_us - item.occurred_us, 0) / 1e6, kind)

    def refused(self, reason: str) -> None:
        """A target was refused, for a reason of bus.guard.REASONS."""
        self._metrics.count("bus_webhook_blocked_targets_total", reason)

    # ---- asked of the store

    def _look_at_all(self) -> None:
        try:
            self._owed = self._look(_PER_ENDPOINT)
        except Exception:
            self._owed = None  # what is not known is left out
            raise

    def _all(self) -> list[_Owed]:
        if self._owed is None:
            raise LookupError("The store could not be read.")
        return self._owed

    def _look(self, statement: str, *bindings: object) -> list[_Owed]:
        rows = self._read(lambda reader: reader.execute(statement, bindings))
        now_us = self._now_us()
        return [
            _Owed(id_, state, pending, Lane.load(policy), _since(now_us, fresh, late))
            for id_, state, pending, policy, fresh, late in rows
        ]

    def _count(self, state: str) -> int:
        return sum(each.state == state for each in self._all())

    def _longest_wait(self) -> float:
        """Of endpoints that are well: what waits for one that rests waits by design."""
        now_us = self._now_us()
        well = (each for each in self._all() if each.state == "enabled" and each.lane.state(now_us) == "closed")
        return max((each.overdue_seconds for each in well), default=0.0)

    def _details(self, asked: Mapping[str, str], limit: int) -> Iterator[Detail]:
        """Endpoints in the order of their making, behind the id `cursor`; or the one that `endpoint` names."""
        one = asked.get("endpoint")
        found = self._look(_ONE, one) if one is not None else self._look(_PAGE, asked.get("cursor"), limit)
        for each in found:
            for name, (text, value) in _DETAILS.items():
                yield Detail(f"bus_webhook_endpoint_{name}", text, {"endpoint": each.id}, value(each))


def _is_cut_off(each: _Owed) -> bool:
    return each.state == "enabled" and each.lane.opened > 0


def _is_flagged(each: _Owed) -> bool:
    return each.state == "enabled" and each.lane.flagged


def _since(now_us: int, *due_us: int | None) -> float:
    """Seconds since the first of these moments; 0 when all are ahead, or there is none."""
    return max(max((now_us - due for due in due_us if due is not None), default=0), 0) / 1e6


_DETAILS: dict[str, tuple[str, Callable[[_Owed], float]]] = {
    "enabled": ("1 while it is sent to.", lambda each: each.state == "enabled"),
    "pending": ("Deliveries that wait.", lambda each: each.pending),
    "overdue_seconds": ("How long the one that is due longest has waited.", lambda each: each.overdue_seconds),
    "breaker_open": ("1 while it is left alone, since it fails.", _is_cut_off),
    "flagged": ("1 when somebody has to look at it.", _is_flagged),
}
