"""What is to go after its delivery: finds the messages that every recipient named has, by its ack or by its kept cursor.

A read is no delivery. What was fetched, and never confirmed, goes by the default policy; what was neither, stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from bus.retention.host import Host
from bus.storage import Reader, Transaction

BATCH = 500
OVERLAP_US = 5_000_000
"""What was settled so long before the last look is looked at again: a commit may be stamped before the one it follows."""

# The names that wait, one step of the index each; then of each what its cursor has passed.
_PLAIN = """
WITH RECURSIVE waiting (name) AS (
    SELECT min(name) FROM undelivered WHERE tracked = 0
    UNION ALL
    SELECT (SELECT min(u.name) FROM undelivered u WHERE u.tracked = 0 AND u.name > w.name) FROM waiting w
     WHERE w.name IS NOT NULL)
SELECT u.tracked, u.name, u.seq FROM waiting w JOIN clients c ON c.name = w.name
 JOIN undelivered u ON u.tracked = 0 AND u.name = w.name AND u.seq <= max(c.cursor, c.mark)
 WHERE u.seq <= c.cursor OR u.born <= ? LIMIT ?"""
_TRACKED = """
SELECT u.tracked, u.name, u.seq FROM settled s JOIN undelivered u ON u.tracked = 1 AND u.name = s.owner AND u.seq = s.seq
 WHERE s.settled_at >= ? LIMIT ?"""


class Delivered:
    """One greenlet."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._since_us = 0

    def find(self, default_us: int | None) -> list[tuple[int, str, int]]:
        """Seq, type and size of messages that have reached everybody; at most BATCH, and more at the next call.

        `default_us`: after so long, what was fetched counts as had.
        """
        now = self._host.clock()
        born_before = 0 if default_us is None else now - default_us
        since = self._since_us

        def job(reader: Reader) -> tuple[list[Any], list[Any], bool]:
            return _look(reader, born_before, since)

        finished, passed, more = self._host.read(job)
        if not more:
            self._since_us = now - OVERLAP_US
        if passed:
            self._host.write(_forget(passed))
        return finished  # type: ignore[no-any-return]


def _look(reader: Reader, born_before: int, since: int) -> tuple[list[Any], list[Any], bool]:
    """Messages that are through; rows of recipients that have theirs, of messages that are not; whether there are more."""
    if not reader.execute("SELECT 1 FROM undelivered LIMIT 1"):
        return [], [], False
    rows = reader.execute(_PLAIN, (born_before, BATCH)) + reader.execute(_TRACKED, (since, BATCH))
    had = Counter(row[2] for row in rows)
    finished, through = [], set()
    for seq, count in had.items():
        (waiting,) = reader.execute("SELECT count(*) FROM undelivered WHERE seq = ?", (seq,))[0]
        found = reader.execute("SELECT seq, type, length(payload) FROM messages WHERE seq = ?", (seq,))
        if count >= waiting and found:
            finished.append(found[0])
            through.add(seq)
    return finished, [row for row in rows if row[2] not in through], len(rows) >= BATCH


def _forget(rows: list[Any]) -> Callable[[Transaction], None]:
    def job(transaction: Transaction) -> None:
        for row in rows:
            transaction.execute("DELETE FROM undelivered WHERE tracked = ? AND name = ? AND seq = ?", row)

    return job
