"""Which limit holds for whom, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.errors import RateLimited, StartRefused
from bus.events import RateLimitHit
from bus.identity.caller import ADMIN, ANYBODY, Caller, Grant
from bus.limits.limits import Limits, headers_of
from bus.nodes.leases import FileLeases
from bus.settings import load

HERE = "198.51.100.1"
KEY = "a-key-for-tests-of-limits"
Make = Callable[..., Limits]


class Host:
    """What limits need of a bus, and what it heard."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000
        self.clock: Any = SimpleNamespace(now_us=lambda: self.now)
        self.backplane: Any = SimpleNamespace(slot=0)
        self.node = None
        self.counted: list[str] = []
        self.metrics: Any = SimpleNamespace(count=lambda family, scope: self.counted.append(scope))
        self.told: list[RateLimitHit] = []

    def emit(self, event: RateLimitHit) -> None:
        self.told.append(event)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def make(host: Host, tmp_path: Path) -> Iterator[Make]:
    made: list[Limits] = []

    def limits(**settings: str) -> Limits:
        made.append(Limits(load(settings, env_file=None), host))
        made[-1].start(FileLeases(tmp_path))
        return made[-1]

    yield limits
    for one in made:
        one.stop()


def key(name: str, rate: int | None = None) -> Caller:
    return Caller(f"key:{name}", Grant(clients=(name,), rate_per_minute=rate))


def most(limits: Limits, caller: Caller, address: str = HERE) -> int | None:
    """How often a caller may ask at once; None: as often as it likes."""
    allowance = limits.of(caller, address)
    if allowance is None:
        return None
    for count in range(1000):
        try:
            allowance.take()
        except RateLimited:
            return count
    raise AssertionError("There is no end to it.")


def test_with_auth_off_nobody_is_held_to_anything_unless_it_is_set(make: Make) -> None:
    limits = make()
    assert not limits.on
    assert limits.seat(ANYBODY, HERE) is None
    assert most(make(RATE_LIMIT_REQUESTS_PER_MINUTE="7"), ANYBODY) == 7


def test_a_key_has_its_own_rate_or_the_setting_or_none(make: Make) -> None:
    assert most(make(API_KEY=KEY), key("free")) is None
    assert most(make(API_KEY=KEY), ADMIN) is None
    assert most(make(API_KEY=KEY), key("slow", 5)) == 5
    limits = make(API_KEY=KEY, RATE_LIMIT_REQUESTS_PER_MINUTE="9", RATE_LIMIT_REQUESTS_PER_HOUR="8")
    assert most(limits, key("fast", 100)) == 100
    assert most(limits, key("usual")) == 8
    assert most(limits, key("usual"), "203.0.113.9") == 0, "A key is one caller wherever it calls from."


def test_strangers_are_told_apart_by_their_addresses(make: Make) -> None:
    limits = make(API_KEY=KEY)
    stranger = limits.of_stranger(HERE)
    assert stranger is not None
    stranger.take(60)
    with pytest.raises(RateLimited):
        stranger.take(0)
    other = limits.of_stranger("198.51.100.2")
    assert other is not None
    assert other.take(0)[0].remaining == 60


def test_who_is_held_to_the_hour_loses_nothing_of_the_minute(make: Make, host: Host) -> None:
    limits = make(RATE_LIMIT_REQUESTS_PER_MINUTE="10", RATE_LIMIT_REQUESTS_PER_HOUR="15")
    allowance = limits.of(ANYBODY, HERE)
    assert allowance is not None
    assert headers_of(allowance.take(10))["RateLimit"].startswith('"hour";r=5;t=')
    with pytest.raises(RateLimited, match="10 requests a minute"):
        allowance.take()
    host.now += 63_000_000
    assert [grant.remaining for grant in allowance.take(5)] == [0, 5]
    with pytest.raises(RateLimited, match="15 requests an hour") as refused:
        allowance.take()
    assert refused.value.retry_after_seconds is not None
    assert 3400 < refused.value.retry_after_seconds <= 3750
    host.now += 3_600_000_000 - 63_000_000 + 150_000_000
    assert [grant.remaining for grant in allowance.take(1)] == [14, 9]


def test_refusals_are_counted_and_told_once_a_minute(make: Make, host: Host) -> None:
    limits = make(RATE_LIMIT_REQUESTS_PER_MINUTE="1")
    assert most(limits, ANYBODY) == 1
    assert [most(limits, ANYBODY) for _ in range(4)] == [0] * 4
    assert host.counted == ["address"] * 5
    assert [(hit.scope, hit.caller) for hit in host.told] == [("address", HERE)]


def test_a_full_disk_stops_the_start_and_not_the_server_later(make: Make, tmp_path: Path, host: Host) -> None:
    make(API_KEY=KEY)
    for table in ("rate-limits", "places"):
        found = (tmp_path / table).stat()
        assert found.st_blocks * 512 >= found.st_size > 1_000_000, "A page that is touched later would find no room."
        assert found.st_mode & 0o777 == 0o600
    with pytest.raises(StartRefused, match="make room"):
        Limits(load({"API_KEY": KEY}, env_file=None), host).start(FileLeases(tmp_path / "no-such-folder"))


def test_a_seat_is_given_back_once(make: Make) -> None:
    limits = make(MAX_CONNECTIONS_PER_ADDRESS="2")
    seats = [limits.seat(ANYBODY, HERE) for _ in range(2)]
    with pytest.raises(RateLimited, match="all of the 2 connections"):
        limits.seat(ANYBODY, HERE)
    assert seats[0] is not None
    seats[0].leave()
    seats[0].leave()
    assert limits.seat(ANYBODY, HERE) is not None
    with pytest.raises(RateLimited):
        limits.check_room(ANYBODY, HERE)


def test_who_shows_a_credential_waits_no_more(make: Make) -> None:
    limits = make(API_KEY=KEY, MAX_CONNECTIONS_PER_KEY="1")
    waiting = [limits.seat(None, HERE) for _ in range(100)]
    with pytest.raises(RateLimited):
        limits.seat(None, HERE)
    assert waiting[0] is not None
    assert waiting[1] is not None
    waiting[0].belongs_to(key("one"))
    assert limits.seat(None, HERE) is not None
    with pytest.raises(RateLimited):
        waiting[1].belongs_to(key("one"))
    waiting[1].belongs_to(key("two"))
    waiting[0].leave()
    assert limits.seat(key("one"), HERE) is not None
