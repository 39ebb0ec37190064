"""Signatures of webhooks, over the bytes that are sent.

Standard Webhooks: `webhook-signature: v1,<base64>`, HMAC-SHA256 of `<id>.<timestamp>.<body>`, one for each secret that is
valid while a secret is being changed. Beside it stands `X-Webhook-Signature` for receivers of version 1.2: the hex
HMAC-SHA256 of the body alone.

With a key pair (Ed25519) a receiver can check what it could not sign: `v1a,<base64>` over the same bytes, in the same
header. The private key is `whsk_` and the base64 of its 32 bytes, the public one `whpk_` and the base64 of its own.

A secret is `whsec_` and the base64 of 24 to 64 bytes, or any other text, whose UTF-8 bytes are then the key. The key of
`X-Webhook-Signature` is always the secret's text as it stands, as version 1.2 took it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets as random_bytes
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bus.errors import BusError, Malformed
from bus.webhooks import body as bodies

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PREFIX, PRIVATE_PREFIX, PUBLIC_PREFIX = "whsec_", "whsk_", "whpk_"
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
MAX_SECRET = 256

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def new_secret() -> str:
    """A secret of 32 random bytes."""
    return PREFIX + base64.b64encode(random_bytes.token_bytes(32)).decode()


def key_of(secret: str) -> bytes:
    """The key that signs for Standard Webhooks. Raises Malformed, with a sentence that does not hold the secret."""
    if secret.startswith((PRIVATE_PREFIX, PUBLIC_PREFIX)):
        raise _bad_secret("is half of a key pair; a secret begins with whsec_, or is any other text.")
    try:
        key = base64.b64decode(secret[len(PREFIX) :], validate=True) if secret.startswith(PREFIX) else secret.encode()
    except (binascii.Error, ValueError):
        raise _bad_secret("is no base64 behind whsec_, or no Unicode text; let the bus make one.") from None
    if secret.startswith(PREFIX) and not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise _bad_secret(f"holds {len(key)} bytes; {MIN_KEY_BYTES} to {MAX_KEY_BYTES} may stand behind whsec_.")
    if not 0 < len(secret) <= MAX_SECRET:
        raise _bad_secret(f"has {len(secret)} characters; give 1 to {MAX_SECRET}, or None to send unsigned.")
    return key


def new_private_key() -> str:
    """The private half of a key pair."""
    return PRIVATE_PREFIX + base64.b64encode(random_bytes.token_bytes(32)).decode()


def public_key_of(private_key: str) -> str:
    """The half that receivers get."""
    return PUBLIC_PREFIX + base64.b64encode(_private(private_key).public_key().public_bytes_raw()).decode()


def sign_asymmetric(private_key: str, event_id: str, timestamp: int, body: bytes) -> str:
    """One signature by a key pair: `v1a,<base64>`."""
    signature = _private(private_key).sign(content(event_id, timestamp, body))
    return "v1a," + base64.b64encode(signature).decode()


class PublicKey:
    """Checks signatures by a key pair. Raises Malformed for what is no `whpk_` and base64 of 32 bytes."""

    def __init__(self, text: str) -> None:
        self._key: Ed25519PublicKey = _ed25519().Ed25519PublicKey.from_public_bytes(_raw(text, PUBLIC_PREFIX))

    def verifies(self, signature: str, event_id: str, timestamp: int, body: bytes) -> bool:
        """Whether a `v1a,<base64>` is right. Never raises."""
        try:
            given = base64.b64decode(signature.removeprefix("v1a,").encode("ascii"), validate=True)
            self._key.verify(given, content(event_id, timestamp, body))
        except (ValueError, import_module("cryptography.exceptions").InvalidSignature):
            return False
        return signature == "v1a," + base64.b64encode(given).decode()


def content(event_id: str, timestamp: int, body: bytes) -> bytes:
    """What Standard Webhooks signs."""
    return b"%b.%d.%b" % (event_id.encode(), timestamp, body)


def sign(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """One signature of Standard Webhooks: `v1,<base64>`. `timestamp` is in Unix seconds."""
    digest = hmac.digest(key, content(event_id, timestamp, body), "sha256")
    return "v1," + base64.b64encode(digest).decode()


def sign_body(secret: str, body: bytes) -> str:
    """The hex HMAC-SHA256 of the body alone, as version 1.2 has it."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def headers(
    event_id: str, timestamp: int, body: bytes, secrets: Sequence[str], private_keys: Sequence[str] = ()
) -> dict[str, str]:
    """The headers that say what is sent, and prove who sent it.

    `timestamp`: Unix seconds of this attempt. `secrets` and `private_keys`: all that are valid, the newest first; none sends
    unsigned.
    Version 1.2 knows one signature only: it is made with the oldest secret, so that such a receiver has until the end of
    its time to learn the new one. Raises Malformed for an id with a dot in it, or a bad secret.
    """
    if not _ID.fullmatch(event_id):
        raise Malformed("The id of a webhook has 1 to 128 of A-Z a-z 0-9 _ -, and no dot.", code="bad_id", field="id")
    made = {"webhook-id": event_id, "webhook-timestamp": str(timestamp)}
    signatures = [sign(key_of(secret), event_id, timestamp, body) for secret in secrets]
    signatures += [sign_asymmetric(key, event_id, timestamp, body) for key in private_keys]
    if signatures:
        made["webhook-signature"] = " ".join(signatures)
    if secrets:
        made["X-Webhook-Signature"] = sign_body(secrets[-1], body)
    return made


def verify_signature(payload: Any, signature: Any, secret: Any) -> bool:
    """Whether an `X-Webhook-Signature` is right. In constant time, and never an exception: garbage is wrong.

    Give the raw body, as bytes or text. Of a payload that was parsed already, the text is made anew; that is the text that
    was sent only if the sender writes JSON as we do (`body.encode`), or signs as version 1.2 did.
    """
    if not isinstance(signature, str) or not isinstance(secret, str) or not secret:
        return False
    try:
        expected = [sign_body(secret, form) for form in _forms(payload)]
    except (BusError, UnicodeError, TypeError, ValueError, RecursionError):
        return False
    given = signature.strip().encode("ascii", "replace")
    return any(hmac.compare_digest(given, digest.encode()) for digest in expected)


def _forms(payload: Any) -> list[bytes]:
    if isinstance(payload, bytes | bytearray | memoryview):
        return [bytes(payload)]
    if isinstance(payload, str):
        return [payload.encode()]
    return [bodies.encode(payload), json.dumps(payload, sort_keys=True).encode()]


def _private(text: str) -> Ed25519PrivateKey:
    key: Ed25519PrivateKey = _ed25519().Ed25519PrivateKey.from_private_bytes(_raw(text, PRIVATE_PREFIX))
    return key


def _ed25519() -> Any:
    return import_module("cryptography.hazmat.primitives.asymmetric.ed25519")


def _raw(text: str, prefix: str) -> bytes:
    try:
        key = base64.b64decode(text.removeprefix(prefix).encode("ascii"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(prefix) or len(key) != 32:
        raise Malformed(f"The key is no {prefix} and the base64 of 32 bytes.", code="bad_secret", field="secret")
    return key


def _bad_secret(problem: str) -> Malformed:
    return Malformed(f"The secret {problem}", code="bad_secret", field="secret")
