"""Keeps secrets encrypted at rest: AES-256-GCM, each value bound to what it belongs to.

The key comes from SECRET_KEY, or from a file that is made at the first start, readable by its owner alone. Whoever has the
database without the key has no secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bus.errors import StartRefused

KEY_BYTES = 32
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
        if secret_key is not None:
            return cls(
                hashlib.scrypt(secret_key.encode(), salt=b"multi-agent-bridge webhooks", n=2**14, r=8, p=1, dklen=32)
            )
        try:
            key = _key_in(path)
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            raise StartRefused(
                f"The key file {path} can't be read or made ({error.strerror}); mend its owner and mode, or set SECRET_KEY."
            ) from None
        if mode & 0o077:
            raise StartRefused(
                f"The key file {path} can be read by other users (mode {mode:o}); say chmod 600 {path}, and"
                " rotate the secrets of the endpoints if somebody else was on this machine."
            )
        if len(key) != KEY_BYTES:
            raise StartRefused(f"The key file {path} is damaged; restore it from a copy, or set SECRET_KEY.")
        return cls(key)

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


def _key_in(path: Path) -> bytes:
    """What the file holds. Several processes may make it at once: the first to link it wins."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, made = tempfile.mkstemp(prefix=".key-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(made, path)
        finally:
            os.unlink(made)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return path.read_bytes()
