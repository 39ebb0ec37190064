"""Counters, gauges, histograms and summaries, and what a Prometheus reads of them at `/metrics`.

`MetricsCollector` works alone in any program: its figures live in the memory of the process. Registered on a bus, it is
shown beside what the bus counts of itself, by any worker for all of them (bus.transports.scrape; docs/metrics.md).

    metrics = MetricsCollector()
    metrics.counter("messages_sent", "Total messages sent").inc(labels={"from": "code", "to": "browser"})
    print(metrics.get_prometheus_metrics())

Run this file to see it work.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gevent.monkey import get_original

from bus.exposition import Exposition
from bus.families import ALIASES
from bus.metrics import OTHER, Block, Number, Pairs
from bus.transports.scrape import Scrape
from bus.window import Window, quantile

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus

Labels = Mapping[str, object]
Kind = Literal["counter", "gauge", "histogram", "summary"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Those of a histogram that names none: seconds of a request, as every client of Prometheus has them."""

QUANTILES = (0.5, 0.9, 0.95, 0.99)
MAX_SNAPSHOTS = 1000
MAX_VALUES = 100
"""Values of one label: any further one counts as `other`. A label that needs more names a thing, not a class of things."""

MAX_SERIES = 1000
"""Sets of labels of one metric: all further ones count as one."""

MAX_VALUE_LENGTH = 256
OVERFLOW: Pairs = (("overflow", "true"),)
OWN_PREFIX = "bus_"
"""What the names of the bus's own metrics begin with: beside them, no other may."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}\Z")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,99}\Z")
_SUFFIXES = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "summary": ("", "_count", "_sum", "_created"),
}
_PLURALS = {"counter": "counters", "gauge": "gauges", "histogram": "histograms", "summary": "summaries"}
_new_lock: Callable[[], Any] = get_original("_thread", "RLock")  # gevent's would be no lock between native threads


class Metric:
    """One metric and its series, each with a set of labels, which may be empty. Any thread, any greenlet.

    Label values are taken as text, at most 256 characters of it.
    """

    kind: Kind
    reserved = ""

    def __init__(self, name: str, help_text: str, lock: Any) -> None:
        self.name = name
        self.help_text = _storable(help_text)
        self._lock = lock  # the collector's: guards every series of every metric; nothing waits with it held
        self._series: dict[Pairs, Any] = {}
        self._values: dict[str, set[str]] = {}

    def _key(self, labels: Labels | None) -> Pairs:
        """The series that these labels mean. Call it with the lock held. Raises ValueError for a bad label name."""
        key = _pairs(labels)
        return key if key in self._series or not key else self._admit(key)

    def _admit(self, key: Pairs) -> Pairs:
        for name, _ in key:
            if not _LABEL.match(name) or name == self.reserved:
                raise ValueError(f"{name!r} can't be a label of a {self.kind}; use letters, digits and _.")
        for name, value in key:
            known = self._values.setdefault(name, set()) if len(self._series) < MAX_SERIES else set()
            if len(known) < MAX_VALUES:
                known.add(value)
        key = tuple((name, value if value in self._values.get(name, ()) else OTHER) for name, value in key)
        return key if key in self._series or len(self._series) < MAX_SERIES else OVERFLOW

    def _present(self, key: Pairs) -> dict[str, Any]:
        """A series for a snapshot."""
        return {"labels": dict(key), "value": self._series[key]}

    def present(self) -> list[dict[str, Any]]:
        """Every series, as a snapshot has it."""
        with self._lock:
            return [self._present(key) for key in self._series]

    def block(self) -> Block:
        """Every series, for the exposition."""
        with self._lock:
            series = {key: self._figures(key) for key in self._series}
        return Block(self.name, self.kind, self.help_text, series, self._bounds())

    def _figures(self, key: Pairs) -> list[Number]:
        return [self._series[key]]

    def _bounds(self) -> tuple[float, ...]:
        return ()

    def get(self, labels: Labels | None = None) -> Any:
        """The value of one series; 0 when it was never touched."""
        with self._lock:
            return self._series.get(_pairs(labels), 0)


class Counter(Metric):
    """A figure that only rises."""

    kind = "counter"

    def inc(self, amount: Number = 1, labels: Labels | None = None) -> None:
        """Add `amount`. Raises ValueError when it is below 0, or no number."""
        amount = _finite(amount)
        if amount < 0:
            raise ValueError(f"a counter only rises, not by {amount}; use a gauge for what falls too")
        with self._lock:
            key = self._key(labels)
            self._series[key] = _finite(self._series.get(key, 0) + amount)


class Gauge(Metric):
    """A figure that rises and falls."""

    kind = "gauge"

    def set(self, value: Number, labels: Labels | None = None) -> None:
        """Set it. Raises ValueError when it is no finite number."""
        value = _finite(value)
        with self._lock:
            self._series[self._key(labels)] = value

    def inc(self, amount: Number = 1, labels: Labels | None = None) -> None:
        """Add `amount`, which may be negative. Raises ValueError when it is no finite number."""
        amount = _finite(amount)
        with self._lock:
            key = self._key(labels)
            self._series[key] = _finite(self._series.get(key, 0) + amount)

    def dec(self, amount: Number = 1, labels: Labels | None = None) -> None:
        """Take `amount` away."""
        self.inc(-amount, labels)


class Histogram(Metric):
    """Counts of values by bucket; a bound belongs to the bucket below it."""

    kind = "histogram"
    reserved = "le"

    def __init__(self, name: str, help_text: str, lock: Any, buckets: tuple[float, ...]) -> None:
        super().__init__(name, help_text, lock)
        self.buckets = buckets

    def observe(self, value: Number, labels: Labels | None = None) -> None:
        """Count a value. Raises ValueError when it is no finite number."""
        value = float(_finite(value))
        with self._lock:
            key = self._key(labels)
            figures = self._series.setdefault(key, [0] * (len(self.buckets) + 1) + [0.0])
            figures[bisect_left(self.buckets, value)] += 1
            figures[-1] += value

    def get(self, labels: Labels | None = None) -> dict[str, Any]:
        """`count`, `sum`, and `buckets`: for each bound how many values do not exceed it."""
        with self._lock:
            return self._told(self._series.get(_pairs(labels), [0] * (len(self.buckets) + 1) + [0.0]))

    def _told(self, figures: Sequence[Number]) -> dict[str, Any]:
        cumulative = {bound: sum(figures[: at + 1]) for at, bound in enumerate((*self.buckets, math.inf))}
        return {"count": cumulative[math.inf], "sum": figures[-1], "buckets": cumulative}

    def _present(self, key: Pairs) -> dict[str, Any]:
        return {"labels": dict(key), **self._told(self._series[key])}

    def _figures(self, key: Pairs) -> list[Number]:
        return list(self._series[key])

    def _bounds(self) -> tuple[float, ...]:
        return self.buckets


class Summary(Metric):
    """True quantiles of the values of the last `max_age` seconds; of more than 10,000, of the newest 10,000.

    What Prometheus sees as `_count` and `_sum` goes back to the beginning, as it must.
    """

    kind = "summary"
    reserved = "quantile"

    def __init__(self, name: str, help_text: str, lock: Any, max_age: float, clock: Callable[[], float]) -> None:
        super().__init__(name, help_text, lock)
        self.max_age = max_age
        self._clock = clock

    def observe(self, value: Number, labels: Labels | None = None) -> None:
        """Take a value in. Raises ValueError when it is no finite number."""
        value = float(_finite(value))
        with self._lock:
            key = self._key(labels)
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = [0, 0.0, Window(self.max_age)]
            series[0] += 1
            series[1] += value
            series[2].add(value, self._clock())

    def get_stats(self, quantiles: Iterable[float] = QUANTILES, labels: Labels | None = None) -> dict[str, Any]:
        """`count`, `sum`, `avg`, `min`, `max` and `quantiles` of what counts now; NaN for what has no value.

        A quantile is interpolated between the two nearest ranks, as numpy does it. Raises ValueError for one not in 0 to 1.
        """
        asked = tuple(quantiles)
        if wrong := [q for q in asked if not 0 <= q <= 1]:
            raise ValueError(f"{wrong[0]} is no quantile; give numbers from 0 to 1")
        with self._lock:
            return self._told(self._series.get(_pairs(labels)), asked)

    def get(self, labels: Labels | None = None) -> dict[str, Any]:
        """`get_stats` with the usual quantiles."""
        return self.get_stats(labels=labels)

    def _told(self, series: list[Any] | None, quantiles: Sequence[float]) -> dict[str, Any]:
        values = series[2].values(self._clock()) if series is not None else ()
        total = math.fsum(values)
        return {
            "count": len(values),
            "sum": total,
            "avg": total / len(values) if values else math.nan,
            "min": values[0] if values else math.nan,
            "max": values[-1] if values else math.nan,
            "quantiles": {q: quantile(values, q) for q in quantiles},
        }

    def _present(self, key: Pairs) -> dict[str, Any]:
        return {"labels": dict(key), **self._told(self._series[key], QUANTILES)}

    def _figures(self, key: Pairs) -> list[Number]:
        count, total, window = self._series[key]
        values = window.values(self._clock())
        return [count, total, *(quantile(values, q) for q in QUANTILES)]

    def _bounds(self) -> tuple[float, ...]:
        return QUANTILES


M = TypeVar("M", bound=Metric)


class MetricsCollector:
    """Makes metrics, remembers snapshots of them, and shows them. Any thread, any greenlet.

    Asked again for a name, it returns the same metric. A name of another type, or one whose series would mix with another's
    (`x_count` beside a histogram `x`), raises ValueError; so does one that Prometheus would not take.
    """

    def __init__(self, *, reserved: Collection[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """`reserved`: names, or with a trailing _ beginnings of names, that others have. `clock`: seconds that only rise."""
        self._reserved = tuple(reserved)
        self._clock = clock
        self._lock = _new_lock()
        self._metrics: dict[str, Metric] = {}
        self._sample_names: set[str] = set()
        self._snapshots: deque[tuple[float, dict[str, Any]]] = deque(maxlen=MAX_SNAPSHOTS)

    # ---- the documented verbs

    def counter(self, name: str, help_text: str = "") -> Counter:
        """A figure that only rises. It is shown as `<name>_total`, as Prometheus has it."""
        return self._get(Counter, name, lambda: Counter(name, help_text, self._lock))

    def gauge(self, name: str, help_text: str = "") -> Gauge:
        """A figure that rises and falls."""
        return self._get(Gauge, name, lambda: Gauge(name, help_text, self._lock))

    def histogram(self, name: str, buckets: Iterable[Number] | None = None, help_text: str = "") -> Histogram:
        """How values are spread over buckets, each given by its upper bound. ValueError for other ones than before."""
        given = BUCKETS if buckets is None else tuple(sorted({float(_finite(bound)) for bound in buckets}))
        if not given:
            raise ValueError(f"the histogram {name} has no buckets; give at least one bound")
        found = self._get(Histogram, name, lambda: Histogram(name, help_text, self._lock, given))
        if buckets is not None and found.buckets != given:
            raise ValueError(f"the histogram {name} has the buckets {found.buckets} already")
        return found

    def summary(self, name: str, help_text: str = "", max_age: float = 600) -> Summary:
        """Quantiles of the last `max_age` seconds."""
        if not _finite(max_age) > 0:
            raise ValueError("max_age must be more than 0 seconds")
        return self._get(Summary, name, lambda: Summary(name, help_text, self._lock, max_age, self._clock))

    def get_prometheus_metrics(self) -> str:
        """All metrics in Prometheus' text format, version 0.0.4."""
        return Exposition(self.blocks()).text()[0].decode()

    def take_snapshot(self) -> dict[str, Any]:
        """The present values, by type and name; the last 1,000 are kept. `timestamp` is in seconds since 1970."""
        snapshot: dict[str, Any] = {"timestamp": time.time(), **{plural: {} for plural in _PLURALS.values()}}
        for metric in self._all():
            snapshot[_PLURALS[metric.kind]][metric.name] = metric.present()
        with self._lock:
            self._snapshots.append((self._clock(), snapshot))
        return snapshot

    def get_time_series(self, name: str, type: Kind, minutes: float = 60) -> list[dict[str, Any]]:
        """A metric's series in the snapshots of the last `minutes`, oldest first, each with its `timestamp`.

        Raises ValueError when `type` is none.
        """
        if type not in _PLURALS:
            raise ValueError(f"{type!r} is no type of metric; there are {', '.join(_PLURALS)}")
        with self._lock:
            since = self._clock() - minutes * 60
            snapshots = [snapshot for moment, snapshot in self._snapshots if moment >= since]
        return [
            {"timestamp": snapshot["timestamp"], **series}
            for snapshot in snapshots
            for series in snapshot[_PLURALS[type]].get(name, ())
        ]

    # ---- for the server

    def blocks(self) -> list[Block]:
        """All metrics, for the exposition."""
        return [metric.block() for metric in self._all()]

    def _all(self) -> list[Metric]:
        with self._lock:
            return list(self._metrics.values())

    def _get(self, kind: type[M], name: str, make: Callable[[], M]) -> M:
        with self._lock:
            known = self._metrics.get(name)
            if known is None:
                self._check(name, kind.kind)
                known = self._metrics[name] = make()
        if not isinstance(known, kind):
            raise ValueError(f"{name} is a {known.kind} already; give the {kind.kind} another name")
        return known

    def _check(self, name: str, kind: Kind) -> None:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} can't be a metric's name; use letters, digits, _ and :.")
        if any(name == taken or (taken.endswith("_") and name.startswith(taken)) for taken in self._reserved):
            raise ValueError(f"{name} is a name of the bus's own metrics; choose another")
        stem = name.removesuffix("_total") if kind == "counter" else name
        shown = {stem + suffix for suffix in _SUFFIXES[kind]}
        if taken_names := shown & self._sample_names:
            raise ValueError(
                f"{name} would be shown as {min(taken_names)}, which another metric is; choose another name"
            )
        self._sample_names |= shown


def _pairs(labels: Labels | None) -> Pairs:
    return tuple(sorted((name, _text(value)) for name, value in labels.items())) if labels else ()


def _text(value: object) -> str:
    """A label's value."""
    return _storable(str(value)[:MAX_VALUE_LENGTH])


def _storable(text: str) -> str:
    """The text without what UTF-8 can't hold."""
    return text.encode(errors="replace").decode()


def _finite(value: Any) -> Number:
    """The value as int or float. Raises ValueError when it is neither, or too large for a float."""
    if isinstance(value, Real):
        with suppress(OverflowError):
            if math.isfinite(value):
                return int(value) if isinstance(value, Integral) else float(value)
    raise ValueError(f"{value!r} is no finite number")


def example() -> None:
    """Count a little, and show what comes of it."""
    metrics = MetricsCollector()
    metrics.counter("messages_sent", "Total messages sent").inc(labels={"from": "code", "to": "browser"})
    connections = metrics.gauge("active_connections", "Active client connections")
    connections.set(5, labels={"client": "browser"})
    sizes = metrics.histogram(
        "message_size_bytes", buckets=[100, 1000, 10000, 100000], help_text="Message size distribution"
    )
    sizes.observe(1250)
    latency = metrics.summary("request_duration_ms", help_text="Request duration", max_age=600)
    for milliseconds in range(1, 101):
        latency.observe(milliseconds)
    print(metrics.get_prometheus_metrics())
    stats = latency.get_stats(quantiles=[0.5, 0.9, 0.95, 0.99])
    for q, name in ((0.5, "P50"), (0.9, "P90"), (0.99, "P99")):
        print(f"{name}: {stats['quantiles'][q]:.2f}ms")


def register(app: Flask, bus: Bus) -> None:
    """Show what the bus and its collector count at /metrics, unless ENABLE_METRICS is false."""
    collector = MetricsCollector(reserved=(OWN_PREFIX, *ALIASES))
    app.extensions["enhanced_metrics"] = collector
    if bus.settings.enable_metrics:
        Scrape(bus, collector.blocks).register(app)


if __name__ == "__main__":
    example()
