"""Messages for Discord's webhooks: always within its limits, escaped, and nobody is pinged by what is in them.

Post them with `?wait=true` (`address`): without it, Discord answers 204 even for a message that it did not keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from bus.webhooks.chat import Note, check_link, digest_lines, fence, fit, tell, truncated

MAX_TITLE, MAX_DESCRIPTION, MAX_FOOTER = 256, 4096, 2048
MAX_FIELDS, MAX_FIELD_NAME, MAX_FIELD_VALUE = 25, 256, 1024
MAX_EMBEDS_TOTAL = 6000
"""UTF-16 units of titles, descriptions, fields and footers together."""

_CODE = 2000
"""What a code block may have beside ten fields of the longest facts and a footer."""

ESCAPES = {mark: f"\\{mark}" for mark in "\\*_~|`<>[]#@"} | {"\n": " ", "\t": " "}
_INLINE = 40
"""Fields as short as this stand beside one another."""

_WRONG, _WELL = 0xD92D20, 0x2F6FED


def message(note: Note, link: str | None = None) -> dict[str, Any]:
    """The message that tells one event. `link`: where all of it can be seen. Raises Malformed."""
    told = tell(note.data)
    embed: dict[str, Any] = {"title": fit(note.title, MAX_TITLE, ESCAPES)[0]}
    whole = True
    if told.rest:
        embed["description"], whole = fence(told.rest, _CODE, {}, "json")
    if told.facts:
        names = [fit(name, 80, ESCAPES) for name, _ in told.facts]
        values = [fit(value, 250, ESCAPES) for _, value in told.facts]
        whole = whole and all(entire for _, entire in names + values)
        embed["fields"] = [
            {"name": name, "value": value, "inline": len(value) <= _INLINE}
            for (name, _), (value, _) in zip(names, values, strict=True)
        ]
    about = [fit(note.label, 128, {})[0], *([] if whole else [truncated(told.size)])]
    embed["footer"] = {"text": " · ".join(about)}
    embed["color"] = _WRONG if note.name.endswith((".failed", ".occurred", ".disabled")) else _WELL
    if note.stamp is not None:
        embed["timestamp"] = note.stamp
    return _payload(embed, link)


def digest(notes: Sequence[Note], counts: Mapping[str, int], link: str | None = None) -> dict[str, Any]:
    """The message that tells many events at once: the first of them on a line each, and how many there are of each kind.

    `counts`: all events that it stands for, by name, those in `notes` included. Raises Malformed.
    """
    told = "\n\n".join(part for part in digest_lines(notes, counts, ESCAPES) if part)
    return _payload({"title": f"{sum(counts.values())} events", "description": told}, link)


def address(url: str) -> str:
    """A webhook's URL, asking for an answer that says whether the message was kept."""
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "wait"]
    return urlunsplit(parts._replace(query=urlencode([*query, ("wait", "true")])))


# ---- below


def _payload(embed: dict[str, Any], link: str | None) -> dict[str, Any]:
    if link is not None:
        embed["url"] = check_link(link)
    return {"embeds": [embed], "allowed_mentions": {"parse": []}}
