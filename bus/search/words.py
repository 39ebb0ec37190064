"""What a word is: texts are folded alike when they are indexed, asked for, and shown.

Case, accents and vowel points are left out. A word is a run of letters and digits. Scripts that are written without spaces
(Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese) are cut into pairs of neighbouring characters, so that any part of a
sentence is found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

import msgspec

from bus.message import Kind

MAX_CHARACTERS = 32_768
"""Of a message's texts together, so much is indexed."""

MAX_PAYLOAD_BYTES = 65_536
"""A payload beyond this is not decoded: the texts in its beginning are indexed."""

MAX_WORD = 100
"""A longer word is cut, where it is indexed and where it is asked for."""

_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u318f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
WORD = re.compile(r"[^\W_]+")
_RUN = re.compile(f"[{_WITHOUT_SPACES}]+")
_PIECE = re.compile(f"[{_WITHOUT_SPACES}]+|(?:(?![{_WITHOUT_SPACES}])[^\\W_])+")
_LONG = re.compile(rf"([^\W_]{{{MAX_WORD}}})[^\W_]+")
_TEXT = re.compile(rb'"((?:[^"\\]|\\.)*+)(?:"(\s*:)?|\\?\Z)', re.DOTALL)
_SOUND_MARKS = "\u3099\u309a"  # they make another sound in Japanese


@cache
def _marks() -> str:
    """Accents, vowel points and the like, that stand on other characters: a class of a regular expression."""
    found = [c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c)[0] == "M" and c not in _SOUND_MARKS]
    return f"[{''.join(found)}]"


@cache
def _some_marks() -> re.Pattern[str]:
    return re.compile(f"{_marks()}+")


@cache
def _words_with_marks() -> re.Pattern[str]:
    return re.compile(rf"[^\W_](?:[^\W_]|{_marks()})*")


def plain(text: str) -> str:
    """A text without case, accents and vowel points."""
    if text.isascii():
        return text.lower()
    text = _some_marks().sub("", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", text)


def words_in(text: str) -> Iterator[re.Match[str]]:
    """The words of a text as it was written, each where it stands."""
    return (WORD if text.isascii() else _words_with_marks()).finditer(text)


def is_unspaced(word: str) -> bool:
    """True for a word, or a pair, of a script that is written without spaces."""
    return _RUN.match(word) is not None


def indexed(text: str) -> str:
    """A text as it goes into the index: words, with spaces or signs between them."""
    text = plain(text)
    if not text.isascii():
        text = _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} ", text)
    return _LONG.sub(r"\1", text)


def _pairs(run: str) -> Iterator[str]:
    """Each two neighbours; then the last character, so that each begins a word."""
    return (run[at : at + 2] for at in range(len(run)))


class Phrase(msgspec.Struct, frozen=True):
    """Words that stand beside one another. `begins`: the last is the beginning of a word."""

    words: tuple[str, ...]
    begins: bool = False


def phrases(text: str) -> list[Phrase]:
    """A part of what is asked for, as phrases of the index."""
    found: list[Phrase] = []
    row: list[str] = []
    for piece in _PIECE.findall(plain(text)):
        if not is_unspaced(piece):
            row.append(piece[:MAX_WORD])
            continue
        if row:
            found.append(Phrase(tuple(row)))
            row = []
        pairs = tuple(_pairs(piece))
        found.append(Phrase(pairs[:-1]) if len(pairs) > 1 else Phrase(pairs, begins=True))
    if row:
        found.append(Phrase(tuple(row)))
    return found


# ---- texts of a payload


def texts_of(payload: bytes, size: int) -> str:
    """The texts and numbers among a payload's values. `payload` may be only the beginning of `size` bytes."""
    found: Iterator[str] = _texts_in_beginning(payload)
    if len(payload) == size:
        with suppress(msgspec.DecodeError):  # half of a surrogate pair, which senders may escape
            found = _texts(_NUMBERS_AS_SPELLED.decode(payload))
    return " ".join(found)[:MAX_CHARACTERS]


_NUMBERS_AS_SPELLED = msgspec.json.Decoder(float_hook=str)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


def _texts_in_beginning(beginning: bytes) -> Iterator[str]:
    """The texts in JSON that is cut off somewhere; what is cut in an escape or a character is left out."""
    for text, colon in _TEXT.findall(beginning):
        if colon:
            continue
        try:
            yield msgspec.json.decode(b'"%b"' % text, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            yield text.decode(errors="ignore")


# ---- marks


def mark(sort: str, name: str) -> str:
    """A name as one word that nothing else is. Sorts: f the sender, t the type, r a recipient, p a topic, q a queue.

    Without a name: any topic, any queue.
    """
    return sort + name.encode().hex()


ALL = mark("r", "all")


def marks_of(kind: int, address: str, names: tuple[str, ...]) -> list[str]:
    """The marks of an address."""
    if kind == Kind.ALL:
        return [ALL]
    if kind in (Kind.TOPIC, Kind.QUEUE):
        sort = "p" if kind == Kind.TOPIC else "q"
        return [mark(sort, address), mark(sort, "")]
    return [mark("r", name) for name in names]


def all_marks(sender: str, type_: str, kind: int, address: str, names: tuple[str, ...]) -> str:
    """All marks of a message, as a text."""
    return " ".join([mark("f", sender), mark("t", type_), *marks_of(kind, address, names)])
