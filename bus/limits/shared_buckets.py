"""Buckets of all workers of one machine, in a memory-mapped table of fixed size that outlives them.

A caller's name, hashed with a secret of the table, leads to a *set* of eight rows. Seven are for who comes first, and a
row is free again when its bucket is full. Who finds no room takes from the eighth, which is shared: crowding makes
limits tighter, never void. Callers with a credential have a part of the table that strangers can't fill, and long
windows one apart from short ones. A set is changed under a lock of its one byte of the file, which the kernel frees
when a process dies; it is held for some microseconds, so the event loop may wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import secrets
import struct
from collections.abc import Callable
from pathlib import Path

from bus.limits.buckets import SLICES, Counts, Grant

SETS = 4096
ROWS = 8
_ROW = struct.Struct(f"<16sqI{SLICES + 1}I")  # whose; when it is full again, in microseconds; the total; the counts
_FULL = struct.Struct("<q")
_SET_BYTES = ROWS * _ROW.size
_MAGIC = b"buckets1"
_SECRET_BYTES = 16
_HEAD_BYTES = 4096
_BYTES = _HEAD_BYTES + SETS * _SET_BYTES  # 4 MiB

STRANGER = "address:"
"""What the names of callers without a credential begin with."""

FARTHEST_US = 2 * 3600 * 1_000_000
"""No bucket takes longer to fill: a row that says so is from before the clock was set back."""


class SharedBuckets:
    """The table at `path`, opened on building. Any process may have it open; within one, for a single thread only."""

    def __init__(self, path: Path, now_us: Callable[[], int]) -> None:
        """`now_us` is a clock that all processes share and that never falls while they run. Raises OSError."""
        self.now_us = now_us
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.lock(SETS)
            self._make_ready()
            self.unlock(SETS)
            self.table = mmap.mmap(self._file, _BYTES)
        except BaseException:
            os.close(self._file)
            raise
        self._secret = self.table[len(_MAGIC) : len(_MAGIC) + _SECRET_BYTES]

    def bucket(self, who: str, limit: int, window_seconds: int) -> SharedBucket:
        """See `bus.limits.buckets.Buckets`. Windows are of a minute or of an hour."""
        tag = hashlib.blake2b(f"{window_seconds} {who}".encode(), digest_size=16, key=self._secret).digest()
        part = 2 * (not who.startswith(STRANGER)) + (window_seconds > 60)
        home = int.from_bytes(tag[:4], "little") % (SETS // 4) + part * (SETS // 4)
        return SharedBucket(self, tag, home, limit, window_seconds)

    def lock(self, byte: int) -> None:
        """Keep other processes from what a byte of the file stands for: a set, by its number, or SETS for the head."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, byte)

    def unlock(self, byte: int) -> None:
        """Let the others go on."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def close(self) -> None:
        self.table.close()
        os.close(self._file)

    def _make_ready(self) -> None:
        """Begin an empty table, unless there is one of this form: limits go on over a restart."""
        if os.fstat(self._file).st_size == _BYTES and os.pread(self._file, len(_MAGIC), 0) == _MAGIC:
            return
        write_all(self._file, (_MAGIC + secrets.token_bytes(_SECRET_BYTES)).ljust(_BYTES, b"\0"))


def write_all(descriptor: int, data: bytes) -> None:
    """Have a file hold these bytes alone, on blocks of its own: a mapped page without one would kill us on a full disk."""
    at = 0
    while at < len(data):
        at += os.pwrite(descriptor, data[at:], at)
    os.ftruncate(descriptor, len(data))


class SharedBucket:
    """One caller's bucket; see `bus.limits.buckets.Bucket`. `elsewhere`: what was taken of it on other nodes."""

    __slots__ = ("_buckets", "_home", "_slice_us", "_tag", "elsewhere", "limit", "window_seconds")

    def __init__(self, buckets: SharedBuckets, tag: bytes, home: int, limit: int, window_seconds: int) -> None:
        self._buckets = buckets
        self._tag = tag
        self._home = home
        self._slice_us = window_seconds * 1_000_000 // SLICES
        self.limit = limit
        self.window_seconds = window_seconds
        self.elsewhere: Counts | None = None

    def present_slice(self) -> int:
        """The number of the slice that it is now."""
        return self._buckets.now_us() // self._slice_us

    def take(self, cost: int) -> Grant:
        """Take `cost` tokens if that many are left. 0 only looks."""
        buckets = self._buckets
        buckets.lock(self._home)
        try:
            now_us = buckets.now_us()
            row, counts = self._find(now_us)
            wanted = cost or 1
            all_nodes = counts if self.elsewhere is None else self._with_others(counts)
            if all_nodes.total + wanted > self.limit:
                wait_us = all_nodes.slice_with_room(self.limit, min(wanted, self.limit)) * self._slice_us - now_us
                return self._grant(all_nodes, now_us, max(wait_us, 1))
            if cost:
                counts.add(cost)
                self._put(row, counts)
                if all_nodes is not counts:
                    all_nodes.add(cost)
            return self._grant(all_nodes, now_us, 0)
        finally:
            buckets.unlock(self._home)

    def _with_others(self, counts: Counts) -> Counts:
        """What was taken here and on other nodes, together."""
        others = self.elsewhere
        assert others is not None
        others.move_to(counts.newest)
        if not others.total:
            self.elsewhere = None
        taken = [here + there for here, there in zip(counts.taken, others.taken, strict=True)]
        return Counts(counts.newest, counts.total + others.total, taken)

    def give_back(self, cost: int) -> None:
        """Undo a `take` of a moment ago."""
        buckets = self._buckets
        buckets.lock(self._home)
        try:
            row, counts = self._find(buckets.now_us())
            counts.add(-cost)
            self._put(row, counts)
        finally:
            buckets.unlock(self._home)

    def _find(self, now_us: int) -> tuple[int, Counts]:
        """This caller's row, or a free one, or the shared one: where it is, and what was taken up to now."""
        table, free = self._buckets.table, -1
        begin = _HEAD_BYTES + self._home * _SET_BYTES
        last = begin + (ROWS - 1) * _ROW.size
        for row in range(begin, last, _ROW.size):
            if table[row : row + 16] == self._tag:
                return row, self._counts(row, now_us)
            if free < 0 and not 0 < _FULL.unpack_from(table, row + 16)[0] - now_us < FARTHEST_US:
                free = row
        return (free, Counts(now_us // self._slice_us)) if free >= 0 else (last, self._counts(last, now_us))

    def _counts(self, row: int, now_us: int) -> Counts:
        _, full_us, total, *taken = _ROW.unpack_from(self._buckets.table, row)
        if not 0 < full_us - now_us < FARTHEST_US:
            return Counts(now_us // self._slice_us)
        counts = Counts(full_us // self._slice_us - SLICES - 1, total, taken)
        counts.move_to(now_us // self._slice_us)
        return counts

    def _put(self, row: int, counts: Counts) -> None:
        full_us = (counts.newest + SLICES + 1) * self._slice_us
        _ROW.pack_into(self._buckets.table, row, self._tag, full_us, counts.total, *counts.taken)

    def _grant(self, counts: Counts, now_us: int, wait_us: int) -> Grant:
        full_us = (counts.newest + SLICES + 1) * self._slice_us - now_us if counts.total else 0
        remaining = max(self.limit - counts.total, 0)
        return Grant(self.limit, self.window_seconds, remaining, full_us / 1e6, wait_us / 1e6)
