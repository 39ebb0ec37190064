"""Keeps secrets encrypted at rest: AES-256-GCM, each value bound to what it belongs to.

The key comes from SECRET_KEY, or from a file that is made at the first start, readable by its owner alone. Whoever has the
database without the key has no secret.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bus.key_file import key_of

NONCE_BYTES = 12


class WrongKey(Exception):
    """It was sealed with another key, for something else, or was changed."""


class Vault:
    """Immutable; any thread may use it. `key_id` tells keys apart, and says nothing of them."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.key_id = hashlib.sha256(b"key id:" + key).hexdigest()[:8]

    @classmethod
    def of(cls, secret_key: str | None, path: Path) -> Vault:
        """The vault of SECRET_KEY, or else of the file at `path`, which is made if it is missing. Raises StartRefused."""
        return cls(key_of(secret_key, path, "webhooks"))

    def seal(self, value: bytes, owner: str) -> bytes:
        """Encrypt a value of `owner`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        """Decrypt it. Raises WrongKey."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError):
            raise WrongKey from None
