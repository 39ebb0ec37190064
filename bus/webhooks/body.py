"""The body of a webhook: JSON text, made once; what is signed and sent are these very bytes.

    {"type":"message.sent","event":"message.sent","timestamp":"2026-02-21T17:27:21.123456+00:00","data":{…}}

`type` is the field's name of today, `event` that of version 1.2; both say the same. What would be larger than MAX_BYTES
goes *thin*: instead of `data`, `ref` says where to fetch it, and `bytes` how much it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from bus.errors import Malformed, TooLarge
from bus.message import iso

MAX_BYTES = 256 * 1024
"""The largest body that is sent."""

_NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_MAX_NAME = 128


def encode(data: Any) -> bytes:
    """Any JSON value as compact ASCII text, the same for equal values that were parsed from it. Raises Malformed."""
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise Malformed(
            "The data can't be written as JSON; give it text, finite numbers, true, false, None, lists and dicts with"
            " text keys.",
            code="bad_data",
            field="data",
        ) from None


def make(name: str, event_id: str, occurred_us: int, data: bytes, ref: str | None = None) -> bytes:
    """The body of an event. `data` is JSON text, `ref` the path where it can be fetched if it is too large to be sent.

    Raises TooLarge for that case if there is no `ref`: nothing is ever cut silently.
    """
    head = b'{"type":"%b","event":"%b","timestamp":"%b",' % (name.encode(), name.encode(), iso(occurred_us))
    body = b'%b"data":%b}' % (head, data)
    if len(body) <= MAX_BYTES:
        return body
    if ref is None:
        raise TooLarge(f"The body of a webhook may have at most {MAX_BYTES} bytes; send less, or a reference to it.")
    return b'%b"id":%b,"ref":%b,"bytes":%d}' % (head, encode(event_id), encode(ref), len(data))


def check_name(name: str) -> str:
    """An event's name: words of letters, digits and `_`, parted by dots. Raises Malformed."""
    if len(name) <= _MAX_NAME and _NAME.fullmatch(name):
        return str(name)
    raise Malformed(
        f"An event's name is words of A-Z a-z 0-9 _ parted by dots, such as order.paid, of at most {_MAX_NAME} characters.",
        code="bad_event",
        field="event",
    )


def check_pattern(pattern: str) -> str:
    """An event's name, `message.*` for all that begin so, or `*` for all. Raises Malformed."""
    if pattern != "*":
        check_name(pattern.removesuffix(".*"))
    return str(pattern)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns names this event."""
    return any(p in (name, "*") or (p.endswith(".*") and name.startswith(p[:-1])) for p in patterns)
