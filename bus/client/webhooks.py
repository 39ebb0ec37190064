"""For programs that receive webhooks: is this from the bus, fresh, and new? No framework is needed, and nothing is raised by
what a stranger sends.

    receiver = WebhookReceiver("whsec_…")                       # several secrets while one is being changed

    status = receiver.receive(headers, raw_body, handle)        # in any framework; answer with this status

`handle` is called once for each event: a repeat is answered without it. If it raises, the bus comes again later. Give the
raw bytes of the body: JSON that was parsed and written anew is not what was signed.
"""

from __future__ import annotations

import hmac
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import msgspec

from bus.webhooks import signing

TOLERANCE_SECONDS = 300.0
"""How far the stamp of an attempt may be from now, in either direction."""

MAX_SIGNATURES = 20

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_STAMP = re.compile(r"[0-9]{1,12}")

Reason = Literal["no_header", "bad_header", "too_old", "too_new", "bad_signature", "bad_body"]


Body = bytes | bytearray | memoryview | str


class Headers(Protocol):
    """The headers of a request, as any framework has them."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Names and values."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether a request is from the bus. `reason` says why not; `id` is the same for each repeat of an event."""

    ok: bool
    reason: Reason | None = None
    id: str = ""
    timestamp: int = 0
    body: bytes = b""

    @property
    def payload(self) -> Any:
        """The body, parsed: `type`, `timestamp`, `data`. None if it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


class Seen(Protocol):
    """Remembers ids. Several processes of one receiver need one that they share, such as a table with a unique key."""

    def begin(self, id: str) -> Literal["new", "busy", "done"]:
        """Claim an id: new, it is yours now; busy, somebody is at it; done, it was handled."""

    def end(self, id: str, *, done: bool) -> None:
        """The claim ends: it was handled, or it may come again."""


class SeenIds:
    """In memory, thread-safe. Beyond `limit` the oldest is forgotten: have room for what comes in ten minutes, at least."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._done: OrderedDict[str, None] = OrderedDict()

    def begin(self, id: str) -> Literal["new", "busy", "done"]:
        with self._lock:
            if id in self._done:
                return "done"
            if id in self._busy:
                return "busy"
            self._busy.add(id)
            return "new"

    def end(self, id: str, *, done: bool) -> None:
        with self._lock:
            self._busy.discard(id)
            if done:
                self._done[id] = None
                while len(self._done) > self._limit:
                    self._done.popitem(last=False)


class WebhookReceiver:
    """Thread-safe. Raises bus.errors.Malformed for a secret that can't be one, here and nowhere else."""

    def __init__(
        self,
        *secrets: str,
        tolerance_seconds: float = TOLERANCE_SECONDS,
        seen: Seen | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`secrets`: any of them is good, public keys (`whpk_…`) among them. `seen`: where handled ids are kept; None: in
        memory. `now`: Unix seconds."""
        if not secrets:
            raise ValueError(
                "Give the secret of the endpoint; what is not signed can't be told from what a stranger sends."
            )
        public = [secret for secret in secrets if secret.startswith(signing.PUBLIC_PREFIX)]
        self._keys = [signing.key_of(secret) for secret in secrets if secret not in public]
        self._public_keys = [signing.PublicKey(key) for key in public]
        self._tolerance_seconds = tolerance_seconds
        self._seen = SeenIds() if seen is None else seen
        self._now = now

    def check(self, headers: Headers, body: Body) -> Verdict:
        """Whether these headers (names in any case) and this raw body come from the bus. Never raises; remembers nothing."""
        try:
            raw = body.encode() if isinstance(body, str) else bytes(memoryview(body))
        except (TypeError, UnicodeEncodeError):
            return Verdict(False, "bad_body")
        found = _headers(headers)
        if found is None:
            return Verdict(False, "no_header")
        event_id, stamp, signatures = found
        if not _ID.fullmatch(event_id) or not _STAMP.fullmatch(stamp):
            return Verdict(False, "bad_header")
        age = self._now() - int(stamp)
        if abs(age) > self._tolerance_seconds:
            return Verdict(False, "too_old" if age > 0 else "too_new")
        if not self._is_signed(signatures.split(" ", MAX_SIGNATURES)[:MAX_SIGNATURES], event_id, int(stamp), raw):
            return Verdict(False, "bad_signature")
        return Verdict(True, None, event_id, int(stamp), raw)

    def _is_signed(self, signatures: list[str], event_id: str, stamp: int, raw: bytes) -> bool:
        expected = [signing.sign(key, event_id, stamp, raw).encode() for key in self._keys]
        given = [signature.encode("ascii", "replace") for signature in signatures]
        if any([hmac.compare_digest(mine, theirs) for mine in expected for theirs in given]):  # noqa: C419  # all, in constant time
            return True
        paired = [signature for signature in signatures if signature.startswith("v1a,")]
        return any(key.verifies(signature, event_id, stamp, raw) for key in self._public_keys for signature in paired)

    def receive(self, headers: Headers, body: Body, handle: Callable[[Verdict], object]) -> int:
        """Check a request and have it handled, once. Returns the status to answer with: 204 handled, 200 a repeat, 401 not
        from the bus, 409 the same is being handled just now. Raises what `handle` raises."""
        verdict = self.check(headers, body)
        if not verdict.ok:
            return 401
        claim = self._seen.begin(verdict.id)
        if claim != "new":
            return 200 if claim == "done" else 409
        done = False
        try:
            handle(verdict)
            done = True
        finally:
            self._seen.end(verdict.id, done=done)
        return 204


def _headers(headers: Headers) -> tuple[str, str, str] | None:
    """Id, timestamp and signatures, each there once. None: not so."""
    wanted: dict[str, list[str]] = {"webhook-id": [], "webhook-timestamp": [], "webhook-signature": []}
    try:
        pairs: list[tuple[Any, Any]] = list(headers.items())
    except (AttributeError, TypeError, ValueError):
        return None
    for name, value in pairs:
        lower = name.lower() if isinstance(name, str) else ""
        if lower in wanted:
            wanted[lower].append(value)
    values = [value[0] for value in wanted.values() if len(value) == 1 and isinstance(value[0], str)]
    return (values[0], values[1], values[2]) if len(values) == 3 else None
