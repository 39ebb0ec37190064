"""Whether a webhook is from whom it says: one check for every scheme, over the bytes as they came. Pure: no I/O.

A scheme (bus.ingress.schemes) says what a request claims: what was signed, the signatures given, and when. `verify` holds
that against every valid secret, in constant time, and only then looks at the clock. A request that claims nothing costs
the same work, so its sender learns nothing from the time that a refusal takes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

TOLERANCE_US = 300_000_000
"""How far the time that was signed may be from ours, either way."""

Algorithm = Literal["sha256", "sha1"]
Outcome = Literal["right", "bad_signature", "stale", "no_secret"]


class Headers(Protocol):
    """Where a request's headers are looked up, whatever their case."""

    def get(self, name: str, /) -> str | None: ...


class Request(msgspec.Struct, frozen=True):
    """What came. `body` as it came; `url` as the sender wrote it, for schemes that sign it."""

    headers: Headers
    body: bytes
    url: str = ""

    def header(self, name: str) -> str:
        """A header's value; empty without one."""
        return self.headers.get(name) or ""


class Claim(msgspec.Struct, frozen=True):
    """What a request says of itself.

    `signed`: the pieces of what was signed; several forms of it, where senders differ. `given`: signatures as bytes.
    `stamp_us`: the time that was signed, in microseconds since 1970; None where the scheme has none. `delivery`: the
    sender's id of the event, where a header has it.
    """

    signed: tuple[tuple[bytes, ...], ...]
    given: tuple[bytes, ...]
    stamp_us: int | None = None
    delivery: str | None = None
    algorithm: Algorithm = "sha256"


class Scheme(Protocol):
    """How one sort of sender signs. `timed`: what is signed holds a time, so that a repeat differs from a replay.

    `delivery_at`, `event_at`: JSON pointers to the event's id and name in a body; `event_header` a header with the name.
    """

    name: str
    timed: bool
    delivery_at: str
    event_at: str
    event_header: str

    def key(self, secret: str) -> bytes:
        """The key of a secret. Raises Malformed for one that can't be any."""
        ...

    def claim(self, request: Request) -> Claim | None:
        """What a request claims; None when its headers are not this scheme's."""
        ...


class Proof(msgspec.Struct, frozen=True):
    """What a good signature proved. `nonce`: a digest of what was signed, the same for every secret it was signed with."""

    nonce: bytes
    delivery: str | None


def verify(scheme: Scheme, request: Request, secrets: Sequence[str], now_us: int) -> tuple[Outcome, Proof | None]:
    """Whether a request was signed with one of the secrets, within the tolerance. `now_us`: the wall's clock.

    `stale`: the signature is right, the time is not. Never raises for what a request holds.
    """
    claim = scheme.claim(request) or Claim(((request.body,),), ())
    right = False
    for key in [scheme.key(secret) for secret in secrets] or [b"no secret"]:
        for form in claim.signed:
            digest = _mac(key, form, claim.algorithm)
            for given in claim.given:
                right |= hmac.compare_digest(digest, given)
    if not secrets:
        return "no_secret", None
    if not right:
        return "bad_signature", None
    if claim.stamp_us is not None and abs(now_us - claim.stamp_us) > TOLERANCE_US:
        return "stale", None
    nonce = hashlib.blake2b(digest_size=16)
    for piece in claim.signed[0]:
        nonce.update(piece)
    return "right", Proof(nonce.digest(), claim.delivery)


def _mac(key: bytes, pieces: Sequence[bytes], algorithm: Algorithm) -> bytes:
    mac = hmac.new(key, digestmod=algorithm)
    for piece in pieces:
        mac.update(piece)
    return mac.digest()
