"""How many connections each caller has, over all workers of the machine: a memory-mapped table, a part for each worker.

A worker writes its own part only, and anyone adds up all of them, so there is no lock. The part of a worker that died
counts no more: its process is gone, or its successor has begun the part anew. A part has room for 4,096 callers; of
those that find none, each worker knows only its own share.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from pathlib import Path

from bus.counters import MAX_SLOTS
from bus.limits.shared_buckets import write_all

SETS = 512
ROWS = 8
_ROW = struct.Struct("<16sq")  # whose; how many
_SET_BYTES = ROWS * _ROW.size
_PART_BYTES = SETS * _SET_BYTES
_HEAD_BYTES = MAX_SLOTS * 8  # the process of each part
_BYTES = _HEAD_BYTES + MAX_SLOTS * _PART_BYTES  # 6 MiB


class Places:
    """One process's view. Event loop only. `_mine` holds who has connections here: no more than there are of these."""

    def __init__(self, path: Path, slot: int) -> None:
        """`slot` is this worker's number, which no other living process has. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)  # until it is closed
            if os.fstat(descriptor).st_size != _BYTES:
                write_all(descriptor, bytes(_BYTES))
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self._head = memoryview(self._map)[:_HEAD_BYTES].cast("q")
        self._slot = slot
        self._mine: dict[str, int] = {}
        begin = _HEAD_BYTES + slot * _PART_BYTES
        self._map[begin : begin + _PART_BYTES] = bytes(_PART_BYTES)
        self._head[slot] = os.getpid()

    def count(self, who: str) -> int:
        """How many places `who` has, here and at neighbours."""
        tag, offset = _tag_of(who)
        elsewhere = 0
        for slot, process in enumerate(self._head):
            if process and slot != self._slot and _is_alive(process):
                elsewhere += self._count_in(_HEAD_BYTES + slot * _PART_BYTES + offset, tag)
        return self._mine.get(who, 0) + elsewhere

    def take(self, who: str) -> None:
        """Count one more."""
        self._set(who, self._mine.get(who, 0) + 1)

    def leave(self, who: str) -> None:
        """Count one less."""
        self._set(who, self._mine[who] - 1)

    def close(self) -> None:
        """Give all places back."""
        self._head[self._slot] = 0
        self._head.release()
        self._map.close()

    def _set(self, who: str, count: int) -> None:
        if count:
            self._mine[who] = count
        else:
            del self._mine[who]
        tag, offset = _tag_of(who)
        begin = _HEAD_BYTES + self._slot * _PART_BYTES + offset
        free = -1
        for row in range(begin, begin + _SET_BYTES, _ROW.size):
            its, counted = _ROW.unpack_from(self._map, row)
            if counted and its == tag:
                _ROW.pack_into(self._map, row, tag, count)
                return
            if not counted and free < 0:
                free = row
        if free >= 0:
            _ROW.pack_into(self._map, free, tag, count)

    def _count_in(self, begin: int, tag: bytes) -> int:
        rows = _ROW.iter_unpack(self._map[begin : begin + _SET_BYTES])
        return sum(counted for its, counted in rows if its == tag)


def _tag_of(who: str) -> tuple[bytes, int]:
    tag = hashlib.blake2b(who.encode(), digest_size=16).digest()
    return tag, int.from_bytes(tag[:4], "little") % SETS * _SET_BYTES


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
