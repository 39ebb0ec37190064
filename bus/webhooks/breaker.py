"""A lane: what decides when an endpoint may be sent to. Values only: each verb is told the time, in microseconds of the
bus's clock, and the state is a short JSON array that can stand in a row shared by processes.

    lane = Lane.load(text)
    count = lane.may_send(now_us, limits, in_flight)
    lane.began(now_us, limits, count)
    …
    lane.ended(now_us, verdict, began_us)
    text = lane.dump()

Four things hold a lane back, and waiting for any of them costs no attempt:

- The *rate*, by a token bucket for each window. In no window, wherever it begins, are more sent than the rate says.
- A *pause* that the receiver asked for (Retry-After).
- The *breaker*. It opens when 70 % of at least 10 attempts of the last minutes failed, or after 5 timeouts in a row; for
  30 s, doubling up to 10 min. Then one probe goes, whichever process sends it; if it succeeds, the lane is closed.
- The *slow start* after a pause, an opening, or an answer that says "overloaded": 1, 2, 4 … 32 a second, then the rate.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from bus.webhooks.policy import CONFIG_ERROR, MAX_PAUSE_SECONDS, SECOND_US, Kind, Step, Verdict

HALF_WINDOW_US = 150 * SECOND_US
"""The breaker looks at this half of five minutes and the one before."""

FEWEST_ATTEMPTS, FAILED_SHARE, TIMEOUTS_IN_A_ROW = 10, 0.7, 5
FIRST_OPEN_US, LONGEST_OPEN_US = 30 * SECOND_US, 600 * SECOND_US
PROBE_US = 90 * SECOND_US
"""A probe that is not reported after this time is lost with its process; another may go."""

SLOW_STEP_US = SECOND_US
SLOW_STEPS = 6
"""A slow start goes as far as 32 a second."""

CLOCK_STARTS_US = 12 * 3600 * SECOND_US
DISABLED_AFTER_US = 5 * 24 * 3600 * SECOND_US
FLAGGED_AFTER = 3

State = Literal["closed", "open", "half_open", "paused"]


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """At most `count` in any `seconds`."""

    count: int
    seconds: float = 1.0

    @property
    def burst(self) -> int:
        """How many may go at once after a rest: about a tenth."""
        return 1 + self.count // 10

    @property
    def spacing_us(self) -> int:
        """From one token to the next, so that a burst and what follows it stay within `count` in any window."""
        room = self.count - self.burst + 1
        return -(-int(self.seconds * SECOND_US) // room)


class Limits(msgspec.Struct, frozen=True):
    """What an endpoint takes: rates that all hold, and how many requests at once."""

    rates: tuple[Rate, ...] = (Rate(25),)
    in_flight: int = 10


LIMITS: dict[Kind, Limits] = {
    "http": Limits(),
    "slack": Limits((Rate(1),), 1),
    "discord": Limits((Rate(5, 2.0), Rate(30, 60.0)), 2),
}
"""The limits of each kind of endpoint that brings none of its own."""


class Lane(msgspec.Struct, array_like=True):
    """The state of one endpoint's lane; all zeros is one that was never used. Not thread-safe: a value has one holder.

    Times are microseconds of the bus's clock, 0 for never. In the order of the JSON array.
    """

    paused_until_us: int = 0
    """The receiver asked for a rest until then."""
    opened: int = 0
    """Openings since it was last closed; 0: the breaker is closed."""
    open_until_us: int = 0
    probe_us: int = 0
    """When the probe began that is on its way."""
    half: int = 0
    """Number of the half window that `tried` and `failed` count."""
    tried: int = 0
    failed: int = 0
    tried_before: int = 0
    failed_before: int = 0
    timeouts: int = 0
    """In a row."""
    slow_since_us: int = 0
    """When the slow start began."""
    failing_since_us: int = 0
    """The first failure since the last success."""
    worn_since_us: int = 0
    """The first failure at least 12 hours behind that one: the clock of the auto-disable."""
    config_errors: int = 0
    """Deliveries in a row that ended as config_error."""
    buckets: list[int] = []
    """For each rate, when its bucket is full again."""

    @classmethod
    def load(cls, text: bytes | str | None) -> Lane:
        """From what `dump` gave; None or nothing is a new lane."""
        return msgspec.json.decode(text, type=cls) if text else cls()

    def dump(self) -> bytes:
        """A JSON array."""
        return msgspec.json.encode(self)

    # ---- before an attempt

    def state(self, now_us: int) -> State:
        """What an operator sees."""
        if self.opened:
            return "open" if now_us < self._open_until(now_us) else "half_open"
        return "paused" if now_us < self._paused_until(now_us) else "closed"

    def may_send(self, now_us: int, limits: Limits, in_flight: int = 0) -> int:
        """How many attempts may begin now, while `in_flight` are on their way."""
        if now_us < max(self._paused_until(now_us), self._open_until(now_us)):
            return 0
        room = limits.in_flight - in_flight
        if self.opened:
            room = min(room, 0 if self._probing(now_us) else 1)
        for rate, full_us in self._buckets(now_us, limits):
            room = min(room, rate.burst - -(-max(full_us - now_us, 0) // rate.spacing_us))
        return max(room, 0)

    def next_us(self, now_us: int, limits: Limits) -> int:
        """The earliest moment at which `may_send` can be more than 0, as things are. Now, if that is now."""
        earliest = max(now_us, self._paused_until(now_us), self._open_until(now_us))
        if self.opened and self._probing(earliest):
            earliest = max(earliest, self.probe_us + PROBE_US)
        for rate, full_us in self._buckets(earliest, limits):
            earliest = max(earliest, full_us - (rate.burst - 1) * rate.spacing_us)
        return earliest

    def began(self, now_us: int, limits: Limits, count: int = 1) -> None:
        """So many attempts begin: no more than `may_send` said, in the same transaction."""
        self.buckets = [
            max(full_us, now_us) + count * rate.spacing_us for rate, full_us in self._buckets(now_us, limits)
        ]
        if self.opened and count:
            self.probe_us = now_us

    # ---- after it

    def ended(self, now_us: int, verdict: Verdict, began_us: int) -> None:
        """An attempt ended that began at `began_us`."""
        if verdict.pause_seconds:
            until_us = now_us + int(verdict.pause_seconds * SECOND_US)
            self.paused_until_us = max(self._paused_until(now_us), until_us)
        if verdict.overloaded or (verdict.pause_seconds and not verdict.ok):
            self.slow_since_us = max(self._paused_until(now_us), now_us)
        self._wear(now_us, ok=verdict.ok or verdict.name == "aborted")
        well = verdict.ok or verdict.steered
        if not self.opened:
            self._count(now_us, well, timed_out=verdict.name == "timeout")
        elif self.probe_us and began_us >= self.probe_us:
            self._probed(now_us, well)

    def settled(self, step: Step) -> None:
        """A delivery came to its end; three config_errors in a row flag the endpoint."""
        if step.state == "done":
            self.config_errors = 0
        elif step.cause == CONFIG_ERROR:
            self.config_errors += 1

    @property
    def flagged(self) -> bool:
        """Whether whoever runs the receiver should look at how it is set up."""
        return self.config_errors >= FLAGGED_AFTER

    def worn_out(self, now_us: int) -> bool:
        """Whether nothing but failures came for five days: the endpoint is to be disabled."""
        return bool(self.worn_since_us) and now_us - self.worn_since_us >= DISABLED_AFTER_US

    def enabled_again(self, now_us: int) -> None:
        """An operator enabled the endpoint: all is forgiven, and it begins slowly."""
        fresh = Lane(slow_since_us=now_us, buckets=self.buckets)
        for field in self.__struct_fields__:
            setattr(self, field, getattr(fresh, field))

    # ---- below
    # A moment further ahead than its cause can put it is from before the clock was set back, and holds nobody.

    def _paused_until(self, now_us: int) -> int:
        return _within(self.paused_until_us, now_us, int(MAX_PAUSE_SECONDS * SECOND_US))

    def _open_until(self, now_us: int) -> int:
        return _within(self.open_until_us, now_us, LONGEST_OPEN_US)

    def _probing(self, now_us: int) -> bool:
        return bool(self.probe_us) and 0 <= now_us - self.probe_us < PROBE_US

    def _buckets(self, now_us: int, limits: Limits) -> list[tuple[Rate, int]]:
        """Each rate that holds now, and when its bucket is full; a slow start is one more."""
        rates = [*limits.rates, *self._slow_rate(now_us)]
        known = self.buckets + [0] * (len(rates) - len(self.buckets))
        return [
            (rate, _within(full_us, now_us, int(max(rate.seconds, 1) * SECOND_US)))
            for rate, full_us in zip(rates, known, strict=False)
        ]

    def _slow_rate(self, now_us: int) -> tuple[Rate, ...]:
        if not self.slow_since_us or self.slow_since_us > max(self._paused_until(now_us), now_us):
            return ()
        steps = max(now_us - self.slow_since_us, 0) // SLOW_STEP_US
        return (Rate(1, 1 / 2**steps),) if steps < SLOW_STEPS else ()

    def _wear(self, now_us: int, *, ok: bool) -> None:
        if ok:
            self.failing_since_us = self.worn_since_us = 0
        elif not self.failing_since_us:
            self.failing_since_us = now_us
        elif not self.worn_since_us and now_us - self.failing_since_us >= CLOCK_STARTS_US:
            self.worn_since_us = now_us

    def _count(self, now_us: int, well: bool, *, timed_out: bool) -> None:
        half = now_us // HALF_WINDOW_US
        if half != self.half:
            before = (self.tried, self.failed) if half == self.half + 1 else (0, 0)
            self.tried_before, self.failed_before = before
            self.half, self.tried, self.failed = half, 0, 0
        self.tried += 1
        self.failed += not well
        self.timeouts = self.timeouts + 1 if timed_out else 0
        tried, failed = self.tried + self.tried_before, self.failed + self.failed_before
        if self.timeouts >= TIMEOUTS_IN_A_ROW or (tried >= FEWEST_ATTEMPTS and failed >= FAILED_SHARE * tried):
            self._open(now_us)

    def _probed(self, now_us: int, well: bool) -> None:
        if not well:
            self._open(now_us)
            return
        self.opened = self.open_until_us = self.probe_us = 0
        self.slow_since_us = max(self._paused_until(now_us), now_us)

    def _open(self, now_us: int) -> None:
        self.open_until_us = now_us + min(FIRST_OPEN_US << min(self.opened, 10), LONGEST_OPEN_US)
        self.opened += 1
        self.probe_us = self.timeouts = 0
        self.tried = self.failed = self.tried_before = self.failed_before = 0


def _within(moment_us: int, now_us: int, reach_us: int) -> int:
    return moment_us if moment_us - now_us <= reach_us else 0


class Budget(msgspec.Struct, array_like=True):
    """How many requests of a kind are forgiven in a window, wherever it begins; Discord bans who sends too many invalid
    ones. Not thread-safe."""

    limit: int = 50
    window_us: int = 600 * SECOND_US
    spent_us: list[int] = []
    """When each was spent, the oldest first; at most `limit`."""

    def left(self, now_us: int) -> int:
        """How many may still be spent."""
        self.spent_us = [at for at in self.spent_us if 0 <= now_us - at < self.window_us]
        return self.limit - len(self.spent_us)

    def spend(self, now_us: int) -> None:
        """One was spent."""
        self.spent_us = [*self.spent_us[-self.limit + 1 :], now_us]
