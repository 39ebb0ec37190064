"""Takes secrets out of what is written for people: keys, tokens, cookies, passwords, and whatever could forge a line.

What is known by its form is masked wherever it stands; what is known by its name (`token=…`, `Authorization: …`), behind
that name. It errs to the safe side: a word too many may go. It is the last net: nothing hands a secret to a log knowingly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
MAX_CHARACTERS = 20_000
"""Of one text in a log. What goes beyond is cut between two words, so that no half of a secret is left over."""

_HEADERS = r"(?:proxy-)?authorization|(?:set-)?cookie|[\w-]{0,40}signature"
_NAMES = (
    r"[\w.-]{0,60}?(?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|private[_-]?key|token|passw(?:or)?d|pwd|credentials?"
    r"|ticket|session(?:[_-]?id)?|jwt|whsec)"
)
_IS = r"(?:\\*[\"']\s*[:=,]|\s*[:=])\s*"
"""Between a name and its value: in a header, a query, a dictionary, a pair, or any of these within JSON."""
_SECRET_NAME = re.compile(rf"(?:{_HEADERS}|{_NAMES})\Z", re.IGNORECASE)

_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # keys of this bus: the part that says which key it is stays
        (r"\bbus_([a-z0-9]{1,16})_([A-Za-z0-9]{12})_[A-Za-z0-9_-]{8,}", rf"bus_\1_\2_{MASK}"),
        (r"\bcb_[A-Za-z0-9_-]{8,}", f"cb_{MASK}"),
        (r"\bwhsec_[A-Za-z0-9+/=_-]+", f"whsec_{MASK}"),
        (r"\beyJ[A-Za-z0-9_-]{4,2000}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*", MASK),  # JWT, JWE
        # addresses that are secrets themselves
        (r"(?i)\b(https?://hooks\.slack(?:-gov)?\.com/)[^\s\"'<>\\]*", rf"\1{MASK}"),
        (r"(?i)\b(https?://(?:[a-z]+\.)*discord(?:app)?\.com/api/(?:v\d+/)?webhooks/)[^\s\"'<>\\]*", rf"\1{MASK}"),
        # of others: GitHub, Slack, Stripe, AWS
        (r"\b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{16,}", MASK),
        (r"\bxox[a-z]-[A-Za-z0-9-]{8,}", MASK),
        (r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{8,}", MASK),
        (r"\bAKIA[A-Z0-9]{12,}", MASK),
        (r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", MASK),
        # who signs on in a URL: up to the last @ of the word
        (r"(?i)\b([a-z][a-z0-9+.-]{0,30}://)(?:[^\s/?#@\"'<>]*:[^\s\"'<>]*|[^\s/?#\"'<>]+)@", rf"\1{MASK}@"),
        (r"(?i)\b(bearer)\s+[^\s\"',;]+", rf"\1 {MASK}"),
        (r"(?i)\b(basic)\s+[A-Za-z0-9+/=]{12,}", rf"\1 {MASK}"),
        # headers, to the end of what they hold
        (rf"(?i)(?<![\w-])({_HEADERS})({_IS}b?[\"']?)[^\r\n\"'\\]+", rf"\1\2{MASK}"),
        # what has such a name
        (
            rf"(?i)(?<![\w.-])({_NAMES}|(?<=[?&])(?:key|code|auth|sig))({_IS})"
            r"(?:b?\\*\"[^\"]*\"?|b?\\*'[^']*'?|[^\s&;,\"'<>)\]}]+)",
            rf"\1\2{MASK}",
        ),
    )
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def masked(text: str) -> str:
    """The text without secrets, and, if it is very long, without its end."""
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS].rpartition(" ")[0] + f" … ({len(text)} characters)"
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    return text


def one_line(text: str) -> str:
    """The text with whatever ends a line, or steers a terminal, as its code."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_secret_name(name: str) -> bool:
    """True when what is called so is a secret, whatever it looks like."""
    return _SECRET_NAME.match(name) is not None


def masked_value(name: str, value: Any) -> Any:
    """A value of that name without secrets, as JSON can hold it; numbers stay numbers."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if is_secret_name(name):
        return MASK
    if isinstance(value, Mapping):
        return {masked(str(key)): masked_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked_value(name, inner) for inner in value]
    return masked(str(value))
