"""The read side of a store, in either dialect: its questions, and the pages that they make. A snapshot for each call.

A page's read transaction ends with the page: a longer one would keep SQLite's WAL from being truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from bus.message import OWN_EXPIRY, REQUIRES_ACK, Message
from bus.storage import ClientRow, Filter, Head, Page
from bus.storage.deliveries import AGING_US, LEASED, RESTING, Lease
from bus.storage.deliveries import WAITING as WAITING_STATE
from bus.storage.rows import COLUMNS, message_of
from bus.topics import TopicSet

_NARROW = (
    " AND (m.type = ?5 OR ?5 IS NULL) AND (m.sender = ?6 OR ?6 IS NULL)"
    " AND (m.stamp > ?7 OR ?7 IS NULL) AND (m.stamp <= ?8 OR ?8 IS NULL)"
)


# An event to all may exclude clients: its extras name them.
_NOT_EXCLUDED = """(m.flags & 2 = 0 OR ?1 NOT IN
  (SELECT value FROM json_each('{' || substr(CAST(m.extras AS TEXT), 2) || '}', '$.exclude')))"""


def _addressed(narrow: str) -> str:
    """What is addressed to one client: directly, in a list, or to all but the sender and whom it excludes. Each arm walks
    an index in seq order, so SQLite merges them and stops at the limit."""
    return f"""
SELECT {COLUMNS} FROM messages m WHERE m.kind = 0 AND m.address = ?1 AND m.seq > ?2 AND m.seq <= ?3 {narrow}
UNION ALL
SELECT a.seq, {COLUMNS[7:]} FROM addressed a JOIN messages m ON m.seq = a.seq
 WHERE a.name = ?1 AND a.seq > ?2 AND a.seq <= ?3 {narrow}
UNION ALL
SELECT {COLUMNS} FROM messages m
 WHERE m.kind = 2 AND m.address = '' AND m.sender <> ?1 AND m.seq > ?2 AND m.seq <= ?3 AND {_NOT_EXCLUDED} {narrow}"""


# An inbox's plain messages, but for those set aside when it was full; what needs an ack comes by its own state.
_IN_INBOX = " AND m.flags & 1 = 0 AND NOT EXISTS (SELECT 1 FROM set_aside s WHERE s.owner = ?1 AND s.seq = m.seq)"
_PLAIN = _addressed(_NARROW + _IN_INBOX)
INBOX = f"{_PLAIN} ORDER BY 1 LIMIT ?4"
LOG_OF_CLIENT = f"{_addressed(_NARROW)} ORDER BY 1 LIMIT ?4"

# Only what is its own to expire stands in the index; what a policy ended is counted by the sweep, in `expired`.
_EXPIRED = f"""
SELECT count(*) FROM messages m INDEXED BY messages_by_expiry
 WHERE m.flags & {OWN_EXPIRY} AND m.expires_at <= ?3 AND m.seq > ?2 AND (
    m.kind = 0 AND m.address = ?1
    OR m.kind = 1 AND EXISTS (SELECT 1 FROM addressed a WHERE a.name = ?1 AND a.seq = m.seq)
    OR m.kind = 2 AND m.sender <> ?1 AND {_NOT_EXCLUDED}) {_IN_INBOX}"""
_SWEPT = "SELECT coalesce(sum(n), 0) FROM expired WHERE name IN (?, '') AND max_seq > ?"

# What went to topics, of which ?9 is the JSON array: whether a pattern matches is settled before, once for each topic.
_TO_TOPICS = f"""
SELECT {COLUMNS} FROM messages m INDEXED BY messages_to_topics
 WHERE m.kind = 3 AND m.seq > ?2 AND m.seq <= ?3 AND m.address IN (SELECT value FROM json_each(?9)) {_NARROW}"""

INBOX_AND_TOPICS = f"{_PLAIN} UNION ALL {_TO_TOPICS} ORDER BY 1 LIMIT ?4"

LOG_OF_TOPICS = f"{_TO_TOPICS} AND ?1 = '' ORDER BY m.seq LIMIT ?4"

# One row whatever it finds: a callback, or a row, for each message would have to take the interpreter's lock as often.
TOPICS_BETWEEN = """
SELECT json_group_array(DISTINCT address), count(*), max(seq) FROM (
    SELECT seq, address FROM messages INDEXED BY messages_to_topics WHERE kind = 3 AND seq > ?1 AND seq <= ?2
    ORDER BY seq LIMIT ?3) AS looked_at"""

SCANNED_MESSAGES = 2000
"""Messages to topics that one page may look at. Where few match, a page is short; the snapshot always is."""

LOG = f"""
SELECT {COLUMNS} FROM messages m WHERE m.seq > ?2 AND m.seq <= ?3 AND ?1 = '' {_NARROW} ORDER BY m.seq LIMIT ?4"""

WAITING = """
SELECT count(*), min(expires_at) FROM (
    SELECT expires_at FROM messages
     WHERE kind = 0 AND address = ?1 AND seq > ?2 AND seq <= ?3 AND flags & 1 = 0
      AND (expires_at IS NULL OR expires_at > ?5)
    UNION ALL SELECT m.expires_at FROM addressed a JOIN messages m ON m.seq = a.seq
     WHERE a.name = ?1 AND a.seq > ?2 AND a.seq <= ?3 AND m.flags & 1 = 0
      AND (m.expires_at IS NULL OR m.expires_at > ?5)
    LIMIT ?4) AS waiting"""
"""How many plain messages of ?1 are behind ?2, up to ?3, and alive at ?5 (at most ?4 are counted); the next to expire."""

# What a client has not settled, in the order in which it would be pushed. Each arm walks an index in that order. What waits
# is read as the attempt that its reader begins.
OPEN = f"""{
    " UNION ALL ".join(
        f"SELECT {COLUMNS}, d.attempt + {int(state == WAITING_STATE)}, d.due_key"
        " FROM deliveries d JOIN messages m ON m.seq = d.seq"
        f" WHERE d.owner = ?1 AND d.state = {state} AND (m.type = ?2 OR ?2 IS NULL) AND (m.sender = ?3 OR ?3 IS NULL)"
        " AND (m.expires_at IS NULL OR m.expires_at > ?4)"
        for state in (WAITING_STATE, LEASED, RESTING)
    )
} ORDER BY 12, 1 LIMIT ?5"""

# Deliveries of some clients from ?1 to ?2: whether each waits (0), was leased with its message's commit (1), or has
# changed since (2). Who enters is leased in the same moment, so that its rank is whole classes of priority behind it.
_ENTERED = f"""
SELECT owner, seq, CASE WHEN state = {WAITING_STATE} THEN 0 WHEN state = {LEASED} AND attempt = 1
  AND (due_key - leased_at) % {AGING_US} = 0 THEN 1 ELSE 2 END
 FROM deliveries WHERE owner IN (SELECT value FROM json_each(?3)) AND seq >= ?1 AND seq <= ?2"""

NO_FILTER = Filter()


class LogReader:
    """See `bus.storage.Reader`, all but `changed`. Not thread-safe: one thread owns it."""

    def __init__(self, connection: Any, clock: Callable[[], int], *, inbox_limit: int) -> None:
        """`connection` has `execute` and `close` as apsw's; `clock()` is the bus's (bus.clock), in microseconds."""
        self._connection = connection
        self._clock = clock
        self._inbox_limit = inbox_limit

    def head(self) -> Head:
        row = self._one("SELECT seq, total_messages, kept_bytes, lost_through FROM log_head")
        last = self._one("SELECT stamp FROM messages ORDER BY seq DESC LIMIT 1")
        seq, total, kept_bytes, lost_through = row
        return Head(seq, total, kept_bytes, lost_through, last[0] if last else None)

    def inbox(
        self,
        name: str,
        after: int,
        upto: int | None,
        limit: int,
        max_bytes: int,
        only: Filter | None = None,
        topics: TopicSet | None = None,
    ) -> Page:
        statement = INBOX if topics is None else INBOX_AND_TOPICS
        return self._page(statement, name, after, upto, limit, max_bytes, only or NO_FILTER, topics)

    def log(self, after: int, upto: int | None, limit: int, max_bytes: int, only: Filter | None = None) -> Page:
        only = only or NO_FILTER
        if only.topics is not None:
            return self._page(LOG_OF_TOPICS, "", after, upto, limit, max_bytes, only, only.topics)
        if only.to is None:
            return self._page(LOG, "", after, upto, limit, max_bytes, only)
        return self._page(LOG_OF_CLIENT, only.to, after, upto, limit, max_bytes, only)

    def tail(self, after: int, limit: int, max_bytes: int) -> Page:
        page = self.log(after, None, limit, max_bytes)
        tracked = [message for message in page.messages if message.flags & REQUIRES_ACK and message.names]
        if tracked:
            owners = msgspec.json.encode(sorted({name for message in tracked for name in message.names})).decode()
            rows = self.execute(_ENTERED, (tracked[0].seq, tracked[-1].seq, owners))
            entered = {(owner, seq): how for owner, seq, how in rows}
            for message in tracked:
                found = [entered.get((name, message.seq), 2) for name in message.names]
                if 2 not in found:
                    message.leased_to = tuple(name for name, how in zip(message.names, found, strict=True) if how)
        return page

    def expired(self, name: str, after: int) -> int:
        swept = self._one(_SWEPT, (name, after))[0]
        return int(swept + self._one(_EXPIRED, (name, after, self._clock()))[0])

    def open_deliveries(self, name: str, limit: int, max_bytes: int, only: Filter | None = None) -> list[Lease]:
        only = only or NO_FILTER
        found: list[Lease] = []
        size = 0
        for row in self._connection.execute(OPEN, (name, only.type, only.sender, self._clock(), limit)):
            size += len(row[9]) + 250
            if found and size > max_bytes:
                break
            found.append(Lease(message_of(row[:10], self.execute), name, "", row[10], 0))
        return found

    def message(self, seq: int) -> Message | None:
        return next(iter(self.messages([seq])), None)

    def messages(self, seqs: Sequence[int], max_bytes: int | None = None) -> list[Message]:
        found: list[Message] = []
        size = 0
        now = self._clock()
        for seq in seqs:
            row = self._one(f"SELECT {COLUMNS} FROM messages m WHERE m.seq = ?", (seq,))
            if row is None or (row[6] is not None and row[6] <= now):
                continue
            size += len(row[9]) + 250
            if max_bytes is not None and found and size > max_bytes:
                break
            found.append(message_of(row, self.execute))
        return found

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, bindings).fetchall()  # type: ignore[no-any-return]

    def seq_before(self, stamp_us: int) -> int:
        """By bisection over seq: stamps rise with seq but for the moments between accept and commit, hence the margin.

        Those of delayed and redriven messages (OWN_ID) do not, so they are passed over.
        """
        earliest = stamp_us - 60_000_000
        low = int(self._one("SELECT lost_through FROM log_head")[0])
        high = int(self._one("SELECT seq FROM log_head")[0])
        while low < high:
            middle = (low + high + 1) // 2
            row = self._one(
                "SELECT seq, stamp FROM messages WHERE seq >= ? AND flags & 4 = 0 ORDER BY seq LIMIT 1", (middle,)
            )
            if row and row[1] <= earliest:
                low = max(middle, row[0])
            else:
                high = middle - 1
        return low

    def now_us(self) -> int:
        return self._clock()

    def client(self, name: str) -> ClientRow | None:
        row = self._one(f"{_CLIENT} WHERE name = ?", (name,))
        return self._with_waiting([row])[0] if row else None

    def clients(self, after: str, limit: int) -> list[ClientRow]:
        rows = self._connection.execute(
            f"{_CLIENT} WHERE known = 1 AND name > ? ORDER BY name LIMIT ?", (after, limit)
        ).fetchall()
        return self._with_waiting(rows)

    def close(self) -> None:
        self._connection.close()

    # ---- below

    def _one(self, statement: str, bindings: tuple[Any, ...] = ()) -> Any:
        return self._connection.execute(statement, bindings).fetchone()

    def _topics_between(self, after: int, upto: int, topics: TopicSet) -> tuple[bytes, int]:
        """The JSON array of the topics that match, and how far it was looked, at most up to `upto`."""
        listed, count, last = self._one(TOPICS_BETWEEN, (after, upto, SCANNED_MESSAGES))
        matching = [topic for topic in msgspec.json.decode(listed) if topics.matches(topic)]
        return msgspec.json.encode(matching), upto if count < SCANNED_MESSAGES else last

    def _page(
        self,
        statement: str,
        name: str,
        after: int,
        upto: int | None,
        limit: int,
        max_bytes: int,
        only: Filter,
        topics: TopicSet | None = None,
    ) -> Page:
        self._begin()
        try:
            head, lost_through = self._one("SELECT seq, lost_through FROM log_head")
            upto = head if upto is None else min(upto, head)
            if limit <= 0 or upto <= after:
                return Page([], min(after, head) if limit <= 0 else upto, limit <= 0 and upto > after, lost_through)
            end, matching = upto, []
            if topics is not None:
                wanted, upto = self._topics_between(after, upto, topics)
                matching = [wanted.decode()]
            narrow = (only.type, only.sender, only.since_us, only.until_us)
            cursor = self._rows(statement, (name, after, upto, limit + 1, *narrow, *matching))
            messages, expired, last = self._take(cursor, limit, max_bytes)
            cursor.close()
            return Page(messages, upto if last is None else last, last is not None or upto < end, lost_through, expired)
        finally:
            self._end()

    def _begin(self) -> None:
        """Begin a snapshot."""
        self._connection.execute("BEGIN")

    def _end(self) -> None:
        """End it."""
        self._connection.execute("COMMIT")

    def _rows(self, statement: str, bindings: tuple[Any, ...]) -> Any:
        """What a page's statement finds, in seq order: iterated, most often not to its end, and closed."""
        return self._connection.execute(statement, bindings)

    def _take(self, cursor: Iterable[Any], limit: int, max_bytes: int) -> tuple[list[Message], int, int | None]:
        """Messages up to `limit` and about `max_bytes` (at least one), and how many more had expired; then, if something was
        left, the seq of the last row looked at."""
        messages: list[Message] = []
        size = expired = last = 0
        now = self._clock()
        for row in cursor:  # at most one row more than `limit`
            if len(messages) == limit or (messages and size + len(row[9]) > max_bytes):
                return messages, expired, last
            last = row[0]
            if row[6] is not None and row[6] <= now:
                expired += 1
                continue
            size += len(row[9]) + 250
            messages.append(message_of(row, self.execute))
        return messages, expired, last if len(messages) + expired > limit else None

    def _with_waiting(self, rows: Iterable[tuple[Any, ...]]) -> list[ClientRow]:
        head = self._one("SELECT seq FROM log_head")[0]
        clients = []
        for name, known, cursor, mark, first_seen, last_seen in rows:
            waiting = self._one(WAITING, (name, mark, head, self._inbox_limit + 1, self._clock()))[0]
            tracked = self._one("SELECT waiting FROM backlogs WHERE owner = ?", (name,))
            waiting += tracked[0] if tracked else 0
            clients.append(ClientRow(name, bool(known), cursor, mark, first_seen, last_seen, waiting))
        return clients


_CLIENT = "SELECT name, known, cursor, mark, first_seen, last_seen FROM clients"
