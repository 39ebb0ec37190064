"""What is shown of a message that was found: a part of its text, and where in it the words stand.

Offsets count characters (code points), so that whoever shows a text marks it as it likes, and nothing of it is markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from bus.search.words import MAX_PAYLOAD_BYTES, Phrase, is_unspaced, plain, texts_of, words_in

LENGTH = 160
"""Characters of a snippet."""

BEFORE = 40
"""How many of them stand before the first match."""

MAX_MATCHES = 20


class Snippet(msgspec.Struct, frozen=True):
    """A part of a message's text; `matches` are pairs of where one begins and how long it is, in characters."""

    text: str
    matches: list[tuple[int, int]]


def snippet(payload: bytes, wanted: Iterable[Phrase]) -> Snippet:
    """The part of a payload around the first of what was wanted; its beginning, when that stands elsewhere."""
    text = " ".join(texts_of(payload[:MAX_PAYLOAD_BYTES], len(payload)).split())
    needles = _Needles(wanted)
    found = sorted(needles.find(text))
    first = found[0][0] if found else 0
    begin = 0 if first <= BEFORE else text.rfind(" ", first - BEFORE, first) + 1 or first - BEFORE
    end = begin + LENGTH
    return Snippet(text[begin:end], [(at - begin, n) for at, n in found if at >= begin and at + n <= end][:MAX_MATCHES])


class _Needles:
    """The words of what was wanted: whole ones, beginnings, and parts of scripts without spaces."""

    def __init__(self, wanted: Iterable[Phrase]) -> None:
        self._whole: set[str] = set()
        self._beginnings: list[str] = []
        self._parts: list[str] = []
        for phrase in wanted:
            if is_unspaced(phrase.words[0]):
                self._parts.append("".join(word[0] for word in phrase.words) + phrase.words[-1][1:])
                continue
            self._whole.update(phrase.words[:-1] if phrase.begins else phrase.words)
            if phrase.begins:
                self._beginnings.append(phrase.words[-1])

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where they stand, and how long each is there."""
        beginnings = tuple(self._beginnings)
        for match in words_in(text):
            word = plain(match[0])
            if word in self._whole or (beginnings and word.startswith(beginnings)):
                yield match.start(), len(match[0])
            for part in self._parts:
                yield from _parts_in(word, part, match.start(), len(match[0]))


def _parts_in(word: str, part: str, start: int, length: int) -> Iterator[tuple[int, int]]:
    at = word.find(part)
    if at >= 0 and len(word) != length:  # it was folded to another length: the whole of it is the match
        yield start, length
        return
    while at >= 0:
        yield start + at, len(part)
        at = word.find(part, at + len(part))
