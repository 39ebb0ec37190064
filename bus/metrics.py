"""What the bus counts of itself: families of plain numbers, which belong to the process that counts.

Whoever does the work fills them in: `count`, `set` and `observe`, or `read` a callable. A hot path keeps an integer of its
own instead, and has it read. Nothing here waits, locks, or is shown to anybody: once a second a sample is left for the
other workers (bus.metric_files), and a scrape shows what all of them have (bus.exposition).

The bus's own families stand in bus.families. All series of a family are there from the start, at 0: a label has a fixed
list of values, and any other counts as `other`, so strangers can't make series.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Literal, ParamSpec

import msgspec

from bus.families import FAMILIES, Across, Family, Kind

P = ParamSpec("P")

OTHER = "other"
SAMPLE_SECONDS = 0.005
"""A stopwatch takes the time of at most one call in so long: with few calls of each, with many of a share."""

Pairs = tuple[tuple[str, str], ...]
"""The labels of a series, and their values."""

Number = float | int


class Block(msgspec.Struct):
    """The present values of a family. `series`: for each set of labels its value; of a histogram the count of each bucket
    and of all beyond, then the sum; of a summary the count, the sum, and the quantiles named in `bounds`."""

    name: str
    kind: Kind | Literal["summary", "untyped"]
    help: str
    series: dict[Pairs, list[Number]]
    bounds: tuple[float, ...] = ()
    across: Across = "sum"


class Detail(msgspec.Struct):
    """One figure about one client, queue or endpoint, for `/metrics/detailed`."""

    name: str
    help: str
    labels: dict[str, str]
    value: Number


Look = Callable[[Mapping[str, str], int], Iterable[Detail]]
"""What tells details: gets the parameters of the request, and how many of its subjects it may name. It may wait."""


class Histogram:
    """Counts of values by bucket. `counts` has one more than `bounds`: what is beyond the last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: Number) -> None:
        """Count a value; a bound belongs to the bucket below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """The families of one process. Written on the event loop only; build it, and `declare` and `read`, anywhere before.

    A name or a number of labels that was not declared is a mistake of the program: KeyError or ValueError.
    """

    def __init__(self, families: Iterable[Family] = FAMILIES) -> None:
        self._families: dict[str, _Series] = {}
        self._looks: dict[str, Look] = {}
        self._preparations: list[Callable[[], None]] = []
        for family in families:
            self.declare(family)

    def declare(self, family: Family) -> None:
        """Add a family, with all of its series at 0. Raises ValueError when the name is taken."""
        if family.name in self._families:
            raise ValueError(f"the metric {family.name} is declared already")
        self._families[family.name] = _Series(family)

    def count(self, name: str, *labels: str, by: Number = 1) -> None:
        """Raise a counter; `by` is never negative."""
        series = self._families[name]
        series.numbers[series.key(labels)] += by

    def set(self, name: str, value: Number, *labels: str) -> None:
        """Set a gauge."""
        series = self._families[name]
        series.numbers[series.key(labels)] = value

    def observe(self, name: str, value: Number, *labels: str) -> None:
        """Count a value in a histogram."""
        series = self._families[name]
        series.histograms[series.key(labels)].observe(value)

    def histogram(self, name: str, *labels: str) -> Histogram:
        """One histogram, for who observes often and keeps it at hand."""
        series = self._families[name]
        return series.histograms[series.key(labels)]

    def read(self, name: str, call: Callable[[], Number], *labels: str) -> None:
        """Have what `call()` says added to a counter or gauge when it is sampled, about once a second.

        It runs on the event loop and may not wait, unless the family's `across` is `once`: then it is called in the greenlet
        of a scrape, for all workers. One that raises is left out of the sample, and logged.
        """
        series = self._families[name]
        series.reads[series.key(labels)] = call

    def prepare(self, call: Callable[[], None]) -> None:
        """Have `call()` run before a scrape asks for what one worker says for all: one look at the store serves several
        figures. It may wait. When it raises, that is logged."""
        self._preparations.append(call)

    def detail(self, family: str, look: Look) -> None:
        """Have `/metrics/detailed?family=…` tell what `look` finds. Raises ValueError when the name is taken."""
        if family in self._looks:
            raise ValueError(f"details of {family} are told already")
        self._looks[family] = look

    @property
    def looks(self) -> Mapping[str, Look]:
        """What tells details, by the name of its family."""
        return self._looks

    @property
    def families(self) -> tuple[Family, ...]:
        """Everything declared, in order."""
        return tuple(series.family for series in self._families.values())

    def sample(self, failed: Callable[[str, Exception], None], *, once: bool = False) -> list[Block]:
        """The present values of what each worker counts; with `once`, of what one worker says for all, which may wait.

        `failed(name, error)` hears of callables that raised.
        """
        for prepare in self._preparations if once else ():
            try:
                prepare()
            except Exception as error:  # noqa: BLE001  # a module's own fault: told, and its series are left out
                failed(f"what {prepare.__module__} looks at", error)
        found = [series for series in self._families.values() if (series.family.across == "once") is once]
        return [series.block(failed) for series in found]


class _Series:
    """All series of a family: a histogram's in `histograms`, all others in `numbers`. `reads`: those that are asked for."""

    __slots__ = ("_labels", "_values", "family", "histograms", "numbers", "reads")

    def __init__(self, family: Family) -> None:
        self.family = family
        self._labels = tuple(family.labels)
        self._values = [frozenset(values) for values in family.labels.values()]
        keys = list(product(*family.labels.values()))
        is_histogram = family.kind == "histogram"
        self.histograms = {key: Histogram(family.buckets) for key in keys} if is_histogram else {}
        self.numbers: dict[tuple[str, ...], Number] = {} if is_histogram else dict.fromkeys(keys, 0)
        self.reads: dict[tuple[str, ...], Callable[[], Number]] = {}

    def key(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels, with `other` for each value that was not declared."""
        if labels in self.numbers or labels in self.histograms:
            return labels
        if len(labels) != len(self._labels):
            raise ValueError(f"{self.family.name} has the labels {self._labels}, not {labels}")
        known = tuple(value if value in values else OTHER for value, values in zip(labels, self._values, strict=True))
        if known not in self.numbers and known not in self.histograms:
            raise ValueError(f"{self.family.name} has no series {labels}, and no `{OTHER}`")
        return known

    def block(self, failed: Callable[[str, Exception], None]) -> Block:
        values: dict[tuple[str, ...], list[Number]] = {key: [value] for key, value in self.numbers.items()}
        for key, call in self.reads.items():
            try:
                values[key] = [self.numbers[key] + call()]
            except Exception as error:  # noqa: BLE001  # a module's own fault: told, and its series is left out
                failed(self.family.name, error)
                del values[key]
        for key, histogram in self.histograms.items():
            values[key] = [*histogram.counts, histogram.sum]
        family = self.family
        series = {tuple(zip(self._labels, key, strict=True)): value for key, value in values.items()}
        return Block(family.name, family.kind, family.help, series, family.buckets, family.across)


class Stopwatch:
    """Takes the time of a call now and then, from its beginning to its answer. Event loop only.

    `next_us`: from which moment on, by the wall clock in microseconds, the next call is to be timed; off: never.
    """

    __slots__ = ("histogram", "next_us")

    def __init__(self) -> None:
        self.next_us = math.inf
        self.histogram: Histogram | None = None

    def start(self, histogram: Histogram) -> None:
        """Observe into `histogram` from now on, in seconds."""
        self.histogram = histogram
        self.next_us = 0

    def look_at_clock(self, now_us: int) -> None:
        """Mend what a wall clock that was set back would stop."""
        if self.histogram is not None:
            self.next_us = min(self.next_us, now_us + SAMPLE_SECONDS * 1e6)

    def timed(self, now_us: int, answered: Callable[P, None]) -> Callable[P, None]:
        """`answered`, with the time until it is called observed."""
        histogram = self.histogram
        assert histogram is not None
        self.next_us = now_us + SAMPLE_SECONDS * 1e6
        began = time.perf_counter()

        def heard(*answer: P.args, **more: P.kwargs) -> None:
            histogram.observe(time.perf_counter() - began)
            answered(*answer, **more)

        return heard
