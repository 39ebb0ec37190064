"""Tracing points: self times that add up, on every thread and greenlet, and nothing left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import gevent
import pytest

from bus import tracing
from bus.tracing import IDLE, LOOP, OTHER, TRACING, Point, Spent, Trace


class Clock:
    """Time that passes when it is told to, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def passes(self, nanoseconds: int) -> None:
        self.now += nanoseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(tracing, "clock", fake)
    return fake


class Work:
    """Something to be timed. `within` is called halfway."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.within: Callable[[], object] = lambda: None

    def outer(self, more: int = 0) -> str:
        self.clock.passes(5 + more)
        self.within()
        self.clock.passes(2)
        return "done"

    def inner(self) -> None:
        self.clock.passes(3)

    def failing(self) -> None:
        self.clock.passes(4)
        raise ValueError("on purpose")


def late(owner: object, name: str) -> Callable[[], object]:
    """A call of a method that is looked up when it is called."""

    def call() -> object:
        return getattr(owner, name)()

    return call


def stages(spent: list[Spent], thread: str = LOOP) -> dict[str, tuple[int, int, int]]:
    """(nanoseconds, calls, messages) by stage."""
    return {each.stage: (each.nanoseconds, each.calls, each.messages) for each in spent if each.thread == thread}


def test_a_stage_has_its_own_time_only(clock: Clock) -> None:
    work = Work(clock)
    work.within = late(work, "inner")
    trace = Trace(
        [
            Point(work, "outer", "outer", count=lambda given, result: len(result)),
            Point(work, "inner", "inner"),
            Point(work, "failing", "failing", count=lambda given, result: 1),
        ]
    )
    trace.start()
    clock.passes(11)
    assert work.outer() == work.outer(more=10) == "done"
    with pytest.raises(ValueError, match="on purpose"):
        work.failing()
    work.inner()
    found = stages(trace.stop())
    assert found["outer"] == (7 + 17, 2, 8)
    assert found["inner"] == (9, 3, 0)
    assert found["failing"] == (4, 1, 0)
    assert found[OTHER][0] == 11
    assert sum(nanoseconds for nanoseconds, _, _ in found.values()) == clock.now == trace.seconds * 1e9


def test_a_stage_that_calls_itself_is_not_counted_twice(clock: Clock) -> None:
    work = Work(clock)
    trace = Trace([Point(work, "outer", "one"), Point(work, "inner", "one")])
    work.within = late(work, "inner")
    trace.start()
    work.outer()
    assert stages(trace.stop())["one"] == (10, 2, 0)


def test_what_hooks_take_belongs_to_no_stage(clock: Clock) -> None:
    work, heard = Work(clock), []

    def before(given: object) -> None:
        clock.passes(100)
        heard.append(given)

    def count(given: object, result: object) -> int:
        clock.passes(1000)
        heard.append((given, result))
        return 1

    trace = Trace([Point(work, "outer", "outer", count=count, before=before)])
    trace.start()
    work.outer(1)
    found = stages(trace.stop())
    assert (found["outer"], found[TRACING][0]) == ((8, 1, 1), 1100)
    assert heard == [(1,), ((1,), "done")]


def test_a_greenlet_that_waits_spends_nothing(clock: Clock) -> None:
    work = Work(clock)
    work.within = lambda: gevent.sleep(0)
    trace = Trace([Point(work, "outer", "outer"), Point(work, "inner", "inner")])
    trace.start()

    def meanwhile() -> None:
        work.inner()
        clock.passes(50)

    gevent.joinall([gevent.spawn(work.outer), gevent.spawn(meanwhile), gevent.spawn(work.outer)])
    found = stages(trace.stop())
    assert (found["outer"], found["inner"]) == ((14, 2, 0), (3, 1, 0))
    assert found[OTHER][0] + found[IDLE][0] == 50


def test_each_thread_has_an_account_of_its_own() -> None:
    work = SimpleNamespace(inner=lambda: None)
    work.outer = late(work, "inner")
    trace = Trace([Point(work, "outer", "outer", "writer"), Point(work, "inner", "inner", "writer")])
    trace.start()
    together = threading.Barrier(2)

    def run() -> None:
        together.wait(10)
        for _ in range(2000):
            work.outer()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    work.inner()
    spent = trace.stop()
    assert [(each.calls, each.stage) for each in spent if each.thread == "writer" and each.calls] == [
        (2000, "outer"),
        (2000, "inner"),
    ] * 2
    assert stages(spent)["inner"][1] == 1


def test_what_was_there_is_there_again() -> None:
    def own() -> None: ...

    class Slotted:
        __slots__ = ()

        def method(self) -> None: ...

    work = Work(Clock())
    work.inner = own  # type: ignore[method-assign]
    module = ModuleType("module")
    module.os = os  # type: ignore[attr-defined]
    module.function = own  # type: ignore[attr-defined]
    before = [dict(vars(each)) for each in (work, Slotted, module, os)]
    trace = Trace(
        [
            Point(work, "outer", "a"),
            Point(work, "inner", "b"),
            Point(work, "failing", "b"),
            Point(Slotted, "method", "c"),
            Point(module, "function", "d"),
            Point(module, "os.getpid", "e"),
            Point(module, "os.getcwd", "e"),
        ]
    )
    trace.start()
    assert vars(os) == before[3], "only the module's own name for it may change"
    assert module.os.getpid() == os.getpid()  # type: ignore[attr-defined]
    assert module.os.sep is os.sep  # type: ignore[attr-defined]
    Slotted().method()
    with pytest.raises(ValueError, match="on purpose"):
        work.failing()
    found = stages(trace.stop())
    assert [dict(vars(each)) for each in (work, Slotted, module, os)] == before
    assert (found["b"][1], found["c"][1], found["e"][1]) == (1, 1, 1)


def test_a_point_that_is_not_there_leaves_nothing_on() -> None:
    work = Work(Clock())
    before = dict(vars(work))
    with pytest.raises(AttributeError, match="gone"):
        Trace([Point(work, "outer", "outer"), Point(work, "gone", "gone")]).start()
    assert vars(work) == before


def test_a_call_that_outlives_its_trace_is_not_disturbed(clock: Clock) -> None:
    work = Work(clock)
    trace = Trace([Point(work, "outer", "outer")])
    work.within = trace.stop
    trace.start()
    assert work.outer() == "done"
    assert "outer" not in vars(work)
