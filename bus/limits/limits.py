"""Which limit holds for whom, and how many connections a caller may have.

With auth on, whoever shows no valid credential is held to RATE_LIMIT_UNAUTHENTICATED_PER_MINUTE from one address, and a
credential to what it was given, or else to RATE_LIMIT_REQUESTS_PER_MINUTE and _PER_HOUR; without these, to nothing.
With auth off these hold for an address. A caller is an address (bus.limits.peers) or a credential: nothing else that a
request says counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from bus.errors import RateLimited, StartRefused
from bus.events import RateLimitHit
from bus.limits.buckets import Bucket, Grant
from bus.limits.drawn import DrawnBucket
from bus.limits.peers import Peers, block_of
from bus.limits.places import Places
from bus.limits.shared_buckets import SharedBuckets
from bus.settings import Settings

if TYPE_CHECKING:
    from bus.backplane import Backplane
    from bus.clock import Clock
    from bus.identity.caller import Caller
    from bus.limits.tally import Tally
    from bus.metrics import Metrics
    from bus.nodes.leases import Leases
    from bus.nodes.node import Node

STRANGERS_SOCKETS = 100
"""Sockets of one address whose credential is still to come in their first frame."""

CONNECTIONS_PER_ADDRESS = 1000
"""Unless MAX_CONNECTIONS_PER_ADDRESS says otherwise, with auth on."""

RETRY_SECONDS = 30.0
"""What whoever has too many connections is told: there is no telling when one ends."""

HIT_SECONDS = 60.0
"""A worker tells of the same caller once in so long, however often it is refused."""

MINUTE, HOUR = 60, 3600
CALLERS_REMEMBERED = 10_000
_NAMES = {MINUTE: "minute", HOUR: "hour"}


class Host(Protocol):
    """What limits need of the bus."""

    metrics: Metrics
    clock: Clock
    backplane: Backplane
    node: Node | None

    def emit(self, event: RateLimitHit, /) -> None: ...


Refuse = Callable[[str, str, RateLimited], RateLimited]


class Allowance:
    """What one caller may take. Event loop only; the buckets are every worker's."""

    __slots__ = ("_buckets", "_refuse", "_scope", "_who")

    def __init__(self, who: str, scope: str, buckets: Sequence[Bucket], refuse: Refuse) -> None:
        """`buckets`, the one of the longest window first."""
        self._who = who
        self._scope = scope
        self._buckets = buckets
        self._refuse = refuse

    def take(self, cost: int = 1) -> list[Grant]:
        """Take `cost` of each window, or of none; 0 only looks. Raises RateLimited."""
        grants: list[Grant] = []
        for bucket in self._buckets:
            grant = bucket.take(cost)
            if grant.wait_seconds:
                for taken in self._buckets[: len(grants)]:
                    taken.give_back(cost)
                raise self._refuse(self._who, self._scope, _too_often(grant, cost))
            grants.append(grant)
        return grants


class Seat:
    """One connection's share in what its address and its credential may have. `leave` gives it back, once."""

    __slots__ = ("_limits", "_names")

    def __init__(self, limits: Limits, names: list[str]) -> None:
        self._limits = limits
        self._names = names

    def belongs_to(self, caller: Caller) -> None:
        """A credential was shown at last. Raises RateLimited when it has all the connections that it may have."""
        self._limits.move(self._names, caller)

    def leave(self) -> None:
        """The connection has ended."""
        self._limits.leave(self._names)
        self._names.clear()


class Limits:
    """The limits of one process. Build it anywhere; all else is the event loop's, between `start` and `stop`.

    `on`: requests are counted, of some callers at least. `_allowances` by caller, and `_told`, when whom was last told
    of, are emptied when they hold CALLERS_REMEMBERED.
    """

    def __init__(self, settings: Settings, host: Host) -> None:
        self.peers = Peers(settings.proxies())
        self._windows = _windows(settings.rate_limit_requests_per_minute, settings.rate_limit_requests_per_hour)
        by_minute = ((settings.rate_limit_unauthenticated_per_minute, MINUTE),)
        self._strangers = by_minute if settings.auth_on else self._windows
        self.on = settings.auth_on or bool(self._windows)
        default = CONNECTIONS_PER_ADDRESS if settings.auth_on else None
        self._caps = {
            "address": settings.max_connections_per_address or default,
            "waiting": STRANGERS_SOCKETS,
            "key": settings.max_connections_per_key,
        }
        self.counts_connections = settings.auth_on or any(
            (settings.max_connections_per_address, settings.max_connections_per_key)
        )
        self._host = host
        self._settings = settings
        self._places: Places | None = None
        self._buckets: SharedBuckets | None = None
        self.tally: Tally | None = None
        """There while requests are counted over nodes."""
        self._allowances: dict[tuple[str, tuple[tuple[int, int], ...]], Allowance] = {}
        self._told: dict[str, float] = {}

    def start(self, leases: Leases) -> None:
        """Open what the workers share. Raises StartRefused when there is no room for it."""
        lock_folder = leases.folder
        try:
            if self.on:
                self._buckets = SharedBuckets(lock_folder / "rate-limits", self._host.clock.now_us)
                self._begin_tally(self._buckets)
            if self.counts_connections:
                self._places = Places(lock_folder / "places", self._host.backplane.slot)
        except OSError as error:
            raise StartRefused(
                f"The tables of limits can't be made in {lock_folder} ({error.strerror}); make room for 10 MiB on its disk."
            ) from None

    def _begin_tally(self, buckets: SharedBuckets) -> None:
        node, url = self._host.node, self._settings.redis_url
        if node is not None and url:
            self.tally = import_module("bus.limits.tally").Tally(url, node.bus, node.number, buckets)

    def stop(self) -> None:
        if self.tally is not None:
            self.tally.stop()
            self.tally = None
        places, buckets = self._places, self._buckets
        self._places = self._buckets = None
        self._allowances.clear()
        if places is not None:
            places.close()
        if buckets is not None:
            buckets.close()

    # ---- requests

    def of(self, caller: Caller, address: str) -> Allowance | None:
        """What a caller may ask; None: as much as it wants."""
        if not caller.credential:
            return self._allowance(f"address:{block_of(address)}", self._windows)
        if caller.grant.rate_per_minute is not None:
            return self._allowance(caller.name, ((caller.grant.rate_per_minute, MINUTE),))
        return self._allowance(caller.name, self._windows)

    def of_stranger(self, address: str) -> Allowance | None:
        """What may be asked from an address without a credential."""
        return self._allowance(f"address:{block_of(address)}", self._strangers)

    def _allowance(self, who: str, windows: tuple[tuple[int, int], ...]) -> Allowance | None:
        if not windows or self._buckets is None:
            return None
        found = self._allowances.get((who, windows))
        if found is None:
            kept = self.tally or self._buckets
            buckets = [DrawnBucket(kept.bucket(who, limit, s), limit) for limit, s in windows]
            found = Allowance(who, "address" if who.startswith("address:") else "key", buckets, self._refused)
            if len(self._allowances) >= CALLERS_REMEMBERED:
                self._allowances.clear()
            self._allowances[who, windows] = found
        return found

    # ---- connections

    def check_room(self, caller: Caller | None, address: str) -> None:
        """Refuse one connection more than the caller may have; None: its credential is still to come. Raises RateLimited."""
        if self._places is not None:
            for name in _names_of(caller, address):
                self._check(name)

    def seat(self, caller: Caller | None, address: str) -> Seat | None:
        """Count a connection; None when none are counted. Raises as `check_room`."""
        if self._places is None:
            return None
        self.check_room(caller, address)
        names = _names_of(caller, address)
        for name in names:
            self._places.take(name)
        return Seat(self, names)

    def move(self, names: list[str], caller: Caller) -> None:
        """Of a seat's names, put the credential in the place of what waited for one. Raises RateLimited."""
        waiting = [name for name in names if name.startswith("waiting:")]
        self.leave(waiting)
        for name in waiting:
            names.remove(name)
        if caller.credential:
            self._check(name := f"key:{caller.name}")
            self._places_open().take(name)
            names.append(name)

    def leave(self, names: Iterable[str]) -> None:
        """Give places back. After `stop` there are none."""
        if self._places is not None:
            for name in names:
                self._places.leave(name)

    def _places_open(self) -> Places:
        assert self._places is not None
        return self._places

    def _check(self, name: str) -> None:
        kind, _, who = name.partition(":")
        cap = self._caps[kind]
        if cap is not None and self._places_open().count(name) >= cap:
            refusal = RateLimited(
                f"This {'credential' if kind == 'key' else 'address'} has all of the {cap} connections that it may have;"
                " close one, or come back later.",
                code="too_many_connections",
                retry_after_seconds=RETRY_SECONDS,
            )
            raise self._refused(who, "connections", refusal)

    # ---- refusing

    def _refused(self, who: str, scope: str, refusal: RateLimited) -> RateLimited:
        """Count a refusal, and tell of it now and then."""
        self._host.metrics.count("bus_rate_limited_total", scope)
        now = time.monotonic()
        if now >= self._told.get(who, 0.0):
            if len(self._told) >= CALLERS_REMEMBERED:
                self._told.clear()
            self._told[who] = now + HIT_SECONDS
            self._host.emit(RateLimitHit(scope, who.removeprefix("address:"), refusal.retry_after_seconds or 0.0))
        return refusal


@lru_cache(maxsize=1024)
def lines_of(grants: tuple[Grant, ...]) -> bytes:
    """`headers_of`, as lines of a head: a grant of a handful is said many times."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers_of(grants).items()).encode()


def headers_of(grants: Sequence[Grant]) -> dict[str, str]:
    """What an answer says of limits, in the form of draft-ietf-httpapi-ratelimit-headers-10."""
    policy = ", ".join(f'"{_NAMES[g.window_seconds]}";q={g.limit};w={g.window_seconds}' for g in grants)
    left = ", ".join(f'"{_NAMES[g.window_seconds]}";r={g.remaining};t={math.ceil(g.full_seconds)}' for g in grants)
    return {"RateLimit-Policy": policy, "RateLimit": left}


def _windows(per_minute: int | None, per_hour: int | None) -> tuple[tuple[int, int], ...]:
    """Limits and their windows in seconds, the longest first."""
    given = ((per_hour, HOUR), (per_minute, MINUTE))
    return tuple((limit, seconds) for limit, seconds in given if limit is not None)


def _names_of(caller: Caller | None, address: str) -> list[str]:
    block = block_of(address)
    names = [f"address:{block}"]
    if caller is None:
        names.append(f"waiting:{block}")
    elif caller.credential:
        names.append(f"key:{caller.name}")
    return names


def _too_often(grant: Grant, cost: int) -> RateLimited:
    per = {MINUTE: "a minute", HOUR: "an hour"}[grant.window_seconds]
    if cost > grant.limit:
        sentence = f"So many at once can never pass a limit of {grant.limit} {per}; send them in parts."
    else:
        sentence = f"More than {grant.limit} requests {per} are not taken from this caller; come back later."
    wait = float(math.ceil(grant.wait_seconds))
    return RateLimited(sentence, retry_after_seconds=wait, headers=headers_of((grant,)))
