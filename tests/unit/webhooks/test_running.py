"""The loops of a process go on after a failure: of what is owed, and of what happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from bus.errors import Unavailable
from bus.webhooks import dispatcher, occurrences
from bus.webhooks.claims import Taken
from bus.webhooks.dispatcher import Dispatcher
from bus.webhooks.matching import Subject
from bus.webhooks.occurrences import Occurrences


def raising(*outcomes: Any) -> Callable[[Any], Any]:
    """A function that gives one outcome after the other, the last again and again; errors are raised."""
    left: Iterator[Any] = iter(outcomes)
    last = outcomes[-1]

    def call(job: Any) -> Any:
        outcome = next(left, last)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return call


def test_what_is_owed_is_sent_although_a_look_and_a_step_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(dispatcher, "PAUSE_SECONDS", 0.001)
    steps = raising(Taken([]), OSError("a step"), Unavailable("The disk is full."), Taken([]))
    taken, done = [], Event()

    def write(job: Any) -> Any:
        taken.append(job)
        if len(taken) == 4:
            done.set()
        return steps(job)

    read = raising(OSError("a look"), [(1,)])
    sender = Dispatcher(write, read, lambda: 0, None, lambda: None, lambda *_: None)  # type: ignore[arg-type]
    sender.endpoints = {1: None}  # type: ignore[dict-item]
    sender.start(None, None, 0, "test", None)  # type: ignore[arg-type]
    assert done.wait(5)
    sender.stop(0)


class Tables:
    """An outbox of which a test sees what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, transaction: object, name: str, subject: Subject, data: bytes) -> bool:
        self.written.append(data)
        return True


def test_what_happens_is_told_although_a_write_has_failed_and_what_is_lost_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(occurrences, "PAUSE_SECONDS", 0.001)
    tables, refusals = Tables(), iter([Unavailable("The disk is full."), OSError("unheard of")])

    def write(job: Any) -> Any:
        if refusal := next(refusals, None):
            raise refusal
        job(None)

    told = Occurrences(tables, write, lambda: None)  # type: ignore[arg-type]
    told.start()
    with caplog.at_level(logging.ERROR, "bus.webhooks.occurrences"):
        told.put("x", Subject(), b"1")
        with gevent.Timeout(5):
            while told.dropped == 0:
                gevent.sleep(0.001)
        told.put("x", Subject(), b"2")
        told.stop()
    assert tables.written == [b"2"]
    assert any("1 events were not told" in line for line in caplog.messages)


def test_what_waits_to_be_told_is_bounded_in_number_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occurrences, "MAX_WAITING", 3)
    monkeypatch.setattr(occurrences, "MAX_WAITING_BYTES", 100)
    tables = Tables()
    told = Occurrences(tables, lambda job: job(None), lambda: None)  # type: ignore[arg-type]
    for data in (b"a", b"b", b"c", b"d", b"e" * 99):
        told.put("x", Subject(), data)
    told.stop()
    assert tables.written == [b"d", b"e" * 99]
    assert told.dropped == 3
