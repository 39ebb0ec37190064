"""API keys: `bus_<env>_<id>_<secret>_<check>`, made, read and stored.

The secret is 43 characters of base 62 from the system's generator, 256 bits: nothing that could be guessed, so what is kept
is a plain SHA-256 of the whole key. The last six characters are a CRC-32 of all before them, as in GitHub's tokens, so
that a typing error, and a scanner's false find, are told without a look at any key. A key is shown once, by the call that
makes it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from bus.errors import Malformed, NotFound, Unauthenticated
from bus.identity.caller import Caller, Grant
from bus.storage import Transaction

ID_LENGTH, SECRET_LENGTH, CHECK_LENGTH = 12, 43, 6
GRACE_SECONDS, MAX_GRACE_SECONDS = 86_400.0, 30 * 86_400.0
"""How long a rotated key stays valid beside its successor."""

MAX_KEYS = 10_000
MAX_LABEL = 200
USED_TO_US = 3_600_000_000
"""To how much the moment of the last use is rounded: an hour."""

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(
    rf"bus_[a-z0-9]{{1,16}}_([a-z0-9]{{{ID_LENGTH}}})_[A-Za-z0-9]{{{SECRET_LENGTH}}}_([A-Za-z0-9]{{{CHECK_LENGTH}}})\Z"
)
_COLUMNS = "id, label, digest, grants, created_at, expires_at, revoked_at, used_at, successor"


class Key(msgspec.Struct, frozen=True):
    """A key's row. Moments in microseconds since 1970. `successor`: the key that it was rotated to."""

    id: str
    label: str
    digest: bytes
    grant: Grant
    created_us: int
    expires_us: int | None
    revoked_us: int | None
    used_us: int | None
    successor: str | None

    def state(self, now_us: int) -> str:
        """active, expired or revoked."""
        if self.revoked_us is not None:
            return "revoked"
        return "expired" if self.expires_us is not None and self.expires_us <= now_us else "active"


class Made(msgspec.Struct, frozen=True):
    """A fresh key: its text, shown this once, and its row."""

    text: str
    key: Key


def key_digest(text: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(text.encode()).digest()


def check_of(text: str) -> str:
    """The six characters that end a key."""
    number = zlib.crc32(text.encode())
    found = ""
    for _ in range(CHECK_LENGTH):
        number, digit = divmod(number, 62)
        found = _DIGITS[digit] + found
    return found


def looks_like_one(text: str) -> bool:
    """True for what wants to be such a key."""
    return text.startswith("bus_")


def id_of(text: str) -> str | None:
    """The id in a key; None for what has not the form of one, or a wrong check: no key needs to be looked at."""
    found = _FORM.match(text)
    if found is None or not hmac.compare_digest(found[2], check_of(text[: -CHECK_LENGTH - 1])):
        return None
    return found[1]


def make(environment: str, label: str, grant: Grant, now_us: int, expires_us: int | None) -> Made:
    """A key that nobody had before."""
    key_id = "".join(secrets.choice(_DIGITS[:10] + _DIGITS[36:]) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(_DIGITS) for _ in range(SECRET_LENGTH))
    body = f"bus_{environment[:16]}_{key_id}_{secret}"
    text = f"{body}_{check_of(body)}"
    return Made(text, Key(key_id, label, key_digest(text), grant, now_us, expires_us, None, None, None))


# ---- rows, in the store's transactions


def read_keys(execute: Callable[..., Any], where: str = "true", bindings: tuple[Any, ...] = ()) -> list[Key]:
    """The rows that fit, by id."""
    rows = execute(f"SELECT {_COLUMNS} FROM api_keys WHERE {where} ORDER BY id", bindings)
    return [
        Key(key_id, label, bytes(digest), msgspec.json.decode(grants, type=Grant), created, *moments)
        for key_id, label, digest, grants, created, *moments in rows
    ]


def insert(transaction: Transaction, key: Key) -> None:
    """Keep a fresh key. Raises Malformed when there are too many."""
    if transaction.execute("SELECT count(*) FROM api_keys")[0][0] >= MAX_KEYS:
        raise Malformed(f"There are {MAX_KEYS} keys already; delete revoked ones.", code="too_many_keys")
    transaction.execute(
        "INSERT INTO api_keys (id, label, digest, grants, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
        (key.id, key.label, key.digest, msgspec.json.encode(key.grant).decode(), key.created_us, key.expires_us),
    )
    _changed(transaction)


def revoke(transaction: Transaction, key_id: str, now_us: int) -> Key:
    """End a key now; a second time changes nothing. Raises NotFound."""
    key = find(transaction.execute, key_id)
    if key.revoked_us is None:
        transaction.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ?", (now_us, key_id))
        _changed(transaction)
    return find(transaction.execute, key_id)


def delete(transaction: Transaction, key_id: str) -> None:
    """Forget a key, which ends it, too. Raises NotFound."""
    find(transaction.execute, key_id)
    transaction.execute("DELETE FROM api_keys WHERE id = ?", (key_id,))
    _changed(transaction)


def rotate(transaction: Transaction, key_id: str, successor: Key, grace_us: int, now_us: int) -> None:
    """Keep a successor, and have the key end after a grace: both are valid until then. Raises NotFound, Malformed."""
    key = find(transaction.execute, key_id)
    if key.state(now_us) != "active":
        raise Malformed("This key has ended; make a new one.", code="key_ended")
    if key.successor is not None:
        raise Malformed(f"This key was rotated to {key.successor} already; rotate that one.", code="key_rotated")
    insert(transaction, successor)
    ends = min(now_us + grace_us, key.expires_us if key.expires_us is not None else now_us + grace_us)
    transaction.execute("UPDATE api_keys SET expires_at = ?, successor = ? WHERE id = ?", (ends, successor.id, key_id))


def note_uses(transaction: Transaction, used: dict[str, int]) -> None:
    """Keep when keys were used last, to the hour; it is no change that anybody has to hear of."""
    for key_id, moment in used.items():
        transaction.execute(
            "UPDATE api_keys SET used_at = ?1 WHERE id = ?2 AND (used_at IS NULL OR used_at < ?1)",
            (moment - moment % USED_TO_US, key_id),
        )


def find(execute: Callable[..., Any], key_id: str) -> Key:
    """One key. Raises NotFound."""
    found = read_keys(execute, "id = ?", (key_id,))
    if not found:
        raise NotFound("There is no key with this id.", code="unknown_key")
    return found[0]


def version(execute: Callable[..., Any]) -> int:
    """Raised by every change of a key."""
    rows = execute("SELECT value FROM meta WHERE name = 'keys_version'")
    return int(rows[0][0]) if rows else 0


def _changed(transaction: Transaction) -> None:
    transaction.execute(
        "INSERT INTO meta VALUES ('keys_version', 1) ON CONFLICT (name) DO UPDATE SET value = meta.value + 1"
    )


# ---- what a process knows of them


class Keyring:
    """All keys as of one version, and the callers of those that are valid. Replaced as a whole; reads from any thread."""

    def __init__(self, keys: list[Key], at_version: int) -> None:
        self.version = at_version
        self._keys = {key.id: (key, caller_of(key)) for key in keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def check(self, text: str, now_us: int) -> Caller:
        """The caller of a key. Raises Unauthenticated."""
        key_id = id_of(text)
        found = self._keys.get(key_id) if key_id is not None else None
        if found is None or not hmac.compare_digest(found[0].digest, key_digest(text)):
            raise Unauthenticated("The key is not valid; send a valid one in X-API-Key.", code="bad_credential")
        key, caller = found
        state = key.state(now_us)
        if state != "active":
            raise Unauthenticated(f"The key is {state}; ask for a new one.", code="bad_credential")
        return caller

    def caller(self, key_id: str, now_us: int) -> Caller | None:
        """The caller of the key with this id; None when it is not valid (any more)."""
        found = self._keys.get(key_id)
        return found[1] if found is not None and found[0].state(now_us) == "active" else None


def caller_of(key: Key) -> Caller:
    """Whom a key stands for."""
    return Caller(f"key:{key.id}", key.grant, expires_us=key.expires_us)
