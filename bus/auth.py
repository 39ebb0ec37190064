"""Who is calling: credentials, the Host and Origin checks. No Flask here; headers come in as a mapping.

In this version there is one key, an admin's. It may act for any client name, so what is sent with it carries no
`verified`. With auth off, whoever reaches the port may do everything, so the Host is checked against DNS rebinding.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Protocol
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
    """Decides from the headers. Immutable after `use`; safe from any greenlet."""

    def __init__(self, settings: Settings) -> None:
        self.on = settings.auth_on
        self._digest = key_digest(settings.api_key) if settings.api_key else ""
        self._origins = settings.origins()
        self._hosts = settings.hosts() | {settings.message_bus_host}

    @property
    def needs_first_key(self) -> bool:
        """True when auth is on and no key is set, so that the store's has to be used, or made."""
        return self.on and not self._digest

    def use(self, digest: str) -> None:
        """Accept the key with this digest."""
        self._digest = digest

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
