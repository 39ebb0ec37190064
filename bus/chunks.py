"""Frames joined into what one write carries."""

from __future__ import annotations

CHUNK_BYTES = 256 * 1024
"""Frames are joined up to this size: what one write carries, and what a slow reader may be given at once."""

Chunk = tuple[bytes, int, int]
"""Joined frames, how many messages they are, and the place of the first among those that are due."""


def joined(frames: list[bytes]) -> list[Chunk]:
    """Join frames, in order. One that is larger than a chunk is a chunk of its own."""
    if sum(map(len, frames)) <= CHUNK_BYTES:
        return [(b"".join(frames), len(frames), 0)]
    chunks = []
    start = size = 0
    for index, frame in enumerate(frames):
        if size and size + len(frame) > CHUNK_BYTES:
            chunks.append((b"".join(frames[start:index]), index - start, start))
            start, size = index, 0
        size += len(frame)
    chunks.append((b"".join(frames[start:]), len(frames) - start, start))
    return chunks
