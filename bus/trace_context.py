"""W3C Trace Context in a message's headers: `traceparent` and `tracestate` travel from the sender to whoever receives it.

Over HTTP they come as the request's headers of these names, and a message that brings its own keeps them. They are no part
of what a send says: a repeat under the same idempotency key may belong to another trace.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

NAMES = ("traceparent", "tracestate")
MAX_STATE_CHARACTERS = 512
"""What W3C Trace Context asks everybody to pass on, at least."""

_STATE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_IN_EXTRAS = re.compile(rb'"traceparent":"([0-9a-f-]{55})"')


class _Headed(msgspec.Struct):
    """What of a message's JSON text names its trace."""

    headers: dict[str, str] = {}


def trace_of(header: Callable[[str], str | None]) -> dict[str, str]:
    """The trace that a request belongs to, as a message's headers; empty when it says none, or none that is good.

    `header(name)` gives a header's value, or None.
    """
    parent = header("traceparent")
    if parent is None or not _PARENT.match(parent):
        return {}
    state = header("tracestate")
    good = state is not None and len(state) <= MAX_STATE_CHARACTERS and _STATE.fullmatch(state)
    return {"traceparent": parent} | ({"tracestate": state} if state and good else {})


def joined(headers: dict[str, str] | None, trace: dict[str, str]) -> dict[str, str] | None:
    """A message's headers, in the trace of its request unless they name another."""
    if not trace or (headers is not None and "traceparent" in headers):
        return headers
    return {**(headers or {}), **trace}


def parent_in(extras: bytes) -> str | None:
    """The `traceparent` among a message's `extras`."""
    found = _IN_EXTRAS.search(extras)
    return found[1].decode() if found and _PARENT.match(found[1].decode()) else None


def trace_in(text: bytes) -> dict[str, str]:
    """The trace that a message belongs to, by its JSON text; what is no message has none.

    Whatever the sender wrote there, what comes of it can stand in the headers of a request.
    """
    if b'"traceparent"' not in text:
        return {}
    try:
        headers = msgspec.json.decode(text, type=_Headed).headers
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return trace_of(headers.get)


def without_trace(extras: bytes) -> bytes:
    """A message's `extras` as they would be outside of any trace."""
    if not any(b'"%b"' % name.encode() in extras for name in NAMES):
        return extras
    fields: dict[str, Any] = msgspec.json.decode(b"{" + extras[1:] + b"}")
    headers = {name: value for name, value in fields.get("headers", {}).items() if name not in NAMES}
    fields = {name: value for name, value in fields.items() if name != "headers"} | (
        {"headers": headers} if headers else {}
    )
    return b"," + msgspec.json.encode(fields)[1:-1] if fields else b""
