"""What fills the index: it follows the log in small jobs of the writer, and gives way to whoever else writes.

One process in the cluster does it. The texts are read and folded on a reader's thread; a job only writes, and how far it got
goes with it, so a crash repeats nothing and leaves nothing out. What has left the log leaves the index in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from bus.metrics import Metrics
from bus.search.index import INSERT_SIZES, Document, Index
from bus.search.words import MAX_PAYLOAD_BYTES, all_marks, indexed, texts_of
from bus.storage import Reader, Transaction
from bus.storage.rows import named

INTERVAL_SECONDS = 0.25
TIDY_SECONDS = 5.0
"""How often the index is looked through, a window at a time, for what has left the log."""

FEWEST, BATCH = 50, 500
BATCH_BYTES = 256 * 1024
"""Messages, and bytes of payload, that one job indexes at most; and how few a batch shrinks to."""

AIM_SECONDS = 0.004
"""How long a job should take: the batch grows and shrinks by that, so that no send waits long."""

LEAST_PAGES, MESSAGES_A_PAGE = 16, 16
"""A job joins so many pages of the index at least, and one more for so many messages: as much as it needs to stay in few
parts, in 1 to 3 ms."""

SCARCE = 0.7
"""What a process takes of a core when its time is scarce: more than so much of it, in the last pause."""

WINDOW = 20_000
"""How much of the log one look for what has left passes."""

_SIZES = "SELECT seq, length(payload) FROM messages WHERE seq > ? ORDER BY seq LIMIT ?"
_ROWS = f"""
SELECT seq, kind, address, sender, type, length(payload), substr(payload, 1, {MAX_PAYLOAD_BYTES})
 FROM messages WHERE seq > ? AND seq <= ? ORDER BY seq"""
_PROGRESS = "SELECT indexed_to FROM search_progress"


class Host(msgspec.Struct):
    """`read` and `write` wait for a job on a reader's or the writer's thread; `head()` is the last seq that was delivered.

    `is_busy` says whether others write; `pause` lets them; `used_seconds()` is the processor time of this process.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    head: Callable[[], int]
    is_busy: Callable[[], bool]
    pause: Callable[[float], None]
    used_seconds: Callable[[], float]
    metrics: Metrics


class Indexer:
    """`tick` is the work of an exclusive worker, in its greenlet.

    `_place`: what is indexed, as far as this process knows. `_looked_to`: what was looked through for what has left.
    """

    def __init__(self, host: Host, index: Index) -> None:
        self._host = host
        self._index = index
        self._place: int | None = None
        self._rows = FEWEST
        self._looked_to = 0
        self._tidied_at = time.monotonic()
        self._is_scarce = False

    def tick(self) -> None:
        """Index what is new, and take out what has left."""
        if self._place is None:
            self._place = self._host.read(progress)
        while self._place < self._host.head() and self._step():
            pass
        if time.monotonic() - self._tidied_at >= TIDY_SECONDS:
            self._tidy()
            self._tidied_at = time.monotonic()

    def _step(self) -> bool:
        place, head, began = self._place, self._host.head(), time.monotonic()
        assert place is not None
        upto, documents = self._host.read(lambda reader: _documents(reader, self._index, place, self._rows))
        if upto == place:
            return False
        self._place, taken = self._host.write(lambda transaction: self._add(transaction, place, upto, documents))
        self._host.metrics.count("bus_search_indexed_total", by=len(documents))
        if taken > AIM_SECONDS:
            self._rows = max(self._rows // 2, FEWEST)
        elif len(documents) >= self._rows and taken < AIM_SECONDS / 2:
            self._rows = min(self._rows * 2, BATCH)
        self._yield(time.monotonic() - began, head)
        return True

    def _add(self, transaction: Transaction, place: int, upto: int, documents: Sequence[Document]) -> tuple[int, float]:
        """What is indexed now, and how long that took. Somebody else may have done it meanwhile."""
        began = time.monotonic()
        (noted,) = transaction.execute(_PROGRESS)[0]
        if noted != place:
            return noted, 0.0
        for rows in _parts(documents):
            transaction.execute(self._index.insert(len(rows)), [value for row in rows for value in row])
        transaction.execute("UPDATE search_progress SET indexed_to = ?", (upto,))
        transaction.execute("SAVEPOINT indexed")  # has the index write what it gathered, else at the commit
        transaction.execute("RELEASE indexed")
        if self._index.tidy:
            transaction.execute(self._index.tidy, (LEAST_PAGES + len(documents) // MESSAGES_A_PAGE,))
        return upto, time.monotonic() - began

    # ---- taking out

    def _tidy(self) -> None:
        place = self._place
        assert place is not None
        if self._host.read(self._is_vain):
            self._host.write(self._clear)
            self._looked_to = 0
            return
        end = min(self._looked_to + WINDOW, place)
        while gone := self._host.read(lambda reader: reader.execute(self._index.gone, (self._looked_to, end, BATCH))):
            seqs = msgspec.json.encode([seq for (seq,) in gone]).decode()
            head, began = self._host.head(), time.monotonic()
            self._host.write(lambda transaction, seqs=seqs: transaction.execute(self._index.forget, (seqs,)))
            self._yield(time.monotonic() - began, head)
        self._looked_to = end if end < place else self._before_oldest()

    def _before_oldest(self) -> int:
        """Where the next look through the index begins: what leaves first is the oldest."""
        oldest = self._host.read(lambda reader: reader.execute(self._index.oldest))[0][0]
        return 0 if oldest is None else int(oldest) - 1

    def _is_vain(self, reader: Reader) -> bool:
        """True when nothing of what is indexed is kept, as after a clear."""
        return bool(reader.execute(self._index.oldest)[0][0]) and not _kept(reader)

    def _clear(self, transaction: Transaction) -> None:
        if not _kept(transaction):
            transaction.execute(self._index.forget_all)

    def _yield(self, took: float, head: int) -> None:
        """Let others in after a step that took so many seconds, and began when `head` was delivered.

        Indexing is half of the time at most; while others write, a twentieth; and a hundredth where they need all there is.
        """
        others_write = self._host.is_busy() or self._host.head() != head
        share = 100 if others_write and self._is_scarce else 20 if others_write else 2
        began, used = time.monotonic(), self._host.used_seconds()
        self._host.pause(min(took * (share - 1), 1.0))
        self._is_scarce = self._host.used_seconds() - used > SCARCE * (time.monotonic() - began)
        if self._is_scarce:
            self._rows = FEWEST


def progress(reader: Reader) -> int:
    """Up to which seq messages are indexed."""
    return int(reader.execute(_PROGRESS)[0][0])


def _kept(store: Reader | Transaction) -> bool:
    found = store.execute("SELECT 1 FROM messages WHERE seq <= (SELECT indexed_to FROM search_progress) LIMIT 1")
    return bool(found)


def _documents(reader: Reader, index: Index, place: int, most: int) -> tuple[int, list[Document]]:
    """The next messages behind a place, up to a seq, as documents. On a reader's thread."""
    upto, size = place, 0
    for seq, length in reader.execute(_SIZES, (place, most)):
        size += min(length, MAX_PAYLOAD_BYTES)
        if upto > place and size > BATCH_BYTES:
            break
        upto = seq
    rows = reader.execute(_ROWS, (place, upto))
    return upto, [index.document(_document(row)) for row in rows]


def _document(row: tuple[Any, ...]) -> Document:
    seq, kind, address, sender, type_, length, payload = row
    marks = all_marks(sender, type_, kind, address, named(kind, address))
    return seq, indexed(texts_of(payload, length)), indexed(f"{sender} {type_}"), marks


def _parts(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    at = 0
    while at < len(documents):
        size = next(size for size in INSERT_SIZES if size <= len(documents) - at)
        yield documents[at : at + size]
        at += size
