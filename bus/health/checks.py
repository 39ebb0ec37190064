"""Health checks and the rounds in which they run: every check in a thread of its own, with a deadline that is kept.

A probe reads what the last round found, and does nothing itself. A check that hangs is told apart by its deadline, and is
not started again before it has returned: it costs one thread, and holds up neither a probe nor the next round. Where
gevent has patched `threading`, as in the server, these threads are greenlets.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from bus.message import now_us

log = logging.getLogger("bus.health")

FIRST_WAIT_SECONDS = 1.0
"""How long the first probe of a check waits for its answer, where nobody else makes rounds. Kubelet gives up then, too."""

MISSED_ROUNDS = 3
"""After so many intervals without an answer, what was found is too old to be believed."""

Found = tuple[bool, str]


@dataclass
class HealthCheck:
    """A check: `check_func()` says whether it is well, and in a sentence why.

    One that is not `critical` degrades what it belongs to and fails no probe. `timeout`: seconds for an answer. `rise` and
    `fall`: how many answers in a row turn the verdict to good, and to bad; the first one counts at once. `instant`: it only
    looks at memory, so probes ask it themselves.
    """

    name: str
    check_func: Callable[[], Found]
    critical: bool = True
    timeout: float = 5.0
    enabled: bool = True
    rise: int = 1
    fall: int = 1
    instant: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("A check needs a name: it is what its result is found under.")
        if not callable(self.check_func):
            raise TypeError(f"check_func of {self.name} can't be called; give a function that returns (bool, str).")
        if self.timeout <= 0 or self.rise < 1 or self.fall < 1:
            raise ValueError(f"The timeout of {self.name} must be above 0 seconds, and rise and fall at least 1.")


class Outcome(msgspec.Struct, frozen=True):
    """What a check is found to be. `healthy` None: not known yet. `error` is an exception's text, for insiders only.

    `seconds`: how long the answer took; `at`: when it came, by the monotonic clock; `at_us`: the same by the wall's.
    """

    name: str
    critical: bool
    healthy: bool | None
    message: str
    error: str | None
    seconds: float
    at: float
    at_us: int

    @property
    def status(self) -> str:
        """healthy, degraded (it is not critical) or unhealthy."""
        if self.healthy:
            return "healthy"
        return "unhealthy" if self.critical else "degraded"


def worst(outcomes: Iterable[Outcome]) -> str:
    """The status of several together."""
    found = {outcome.status for outcome in outcomes}
    return next((status for status in ("unhealthy", "degraded") if status in found), "healthy")


class _Run:
    """One call of a check's function. `done` is set when it has returned, however late."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.began = time.monotonic()
        self.healthy = False
        self.message = ""
        self.error: str | None = None
        self.seconds = 0.0

    def execute(self, check: HealthCheck) -> None:
        try:
            self.healthy, self.message = _ask(check)
        except Exception as error:
            self.message = "The check failed; the log says why."
            self.error = f"{type(error).__name__}: {error}"
            log.warning("The health check %s failed", check.name, exc_info=True, extra={"action": "check_failed"})
        self.seconds = time.monotonic() - self.began
        self.done.set()


class _Kept:
    """A check, its run under way, and its verdict. `missed_at`: when a probe first met it before any round had.

    `_in_a_row`: answers that speak against the verdict.
    """

    def __init__(self, check: HealthCheck) -> None:
        self.check = check
        self.run: _Run | None = None
        self.outcome: Outcome | None = None
        self.missed_at: float | None = None
        self._in_a_row = 0

    def judge(self, healthy: bool, message: str, error: str | None, seconds: float) -> Outcome:
        """Take an answer in, and give the verdict that stands then."""
        check, before = self.check, self.outcome
        verdict = healthy
        if before is not None and before.healthy is not None and healthy != before.healthy:
            self._in_a_row += 1
            needed = check.rise if healthy else check.fall
            if self._in_a_row < needed:
                verdict = before.healthy
                message = f"{message} ({self._in_a_row} of {needed} such answers)".lstrip()
            else:
                self._in_a_row = 0
        else:
            self._in_a_row = 0
        now = time.monotonic()
        self.outcome = Outcome(check.name, check.critical, verdict, message, error, seconds, now, now_us())
        return self.outcome


class Board:
    """Checks by kind, and what the last round found. Any thread, and any greenlet where gevent has patched `threading`.

    `_lock` guards `_kept` (by name; bounded by who adds) and `_kinds`, and is never held while a check runs. `_rounds` has
    one round run at a time. Rounds come from outside (`refresh`), or from a thread of its own, which the first `outcomes`
    starts, again after a fork.
    """

    def __init__(self, interval_seconds: float, after_round: Callable[[], None], *, own_rounds: bool) -> None:
        """`after_round()` is called at the end of each round."""
        if interval_seconds <= 0:
            raise ValueError("The interval of the checks must be above 0 seconds.")
        self.interval_seconds = interval_seconds
        self.own_rounds = own_rounds
        self._after_round = after_round
        self._kept: dict[str, _Kept] = {}
        self._kinds: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._rounds = threading.Lock()
        self._stopping = threading.Event()
        self._wanted = threading.Event()  # a probe met a check that no round has asked
        self._made = threading.Condition(self._lock)  # a round has ended
        self._pid = 0

    def add(self, kind: str, check: HealthCheck) -> None:
        """Add a check. The same one may be of several kinds; another one of a taken name raises ValueError."""
        with self._lock:
            kept = self._kept.get(check.name)
            if (kept is not None and kept.check is not check) or check.name in self._kinds.get(kind, ()):
                raise ValueError(f"There is a check named {check.name} already; one would hide the other's failure.")
            self._kept.setdefault(check.name, _Kept(check))
            self._kinds.setdefault(kind, []).append(check.name)

    def outcomes(self, *kinds: str) -> list[Outcome]:
        """What is known of the enabled checks of these kinds, each once."""
        if self.own_rounds:
            self._see_to_rounds()
        with self._lock:
            names = dict.fromkeys(name for kind in kinds for name in self._kinds.get(kind, ()))
            wanted = [self._kept[name] for name in names if self._kept[name].check.enabled]
        return [self._told(kept) for kept in wanted]

    def refresh(self) -> None:
        """Run all enabled checks once, side by side; returns when each has answered or is out of time, at the latest after
        one interval."""
        with self._rounds:
            with self._lock:
                kept = [each for each in self._kept.values() if each.check.enabled and not each.check.instant]
            ends = time.monotonic() + self.interval_seconds
            runs = [(each, _begin(each)) for each in kept]
            for each, run in runs:
                self._await(each, run, ends)
            self._after_round()
            with self._lock:
                self._made.notify_all()

    def stop(self) -> None:
        """End the rounds of its own, after the one that runs. Idempotent."""
        self._stopping.set()
        self._wanted.set()

    # ---- below

    def _await(self, kept: _Kept, run: _Run, round_ends: float) -> None:
        """Take in an answer that is there in time. One that has more time than the round has comes in with a later round."""
        check = kept.check
        in_time = run.done.wait(max(min(run.began + check.timeout, round_ends) - time.monotonic(), 0.0))
        elapsed = time.monotonic() - run.began
        if in_time and run.seconds <= check.timeout:
            kept.run = None
            kept.judge(run.healthy, run.message, run.error, run.seconds)
        elif elapsed >= check.timeout:
            kept.judge(
                False, f"No answer within {check.timeout:g} s; it still runs after {elapsed:.1f} s.", None, elapsed
            )

    def _told(self, kept: _Kept) -> Outcome:
        check, outcome = kept.check, kept.outcome
        if check.instant:
            run = _Run()
            run.execute(check)
            return kept.judge(run.healthy, run.message, run.error, run.seconds)
        now = time.monotonic()
        if outcome is None:
            return Outcome(check.name, check.critical, None, "It has not been checked yet.", None, 0.0, now, now_us())
        age = now - outcome.at
        if age <= MISSED_ROUNDS * self.interval_seconds + check.timeout:
            return outcome
        return msgspec.structs.replace(outcome, healthy=False, message=f"It was last checked {age:.0f} s ago.")

    def _see_to_rounds(self) -> None:
        with self._lock:
            if self._pid != os.getpid():
                self._begin_rounds()
            unknown = [each for each in self._kept.values() if _is_unknown(each)]
            now = time.monotonic()
            for each in unknown:
                if each.missed_at is None:
                    each.missed_at = now
                    self._wanted.set()
            until = max((each.missed_at or now for each in unknown), default=now) + FIRST_WAIT_SECONDS
            self._made.wait_for(lambda: not any(map(_is_unknown, unknown)), max(until - now, 0.0))

    def _begin_rounds(self) -> None:
        """Here, and again in a process that was forked: the thread stayed behind, and with it what it held."""
        self._pid = os.getpid()
        self._rounds = threading.Lock()
        for kept in self._kept.values():
            kept.run, kept.missed_at = None, time.monotonic()
        self._stopping.clear()
        self._wanted.set()
        threading.Thread(target=self._make_rounds, name="health-checks", daemon=True).start()

    def _make_rounds(self) -> None:
        while not self._stopping.is_set():
            self._wanted.wait(self.interval_seconds)
            self._wanted.clear()
            self.refresh()


def _is_unknown(kept: _Kept) -> bool:
    return kept.outcome is None and kept.check.enabled and not kept.check.instant


def _begin(kept: _Kept) -> _Run:
    """A new run of a check; or the old one, if it goes on, or has answered in time."""
    if kept.run is None or (kept.run.done.is_set() and kept.run.seconds > kept.check.timeout):
        kept.run = _Run()
        name = f"health-check-{kept.check.name}"
        threading.Thread(target=kept.run.execute, args=(kept.check,), name=name, daemon=True).start()
    return kept.run


def _ask(check: HealthCheck) -> Found:
    answer: object = check.check_func()
    if isinstance(answer, tuple) and len(answer) == 2:
        return bool(answer[0]), str(answer[1])
    raise TypeError(f"it returned {type(answer).__name__}; a check returns (bool, str)")
