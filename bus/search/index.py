"""The index: what fills it, what takes out of it, and what asks it; each store has statements of its own.

Both get the same words (bus.search.words), so both find the same.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bus.search.query import Wanted

INSERT_SIZES = (64, 8, 1)
"""Rows of one INSERT: each statement hands the interpreter's lock over twice, while it holds the writers'."""

RANKED = 10_000
"""By rank, the best of so many of the newest that match are shown."""

Document = tuple[int, str, str, str]
"""Seq, the payload's texts, sender and type, marks."""

ALIVE = """
 AND (m.expires_at IS NULL OR m.expires_at > ?4) AND (m.stamp > ?5 OR ?5 IS NULL) AND (m.stamp <= ?6 OR ?6 IS NULL)"""
"""Of the messages m: those that are alive at ?4, and between ?5 and ?6."""


class Index(msgspec.Struct, frozen=True):
    """The statements of one store, and what they differ by. `search_index i` has the words; `match` spells what is wanted.

    The bindings of `newest` and `ranked`: the match, after, upto, now, since, until, limit; and of the latter how many to
    pass over.
    """

    match: Callable[[Wanted], str]
    document: Callable[[Document], Document]
    row: str
    columns: str
    found: str
    """The condition that ?1 is met."""
    seq: str
    """The column that is the message's seq."""
    score: str
    best_first: str
    """The order of scores that has the best before the others."""
    indexed: tuple[str, str]
    """A table with a row for each document, and its column of the seq."""
    forget: str
    """Take out the seqs of the JSON array ?1."""
    forget_all: str
    tidy: str = ""
    """Join parts of the index, about ?1 pages."""

    @property
    def newest(self) -> str:
        """What is found, the last first."""
        return f"""
SELECT m.seq FROM search_index i CROSS JOIN messages m ON m.seq = i.{self.seq}
 WHERE {self._found_between} {ALIVE} ORDER BY i.{self.seq} DESC LIMIT ?7"""

    @property
    def ranked(self) -> str:
        """What is found, the best first."""
        return f"""
SELECT m.seq FROM (
    SELECT i.{self.seq} AS seq, {self.score} AS score FROM search_index i
     WHERE {self._found_between} ORDER BY i.{self.seq} DESC LIMIT {RANKED}
) i CROSS JOIN messages m ON m.seq = i.seq
 WHERE 1 = 1 {ALIVE} ORDER BY i.score {self.best_first}, i.seq DESC LIMIT ?7 OFFSET ?8"""

    @property
    def gone(self) -> str:
        """Seqs between ?1 and ?2 that are indexed and not kept, at most ?3."""
        table, seq = self.indexed
        return f"""
SELECT d.{seq} FROM {table} d LEFT JOIN messages m ON m.seq = d.{seq}
 WHERE d.{seq} > ?1 AND d.{seq} <= ?2 AND m.seq IS NULL LIMIT ?3"""

    @property
    def oldest(self) -> str:
        """The first seq that is indexed."""
        table, seq = self.indexed
        return f"SELECT min({seq}) FROM {table}"

    @property
    def _found_between(self) -> str:
        return f"{self.found} AND i.{self.seq} > ?2 AND i.{self.seq} <= ?3"

    def insert(self, rows: int) -> str:
        """A statement for so many documents."""
        return f"INSERT INTO search_index ({self.columns}) VALUES {', '.join([self.row] * rows)}"
