"""A worker without a network: jobs from a list, and a settler that notes what was said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import pytest

from bus.client import Message, Nack, Offline, Reject, Release, Worker
from bus.client.received import Verb, message_of
from bus.client.reconnection import Backoff
from bus.errors import Forbidden
from tests.unit.scripted_bus import PATIENCE_SECONDS, Gathered, message


class Queue:
    """Gives out jobs, as many as are asked for; waits for more until it is closed. Notes what is said about them."""

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._jobs = [self._job(seq) for seq in range(1, count + 1)]
        self.limits: list[int] = []
        self.said = Gathered()
        self.failures: list[Exception] = []
        self.is_closed = False

    def claim(self, limit: int, wait: float) -> list[Message]:
        with self._changed:
            if self.failures:
                raise self.failures.pop(0)
            if self._jobs:
                self.limits.append(limit)
            self._changed.wait_for(lambda: self._jobs or self.is_closed, PATIENCE_SECONDS)
            given, self._jobs = self._jobs[:limit], self._jobs[limit:]
            return given

    def close(self) -> None:
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def settle(self, job: Message, verb: Verb, fields: dict[str, object]) -> str:
        if verb != "progress" and self.failures:
            raise self.failures.pop(0)
        self.said((job.seq, verb, fields))
        return "extended" if verb == "progress" else "acked"

    def _job(self, seq: int) -> Message:
        job = message_of(msgspec.json.encode(message(seq, to="queue:jobs", requires_ack=True)))
        job.bind(self)
        return job


@pytest.fixture
def run() -> Iterator[Callable[[Worker], Future[int]]]:
    """A function that runs a worker on a thread of its own."""
    with ThreadPoolExecutor() as pool:
        yield lambda worker: pool.submit(worker.run)


def test_a_job_is_settled_by_how_its_handler_ended() -> None:
    jobs = Queue(7)

    def handle(job: Message) -> None:
        match job.seq:
            case 2:
                raise ValueError
            case 3:
                raise Nack("not now", delay=9)
            case 4:
                raise Reject("never")
            case 5:
                raise Release
            case 6:
                job.reject("by hand")

    assert Worker(jobs.claim, handle, count=7).run() == 7
    assert [jobs.said.next() for _ in range(7)] == [
        (1, "ack", {}),
        (2, "nack", {"reason": "ValueError"}),
        (3, "nack", {"delay": 9, "reason": "not now"}),
        (4, "reject", {"reason": "never"}),
        (5, "release", {}),
        (6, "reject", {"reason": "by hand"}),
        (7, "ack", {}),
    ]


def test_it_asks_for_no_more_than_it_has_hands_for_and_for_no_more_than_count(
    run: Callable[[Worker], Future[int]],
) -> None:
    jobs, started, leave = Queue(9), Gathered(), threading.Semaphore(0)

    def handle(job: Message) -> None:
        started(job.seq)
        assert leave.acquire(timeout=PATIENCE_SECONDS)

    working = run(Worker(jobs.claim, handle, max_in_flight=3, count=5))
    assert {started.next() for _ in range(3)} == {1, 2, 3}
    assert started.is_empty
    leave.release()
    assert started.next() == 4
    leave.release(9)
    assert working.result(PATIENCE_SECONDS) == 5
    assert started.next() == 5
    assert started.is_empty
    assert max(jobs.limits) == 3


def test_stop_lets_the_running_job_finish_and_takes_no_other(
    run: Callable[[Worker], Future[int]],
) -> None:
    jobs, started, leave = Queue(2), Gathered(), threading.Event()

    def handle(job: Message) -> None:
        started(job.seq)
        assert leave.wait(PATIENCE_SECONDS)

    worker = Worker(jobs.claim, handle)
    working = run(worker)
    assert started.next() == 1
    assert [job.seq for job in worker.running] == [1]
    worker.stop()
    assert not worker.join(0)
    leave.set()
    assert working.result(PATIENCE_SECONDS) == 1
    assert worker.has_ended
    assert jobs.said.next() == (1, "ack", {})
    assert started.is_empty


def test_an_idle_worker_stops_at_once_and_gives_back_a_job_that_comes_late(
    run: Callable[[Worker], Future[int]],
) -> None:
    jobs, claiming, arrive = Queue(1), Gathered(), threading.Event()

    def claim(limit: int, wait: float) -> list[Message]:
        claiming(limit)
        assert arrive.wait(PATIENCE_SECONDS)
        return jobs.claim(limit, wait)

    worker = Worker(claim, lambda _: None)
    working = run(worker)
    assert claiming.next() == 1
    worker.stop()
    assert working.result(PATIENCE_SECONDS) == 0
    arrive.set()
    assert jobs.said.next() == (1, "release", {})


def test_a_handler_may_stop_its_worker() -> None:
    jobs = Queue(2)
    worker = Worker(jobs.claim, lambda _: (worker.stop(), worker.join(None)))
    assert worker.run() == 1


def test_the_lease_of_a_long_job_is_extended_at_half_of_it(run: Callable[[Worker], Future[int]]) -> None:
    jobs, leave = Queue(1), threading.Event()
    working = run(Worker(jobs.claim, lambda _: leave.wait(PATIENCE_SECONDS), ack_wait=0.04, count=1))
    assert [jobs.said.next() for _ in range(3)] == [(1, "progress", {"ack_wait": 0.04})] * 3
    leave.set()
    working.result(PATIENCE_SECONDS)


def test_a_bus_that_goes_away_is_waited_for_and_what_is_done_is_said_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Backoff, "pause", lambda *_: 0.0)
    jobs = Queue(2)
    jobs.failures = [Offline("away"), Offline("away")]

    def handle(job: Message) -> None:
        if job.seq == 2:
            jobs.failures = [Offline("away"), Offline("away")]

    assert Worker(jobs.claim, handle, count=2).run() == 2
    assert [jobs.said.next(), jobs.said.next()] == [(1, "ack", {}), (2, "ack", {})]


def test_what_the_bus_refuses_for_good_ends_it() -> None:
    jobs = Queue(1)
    jobs.failures = [Forbidden("You may not.")]
    worker = Worker(jobs.claim, lambda _: None)
    with pytest.raises(Forbidden):
        worker.run()
    assert worker.has_ended
