"""How the bus's figures went: of the last hour by seconds, of the last day by minutes, in one mapped file of fixed size.

Once a second each worker notes its own figures in the file's table, and one of them adds a row to the rings: the workers'
figures joined, and what the store says. Rows hold what the counters stood at, so a rate, or a quantile of any step, is exact
whatever the step. The file outlives the server: what it says of the time before a restart stays, with nothing for the time
between. It is about the workers of one machine.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bus.counters import MAX_SLOTS
from bus.exposition import quantile
from bus.families import SECONDS
from bus.metric_files import STALE_SECONDS
from bus.metrics import Block, Number

HOUR_SECONDS, DAY_SECONDS, MINUTE_SECONDS = 3600, 86400, 60
LONGEST_FILL_SECONDS = 5
"""A pause of the ring's writer up to here is filled with a straight line; a longer one stays empty."""

STEPS = (1, 5, 10, 60, 120, 300)
USUAL_POINTS = 360

COUNTED = {
    "sent": "bus_sends_total",
    "ephemeral": "bus_messages_ephemeral_total",
    "delivered": "bus_messages_delivered_total",
    "redelivered": "bus_messages_redelivered_total",
    "refused": "bus_messages_refused_total",
    "dead_lettered": "bus_messages_dead_lettered_total",
    "requests": "bus_http_requests_total",
    "cpu": "bus_process_cpu_seconds_total",
}
"""What only rises while a server runs, by column: all series of the family together."""

SPREADS = {
    "commit": ("bus_commit_duration_seconds", SECONDS),
    "end_to_end": ("bus_end_to_end_seconds", SECONDS),
    "loop_lag": ("bus_event_loop_lag_seconds", SECONDS),
}
"""Histograms, and their bounds: a column for each bucket, and one for what is beyond."""

GAUGES = {
    "websockets": ("bus_connections", "websocket"),
    "event_streams": ("bus_connections", "sse"),
    "uncommitted": ("bus_uncommitted_messages", None),
    "memory": ("bus_process_resident_memory_bytes", None),
}
"""What rises and falls: the family, and the label's value, of those that are told by worker."""

TOLD = ("published", "errors", "workers", "waiting_inbox", "waiting_queue", "leased", "dead_letters", "log_bytes")
"""What is true of the server as a whole."""

_RISING = (*COUNTED, *(f"{name}-{at}" for name, (_, bounds) in SPREADS.items() for at in range(len(bounds) + 1)))
_WORKERS = (*_RISING, *GAUGES)
_COLUMNS = ("second", "moment", *_WORKERS, *TOLD)
_AT = {name: index for index, name in enumerate(_COLUMNS)}
_FIRST, _END_RISING, _END_WORKERS = 2, 2 + len(_RISING), 2 + len(_WORKERS)
_WIDTH = len(_COLUMNS)

_HEAD = 2  # cells: what the columns are, the last second
_TABLE, _HOUR = _HEAD, _HEAD + MAX_SLOTS * _WIDTH
_DAY = _HOUR + HOUR_SECONDS * _WIDTH
_CELLS = _DAY + DAY_SECONDS // MINUTE_SECONDS * _WIDTH
_MAGIC = float(int.from_bytes(hashlib.blake2b(" ".join(_COLUMNS).encode(), digest_size=6).digest()))

Row = Sequence[float]


class Figure(NamedTuple):
    """One series: what it means, and how a point is made of the rows at its beginning (None: not known) and its end.

    `restarts`: its counters begin at 0 with each server."""

    help: str
    point: Callable[[Row | None, Row], float | None]
    restarts: bool = True


def _rate(column: str, help_text: str) -> Figure:
    at = _AT[column]

    def point(a: Row | None, b: Row) -> float | None:
        return None if a is None or b[at] < a[at] or b[1] <= a[1] else (b[at] - a[at]) / (b[1] - a[1])

    return Figure(help_text, point, column in COUNTED)


def _gauge(columns: Iterable[str], help_text: str) -> Figure:
    places = [_AT[column] for column in columns]
    return Figure(help_text, lambda _, b: sum(b[at] for at in places))


def _quantile(spread: str, q: float, help_text: str) -> Figure:
    bounds = SPREADS[spread][1]
    first = _AT[f"{spread}-0"]
    cells = slice(first, first + len(bounds) + 1)

    def point(a: Row | None, b: Row) -> float | None:
        if a is None:
            return None
        counts: list[Number] = [end - begin for begin, end in zip(a[cells], b[cells], strict=True)]
        return quantile(counts, bounds, q)

    return Figure(help_text, point)


FIGURES = {
    "published_per_second": _rate("published", "messages that the log took"),
    "sent_per_second": _rate("sent", "messages that senders handed over, ephemeral ones too"),
    "ephemeral_per_second": _rate("ephemeral", "messages that skipped the log"),
    "delivered_per_second": _rate("delivered", "messages written to connections, read or claimed"),
    "redelivered_per_second": _rate("redelivered", "messages that were handed out once more"),
    "refused_per_second": _rate("refused", "messages that were not stored"),
    "dead_lettered_per_second": _rate("dead_lettered", "deliveries that became dead letters"),
    "requests_per_second": _rate("requests", "answers over HTTP"),
    "errors_per_second": _rate("errors", "refusals that callers were told"),
    "websockets": _gauge(["websockets"], "open WebSockets"),
    "event_streams": _gauge(["event_streams"], "open event streams"),
    "uncommitted": _gauge(["uncommitted"], "writes that wait for the disk"),
    "waiting_in_inboxes": _gauge(["waiting_inbox"], "messages that need an ack and wait for their client"),
    "waiting_in_queues": _gauge(["waiting_queue"], "items of queues that wait for a taker"),
    "leased": _gauge(["leased"], "messages that a recipient has and has not settled"),
    "dead_letters": _gauge(["dead_letters"], "dead letters that are kept"),
    "log_bytes": _gauge(["log_bytes"], "bytes of payload in the log"),
    "commit_p50_seconds": _quantile("commit", 0.5, "median of a commit, its sync included"),
    "commit_p99_seconds": _quantile("commit", 0.99, "99th percentile of the same"),
    "lag_p50_seconds": _quantile("end_to_end", 0.5, "median from a message's arrival to its write to a connection"),
    "lag_p99_seconds": _quantile("end_to_end", 0.99, "99th percentile of the same"),
    "loop_lag_p99_seconds": _quantile("loop_lag", 0.99, "99th percentile of how late an event loop is"),
    "cpu_cores": _rate("cpu", "processor time of all workers: 1 is a whole core"),
    "memory_bytes": _gauge(["memory"], "resident memory of all workers"),
    "workers": _gauge(["workers"], "worker processes that serve"),
}
"""Every series, by its name, which says its unit where that is not a number of things."""


class Excerpt(NamedTuple):
    """Series from `begins` (seconds since 1970) on, a point for each step; None where nothing is known."""

    begins: int
    step_seconds: int
    series: dict[str, list[float | None]]


def usual_step(seconds: int) -> int:
    """The finest step by which a span of time has no more points than a chart shows."""
    return next((step for step in STEPS if seconds <= step * USUAL_POINTS), STEPS[-1])


class SeriesFile:
    """The file at `path`. Each process notes in its own slot's row; `add` is for one process at a time. Event loop only."""

    def __init__(self, path: Path, slot: int) -> None:
        """Open it, or begin it anew where it is missing or of another version. Raises OSError when there is no room."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(
                    descriptor, 0, _CELLS * 8
                )  # a mapped page without room on the disk would be a signal
            os.ftruncate(descriptor, _CELLS * 8)
            self._map = mmap.mmap(descriptor, _CELLS * 8)
        finally:
            os.close(descriptor)
        self._cells = memoryview(self._map).cast("d")
        self._slot = slot
        if self._cells[0] != _MAGIC:
            self._cells[:] = memoryview(bytes(_CELLS * 8)).cast("d")
            self._cells[0] = _MAGIC

    def note(self, blocks: Iterable[Block]) -> None:
        """This worker's present figures, as it leaves them for a scrape."""
        by_name = {block.name: block for block in blocks}
        row = [0.0, time.monotonic(), *(_total(by_name.get(family)) for family in COUNTED.values())]
        for family, bounds in SPREADS.values():
            row += _counts(by_name.get(family), len(bounds) + 1)
        row += [_total(by_name.get(family), value) for family, value in GAUGES.values()]
        self._put(_TABLE, self._slot, row + [0.0] * len(TOLD))

    def add(self, moment: float, told: Mapping[str, float]) -> None:
        """Add the row of a moment (seconds since 1970): what the workers noted, and what is told of the whole server."""
        row = [math.floor(moment), moment, *self._joined(), *(told.get(name, math.nan) for name in TOLD)]
        second, last = int(row[0]), int(self._cells[1])
        former = self._row(_HOUR, last, 1, HOUR_SECONDS)
        if former is not None and 1 < second - last <= LONGEST_FILL_SECONDS:
            for missing in range(last + 1, second):
                part = (missing - last) / (second - last)
                between = [a + (b - a) * part for a, b in zip(former, row, strict=True)]
                self._add([float(missing), *between[1:]])
        self._add(row)
        self._cells[1] = second

    def excerpt(self, seconds: int, step: int, names: Iterable[str], now: float) -> Excerpt:
        """The last `seconds`, a point each `step`. With more than an hour, the step is a multiple of a minute."""
        last = int(self._cells[1])
        end = last if 0 <= now - last <= LONGEST_FILL_SECONDS else int(now)
        end -= end % step
        count = seconds // step
        times = range(end - (count - 1) * step, end + 1, step)
        figures = {name: FIGURES[name] for name in names}
        series: dict[str, list[float | None]] = {name: [] for name in figures}
        for before, row in self._pairs(times, step, is_long=seconds > HOUR_SECONDS):
            began_anew = before is not None and row is not None and _fell(before, row)
            for name, figure in figures.items():
                value = None if row is None else figure.point(None if began_anew and figure.restarts else before, row)
                series[name].append(None if value is None or math.isnan(value) else round(value, 6))
        return Excerpt(times[0], step, series)

    def close(self) -> None:
        """Let the file go."""
        self._cells.release()
        self._map.close()

    # ---- inside

    def _pairs(self, times: range, step: int, *, is_long: bool) -> Iterator[tuple[Row | None, Row | None]]:
        """For each time the last row of the step before, and of its own."""
        ring, grain, span = (_DAY, MINUTE_SECONDS, DAY_SECONDS) if is_long else (_HOUR, 1, HOUR_SECONDS)
        before: Row | None = None
        for at in range(times[0] - step, times[-1] + 1, step):
            row = next(
                (found for t in range(at, at - step, -grain) if (found := self._row(ring, t, grain, span))), None
            )
            if at >= times[0]:
                yield before, row
            before = row

    def _row(self, ring: int, second: int, grain: int, span: int) -> Row | None:
        at = ring + second % span // grain * _WIDTH
        return self._cells[at : at + _WIDTH].tolist() if self._cells[at] == second else None

    def _add(self, row: list[float]) -> None:
        second = int(row[0])
        self._put(_HOUR, second % HOUR_SECONDS, row)
        if second % MINUTE_SECONDS == 0:
            self._put(_DAY, second % DAY_SECONDS // MINUTE_SECONDS, row)

    def _put(self, part: int, place: int, row: list[float]) -> None:
        at = part + place * _WIDTH
        self._cells[at] = 0.0  # who reads it meanwhile sees no row
        self._cells[at + 1 : at + _WIDTH] = array("d", row[1:])
        self._cells[at] = row[0]

    def _joined(self) -> list[float]:
        """The workers' columns: of those who are gone, what they counted."""
        now, rows = time.monotonic(), []
        for slot in range(MAX_SLOTS):
            at = _TABLE + slot * _WIDTH
            if noted := self._cells[at + 1]:
                row = self._cells[at + _FIRST : at + _END_WORKERS].tolist()
                is_alive = abs(now - noted) < STALE_SECONDS
                rows.append(row if is_alive else row[: len(_RISING)] + [0.0] * len(GAUGES))
        return [sum(column) for column in zip(*rows, strict=True)] if rows else [0.0] * len(_WORKERS)


def _fell(before: Row, row: Row) -> bool:
    """True when a server began to count anew between two rows."""
    return any(row[at] < before[at] for at in range(_FIRST, _END_RISING))


def _total(block: Block | None, label: str | None = None) -> float:
    if block is None:
        return 0.0
    return float(
        sum(value[0] for pairs, value in block.series.items() if label is None or label in (v for _, v in pairs))
    )


def _counts(block: Block | None, width: int) -> list[float]:
    """The buckets of all series of a histogram together."""
    if block is None or not block.series:
        return [0.0] * width
    return [float(sum(counts)) for counts in zip(*(value[:width] for value in block.series.values()), strict=True)]
