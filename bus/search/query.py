"""What is asked for: words, phrases in quotes, beginnings of words with a star; and by whom, what sort, to whom, when.

All of it has to be found. Nothing else has a meaning: what is an operator to some search engine is a word here, or a sign
between words.
"""

from __future__ import annotations

import re

import msgspec

from bus.errors import Malformed
from bus.search.words import Phrase, phrases

MAX_LENGTH = 1000
MAX_PHRASES = 32
SHORTEST_BEGINNING = 2
_PART = re.compile(r'"([^"]*)"?|([^\s"]+)')


class Wanted(msgspec.Struct, frozen=True):
    """What is looked for. `marks`: of each group, a message has one; a mark that ends in `*` is the beginning of one.

    Seqs after `after`, up to `upto`; times in microseconds.
    """

    phrases: tuple[Phrase, ...]
    marks: tuple[tuple[str, ...], ...] = ()
    after: int = 0
    upto: int = 2**62
    since_us: int | None = None
    until_us: int | None = None


def parse(text: str) -> tuple[Phrase, ...]:
    """Read what somebody typed. Raises Malformed when there is no word in it, or too much."""
    if len(text) > MAX_LENGTH:
        raise _bad(f"`q` has {len(text)} characters; look for at most {MAX_LENGTH}.")
    found: dict[Phrase, None] = {}
    for quoted, bare in _PART.findall(text):
        parts = phrases(quoted or bare)
        if bare.endswith("*") and parts and not parts[-1].begins:
            beginning = parts[-1].words
            if len(beginning[-1]) < SHORTEST_BEGINNING:
                raise _bad(
                    f"`q` has a beginning of fewer than {SHORTEST_BEGINNING} letters before *; give more of the word."
                )
            parts[-1] = Phrase(beginning, begins=True)
        found.update(dict.fromkeys(parts))
    if not found:
        raise _bad("`q` has no word to look for; give letters or digits.")
    if len(found) > MAX_PHRASES:
        raise _bad(f"`q` has {len(found)} words and phrases; look for at most {MAX_PHRASES}.")
    return tuple(found)


def _bad(sentence: str) -> Malformed:
    return Malformed(sentence, code="bad_query", field="q")
