"""JWTs (RFC 7519): credentials that somebody else gives out. Who shows one, and what it grants.

How a token is checked stands in the settings alone: the algorithms, the key set, issuer and audience. It must say `exp`,
`nbf`, `iss`, `aud` and `sub`, and may live an hour at most; clocks may differ by a minute. `sub` is the client, unless a
claim `bus` says what is granted. PyJWT checks signatures and claims (RFC 8725).
"""

from __future__ import annotations

import hashlib
import re

import jwt
import msgspec

from bus.errors import BusError, Malformed, Unauthenticated, Unavailable
from bus.identity.caller import Caller, Grant
from bus.identity.key_sets import Find, KeptKeySet, find_of_secret
from bus.settings import Settings

LEEWAY_SECONDS = 60
MAX_LIFE_SECONDS = 3600
MAX_CHARACTERS = 8192
MAX_KID = 256
REQUIRED = ("exp", "nbf", "iss", "aud", "sub")
REMEMBERED = 4096
"""Tokens that a process knows to be good: a second look at one costs no signature."""

_SUBJECT = re.compile(r"[\x21-\x7e]{1,128}\Z")
_JTI = re.compile(r"[\x20-\x7e]{1,256}\Z")


class UnknownSigner(Unauthenticated):
    """A token names a key that is not in the set (yet)."""


class _Claims(msgspec.Struct):
    """What is read of a token whose signature, times, issuer and audience are good."""

    sub: str
    exp: float
    nbf: float
    iat: float | None = None
    jti: str | None = None
    bus: dict[str, object] | None = None


class Tokens:
    """Checks tokens for one process. Event loop only; only `refresh_soon` waits.

    `_known`: the callers of tokens by their digests; emptied when full, and when the key set changes.
    """

    def __init__(self, settings: Settings) -> None:
        self._algorithms = settings.jwt_algorithm_names()
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._allow_admin = settings.jwt_allow_admin
        self._known: dict[bytes, Caller] = {}
        self.key_set: KeptKeySet | None = None
        if settings.jwt_jwks_url is not None:
            self.key_set = KeptKeySet(settings, self._known.clear)
            self._find: Find = self.key_set.find
        else:
            assert settings.jwt_secret is not None
            self._find = find_of_secret(settings.jwt_secret)

    def check(self, text: str) -> Caller:
        """The caller of a token, good when it was looked at first: whether it has ended since is to be asked.

        Raises Unauthenticated, or Unavailable while there is no key set.
        """
        digest = token_digest(text)
        caller = self._known.get(digest)
        if caller is None:
            caller = self._check(text, digest)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[digest] = caller
        return caller

    def refresh_soon(self) -> None:
        """Have the key set read anew, and wait a while for it."""
        if self.key_set is not None:
            self.key_set.refresh_soon()

    def _check(self, text: str, digest: bytes) -> Caller:
        if len(text) > MAX_CHARACTERS:
            raise _bad(f"it has more than {MAX_CHARACTERS} characters")
        try:
            header = jwt.get_unverified_header(text)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in self._algorithms:
                raise _bad(f"it is not signed with {' or '.join(self._algorithms)}")
            if kid is not None and len(kid) > MAX_KID:
                raise _bad(f"its `kid` has more than {MAX_KID} characters")
            payload = jwt.decode(
                text,
                self._key(kid, algorithm),
                algorithms=list(self._algorithms),
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED), "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise _bad(_WHY.get(type(error), "it is damaged, or not signed by the issuer's key")) from None
        return self._caller(payload, digest)

    def _key(self, kid: str | None, algorithm: str) -> jwt.PyJWK | str:
        key = self._find(kid, algorithm)
        if key is not None:
            return key
        if self.key_set is not None and not self.key_set.is_there:
            raise Unavailable("The keys for JWTs could not be had yet; try again in a moment.", retry_after_seconds=5)
        raise UnknownSigner("The JWT is not accepted: its key is not in the issuer's set.", code="bad_credential")

    def _caller(self, payload: dict[str, object], digest: bytes) -> Caller:
        try:
            claims = msgspec.convert(payload, _Claims)
        except msgspec.ValidationError:
            raise _bad("a claim has the wrong type") from None
        if not _SUBJECT.match(claims.sub):
            raise _bad("its `sub` must be 1 to 128 visible ASCII characters")
        if claims.jti is not None and not _JTI.match(claims.jti):
            raise _bad("its `jti` must be 1 to 256 printable ASCII characters")
        if claims.exp - (claims.nbf if claims.iat is None else claims.iat) > MAX_LIFE_SECONDS:
            raise _bad(f"it lives longer than {MAX_LIFE_SECONDS} s")
        return Caller(
            f"jwt:{claims.sub}",
            self._grant(claims),
            expires_us=int((claims.exp + LEEWAY_SECONDS) * 1e6),
            ids=(id_of_jti(claims.jti) if claims.jti is not None else digest_id(digest),),
        )

    def _grant(self, claims: _Claims) -> Grant:
        try:
            grant = msgspec.convert({"clients": [claims.sub], **(claims.bus or {})}, Grant).check()
        except (msgspec.ValidationError, BusError) as problem:
            said = problem.sentence if isinstance(problem, BusError) else str(problem)
            raise _bad(f"what it grants is wrong: {said.rstrip('.').replace('`$.', '`bus.')}") from None
        if "admin" in grant.scopes and not self._allow_admin:
            raise _bad("it claims the scope admin, which JWT_ALLOW_ADMIN does not allow")
        return grant


def looks_like_one(text: str) -> bool:
    """True for three parts with dots between them."""
    return text.count(".") == 2


def token_digest(text: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(text.encode()).digest()


def digest_id(digest: bytes) -> str:
    """The name of a token that has no `jti`."""
    return f"jwt-digest:{digest.hex()[:32]}"


def id_of_token(text: str) -> str:
    """What a token is revoked by, whoever signed it: its `jti`, or its digest. Raises Malformed."""
    try:
        claims = jwt.decode(text, options={"verify_signature": False})
    except jwt.PyJWTError:
        raise Malformed("`token` is no JWT; give it whole, or its `jti`.", code="bad_field", field="token") from None
    jti = claims.get("jti")
    return id_of_jti(jti) if isinstance(jti, str) else digest_id(token_digest(text))


def id_of_jti(jti: str) -> str:
    """What tokens with this `jti` are revoked by. Raises Malformed."""
    if not _JTI.match(jti):
        raise Malformed("A `jti` is 1 to 256 printable ASCII characters.", code="bad_field", field="jti")
    return f"jwt:{jti}"


_WHY: dict[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is from another issuer",
    jwt.MissingRequiredClaimError: f"it lacks one of {', '.join(REQUIRED)}",
}


def _bad(why: str) -> Unauthenticated:
    return Unauthenticated(f"The JWT is not accepted: {why}.", code="bad_credential")
