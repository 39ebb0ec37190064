"""A profile: where messages' time went, as a worker measures it, and as a table of one worker or of all.

What is measured crosses the worker mesh; what is shown is computed from it once, so that the sum of all workers and
the table of one of them are made alike.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from bus.storage import Burst, Pending
from bus.tracing import IDLE, LOOP, OTHER, TRACING, Spent, clock

MAX_SECONDS = 60.0
MAX_SAMPLES = 1000
"""Ways of messages that are kept: when there are so many, every other one goes, and half as many are followed."""

MAX_UNDER_WAY = 256

WAITS = ("queue", "commit", "hand-back", "fan-out", "total")
"""From accept to the writer taking it; the writer's whole transaction; from there to the event loop; from there to the
end of the flush that writes it; all of it."""


# ---- what is measured


class Measured(msgspec.Struct):
    """What one worker saw. `ways`: for some messages, how long each of WAITS was, in microseconds; each stands for
    `stride` messages. `commits`: how many commits there were by how many messages they had."""

    worker: int
    seconds: float
    loop_cpu_seconds: float
    messages: int
    stages: list[Spent]
    ways: list[tuple[int, ...]]
    stride: int
    commits: dict[int, int]


class Way:
    """One message on its way: a `Pending`, or one of a burst, at its place; moments in nanoseconds."""

    __slots__ = ("_item", "_place", "message", "moments")

    def __init__(self, item: Pending | Burst, place: int = 0) -> None:
        self._item = item
        self._place = place
        self.message = item.messages[place] if isinstance(item, Burst) else item.message
        self.moments = [clock()]

    @property
    def is_stored(self) -> bool | None:
        """Whether a commit has put it into the log; None: it was in none yet."""
        item, seq = self._item, self.message.seq
        if isinstance(item, Burst):
            return False if self._place in item.errors else bool(seq) or None
        if item.outcome is None:
            return None if item.error is None else False
        return bool(seq) and not item.outcome.duplicate


class Ways:
    """Follows some messages from accept to write, without a lock: each step belongs to one thread.

    `_accepted` is filled by the event loop and emptied by the writer, `_committed` the other way round; both are deques,
    in the order of the log, of at most MAX_UNDER_WAY ways together.
    """

    def __init__(self, delivered: Callable[[], int]) -> None:
        """`delivered()`: the seq up to which the tail has passed on messages."""
        self._delivered = delivered
        self._accepted: deque[Way] = deque()
        self._committed: deque[Way] = deque()
        self._back: deque[Way] = deque()
        self._seen = 0
        self._began = 0
        self.stride = 1
        self.ephemeral = 0
        self.commits: Counter[int] = Counter()
        self.kept: list[tuple[int, ...]] = []

    # ---- on the event loop

    def accepted(self, _: Sequence[Any], pending: Pending | None) -> int:
        """After the bus has looked at a message."""
        if pending is None:
            return 0
        self._see(pending, 0)
        return 1

    def accepted_burst(self, arguments: Sequence[Any], _: object) -> int:
        """After the bus has looked at a burst. One that was parted is not followed; the ephemeral are counted elsewhere."""
        burst: Burst = arguments[0]
        for place in range(len(burst.present)):
            self._see(burst, place)
        return len(burst.present)

    def _see(self, item: Pending | Burst, place: int) -> None:
        self._seen += 1
        under_way = len(self._accepted) + len(self._committed) + len(self._back)
        if self._seen % self.stride == 0 and under_way < MAX_UNDER_WAY:
            self._accepted.append(Way(item, place))

    def sent_unstored(self, arguments: Sequence[Any], _: object) -> int:
        """After ephemeral messages."""
        self.ephemeral += len(arguments[0])
        return len(arguments[0])

    def came_back(self, arguments: Sequence[Any]) -> None:
        """Before the event loop handles the commit of `arguments`: a batch, its first seq, its messages and more."""
        _, first, messages, *_ = arguments
        now, last = clock(), first + len(messages) - 1
        while self._committed and self._committed[0].message.seq <= last:
            way = self._committed.popleft()
            way.moments.append(now)
            self._back.append(way)

    def flushed(self, _: Sequence[Any], __: object) -> int:
        """After a flush."""
        delivered = self._delivered()
        now = clock()
        while self._back and self._back[0].message.seq <= delivered:
            self._keep([*self._back.popleft().moments, now])
        return 0

    def _keep(self, moments: list[int]) -> None:
        steps = [(end - start) // 1000 for start, end in pairwise(moments)]
        self.kept.append((*steps, sum(steps)))
        if len(self.kept) >= MAX_SAMPLES:
            del self.kept[::2]
            self.stride *= 2

    # ---- on the writer's thread

    def taken(self, _: Sequence[Any]) -> None:
        """Before a commit."""
        self._began = clock()

    def stored(self, _: Sequence[Any], result: tuple[int, Sequence[Any]]) -> int:
        """After a commit."""
        count = len(result[1])
        self.commits[count] += 1
        now = clock()
        while self._accepted:
            is_stored = self._accepted[0].is_stored
            if is_stored is None:
                break  # it is not in this batch, and none behind it
            way = self._accepted.popleft()
            if is_stored:
                way.moments += (self._began, now)
                self._committed.append(way)
        return count


# ---- what is shown


class Stage(msgspec.Struct):
    """`us_a_message`: microseconds for each message of the table (None: it has none). `share`: of its thread's busy time.
    `messages`: how many went through the stage, copies counted singly."""

    thread: str
    stage: str
    us_a_message: float | None
    share: float
    seconds: float
    calls: int
    messages: int


class Wait(msgspec.Struct):
    """How long messages waited on a part of their way."""

    wait: str
    p50_ms: float
    p99_ms: float


class Commits(msgspec.Struct):
    """How many transactions there were, and how many messages they had."""

    count: int
    mean: float
    p50: int
    p99: int
    max: int


class Table(msgspec.Struct):
    """Where time went. `worker`: its slot, or None for all. `busy`: the part of the time that threads of a sort worked,
    waits for a core or the interpreter's lock included; `loop_cpu` is without them. Of all workers: their mean."""

    worker: int | None
    seconds: float
    messages: int
    busy: dict[str, float]
    loop_cpu: float
    stages: list[Stage]
    waits: list[Wait]
    commits: Commits


class Missing(msgspec.Struct):
    """A worker that is not in the profile, and why."""

    worker: int
    reason: str


class Profile(msgspec.Struct):
    """The tables of all workers, and of each."""

    total: Table
    workers: list[Table]
    missing: list[Missing]


def table_of(measured: Sequence[Measured], worker: int | None) -> Table:
    """One table of what one or several workers measured."""
    messages = sum(each.messages for each in measured)
    seconds = sum(each.seconds for each in measured) or 1.0
    sums: dict[tuple[str, str], list[int]] = {}
    for spent in (spent for each in measured for spent in each.stages):
        row = sums.setdefault((spent.thread, spent.stage), [0, 0, 0])
        for at, value in enumerate(spent[2:]):
            row[at] += value
    busy_ns: Counter[str] = Counter()
    for (thread, stage), (nanoseconds, _, _) in sums.items():
        busy_ns[thread] += nanoseconds if stage != IDLE else 0
    stages = [
        Stage(
            thread,
            stage,
            round(nanoseconds / 1000 / messages, 3) if messages else None,
            round(nanoseconds / max(busy_ns[thread], 1), 4),
            round(nanoseconds / 1e9, 6),
            calls,
            counted,
        )
        for (thread, stage), (nanoseconds, calls, counted) in sums.items()
        if stage != IDLE and (calls or (stage in (OTHER, TRACING) and nanoseconds))
    ]
    stages.sort(key=lambda stage: stage.thread != LOOP)  # stable: the stages of a thread stand as messages pass them
    return Table(
        worker,
        round(seconds / max(len(measured), 1), 3),
        messages,
        {thread: round(spent / 1e9 / seconds, 4) for thread, spent in busy_ns.items()},
        round(sum(each.loop_cpu_seconds for each in measured) / seconds, 4),
        stages,
        _waits(measured),
        _commits(measured),
    )


def _waits(measured: Sequence[Measured]) -> list[Wait]:
    waits = []
    for at, name in enumerate(WAITS):
        weighed = [(way[at], each.stride) for each in measured for way in each.ways]
        if weighed:
            waits.append(Wait(name, quantile(weighed, 0.5) / 1000, quantile(weighed, 0.99) / 1000))
    return waits


def _commits(measured: Sequence[Measured]) -> Commits:
    sizes: Counter[int] = Counter()
    for each in measured:
        sizes.update(each.commits)
    sizes.pop(0, None)  # jobs alone
    if not sizes:
        return Commits(0, 0.0, 0, 0, 0)
    count, messages = sizes.total(), sum(size * times for size, times in sizes.items())
    pairs = sizes.items()
    return Commits(count, round(messages / count, 1), quantile(pairs, 0.5), quantile(pairs, 0.99), max(sizes))


def quantile(weighed: Iterable[tuple[int, int]], part: float) -> int:
    """The least value that `part` of all weight does not exceed; `weighed` are values with their weights."""
    ordered = sorted(weighed)
    left = part * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left <= 0:
            return value
    return ordered[-1][0]
