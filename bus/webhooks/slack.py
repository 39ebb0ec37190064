"""Messages for Slack's incoming webhooks: always within its limits, escaped, and nobody is pinged by what is in them.

Slack counts characters; we count UTF-16 units, which are never fewer, of the escaped text. `verbatim` keeps Slack from
looking for names and links in what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bus.webhooks.chat import Note, check_link, digest_lines, fence, fit, summary, tell, truncated

MAX_HEADER, MAX_SECTION, MAX_FALLBACK = 150, 3000, 300
MAX_BLOCKS_TOTAL = 12_000
"""Characters in all blocks together: Slack refuses somewhat more than this, and documents no figure."""

ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_ON_A_LINE = {**ESCAPES, "`": "\u02cb", "\n": " ", "\t": " "}
"""A backtick has no escape in Slack; its look-alike opens no code that would swallow what follows."""


def message(note: Note, link: str | None = None) -> dict[str, Any]:
    """The message that tells one event. `link`: where all of it can be seen. Raises Malformed."""
    told = tell(note.data)
    blocks, whole = [_header(note.title)], True
    if told.facts:
        names = [fit(name, 80, _ON_A_LINE) for name, _ in told.facts]
        values = [fit(value, 480, _ON_A_LINE) for _, value in told.facts]
        whole = all(entire for _, entire in names + values)
        fields = [_text(f"*{name}*\n`{value}`") for (name, _), (value, _) in zip(names, values, strict=True)]
        blocks.append({"type": "section", "fields": fields})
    if told.rest:
        code, entire = fence(told.rest, MAX_SECTION, ESCAPES)
        whole = whole and entire
        blocks.append({"type": "section", "text": _text(code)})
    about = [f"`{fit(note.label, 150, _ON_A_LINE)[0]}`", note.stamp, None if whole else truncated(told.size)]
    blocks.append(_context(about, link))
    return _payload(summary(note, told, _ON_A_LINE, MAX_FALLBACK), blocks)


def digest(notes: Sequence[Note], counts: Mapping[str, int], link: str | None = None) -> dict[str, Any]:
    """The message that tells many events at once: the first of them on a line each, and how many there are of each kind.

    `counts`: all events that it stands for, by name, those in `notes` included. Raises Malformed.
    """
    title = f"{sum(counts.values())} events"
    parts = digest_lines(notes, counts, _ON_A_LINE)
    blocks = [_header(title), *({"type": "section", "text": _text(part)} for part in parts if part)]
    if link is not None:
        blocks.append(_context([], link))
    return _payload(title, blocks)


# ---- below


def _payload(fallback: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"text": fallback, "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _header(title: str) -> dict[str, Any]:
    return {
        "type": "header",
        "text": {"type": "plain_text", "text": fit(title, MAX_HEADER, ESCAPES)[0], "emoji": False},
    }


def _text(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _context(about: Sequence[str | None], link: str | None) -> dict[str, Any]:
    shown = f"<{check_link(link)}|all of it>".replace("&", "&amp;") if link is not None else None
    return {"type": "context", "elements": [_text(" · ".join(part for part in [*about, shown] if part))]}
