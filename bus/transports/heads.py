"""Which requests the lane serves: the plain heads of sends and of probes, read with llhttp. All others are Flask's.

A head is plain when nothing about it needs a decision: one of a few request lines, each header once and none out of the
ordinary, no page behind it; of a send a JSON body of announced and lawful length and a Host of this machine; of a probe no
body, and no wish for another form than JSON. Whatever is not plain is no error here; Flask says what is wrong with it, if
anything is. Clients send the same head again and again, so those without a value of their own in it are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from bus.errors import BusError

if TYPE_CHECKING:
    from bus.auth import Auth, Headers
    from bus.identity.caller import Caller
    from bus.transports.sends import Asked, Header, Sends

MAX_HEAD_BYTES = 8190
"""As long as gunicorn lets a single header be, unless it is told otherwise."""

HEADS_REMEMBERED = 1000

_PLAIN_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?\Z")
_PLAIN_LENGTH = re.compile(r"[0-9]{1,10}\Z")
_FOR_FLASK = frozenset(
    {
        "content-encoding",
        "cookie",
        "expect",
        "http2-settings",
        "origin",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-protocol",
        "x-forwarded-ssl",
    }
)
"""Headers that ask for something. Of the three that tell of a proxy's scheme one may come, since two could contradict."""

_CHANGING = ("x-request-id", "idempotency-key", "traceparent")
"""Headers whose value is another one each time."""

Read = Callable[[bytes, "Header", "Caller"], "Asked"]
"""Reads a body, with what its head says, for who asks."""


Probe = Callable[["Headers"], tuple[int, bytes]]
"""Answers a probe from memory: the status, and the JSON text."""


class Head:
    """A plain head: how long its body is, how the body is read, and whether the connection goes on after it.

    `probe`: what answers a probe, which has no body to read.
    """

    __slots__ = ("_fields", "caller", "keep_alive", "length", "path", "probe", "read")

    def __init__(self, path: str, fields: dict[str, str], read: Read | None, probe: Probe | None = None) -> None:
        self.path = path
        self.read = read
        self.caller: Caller | None = None  # whose credential it holds, once that was found to be good
        self.probe = probe
        self.length = int(fields.get("content-length", "0"))
        self.keep_alive = fields.get("connection", "").lower() != "close"
        self._fields = fields

    def get(self, name: str, /) -> str | None:
        """A header's value, whatever its name's case; None when it is not there."""
        return self._fields.get(name.lower())


class Heads:
    """Reads heads for one process. Event loop only. `_plain` remembers; it is emptied when full."""

    def __init__(
        self, sends: Sends, auth: Auth, *, max_fields: int, max_bytes: int, probes: Mapping[str, Probe] | None = None
    ) -> None:
        """`max_fields` and `max_bytes` are gunicorn's limits, of a head and of one header; 0 means its own. `probes`: by
        their paths."""
        self._auth = auth
        self._max_fields = max_fields
        self.max_bytes = min(max_bytes or MAX_HEAD_BYTES, MAX_HEAD_BYTES)
        self._plain: dict[bytes, Head] = {}
        calls: dict[str, tuple[Read, int]] = {
            "/send": (sends.single, sends.max_bytes),
            "/send/batch": (sends.batch, sends.max_batch_bytes),
        }
        self._calls = {prefix + path: call for prefix in ("/api", "/api/v1") for path, call in calls.items()}
        self._probes = dict(probes or {})
        asked = [("POST", path) for path in self._calls] + [("GET", path) for path in self._probes]
        self._lines = tuple(f"{method} {path} HTTP/1.1\r\n".encode() for method, path in asked)

    def may_become(self, beginning: bytes) -> bool:
        """True when more could make a plain head of what is there of one."""
        if len(beginning) >= self.max_bytes:
            return False
        return beginning.startswith(self._lines) or any(line.startswith(beginning) for line in self._lines)

    def find(self, text: bytes) -> Head | None:
        """The head that `text`, up to and with its empty line, is; None when it is Flask's."""
        head = self._plain.get(text)
        if head is not None or not text.startswith(self._lines):
            return head
        head = self._read(text)
        if head is not None and not any(map(head.get, _CHANGING)):
            if len(self._plain) >= HEADS_REMEMBERED:
                self._plain.clear()
            self._plain[text] = head
        return head

    def _read(self, text: bytes) -> Head | None:
        fields = _fields_of(text, self._max_fields)
        if fields is None or not fields.keys().isdisjoint(_FOR_FLASK):
            return None
        if fields.get("connection", "").lower() not in ("", "keep-alive", "close") or not _PLAIN_HOST.match(
            fields.get("host", "")
        ):
            return None
        path = text.split(b" ", 2)[1].decode()
        if probe := self._probes.get(path):
            is_plain = "content-length" not in fields and fields.get("accept", "") in ("", "*/*", "application/json")
            return Head(path, fields, None, probe) if is_plain else None
        read, longest = self._calls[path]
        if (
            fields.get("content-type", "").partition(";")[0].strip().lower() != "application/json"
            or not _PLAIN_LENGTH.match(fields.get("content-length", ""))
            or int(fields["content-length"]) > longest
        ):
            return None
        try:
            self._auth.check_host(fields["host"])
        except BusError:
            return None
        return Head(path, fields, read)


class _Collector:
    """What llhttp finds in a head."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, str]] = []
        self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        self.is_whole = True


def _fields_of(text: bytes, most: int) -> dict[str, str] | None:
    """The headers by their names in lower case; None when the head is wrong, or one comes twice, or has an underscore."""
    found = _Collector()
    try:
        HttpRequestParser(found).feed_data(text)
    except (HttpParserError, HttpParserUpgrade):
        return None
    fields = dict(found.fields)
    if not found.is_whole or not len(fields) == len(found.fields) <= (most or len(fields)):
        return None
    return None if any("_" in name for name in fields) else fields
