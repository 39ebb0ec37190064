"""What the messages to chats have in common: text that fits, facts of an event, digests of many.

Lengths are counted in UTF-16 units, as Discord counts them; no vendor counts more strictly. Data may be anything that
JSON can hold and somewhat more (dates, NaN), of any size: what does not fit is named, never dropped silently.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bus.errors import Malformed
from bus.message import iso

MAX_FACTS = 10
MAX_FACT_NAME, MAX_FACT_VALUE = 60, 200
"""What is longer stands with the rest of the data."""

PRETTY_BYTES = 8000
"""Data up to this size is indented; more would be cut anyway."""

MAX_REST = 12_000
"""Characters of the rest that are kept: more than any chat takes in one message."""

DIGEST_NOTES, DIGEST_LINE = 8, 200
DIGEST_KINDS = 12

_UNSENDABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FENCE = re.compile(r"`{3,}")
_LINK = re.compile(r"https?://[!-;=?-{}~]{1,500}")


class Note(msgspec.Struct, frozen=True):
    """An event to be told in a chat: its name, its data, and when it occurred (None: not said)."""

    name: str
    data: Any
    occurred_us: int | None = None

    @property
    def title(self) -> str:
        """`message.sent` as people write it: Message sent."""
        return re.sub(r"[._]+", " ", self.label).strip().capitalize() or "Event"

    @property
    def label(self) -> str:
        """Its name, as it can be shown."""
        return clean(self.name).strip() or "event"

    @property
    def stamp(self) -> str | None:
        """When it occurred, ISO 8601."""
        return None if self.occurred_us is None else iso(self.occurred_us).decode()


class Told(msgspec.Struct, frozen=True):
    """The data of a note, parted: facts for fields, the rest as JSON text, and how many bytes all of it has."""

    facts: list[tuple[str, str]]
    rest: str
    size: int


def tell(data: Any) -> Told:
    """Part the data of an event. Raises Malformed for what has no form at all: loops, keys that are no text."""
    try:
        size = len(_compact(data).encode("utf-8", "replace"))
        shown = _facts(data)
        rest = {name: value for name, value in data.items() if name not in shown} if isinstance(data, dict) else data
        compact = "" if rest is None or rest in ({}, []) else _compact(rest)
        pretty = compact if len(compact) > PRETTY_BYTES else _compact(rest, indent=2) if compact else ""
    except (TypeError, ValueError, RecursionError):
        raise Malformed(
            "The data has no form that can be shown; give it what JSON can hold.", code="bad_data", field="data"
        ) from None
    return Told([(clean(name), value) for name, value in shown.items()], clean(pretty[:MAX_REST]), size)


def digest_lines(notes: Sequence[Note], counts: Mapping[str, int], escapes: Mapping[str, str]) -> tuple[str, str]:
    """The body of a digest: the first notes, a line each, and `+37 more`; then lines such as `500 × message.sent`, the most
    frequent first, that add up to all."""
    lines = [f"• {summary(note, tell(note.data), escapes, DIGEST_LINE)}" for note in notes[:DIGEST_NOTES]]
    if (more := sum(counts.values()) - len(lines)) > 0:
        lines.append(f"+{more} more")
    ranked = Counter(counts).most_common()
    kinds = [fit(f"{count} × {clean(name)}", DIGEST_LINE - 20, escapes)[0] for name, count in ranked[:DIGEST_KINDS]]
    if others := ranked[DIGEST_KINDS:]:
        kinds.append(f"{sum(count for _, count in others)} × {len(others)} other kinds")
    return "\n".join(lines), "\n".join(kinds)


def summary(note: Note, told: Told, escapes: Mapping[str, str], limit: int) -> str:
    """A note on one line."""
    facts = ", ".join(f"{name}: {value}" for name, value in told.facts)
    rest = " ".join(told.rest[:limit].split())
    text = "; ".join(part for part in (facts, rest) if part)
    return fit(f"{note.title}: {text}" if text else note.title, limit, escapes)[0]


def check_link(link: str | None) -> str | None:
    """A link that can be shown. Raises Malformed."""
    if link is None or _LINK.fullmatch(link):
        return link
    raise Malformed(
        "A link is an http:// or https:// URL of at most 500 ASCII characters, without < > or |.",
        code="bad_link",
        field="link",
    )


# ---- text


def clean(text: str) -> str:
    """Text without lone surrogates and control characters, which no chat takes."""
    return _UNSENDABLE.sub("\ufffd", text)


def units(text: str) -> int:
    """UTF-16 units of a text."""
    return len(text.encode("utf-16-le")) // 2


def fit(text: str, limit: int, escapes: Mapping[str, str]) -> tuple[str, bool]:
    """As much of a text as fits `limit` units once each character is escaped, and whether it is all; else it ends in `…`."""
    pieces: list[str] = []
    used = mark = 0
    for character in text:
        piece = escapes.get(character, character)
        used += units(piece)
        if used > limit:
            return "".join(pieces[:mark]) + "…", False
        pieces.append(piece)
        if used < limit:
            mark = len(pieces)
    return "".join(pieces), True


def fence(text: str, limit: int, escapes: Mapping[str, str], language: str = "") -> tuple[str, bool]:
    """A code block of at most `limit` units, closed whatever is in it, and whether the text is all there."""
    frame = f"```{language}\n", "\n```"
    harmless = _FENCE.sub(lambda run: "\u200b".join(run[0]), text)
    inner, whole = fit(harmless, limit - sum(map(len, frame)), escapes)
    return inner.join(frame), whole


def truncated(size: int) -> str:
    """What is said of data that was cut."""
    return f"truncated, {size} bytes"


# ---- below


def _facts(data: Any) -> dict[str, str]:
    facts: dict[str, str] = {}
    for name, value in data.items() if isinstance(data, dict) else ():
        if len(facts) == MAX_FACTS:
            break
        if isinstance(value, str) or value is None or isinstance(value, bool | int | float):
            text = value if isinstance(value, str) else _compact(value)
            if _is_short(name, MAX_FACT_NAME) and _is_short(text, MAX_FACT_VALUE):
                facts[name] = clean(text)
    return facts


def _is_short(text: Any, limit: int) -> bool:
    return isinstance(text, str) and bool(text.strip()) and len(text) <= limit and units(clean(text)) <= limit


def _compact(data: Any, indent: int | None = None) -> str:
    return json.dumps(data, ensure_ascii=False, indent=indent, default=str)
