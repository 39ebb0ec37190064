"""What webhooks count: attempts, how long they took, how late deliveries were, and what is owed to whom.

Fills the `bus_webhook_…` families of bus.families, whose classes are those of an answer as an operator reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bus.metrics import Metrics
from bus.storage import Reader
from bus.webhooks.breaker import Lane
from bus.webhooks.claims import Result
from bus.webhooks.deliveries import OLDEST
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

_PENDING = "SELECT coalesce(sum(pending), 0) FROM webhook_lanes"
_OWED = """
SELECT l.endpoint, l.policy FROM webhook_endpoints e JOIN webhook_lanes l ON l.endpoint = e.number
 WHERE e.state = 'enabled' AND l.pending > 0"""
_LANES = (
    "SELECT l.policy FROM webhook_endpoints e JOIN webhook_lanes l ON l.endpoint = e.number WHERE e.state = 'enabled'"
)
_STATES = "SELECT count(*) FROM webhook_endpoints WHERE state = ?"


class Measures:
    """Event loop only; `watch` before the start."""

    def __init__(self, metrics: Metrics, read: Callable[[Any], Any], now_us: Callable[[], int]) -> None:
        """`read` and `now_us` are the bus's."""
        self._metrics = metrics
        self._read = read
        self._now_us = now_us

    def watch(self) -> None:
        """Have what the store knows asked for by a scrape."""
        read = self._metrics.read
        read("bus_webhook_pending", lambda: self._one(_PENDING))
        read("bus_webhook_oldest_pending_seconds", self._oldest_seconds)
        read("bus_webhook_breaker_open", self._open_breakers)
        for state in ("enabled", "paused", "disabled"):
            read("bus_webhook_endpoints", partial(self._one, _STATES, state), state)
        read("bus_webhook_endpoints", lambda: sum(lane.flagged for lane in self._lanes()), "flagged")

    def attempted(self, endpoint: Endpoint | None, result: Result) -> None:
        """An attempt has ended."""
        if endpoint is None or result.verdict is None:
            return
        metrics = self._metrics
        kind = "standard" if endpoint.config.kind == "http" else endpoint.config.kind
        status, total_ms = result.row[_STATUS], result.row[_TOTAL_MS]
        class_ = "429" if status == 429 else _CLASSES.get(result.verdict.name, "other")
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

    def _one(self, statement: str, *bindings: object) -> int:
        return int(self._read(lambda reader: reader.execute(statement, bindings))[0][0])

    def _oldest_seconds(self) -> float:
        """Of endpoints that are well: what waits for one that rests waits by design."""
        now_us = self._now_us()

        def job(reader: Reader) -> list[int | None]:
            well = [number for number, policy in reader.execute(_OWED) if _is_well(policy, now_us)]
            return [reader.execute(OLDEST, (number,))[0][0] for number in well]

        return max((now_us - made for made in self._read(job) if made is not None), default=0) / 1e6

    def _open_breakers(self) -> int:
        now_us = self._now_us()
        return sum(lane.state(now_us) in ("open", "half_open") for lane in self._lanes())

    def _lanes(self) -> list[Lane]:
        return [Lane.load(policy) for (policy,) in self._read(lambda reader: reader.execute(_LANES))]


def _is_well(policy: bytes | None, now_us: int) -> bool:
    return Lane.load(policy).state(now_us) == "closed"
