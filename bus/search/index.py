"""The index, in the words of each store: what fills it, what takes out of it, and what asks it.

Both stores get the same words (bus.search.words), so both find the same.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bus.search.query import Wanted
from bus.search.words import WORD, Phrase

INSERT_SIZES = (64, 8, 1)
"""Rows of one INSERT: each statement hands the interpreter's lock over twice, while it holds the writers'."""

RANKED = 10_000
"""By rank, the best of so many of the newest that match are shown."""

Document = tuple[int, str, str, str]
"""Seq, the payload's texts, sender and type, marks."""

_ALIVE = """
 AND (m.expires_at IS NULL OR m.expires_at > ?4) AND (?5 IS NULL OR m.stamp > ?5) AND (?6 IS NULL OR m.stamp <= ?6)"""


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

    def insert(self, rows: int) -> str:
        """A statement for so many documents."""
        return f"INSERT INTO search_index ({self.columns}) VALUES {', '.join([self.row] * rows)}"


# ---- SQLite


def fts5_match(wanted: Wanted) -> str:
    """An expression of FTS5. Every word stands in quotes, and holds letters and digits only."""
    parts = [f"{{text who}} : ({' AND '.join(map(_fts5_phrase, wanted.phrases))})"] if wanted.phrases else []
    parts += [f"marks : ({' OR '.join(map(_fts5_mark, group))})" for group in wanted.marks]
    return " AND ".join(parts)


def _fts5_phrase(phrase: Phrase) -> str:
    return f'"{" ".join(phrase.words)}"{" *" if phrase.begins else ""}'


def _fts5_mark(mark: str) -> str:
    return f'"{mark[:-1]}" *' if mark.endswith("*") else f'"{mark}"'


SQLITE = Index(
    match=fts5_match,
    document=lambda document: document,
    row="(?, ?, ?, ?)",
    columns="rowid, text, who, marks",
    newest=f"""
SELECT m.seq FROM search_index i CROSS JOIN messages m ON m.seq = i.rowid
 WHERE i.search_index MATCH ?1 AND i.rowid > ?2 AND i.rowid <= ?3 {_ALIVE} ORDER BY i.rowid DESC LIMIT ?7""",
    ranked=f"""
SELECT m.seq FROM (
    SELECT rowid AS seq, bm25(search_index, 1.0, 2.0, 0.0) AS score FROM search_index
     WHERE search_index MATCH ?1 AND rowid > ?2 AND rowid <= ?3 ORDER BY rowid DESC LIMIT {RANKED}
) i CROSS JOIN messages m ON m.seq = i.seq WHERE 1 = 1 {_ALIVE} ORDER BY i.score, i.seq DESC LIMIT ?7 OFFSET ?8""",
    gone="""
SELECT d.id FROM search_index_docsize d LEFT JOIN messages m ON m.seq = d.id
 WHERE d.id > ?1 AND d.id <= ?2 AND m.seq IS NULL LIMIT ?3""",
    oldest="SELECT min(id) FROM search_index_docsize",
    forget="DELETE FROM search_index WHERE rowid IN (SELECT value FROM json_each(?1))",
    forget_all="INSERT INTO search_index (search_index) VALUES ('delete-all')",
)


# ---- PostgreSQL


def tsquery(wanted: Wanted) -> str:
    """A tsquery of lexemes, each in quotes, of letters and digits only."""
    groups = [" & ".join(map(_tsquery_phrase, wanted.phrases))] if wanted.phrases else []
    groups += [" | ".join(map(_tsquery_mark, group)) for group in wanted.marks]
    return " & ".join(f"({group})" for group in groups)


def _tsquery_phrase(phrase: Phrase) -> str:
    ends = ["AB"] * len(phrase.words)
    if phrase.begins:
        ends[-1] = "*AB"
    return "(" + " <-> ".join(f"'{word}':{end}" for word, end in zip(phrase.words, ends, strict=True)) + ")"


def _tsquery_mark(mark: str) -> str:
    return f"'{mark[:-1]}':*D" if mark.endswith("*") else f"'{mark}':D"


def _bare(document: Document) -> Document:
    """Words alone: the store's own parser would take addresses and paths for one word."""
    seq, text, who, marks = document
    return seq, " ".join(WORD.findall(text)), " ".join(WORD.findall(who)), marks


POSTGRESQL = Index(
    match=tsquery,
    document=_bare,
    row="(?, setweight(to_tsvector('simple', ?), 'A') || setweight(to_tsvector('simple', ?), 'B')"
    " || to_tsvector('simple', ?))",
    columns="seq, document",
    newest=f"""
SELECT m.seq FROM search_index i JOIN messages m ON m.seq = i.seq
 WHERE i.document @@ CAST(?1 AS tsquery) AND i.seq > ?2 AND i.seq <= ?3 {_ALIVE} ORDER BY i.seq DESC LIMIT ?7""",
    ranked=f"""
SELECT m.seq FROM (
    SELECT seq, ts_rank_cd(document, CAST(?1 AS tsquery)) AS score FROM search_index
     WHERE document @@ CAST(?1 AS tsquery) AND seq > ?2 AND seq <= ?3 ORDER BY seq DESC LIMIT {RANKED}
) i JOIN messages m ON m.seq = i.seq WHERE 1 = 1 {_ALIVE} ORDER BY i.score DESC, i.seq DESC LIMIT ?7 OFFSET ?8""",
    gone="""
SELECT d.seq FROM search_index d LEFT JOIN messages m ON m.seq = d.seq
 WHERE d.seq > ?1 AND d.seq <= ?2 AND m.seq IS NULL LIMIT ?3""",
    oldest="SELECT min(seq) FROM search_index",
    forget="DELETE FROM search_index WHERE seq IN (SELECT value FROM json_each(?1))",
    forget_all="DELETE FROM search_index",
)


def index_of(database_url: str) -> Index:
    """The statements for the store of this URL."""
    return POSTGRESQL if database_url.startswith("postgres") else SQLITE
