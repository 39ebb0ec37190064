"""Where a reader goes on: a cursor, a time or a wish becomes a place in the log, and a gap is told, never hidden."""

from __future__ import annotations

import msgspec

from bus.message import Epochs, is_cursor, parse_cursor, parse_time
from bus.storage import Reader


class Gap(msgspec.Struct, frozen=True):
    """What could not be resumed. `lost`: at most so many messages, of all readers, are missing; None when unknown."""

    requested: str
    resumed_from: str
    reason: str
    lost: int | None


class Place(msgspec.Struct, frozen=True):
    """A reader has everything up to `seq`. `since_us` narrows further when it named a time. `expired`: how many messages
    behind it went by their ttl."""

    seq: int
    gap: Gap | None = None
    since_us: int | None = None
    expired: int = 0


def place_for(reader: Reader, epochs: Epochs, name: str, since: str | None, *, at_gap_go_to_latest: bool) -> Place:
    """As `place_of`, for a client: its kept cursor, and what of its mail has expired. Raises Malformed."""
    kept = reader.client(name) if since is None else None
    cursor = kept.cursor if kept else reader.head().seq
    place = place_of(reader, epochs, since, cursor, at_gap_go_to_latest=at_gap_go_to_latest)
    return msgspec.structs.replace(place, expired=reader.expired(name, place.seq))


def place_of(
    reader: Reader,
    epochs: Epochs,
    since: str | None,
    kept: int,
    *,
    at_gap_go_to_latest: bool,
    field: str = "since",
) -> Place:
    """The place that `since` means: a cursor, an ISO time, `latest`, `earliest`, or None for the kept cursor.

    Runs on a reader thread. Raises Malformed for anything else; `field` is to blame then.
    """
    head = reader.head()
    if since == "latest":
        return Place(head.seq)
    if since == "earliest":
        return Place(0)
    if since is None:
        requested, seq, reason = epochs.cursor(kept), kept, "evicted" if kept < head.lost_through else None
    elif is_cursor(since):
        epoch, seq = parse_cursor(since)
        requested = since
        seq, reason = _check(epochs, epoch, seq, head.seq, head.lost_through)
    elif "T" in since:
        stamp = parse_time(since, field)
        return Place(reader.seq_before(stamp), since_us=stamp)
    else:
        parse_cursor(since, field)
        raise AssertionError("parse_cursor refuses what is no cursor")
    if reason is None:
        return Place(seq)
    resumed = (
        head.seq if at_gap_go_to_latest else max(seq, head.lost_through) if reason != "unknown" else head.lost_through
    )
    lost = head.lost_through - seq if reason == "evicted" else None
    return Place(resumed, Gap(requested, epochs.cursor(resumed), reason, lost))


def _check(epochs: Epochs, epoch: str, seq: int, head: int, lost_through: int) -> tuple[int, str | None]:
    """The seq to go on from, and why that is a gap, if it is one."""
    lives = epochs.lives
    for index, (_, name) in enumerate(lives):
        if name != epoch:
            continue
        if index + 1 < len(lives):
            # A former life of this log: what it shares with the present one is still the same.
            end = lives[index + 1][0] - 1
            if seq > end:
                return end, "epoch_changed"
        elif seq > head:
            return seq, "unknown"
        return seq, "evicted" if seq < lost_through else None
    return 0, "epoch_changed"
