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
    """The statements of one store. `match` spells what is wanted for `newest` and `ranked`.

    Their bindings: the match, after, upto, now, since, until, limit; and for `ranked` how many to pass over.
    """

    match: Callable[[Wanted], str]
    document: Callable[[Document], Document]
    row: str
    columns: str
    newest: str
    ranked: str
    gone: str
    """Seqs between ?1 and ?2 that are indexed and not kept, at most ?3."""
    oldest: str
    forget: str
    """Take out the seqs of the JSON array ?1."""
    forget_all: str
    tidy: str = ""
    """Join parts of the index, about ?1 pages."""

    def insert(self, rows: int) -> str:
        """A statement for so many documents."""
        return f"INSERT INTO search_index ({self.columns}) VALUES {', '.join([self.row] * rows)}"
