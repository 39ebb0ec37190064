"""Where the documented WebhookManager puts what it is given: `Local`, in memory, or the durable engine of a bus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from bus import __version__
from bus.errors import Malformed
from bus.webhooks import body, discord, signing, slack
from bus.webhooks.chat import Note
from bus.webhooks.policy import Kind

MAX_RETRIES = 100
MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 1.0, 30.0
MAX_EVENTS = 100

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]{0,1000}")
_USER_AGENT = f"multi-agent-bridge/{__version__}"


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets which events, and how. `events` are names and patterns; `kind` decides the form of what is sent."""

    url: str
    events: tuple[str, ...]
    secret: str | None = None
    headers: dict[str, str] = {}
    enabled: bool = True
    max_retries: int = 3
    timeout_seconds: float = 10.0
    kind: Kind = "http"

    def check(self) -> Receiver:
        """Raises Malformed with a sentence for whoever wrote it. Whether the URL may be called, the guard says."""
        if not 1 <= len(self.events) <= MAX_EVENTS:
            raise Malformed(f"An endpoint names 1 to {MAX_EVENTS} events.", code="bad_field", field="events")
        for pattern in self.events:
            body.check_pattern(pattern)
        if self.secret is not None:
            signing.key_of(self.secret)
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise Malformed(
                    "A header's name is a token, its value visible ASCII.", code="bad_field", field="headers"
                )
        if not 0 <= self.max_retries <= MAX_RETRIES:
            raise Malformed(f"max_retries is 0 to {MAX_RETRIES}.", code="bad_field", field="max_retries")
        if not MIN_TIMEOUT_SECONDS <= self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise Malformed(
                f"timeout is {MIN_TIMEOUT_SECONDS:g} to {MAX_TIMEOUT_SECONDS:g} seconds.",
                code="bad_field",
                field="timeout",
            )
        return self


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that ended without success. `error` is its class, `excerpt` the beginning of the last answer."""

    id: str
    event_id: str
    url: str
    event: str
    data: bytes
    occurred_us: int
    error: str
    status: int | None = None
    attempts: int = 0
    excerpt: bytes = b""
    failed_us: int = 0


class Outlet(Protocol):
    """Takes events and sees to their delivery. Any thread may call it; none of its verbs waits for a receiver."""

    @property
    def durable(self) -> bool:
        """Whether what is owed survives the process."""

    def add(self, receiver: Receiver) -> str:
        """Remember a receiver, instead of one with the same URL; its id. Raises Malformed, ForbiddenTarget."""

    def remove(self, url: str) -> bool:
        """Forget a receiver, and what it is owed. False: there was none."""

    def trigger(self, name: str, data: Any) -> None:
        """Owe an event to every receiver that wants it. Raises Malformed, TooLarge."""

    def stats(self) -> dict[str, Any]:
        """Figures since the start, and of now."""

    def failures(self, limit: int) -> list[Failure]:
        """The latest deliveries that failed for good, the oldest first."""

    def retry(self, url: str, delivery_id: str | None) -> int:
        """Owe failed deliveries anew, all of a receiver or one; how many."""

    def start(self) -> None:
        """Begin to send; a second call does nothing."""

    def stop(self, timeout_seconds: float) -> None:
        """Send no more, and wait so long for what is on its way."""


def kind_of(url: str) -> Kind:
    """What a URL is the address of. Never raises."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "http"
    if host in ("hooks.slack.com", "hooks.slack-gov.com"):
        return "slack"
    if re.fullmatch(r"(?:\w+\.)?discord(?:app)?\.com", host) and re.fullmatch(
        r"/api/(?:v\d+/)?webhooks/\d+/[\w-]+/?", parts.path
    ):
        return "discord"
    return "http"


def shown(url: str) -> str:
    """A URL as logs show it: without what may be a credential."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/…"


def compose(kind: Kind, url: str, notes: Sequence[Note]) -> tuple[str, bytes]:
    """The address and the body of a message to a chat: one event, or a digest of several."""
    form = slack if kind == "slack" else discord
    if len(notes) == 1:
        payload = form.message(notes[0])
    else:
        counts: dict[str, int] = {}
        for note in notes:
            counts[note.name] = counts.get(note.name, 0) + 1
        payload = form.digest(notes, counts)
    return discord.address(url) if kind == "discord" else url, body.encode(payload)


def request_headers(given: dict[str, str], ours: dict[str, str]) -> dict[str, str]:
    """All headers of a delivery; ours win over those given."""
    ours = {"Content-Type": "application/json", "User-Agent": _USER_AGENT, **ours}
    taken = {name.lower() for name in ours}
    return {name: value for name, value in given.items() if name.lower() not in taken} | ours
