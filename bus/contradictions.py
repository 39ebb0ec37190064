"""Settings that can't be together, or that mean nothing: what is told of the log, of JWTs, pages, webhooks and proxies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.errors import Malformed, StartRefused
from bus.webhooks import signing

if TYPE_CHECKING:
    from bus.settings import Settings

SHARED_ALGORITHMS = ("HS256", "HS384", "HS512")
SIGNING_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""What JWTs may be signed with, by a secret that the bus knows, too, and by a key of which it knows the public half."""


def check_jwt(settings: Settings) -> None:
    """Refuse JWTs that could not be checked, or could be forged. Raises StartRefused."""
    if settings.enable_auth is False and settings.jwt_on:
        raise StartRefused(
            "ENABLE_AUTH=false and JWT_SECRET or JWT_JWKS_URL contradict one another; remove one of them."
        )
    given = (settings.jwt_algorithms, settings.jwt_issuer, settings.jwt_audience)
    if not settings.jwt_on:
        if any(given) or settings.jwt_allow_admin:
            raise StartRefused(
                "JWTs need a key to be checked with: set JWT_SECRET or JWT_JWKS_URL, or no JWT_… at all."
            )
        return
    if settings.jwt_secret is not None and settings.jwt_jwks_url is not None:
        raise StartRefused("JWT_SECRET and JWT_JWKS_URL contradict one another; remove one of them.")
    if not settings.jwt_issuer or not settings.jwt_audience:
        raise StartRefused("JWTs need JWT_ISSUER and JWT_AUDIENCE: one for another service must not open this bus.")
    shared = settings.jwt_secret is not None
    known = SHARED_ALGORITHMS if shared else SIGNING_ALGORITHMS
    for name in settings.jwt_algorithm_names():
        if name not in known:
            source = "JWT_SECRET" if shared else "JWT_JWKS_URL"
            raise StartRefused(f"JWT_ALGORITHMS names {name}; with {source} it may hold {', '.join(known)}.")
        if settings.jwt_secret is not None and len(settings.jwt_secret.encode()) < int(name[2:]) // 8:
            raise StartRefused(
                f"JWT_SECRET is shorter than the {int(name[2:]) // 8} bytes that {name} needs; use a longer one."
            )
    where = settings.jwt_jwks_url or "https://"
    if "://" in where and not where.startswith(("https://", "file:///")):
        raise StartRefused(
            "JWT_JWKS_URL must be an https:// URL or a file; keys that came over http:// could be anyone's."
        )


def is_postgresql(url: str) -> bool:
    """True for a URL of PostgreSQL, also one that names a driver (postgresql+asyncpg://)."""
    return url.partition("://")[0].partition("+")[0] in ("postgresql", "postgres") and "://" in url


def check_database(settings: Settings) -> None:
    """Refuse a URL of a log that can't be one. Raises StartRefused."""
    if settings.postgres_url and not is_postgresql(settings.postgres_url):
        raise StartRefused(
            "POSTGRES_URL must begin with postgresql:// (for example postgresql://user:password@host/db)."
        )
    if settings.database_url and settings.postgres_url not in ("", settings.database_url):
        raise StartRefused("DATABASE_URL and POSTGRES_URL contradict one another; remove one of them.")
    url = settings.store_url
    if url and not url.startswith("sqlite:///") and not is_postgresql(url):
        raise StartRefused(
            "DATABASE_URL must begin with sqlite:/// (for example sqlite:///data/bus.db) or postgresql://."
        )
    if url in ("sqlite:///", "sqlite:///:memory:"):
        raise StartRefused("DATABASE_URL must name a file: messages that were acknowledged have to last.")


def check_pages(settings: Settings) -> None:
    """Origins and hosts are compared whole: what looks like a pattern would let in nobody, or was meant to let in all."""
    for origin in settings.origins():
        scheme, _, host = origin.partition("://")
        is_page = scheme in ("http", "https") or scheme.endswith("-extension")
        if not is_page or not host or set(host) & set("/*?#@, "):
            raise StartRefused(
                f"ALLOWED_ORIGINS has {origin!r}, which is no origin; list each as https://app.example.com, with its port if"
                " it has one. There is no pattern for all: a page of any site could then act as whoever looks at it."
            )
    for host in settings.hosts():
        if set(host) & set("/*?#@, "):
            raise StartRefused(
                f"ALLOWED_HOSTS has {host!r}, which is no host name; list each one whole, without a pattern."
            )


def check_webhooks(settings: Settings) -> None:
    try:
        signing.key_of(settings.webhook_secret or "unset")
    except Malformed as refusal:
        raise StartRefused(f"WEBHOOK_SECRET can't sign. {refusal.sentence}") from None
    try:
        targets = settings.targets()
    except ValueError:
        raise StartRefused(
            "WEBHOOK_ALLOWED_TARGETS must list networks like 127.0.0.0/8 or fd00::/8, with no bit set after the prefix."
        ) from None
    if any(network.prefixlen == 0 for network in targets):
        raise StartRefused(
            "WEBHOOK_ALLOWED_TARGETS names every address, also those of your cloud's credentials; name the networks of your"
            " receivers. Public addresses need no entry."
        )
    try:
        settings.webhook_callers()
    except ValueError:
        raise StartRefused(
            "ALLOWED_WEBHOOK_IPS must list addresses or networks like 192.168.1.0/24, with no bit set after the prefix."
        ) from None
    try:
        settings.target_ports()
    except ValueError:
        raise StartRefused("WEBHOOK_ALLOWED_PORTS must list ports from 1 to 65535, separated by commas.") from None


def check_proxies(settings: Settings) -> None:
    try:
        networks = settings.proxies()
    except ValueError:
        raise StartRefused(
            "TRUSTED_PROXIES must list networks like 127.0.0.1/32 or 10.1.0.0/16, with no bit set after the prefix."
        ) from None
    if any(not network.prefixlen for network in networks):
        raise StartRefused("TRUSTED_PROXIES trusts the whole world, so any header would do; list your proxies alone.")
