"""Messages in memory with lifetimes: what `message_ttl` stands on when it is used without a bus.

A heap of expiry times with stale entries, which are passed over, and cleared away when they are the larger part.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec

from bus.errors import Malformed
from bus.message import parse_time
from bus.retention.archive import Archived, Folder

log = logging.getLogger("message_ttl")

BATCH = 500
"""Messages that are removed at a time; others get in between."""

SLOW_SECONDS = 1.0
"""A callback that takes longer is logged."""

COMPACT_ABOVE = 1024

Callback = Callable[[dict[str, Any]], object]


class Rule(msgspec.Struct, frozen=True):
    """`ttl_seconds` None: for ever, or, if `immediate`, until it is delivered."""

    ttl_seconds: float | None
    immediate: bool = False
    archive: bool = False
    on_expire: Callback | None = None


class Clock:
    """Seconds since 1970 by the clock of this machine at the start, and monotonic from then: no step moves it."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._ahead


class _Kept(msgspec.Struct):
    message: dict[str, Any]
    type: str
    received: float
    expires: float | None
    number: int
    own: bool = False
    immediate: bool = False


class LocalMessages:
    """Thread-safe. No callback, and no disk, is waited for under the lock."""

    def __init__(self, default: Rule, clock: Callable[[], float], folder: Folder) -> None:
        """`clock()` is in seconds; `folder` is where what is to be archived goes before it is removed."""
        self._default = default
        self._clock = clock
        self._folder = folder
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._rules: dict[str, Rule] = {}
        self._kept: dict[str, _Kept] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._numbers = count(1)
        self._counts: Counter[str] = Counter()

    def set_rule(self, type_: str, rule: Rule) -> None:
        """A type's policy from now on, for what is kept, too, unless it was extended."""
        with self._lock:
            self._rules[type_] = rule
            for kept in self._kept.values():
                if kept.type == type_ and not kept.own and not self._is_over(kept):
                    self._give_life(kept, rule)

    def add(self, message: Mapping[str, Any]) -> str:
        """Keep a message from now on. Its timestamp is checked, and decides nothing. Returns its id; raises Malformed."""
        message_id, type_ = message.get("id"), message.get("type", "message")
        if not isinstance(message_id, str) or not message_id:
            raise Malformed("`id` must be a string that is not empty.", code="bad_field", field="id")
        if not isinstance(type_, str):
            raise Malformed("`type` must be a string.", code="bad_field", field="type")
        check_timestamp(message.get("timestamp"))
        with self._lock:
            kept = _Kept(dict(message), type_, self._clock(), None, 0)
            self._kept[message_id] = kept
            self._counts["added"] += 1
            self._give_life(kept, self._rules.get(type_, self._default))
        return message_id

    def remove(self, message_id: str) -> bool:
        """Forget a message. False: there is none."""
        with self._lock:
            kept = self._kept.get(message_id)
            if kept is None or self._is_over(kept):
                return False
            del self._kept[message_id]
            return True

    def get(self, message_id: str) -> dict[str, Any] | None:
        """A message that is kept and has not expired."""
        with self._lock:
            kept = self._kept.get(message_id)
            return None if kept is None or self._is_over(kept) else dict(kept.message)

    def extend(self, message_id: str, seconds: float) -> bool:
        """Add to what is left; what never expires stays so. False: there is no such message any more."""
        with self._lock:
            kept = self._kept.get(message_id)
            if kept is None or self._is_over(kept):
                return False
            if kept.expires is not None:
                kept.own = True
                self._expire_at(kept, kept.expires + seconds)
                self._counts["extended"] += 1
            return True

    def deliver(self, message_id: str) -> bool:
        """A message has been delivered: an immediate one is gone with that. False: there is no such message."""
        with self._lock:
            kept = self._kept.get(message_id)
            if kept is None or self._is_over(kept):
                return False
            if kept.immediate:
                self._expire_at(kept, self._clock())
            return True

    def expiring(self, seconds: float) -> list[dict[str, Any]]:
        """All that expires within so many seconds, the next first."""
        with self._lock:
            now = self._clock()
            soon = [k for k in self._kept.values() if k.expires is not None and now < k.expires <= now + seconds]
        return [dict(kept.message) for kept in sorted(soon, key=lambda kept: (kept.expires, kept.number))]

    def archived(self, limit: int) -> list[dict[str, Any]]:
        """The messages archived last, oldest first, from the files."""
        found: list[dict[str, Any]] = []
        for name in reversed(self._folder.names()):
            if len(found) >= limit:
                break
            found = [msgspec.json.decode(line.message) for line in self._folder.read(name)] + found
        return found[len(found) - min(limit, len(found)) :]

    def stats(self) -> dict[str, Any]:
        """Counts; a copy."""
        with self._lock:
            alive = [kept for kept in self._kept.values() if not self._is_over(kept)]
            by_type = Counter(kept.type for kept in alive)
            names = ("added", "extended", "expired", "archived", "callbacks_failed")
            return {
                "total_messages": len(alive),
                "messages_by_type": dict(by_type),
                "policies": len(self._rules),
                **{name: self._counts[name] for name in names},
            }

    # ---- the sweep

    def sweep(self) -> int:
        """Archive and remove what has expired, then call back. Returns how many went."""
        total = 0
        while True:
            with self._sweeping:
                batch = self._due()
                gone = self._take(batch)
            total += len(gone)
            for kept, rule in gone:
                self._call_back(kept, rule)
            if len(batch) < BATCH or not gone:  # what could not be archived stays, and the next sweep tries again
                return total

    def _due(self) -> list[tuple[_Kept, Rule]]:
        with self._lock:
            now = self._clock()
            due: list[tuple[_Kept, Rule]] = []
            entries: list[tuple[float, int, str]] = []
            while self._heap and self._heap[0][0] <= now and len(due) < BATCH:
                entry = heapq.heappop(self._heap)
                kept = self._kept.get(entry[2])
                if kept is not None and kept.number == entry[1]:
                    due.append((kept, self._rules.get(kept.type, self._default)))
                    entries.append(entry)
            for entry in entries:  # until they are archived, they are where they were
                heapq.heappush(self._heap, entry)
            return due

    def _take(self, batch: list[tuple[_Kept, Rule]]) -> list[tuple[_Kept, Rule]]:
        """Archive what is to be, and remove all that is still as it was."""
        to_archive = [kept for kept, rule in batch if rule.archive]
        is_archived = self._archive(to_archive) if to_archive else True
        gone: list[tuple[_Kept, Rule]] = []
        with self._lock:
            for kept, rule in batch:
                message_id = kept.message["id"]
                if (rule.archive and not is_archived) or self._kept.get(message_id) is not kept:
                    continue
                del self._kept[message_id]
                gone.append((kept, rule))
                self._counts["expired"] += 1
                self._counts["archived"] += rule.archive
            self._compact()
        return gone

    def _archive(self, messages: list[_Kept]) -> bool:
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        lines = [
            msgspec.json.encode(
                Archived(moment, "expired", msgspec.Raw(msgspec.json.encode(kept.message, enc_hook=_shown)))
            )
            for kept in messages
        ]
        try:
            self._folder.write(f"{time.time_ns():020d}-{messages[0].number:012d}", lines)
        except OSError as error:
            log.error("The archive can't be written (%s); what has expired is kept until it can", error.strerror)
            return False
        return True

    def _call_back(self, kept: _Kept, rule: Rule) -> None:
        if rule.on_expire is None:
            return
        began = time.monotonic()
        try:
            rule.on_expire(dict(kept.message))
        except Exception:
            log.exception("on_expire failed for a message of type %s", kept.type)
            with self._lock:
                self._counts["callbacks_failed"] += 1
        if time.monotonic() - began > SLOW_SECONDS:
            log.warning("on_expire of type %s took %.1f s", kept.type, time.monotonic() - began)

    # ---- below, under the lock

    def _is_over(self, kept: _Kept) -> bool:
        return kept.expires is not None and kept.expires <= self._clock()

    def _give_life(self, kept: _Kept, rule: Rule) -> None:
        kept.immediate = rule.immediate
        self._expire_at(kept, None if rule.ttl_seconds is None else kept.received + rule.ttl_seconds)

    def _expire_at(self, kept: _Kept, expires: float | None) -> None:
        kept.expires, kept.number = expires, next(self._numbers)
        if expires is not None:
            heapq.heappush(self._heap, (expires, kept.number, kept.message["id"]))
        self._compact()

    def _compact(self) -> None:
        if len(self._heap) > max(COMPACT_ABOVE, 2 * len(self._kept)):
            self._heap = [
                (kept.expires, kept.number, message_id)
                for message_id, kept in self._kept.items()
                if kept.expires is not None
            ]
            heapq.heapify(self._heap)


def check_timestamp(given: object) -> None:
    """A time as ISO 8601 text or a datetime; without an offset it is UTC. Raises Malformed."""
    if isinstance(given, datetime):
        return
    if not isinstance(given, str):
        raise Malformed(
            "`timestamp` must be an ISO 8601 time such as 2026-02-21T17:27:21+00:00.",
            code="bad_time",
            field="timestamp",
        )
    parse_time(given, "timestamp")


def _shown(value: Any) -> str:
    """What JSON has no form for, such as an Ellipsis in an example."""
    return repr(value)
