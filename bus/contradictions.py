"""Settings that can't be together: what is told of JWTs has to make a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.errors import StartRefused

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
