"""The index in SQLite: a table of FTS5 without contents."""

from __future__ import annotations

from bus.search.index import Index
from bus.search.query import Wanted
from bus.search.words import Phrase


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
    found="i.search_index MATCH ?1",
    seq="rowid",
    score="bm25(search_index, 1.0, 2.0, 0.0)",
    best_first="ASC",
    indexed=("search_index_docsize", "id"),
    forget="DELETE FROM search_index WHERE rowid IN (SELECT value FROM json_each(?1))",
    forget_all="INSERT INTO search_index (search_index) VALUES ('delete-all')",
    tidy="INSERT INTO search_index (search_index, rank) VALUES ('merge', ?1)",
)
