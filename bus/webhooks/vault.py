"""Keeps secrets encrypted at rest: AES-256-GCM, each value bound to what it belongs to.

The key comes from SECRET_KEY, or from a file that is made at the first start, readable by its owner alone. Whoever has the
database without the key has no secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bus.key_file import key_of, older_keys
from bus.settings import Settings
from bus.storage import Transaction

log = logging.getLogger("bus.webhooks")

NONCE_BYTES = 12
_PURPOSE = "webhooks"


class WrongKey(Exception):
    """It was sealed with another key, for something else, or was changed."""


class Vault:
    """Immutable; any thread may use it. `key_id` tells keys apart, and says nothing of them. What `older` keys have sealed
    can be opened, too, until it is sealed anew."""

    def __init__(self, key: bytes, older: Sequence[bytes] = ()) -> None:
        self._cipher = AESGCM(key)
        self._older = [AESGCM(each) for each in older]
        self.key_id = hashlib.sha256(b"key id:" + key).hexdigest()[:8]

    @classmethod
    def of(cls, settings: Settings) -> Vault:
        """The vault of SECRET_KEY, or else of a file in DATA_DIR, which is made if it is missing. Raises StartRefused."""
        path = key_path(settings)
        key, previous = settings.secret_key, settings.secret_key_previous
        return cls(key_of(key, path, _PURPOSE), older_keys(key, previous, path, _PURPOSE))

    def seal(self, value: bytes, owner: str) -> bytes:
        """Encrypt a value of `owner`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        """Decrypt it. Raises WrongKey."""
        for cipher in (self._cipher, *self._older):
            with contextlib.suppress(InvalidTag, ValueError):
                return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
        raise WrongKey

    def seal_anew(self, transaction: Transaction, rows: str, keep: str) -> int:
        """Seal with the present key what an older one sealed; returns how much.

        `rows` gives (number, owner, sealed) of what was sealed with another key than its binding; `keep` stores (sealed,
        key_id, number). What no key opens is left as it is.
        """
        done = 0
        for number, owner, sealed in transaction.execute(rows, (self.key_id,)):
            with contextlib.suppress(WrongKey):
                transaction.execute(keep, (self.seal(self.open(sealed, owner), owner), self.key_id, number))
                done += 1
        if done:
            log.info("%d secrets were sealed anew with the present key", done, extra={"action": "sealed_anew"})
        return done


def key_path(settings: Settings) -> Path:
    """The key file, which is there unless SECRET_KEY always was."""
    return settings.data_path / "webhooks.key"
