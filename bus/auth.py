"""Who is calling: credentials, the Host and Origin checks. No Flask here; headers come in as a mapping.

In this version there is one key, an admin's. It may act for any client name, so what is sent with it carries no
`verified`. With auth off, whoever reaches the port may do everything, so the Host is checked against DNS rebinding.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sys
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import msgspec

from bus.errors import Forbidden, Unauthenticated
from bus.settings import Settings, is_loopback


class Headers(Protocol):
    """Where a request's headers are looked up, whatever their case."""

    def get(self, name: str, /) -> str | None: ...


class Caller(msgspec.Struct, frozen=True):
    """Who a request comes from. `admin` may do everything; `credential` says that a valid key was shown."""

    admin: bool
    credential: bool


ANYBODY = Caller(admin=True, credential=False)
ADMIN = Caller(admin=True, credential=True)


def key_digest(key: str) -> str:
    """What is kept of a key. Keys are long and random, so a plain hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh key: 32 random bytes behind the prefix that keys of this bus have."""
    return f"cb_{secrets.token_urlsafe(32)}"


class Auth:
    """Decides from the headers. Immutable after `take_first_key`; safe from any greenlet."""

    def __init__(self, settings: Settings) -> None:
        self.on = settings.auth_on
        self._digest = key_digest(settings.api_key) if settings.api_key else ""
        self._origins = settings.origins()
        self._hosts = settings.hosts() | {settings.message_bus_host}

    def take_first_key(self, write: Callable[[Callable[[Any], str]], str]) -> None:
        """With auth on and no API_KEY: use the key made at the first start, or make it and print it, once.

        `write(job)` runs `job(transaction)` in the store's writer, and returns its value.
        """
        if not self.on or self._digest:
            return
        key = new_key()

        def job(transaction: Any) -> str:
            transaction.execute("INSERT OR IGNORE INTO meta VALUES ('admin_key_digest', ?)", (key_digest(key),))
            return str(transaction.execute("SELECT value FROM meta WHERE name = 'admin_key_digest'")[0][0])

        self._digest = write(job)
        if secrets.compare_digest(self._digest, key_digest(key)):
            sys.stdout.write(f"\nThe admin key of this bus, shown this once: {key}\n\n")
            sys.stdout.flush()

    def caller(self, headers: Headers) -> Caller | None:
        """Who calls, from `X-API-Key` or `Authorization: Bearer`; None without a credential. Raises Unauthenticated."""
        if not self.on:
            return ANYBODY
        key = headers.get("X-API-Key") or ""
        if not key:
            scheme, _, token = (headers.get("Authorization") or "").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else ""
        return self.check(key) if key else None

    def check(self, key: str) -> Caller:
        """The caller of a key. Raises Unauthenticated."""
        if not hmac.compare_digest(key_digest(key), self._digest):
            raise Unauthenticated("The key is not valid; send a valid one in X-API-Key.", code="bad_credential")
        return ADMIN

    def check_host(self, host: str) -> None:
        """With auth off, answer only to names of this machine: a foreign name means DNS rebinding. Raises Forbidden."""
        if self.on:
            return
        name = _parts(f"//{host}").hostname or ""
        if name not in self._hosts and not is_loopback(name):
            raise Forbidden(
                "This Host name is not answered while auth is off; use localhost, or name it in ALLOWED_HOSTS.",
                code="host_not_allowed",
            )

    def check_origin(self, origin: str | None, host: str) -> None:
        """A page may open a socket to its own host, or from ALLOWED_ORIGINS. No Origin: no browser. Raises Forbidden."""
        if origin is None:
            return
        given = origin.rstrip("/").lower()
        if given in self._origins:
            return
        if host and _parts(given).netloc == host.lower():
            return
        raise Forbidden(
            "Pages of this Origin may not connect; serve the page from the bus's own host, or name it in ALLOWED_ORIGINS.",
            code="origin_not_allowed",
        )


def _parts(url: str) -> SplitResult:
    """`urlsplit`, for what strangers send: no parts when it can't be read."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
