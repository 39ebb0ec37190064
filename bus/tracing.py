"""Tracing points: how long the parts of a process take, on each of its threads; nothing at all while they are off.

A point is an attribute of an object, a class or a module that names a callable. Switched on, it is shadowed by a wrapper
that takes the time; switched off, what was there is there again. What runs inside another point counts for itself only
(*self time*), so on the event loop all times together are the time that passed: stages, what no point covers (OTHER),
waiting for events (IDLE), and what the wrappers cost (TRACING).

Times are wall time (`perf_counter_ns`, 40 ns): a thread's CPU clock is a system call, and would cost more than many a
stage. So a stage has in it what its thread waited for the interpreter's lock, or for a core. The wrappers' own cost is
measured when a trace begins, and taken out of the stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import gevent
import greenlet
from gevent.monkey import get_original

LOOP, OTHER, IDLE, TRACING = "loop", "other", "idle", "tracing"

clock = time.perf_counter_ns
_ident: Callable[[], int] = get_original("_thread", "get_ident")
_ABSENT: Any = object()

Before = Callable[[Sequence[Any]], None]
Count = Callable[[Sequence[Any], Any], int]


@dataclass(frozen=True, slots=True)
class Point:
    """A callable to be timed: `attribute` of `owner`, or `name.attribute` of what a module has imported as `name`.

    `thread` says what sort of thread runs it. `before(arguments)` is called first; `count(arguments, result)` after a call
    that raised nothing, and says how many messages it was about. On a native thread, neither may touch what gevent patched.
    """

    owner: object
    attribute: str
    stage: str
    thread: str = LOOP
    count: Count | None = None
    before: Before | None = None


class Spent(NamedTuple):
    """What a stage took on one thread."""

    thread: str
    stage: str
    nanoseconds: int
    calls: int
    messages: int


class Cell:
    """The account of one stage on one thread, which alone writes it. `inner`: calls of other points from within."""

    __slots__ = ("calls", "inner", "messages", "nanoseconds")

    def __init__(self) -> None:
        self.nanoseconds = self.calls = self.messages = self.inner = 0


class _Thread:
    """The accounts of a thread. `stack`: the stages that the running code is in; its time since `mark` is not booked yet."""

    __slots__ = ("cells", "mark", "name", "other", "stack", "tracing")

    def __init__(self, name: str, stages: Sequence[str]) -> None:
        self.name = name
        self.cells = {stage: Cell() for stage in stages}
        self.other, self.tracing = Cell(), Cell()
        self.stack = [self.other]
        self.mark = clock()


class _Shadows:
    """Attributes that were replaced, and what was there. Any thread, one at a time."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, attribute: str, wrap: Callable[[Callable[..., Any]], Any]) -> None:
        """Replace an attribute by what `wrap` makes of it. Raises AttributeError when it is not there."""
        name, _, inner = attribute.partition(".")
        if inner:
            module = getattr(owner, name)
            if type(module) is not _Beside:
                module = _Beside(module)
                self._replace(owner, name, module)
            owner, name = module, inner
        self._replace(owner, name, wrap(getattr(owner, name)))

    def _replace(self, owner: Any, name: str, value: object) -> None:
        self._replaced.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put back what was there, in reverse. Idempotent."""
        while self._replaced:
            owner, name, former = self._replaced.pop()
            if former is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, former)


class _Beside:
    """Stands for a module under the name by which one other module has imported it: all is the module's, but for points."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Trace:
    """Times points from `start` to `stop`, both on the event loop's thread. The accounts are written by their threads.

    `_threads`: by identity, each added by its first call of a point. `_parked`: stacks of greenlets that wait inside one.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points
        self._stages = tuple(dict.fromkeys(point.stage for point in points))
        self._shadows = _Shadows()
        self._threads: dict[int, _Thread] = {}
        self._parked: dict[Any, list[Cell]] = {}
        self._idle = Cell()
        self.seconds = 0.0
        self.loop_cpu_seconds = 0.0

    def start(self) -> None:
        """Shadow the points. Raises AttributeError, and shadows none, when one of them is not there."""
        self._inside, self._outside = wrapper_costs()
        self._loop = self._threads[_ident()] = _Thread(LOOP, self._stages)
        try:
            for point in self._points:
                self._shadows.put(point.owner, point.attribute, partial(self.timed, point))
        except BaseException:
            self._shadows.undo()
            raise
        loop = gevent.get_hub().loop
        self._watchers = (
            loop.prepare(priority=-2),
            loop.check(priority=2),
        )  # the last before it waits, the first after
        for watcher, callback in zip(self._watchers, (self._about_to_wait, self._woken), strict=True):
            watcher.start(callback)
        self._former_tracer = greenlet.settrace(self._switched)
        self._loop.mark = self._began = clock()
        self._cpu_began = time.thread_time_ns()

    def stop(self) -> list[Spent]:
        """Put back what was there; returns what each stage took. A stage that was never called is there, too."""
        now = clock()
        self._loop.stack[-1].nanoseconds += now - self._loop.mark
        self.seconds = (now - self._began) / 1e9
        self.loop_cpu_seconds = (time.thread_time_ns() - self._cpu_began) / 1e9
        greenlet.settrace(self._former_tracer)
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._shadows.undo()
        return [spent for thread in tuple(self._threads.values()) for spent in self._report(thread)]

    # ---- the wrapper

    def timed(self, point: Point, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time booked. One that is still under way when the trace stops books into what nobody reads."""
        threads, join = self._threads, self._join
        stage, thread_name, count, before = point.stage, point.thread, point.count, point.before

        def wrapper(*arguments: Any, **named: Any) -> Any:
            thread = threads.get(_ident()) or join(thread_name)
            stack = thread.stack
            cell = thread.cells[stage]
            outer = stack[-1]
            now = clock()
            outer.nanoseconds += now - thread.mark
            outer.inner += 1
            if before is not None:
                before(arguments)
                thread.tracing.nanoseconds += clock() - now
                now = clock()
            stack.append(cell)
            thread.mark = now
            try:
                result = call(*arguments, **named)
            finally:
                now = clock()
                cell.nanoseconds += now - thread.mark
                cell.calls += 1
                thread.mark = now
                stack.pop()
            if count is not None:
                cell.messages += count(arguments, result)
                thread.mark = clock()
                thread.tracing.nanoseconds += thread.mark - now
            return result

        return wrapper

    def _join(self, name: str) -> _Thread:
        """The accounts of a thread that comes for the first time."""
        thread = self._threads[_ident()] = _Thread(name, self._stages)
        return thread

    # ---- the event loop

    def _about_to_wait(self) -> None:
        self._book()
        self._loop.stack[0] = self._idle

    def _woken(self) -> None:
        self._book()
        self._loop.stack[0] = self._loop.other

    def _book(self) -> None:
        now, loop = clock(), self._loop
        loop.stack[-1].nanoseconds += now - loop.mark
        loop.mark = now

    def _switched(self, _: str, greenlets: tuple[Any, Any]) -> None:
        """Another greenlet runs: each has its own stack of stages."""
        origin, target = greenlets
        self._book()
        loop = self._loop
        if len(loop.stack) > 1:
            self._parked[origin] = loop.stack
            loop.stack = [loop.other]
        if target in self._parked:
            loop.stack = self._parked.pop(target)

    # ---- the report

    def _report(self, thread: _Thread) -> list[Spent]:
        tracing = thread.tracing.nanoseconds
        rows = []
        named = list(thread.cells.items())
        if thread is self._loop:
            named += [(OTHER, thread.other)]
        for stage, cell in named:
            cost = min(int(cell.calls * self._inside + cell.inner * self._outside), cell.nanoseconds)
            tracing += cost
            rows.append(Spent(thread.name, stage, cell.nanoseconds - cost, cell.calls, cell.messages))
        if thread is self._loop:
            rows.append(Spent(thread.name, IDLE, self._idle.nanoseconds, 0, 0))
        return [*rows, Spent(thread.name, TRACING, tracing, 0, 0)]


def wrapper_costs() -> tuple[float, float]:
    """What a wrapper adds, in nanoseconds: to the time that it books for its own stage, and to its caller's."""
    calls, rounds = 200, 5
    inside = outside = float("inf")
    for _ in range(rounds):
        trace = Trace([Point(None, "", "nothing")])
        wrapper = trace.timed(trace._points[0], _nothing)
        thread = trace._join(LOOP)
        for _ in range(calls):
            wrapper()
        outside = min(outside, thread.other.nanoseconds / calls)
        inside = min(inside, thread.cells["nothing"].nanoseconds / calls)
    return inside, outside


def _nothing() -> None: ...
