"""Event streams in the memory of one process: what `streaming` has where there is no bus.

A client's backlog holds its last events, numbered; a stream is a place in it. So several streams of one client each get
everything, one that comes back goes on behind the id that it saw last, and one that is too slow is told how much it
missed. Nothing here survives the process.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator

import msgspec

from bus import event_stream
from bus.event_stream import ALL, Wanted
from bus.message import iso, now_us

MAX_CLIENTS = 10_000
"""Clients that are remembered; beyond, the one without a stream that came first is forgotten."""


class Entry(msgspec.Struct, frozen=True):
    """An event as it goes over the wire. `excluded`: the clients that do not get it."""

    id: str
    event: str
    block: bytes
    excluded: frozenset[str] = frozenset()


class Backlog:
    """A client: its last events, and its streams. All under the lock of its `LocalStreams`.

    `count`: how many events it ever got; the last of them is the last of `entries`. `position`: how many of them a stream
    of it was given. `wanted` is for streams that ask for nothing themselves.
    """

    def __init__(self, client: str, size: int, entries: Collection[Entry]) -> None:
        self.client = client
        self.entries = deque(entries, maxlen=size)
        self.count = self.position = len(self.entries)
        self.streams: set[Stream] = set()
        self.wanted = ALL
        self.since_us = now_us()

    @property
    def gone(self) -> int:
        """How many of its events are no longer there."""
        return self.count - len(self.entries)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.count += 1
        for stream in self.streams:
            stream.stirred.set()

    def place_of(self, last_event_id: str | None) -> int | None:
        """Where a stream that has this event goes on; None when it can't be told."""
        if last_event_id is None:
            return max(self.position, self.gone)
        if last_event_id == "earliest":
            return self.gone
        for at, entry in enumerate(self.entries):
            if entry.id == last_event_id:
                return self.gone + at + 1
        return None


class Stream:
    """One open stream. `stirred` is set when there may be something for it."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.stirred = threading.Event()
        self.ended = False


class LocalStreams:
    """Any thread, and any greenlet where gevent has patched `threading`. The lock guards everything, and is never held
    while something is written or waited for."""

    def __init__(self, max_queue_size: int, beat_seconds: float) -> None:
        """`max_queue_size`: events that are kept for each client. `beat_seconds`: between two heartbeats of a stream."""
        self._size = max_queue_size
        self._beat_seconds = beat_seconds
        self._lock = threading.Lock()
        self._clients: dict[str, Backlog] = {}
        self._broadcasts: deque[Entry] = deque(maxlen=max_queue_size)
        self._run = secrets.token_hex(6)
        self._number = 0
        self._totals = {"total_connections": 0, "total_events_sent": 0, "total_broadcasts": 0, "total_dropped": 0}

    def register(self, client: str, wanted: Wanted | None = None) -> None:
        """Remember a client, so that events wait for it; `wanted` replaces what its streams want from now on."""
        with self._lock:
            backlog = self._open(client)
            if wanted is not None:
                backlog.wanted = wanted

    def unregister(self, client: str) -> bool:
        """Forget a client and end its streams. False: it was not there."""
        with self._lock:
            backlog = self._clients.pop(client, None)
            for stream in backlog.streams if backlog is not None else ():
                stream.ended = True
                stream.stirred.set()
        return backlog is not None

    def send(self, client: str, event: str, data: bytes, event_id: str | None = None) -> bool:
        """Give an event to one client. `data` is JSON text, `event` and `event_id` are checked. False: no such client."""
        with self._lock:
            backlog = self._clients.get(client)
            if backlog is None:
                return False
            backlog.add(self._entry(event, data, event_id))
            self._totals["total_events_sent"] += 1
        return True

    def broadcast(self, event: str, data: bytes, exclude: Collection[str] = ()) -> int:
        """Give an event to every client but the excluded ones. Returns how many got it."""
        with self._lock:
            entry = self._entry(event, data, None, frozenset(exclude))
            self._broadcasts.append(entry)
            reached = [backlog for name, backlog in self._clients.items() if name not in entry.excluded]
            for backlog in reached:
                backlog.add(entry)
            self._totals["total_events_sent"] += len(reached)
            self._totals["total_broadcasts"] += 1
        return len(reached)

    def stream(
        self, client: str, wanted: Wanted | None = None, last_event_id: str | None = None, *, remembered: bool = True
    ) -> Iterator[bytes]:
        """The blocks of one stream, for as long as they are asked for. Not `remembered`: the client goes with it."""
        with self._lock:
            backlog = self._open(client)
            place = backlog.place_of(last_event_id)
            stream = Stream(backlog.gone if place is None else place)
            backlog.streams.add(stream)
            self._totals["total_connections"] += 1
            cursor = f"{self._run}:{self._number}"
        try:
            hello = {"client_id": client, "timestamp": iso(now_us()).decode(), "cursor": cursor}
            start = event_stream.retry()
            if place is None:
                start += _gap(last_event_id, 0, event_stream.id_line(f"{self._run}:0"))
            yield start + event_stream.block("connected", msgspec.json.encode(hello))
            yield from self._follow(backlog, stream, wanted)
        finally:
            with self._lock:
                backlog.streams.discard(stream)
                if not remembered and not backlog.streams and self._clients.get(client) is backlog:
                    del self._clients[client]

    def _follow(self, backlog: Backlog, stream: Stream, wanted: Wanted | None) -> Iterator[bytes]:
        next_beat = time.monotonic() + self._beat_seconds
        while not stream.ended:
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._beat_seconds
                yield b": heartbeat\n\n"
            stream.stirred.clear()
            blocks = self._due(backlog, stream, wanted)
            if blocks:
                yield b"".join(blocks)
            else:
                stream.stirred.wait(max(next_beat - time.monotonic(), 0))

    def _due(self, backlog: Backlog, stream: Stream, wanted: Wanted | None) -> list[bytes]:
        """What a stream has not been given, and first how much of it is lost."""
        with self._lock:
            lost = backlog.gone - stream.position
            self._totals["total_dropped"] += max(lost, 0)
            start = max(stream.position, backlog.gone)
            fresh = list(backlog.entries)[start - backlog.gone :]
            stream.position = backlog.count
            backlog.position = max(backlog.position, backlog.count)
            wants = backlog.wanted if wanted is None else wanted
        blocks = [entry.block for entry in fresh if wants.takes_event(entry.event) and wants.takes_type(entry.event)]
        return [_gap(None, lost, b""), *blocks] if lost > 0 else blocks

    # ---- looking

    def totals(self) -> dict[str, int]:
        """Figures since the start, and of now."""
        with self._lock:
            return {
                **self._totals,
                "active_clients": len(self._clients),
                "active_streams": sum(len(backlog.streams) for backlog in self._clients.values()),
                "total_queued": sum(backlog.count - backlog.position for backlog in self._clients.values()),
            }

    def info(self, client: str) -> dict[str, object] | None:
        """What is known of one client."""
        with self._lock:
            backlog = self._clients.get(client)
            return None if backlog is None else _info(backlog)

    def infos(self) -> list[dict[str, object]]:
        """What is known of all clients."""
        with self._lock:
            return [_info(backlog) for backlog in self._clients.values()]

    # ---- below; with the lock held

    def _open(self, client: str) -> Backlog:
        backlog = self._clients.get(client)
        if backlog is None:
            if len(self._clients) >= MAX_CLIENTS:
                idle = next((name for name, known in self._clients.items() if not known.streams), None)
                if idle is not None:
                    del self._clients[idle]
            entries = [entry for entry in self._broadcasts if client not in entry.excluded]
            backlog = self._clients[client] = Backlog(client, self._size, entries)
        return backlog

    def _entry(self, event: str, data: bytes, event_id: str | None, excluded: frozenset[str] = frozenset()) -> Entry:
        self._number += 1
        name = event_id if event_id is not None else f"{self._run}:{self._number}"
        block = event_stream.block(event, event_stream.data_of(data), event_stream.id_line(name))
        return Entry(name, event, block, excluded)


def _gap(requested: str | None, lost: int, place: bytes) -> bytes:
    told: dict[str, object] = {"reason": "unknown" if requested is not None else "evicted"}
    told |= {"requested": requested[:128], "lost": None} if requested is not None else {"lost": lost}
    return event_stream.block("gap", msgspec.json.encode(told), place)


def _info(backlog: Backlog) -> dict[str, object]:
    last = backlog.entries[-1].id if backlog.entries else None
    events = backlog.wanted.events
    return {
        "client_id": backlog.client,
        "connected_at": iso(backlog.since_us).decode(),
        "subscriptions": sorted(events) if events is not None else [],
        "queue_size": backlog.count - backlog.position,
        "last_event_id": last,
        "streams": len(backlog.streams),
    }
