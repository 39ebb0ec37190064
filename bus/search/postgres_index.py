"""The index in PostgreSQL: a tsvector for each message."""

from __future__ import annotations

from bus.search.index import Document, Index
from bus.search.query import Wanted
from bus.search.words import WORD, Phrase


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


_WORDS = "to_tsvector('simple', CAST(? AS text))"

POSTGRESQL = Index(
    match=tsquery,
    document=_bare,
    row=f"(?, setweight({_WORDS}, 'A') || setweight({_WORDS}, 'B') || {_WORDS})",
    columns="seq, document",
    found="i.document @@ CAST(?1 AS tsquery)",
    seq="seq",
    score="ts_rank_cd(i.document, CAST(?1 AS tsquery))",
    best_first="DESC",
    indexed=("search_index", "seq"),
    forget="DELETE FROM search_index WHERE seq IN (SELECT value FROM json_each(?1))",
    forget_all="DELETE FROM search_index",
)
