"""A key that lasts: derived from SECRET_KEY, or kept in a file made at the first start, readable by its owner alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from bus.errors import StartRefused

KEY_BYTES = 32


def key_of(secret_key: str | None, path: Path, purpose: str) -> bytes:
    """The key of SECRET_KEY for a purpose, or else of the file at `path`, made if it is missing. Raises StartRefused."""
    if secret_key is not None:
        salt = f"multi-agent-bridge {purpose}".encode()
        return hashlib.scrypt(secret_key.encode(), salt=salt, n=2**14, r=8, p=1, dklen=KEY_BYTES)
    try:
        key = _key_in(path)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise StartRefused(
            f"The key file {path} can't be read or made ({error.strerror}); mend its owner and mode, or set SECRET_KEY."
        ) from None
    if mode & 0o077:
        raise StartRefused(
            f"The key file {path} can be read by other users (mode {mode:o}); say chmod 600 {path}, and change what it keeps"
            " or signs if somebody else was on this machine."
        )
    if len(key) != KEY_BYTES:
        raise StartRefused(f"The key file {path} is damaged; restore it from a copy, or set SECRET_KEY.")
    return key


def older_keys(secret_key: str | None, previous: str | None, path: Path, purpose: str) -> list[bytes]:
    """Keys that may have been in force before. Raises StartRefused.

    Of SECRET_KEY_PREVIOUS; of the file that was put aside (`rotate`); with a SECRET_KEY, of the file that was in its place.
    """
    keys = [key_of(previous, path, purpose)] if previous is not None else []
    files = [put_aside(path), *([path] if secret_key is not None else [])]
    return keys + [key_of(None, file, purpose) for file in files if file.exists()]


def put_aside(path: Path) -> Path:
    """Where the key before the present one is."""
    return path.with_name(f"{path.name}.previous")


def rotate(path: Path) -> Path:
    """Put a fresh key into the file, and the old one aside, whose path is returned. Raises StartRefused.

    What the old one sealed is sealed anew at the next start. The old one has its new name before the file changes, so
    whatever happens in between, both are there.
    """
    aside = put_aside(path)
    if not path.exists():
        raise StartRefused(f"There is no key file {path}, so there is nothing to rotate.")
    if aside.exists():
        raise StartRefused(
            f"{aside} is still there: start the bus once, see that it works, remove the file, then rotate again."
        )
    key_of(None, path, "")
    os.link(path, aside)
    made = path.with_name(f".{path.name}.new")
    made.unlink(missing_ok=True)
    _key_in(made)
    os.replace(made, path)
    return aside


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
