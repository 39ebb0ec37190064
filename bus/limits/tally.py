"""Requests counted over nodes: each counts in its own table, tells Redis what was taken of it, and hears what others took.

A take never waits: it goes by the machine's table and by what other nodes had taken when they were last heard: SYNC_SECONDS
and a round trip ago while somebody asks, ASK_SECONDS for a minute after. So what comes to several nodes at once can pass
a limit until they have heard of one another; no node ever lets more than the limit pass by itself. While Redis is away each
holds to the limits alone, and what others took is forgotten slice by slice.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import gevent
import redis
from gevent.event import Event

from bus.limits.buckets import SLICES, Counts, Grant
from bus.limits.shared_buckets import SharedBucket, SharedBuckets
from bus.redis_client import client_of, without_secrets

log = logging.getLogger("bus.limits")

SYNC_SECONDS: Final = 0.05
ASK_SECONDS: Final = 1.0
RECENT_SECONDS: Final = 60.0
MOST_RECENT: Final = 1_000
"""Callers of the last minute are asked for all the time, so many of them."""

PAUSE_SECONDS: Final = 1.0
"""After Redis did not answer."""

MOST_UNTOLD: Final = 10_000
"""Buckets that wait to be told of; beyond, what was taken of them stays untold."""

AT_ONCE: Final = 200

# KEYS: the bucket. ARGV: our node, the present slice, how many before it count, seconds to keep; slices and what we took.
_TELL: Final = """
for i = 5, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[1] .. ':' .. ARGV[i], ARGV[i + 1]) end
if #ARGV > 4 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
local all, others, old = redis.call('HGETALL', KEYS[1]), {}, {}
for i = 1, #all, 2 do
  local node, slice = string.match(all[i], '^(.-):(%d+)$')
  if tonumber(slice) < tonumber(ARGV[2]) - tonumber(ARGV[3]) then
    old[#old + 1] = all[i]
  elseif node ~= ARGV[1] then
    others[#others + 1] = tonumber(slice)
    others[#others + 1] = tonumber(all[i + 1])
  end
end
if #old > 0 then redis.call('HDEL', KEYS[1], unpack(old)) end
return others
"""


class Tally:
    """The buckets of a node among others; see `bus.limits.buckets.Buckets`. Event loop only. `up`: Redis answers."""

    def __init__(self, url: str, bus: str, node: int, buckets: SharedBuckets) -> None:
        """`bus` names the log, `node` is this one's number on it; `buckets` is the machine's table."""
        self.up = True
        self._url = url
        self._bus = bus
        self._node = str(node)
        self._buckets = buckets
        self._untold: dict[TalliedBucket, dict[int, int]] = {}
        self._recent: dict[TalliedBucket, float] = {}
        self._asked = 0.0
        self._wake = Event()
        self._greenlet: gevent.Greenlet[..., None] = gevent.spawn(self._run)

    def bucket(self, who: str, limit: int, window_seconds: int) -> TalliedBucket:
        """See `bus.limits.buckets.Buckets`."""
        digest = hashlib.blake2b(f"{window_seconds} {who}".encode(), digest_size=16, key=self._bus.encode()[:64])
        key = f"agent-bus:{self._bus}:limit:{digest.hexdigest()}"
        return TalliedBucket(self, key, self._buckets.bucket(who, limit, window_seconds))

    def stop(self) -> None:
        self._greenlet.kill()

    def note(self, bucket: TalliedBucket, slice_: int, cost: int) -> None:
        """Something was taken, or wanted in vain (0): tell of it soon, and ask."""
        taken = self._untold.get(bucket)
        if taken is None:
            if len(self._untold) >= MOST_UNTOLD:
                return
            taken = self._untold[bucket] = {}
            if bucket in self._recent or len(self._recent) < MOST_RECENT:
                self._recent[bucket] = time.monotonic()
            self._wake.set()
        if cost:
            taken[slice_] = taken.get(slice_, 0) + cost

    def _run(self) -> None:
        while True:
            try:
                with closing(client_of(self._url)) as client:
                    self._tell(client)
            except (redis.RedisError, OSError) as error:
                if self.up:
                    log.warning(
                        "Redis at %s does not answer (%s); each node holds to the limits by itself until it does",
                        without_secrets(self._url),
                        error,
                        extra={"action": "limits_alone"},
                    )
                self.up = False
            gevent.sleep(PAUSE_SECONDS)

    def _tell(self, client: Any) -> None:
        script: Callable[..., list[int]] = client.register_script(_TELL)
        client.ping()
        if not self.up:
            self.up = True
            log.info("Requests are counted over all nodes again", extra={"action": "limits_shared"})
        while True:
            if not self._wake.wait(ASK_SECONDS):
                client.ping()
            self._wake.clear()
            self._ask_again(time.monotonic())
            while self._untold:
                told = dict(list(self._untold.items())[:AT_ONCE])
                for bucket in told:
                    del self._untold[bucket]
                for bucket, taken in told.items():
                    bucket.others_took(script(keys=[bucket.key], args=bucket.arguments(self._node, taken)))
            gevent.sleep(SYNC_SECONDS)

    def _ask_again(self, now: float) -> None:
        """Once a second: for the callers of the last minute."""
        if now - self._asked < ASK_SECONDS:
            return
        self._asked = now
        self._recent = {bucket: used for bucket, used in self._recent.items() if now - used < RECENT_SECONDS}
        for bucket in self._recent:
            self._untold.setdefault(bucket, {})


class TalliedBucket:
    """One caller's bucket; see `bus.limits.buckets.Bucket`."""

    __slots__ = ("_local", "_tally", "key")

    def __init__(self, tally: Tally, key: str, local: SharedBucket) -> None:
        self._tally = tally
        self._local = local
        self.key = key

    def take(self, cost: int) -> Grant:
        """As of Bucket."""
        grant = self._local.take(cost)
        self._tally.note(self, self._local.present_slice(), 0 if grant.wait_seconds else cost)
        return grant

    def give_back(self, cost: int) -> None:
        """As of Bucket."""
        self._local.give_back(cost)
        self._tally.note(self, self._local.present_slice(), -cost)

    def arguments(self, node: str, taken: dict[int, int]) -> list[str | int]:
        """What the script is told."""
        keep = self._local.window_seconds * (SLICES + 2) // SLICES
        pairs = [value for pair in taken.items() for value in pair]
        return [node, self._local.present_slice(), SLICES, keep, *pairs]

    def others_took(self, pairs: list[int]) -> None:
        """What other nodes took, slice by slice."""
        newest = self._local.present_slice()
        counts = Counts(newest)
        for slice_, taken in zip(pairs[::2], pairs[1::2], strict=True):
            place = min(slice_, newest)  # their clock may be ahead by a little
            if place >= newest - SLICES:
                counts.taken[place % (SLICES + 1)] += taken
                counts.total += taken
        self._local.elsewhere = counts if counts.total > 0 else None
