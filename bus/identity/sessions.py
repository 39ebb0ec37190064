"""Session cookies: who logged in with which credential, signed, so that nothing of it is kept.

A session lives 12 hours, or as long as its credential if that is less, and ends with it. Its id is what a logout revokes.
"""

from __future__ import annotations

import hashlib
import secrets

import msgspec
from itsdangerous import BadData, URLSafeSerializer

from bus.errors import Malformed, Unauthenticated
from bus.identity.references import Reference

LIFE_SECONDS = 12 * 3600
MAX_CHARACTERS = 3800
"""Browsers keep cookies up to 4,096 bytes, with their names and attributes."""


class Session(msgspec.Struct, frozen=True):
    """What a cookie says. `expires_us` in microseconds since 1970."""

    id: str
    reference: Reference
    expires_us: int

    @property
    def revocable(self) -> str:
        """What it is revoked by."""
        return f"session:{self.id}"


class Sessions:
    """Signs and reads cookies. Immutable; safe from any thread."""

    def __init__(self, key: bytes) -> None:
        self._signer = URLSafeSerializer(
            key, salt="session", signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"}
        )

    def begin(self, reference: Reference, now_us: int) -> tuple[str, Session]:
        """A fresh session, and its cookie. Raises Malformed when a cookie could not hold it."""
        ends_us = now_us + LIFE_SECONDS * 1_000_000
        if reference.expires_us is not None:
            ends_us = min(ends_us, reference.expires_us)
        session = Session(secrets.token_urlsafe(16), reference, ends_us)
        text = str(self._signer.dumps(msgspec.to_builtins(session)))
        if len(text) > MAX_CHARACTERS:
            raise Malformed(
                "This credential's grants are too long for a cookie; use one that names fewer clients and patterns.",
                code="grants_too_long",
            )
        return text, session

    def read(self, text: str) -> Session:
        """What a cookie says, whether it has ended or not. Raises Unauthenticated."""
        if len(text) > MAX_CHARACTERS:
            raise ended()
        try:
            return msgspec.convert(self._signer.loads(text), Session)
        except (BadData, msgspec.ValidationError):
            raise ended() from None


def ended() -> Unauthenticated:
    """The refusal of a session."""
    return Unauthenticated("The session has ended; log in again with POST /api/session.", code="session_ended")
