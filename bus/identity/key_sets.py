"""The keys that JWTs are checked with: a shared secret, or a JSON Web Key Set (RFC 7517) from a file or a URL.

A token's `kid` and algorithm are looked up in a set, and decide nothing else. A set from elsewhere is read anew every ten
minutes, and when a token names a key that it lacks, but at most every 30 s: strangers can name keys, too. While it can't be
had, the last one stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gevent
import jwt
import msgspec

from bus.errors import ForbiddenTarget, StartRefused
from bus.guard import Guard
from bus.outbound import Outbound
from bus.settings import ROOT, Settings
from bus.worker import Worker

log = logging.getLogger("bus.identity")

REFRESH_SECONDS = 600.0
AGAIN_SECONDS = 30.0
"""How soon a set is read again for the sake of an unknown key, or after a failure."""

WAIT_SECONDS = 3.0
"""How long a request waits for a set that is on its way."""

FETCH_SECONDS = 10.0
MAX_SET_BYTES = 256 * 1024
MAX_KEYS = 100

Find = Callable[[str | None, str], "jwt.PyJWK | str | None"]
"""The key of a `kid` (None: the token names none) and an algorithm; None when there is none, or more than one would do."""

_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}
_PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth"}


class BadKeySet(ValueError):
    """It is no key set, or holds no key that could be used. The text is a sentence without an end."""


class _Set(msgspec.Struct):
    keys: list[dict[str, object]]


class KeySet:
    """The public keys of a set, by `kid` and algorithm. Immutable."""

    def __init__(self, keys: Mapping[tuple[str | None, str], list[jwt.PyJWK]]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, text: bytes, algorithms: Sequence[str]) -> KeySet:
        """Read a set; what is no key for signatures with these algorithms is passed over. Raises BadKeySet."""
        try:
            found = msgspec.json.decode(text, type=_Set).keys
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise BadKeySet("it is no JSON Web Key Set") from None
        if len(found) > MAX_KEYS:
            raise BadKeySet(f"it holds more than {MAX_KEYS} keys")
        keys: dict[tuple[str | None, str], list[jwt.PyJWK]] = {}
        for given in found:
            kid = given.get("kid")
            for algorithm in algorithms:
                key = _key(given, algorithm)
                if key is not None:
                    keys.setdefault((None, algorithm), []).append(key)
                    if isinstance(kid, str):
                        keys.setdefault((kid, algorithm), []).append(key)
        if not keys:
            raise BadKeySet(f"it holds no key for {', '.join(algorithms)}")
        return cls(keys)

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """See `Find`."""
        found = self._keys.get((kid, algorithm), [])
        return found[0] if len(found) == 1 else None


def _key(given: Mapping[str, object], algorithm: str) -> jwt.PyJWK | None:
    """A key of a set, if signatures with this algorithm can be checked by it."""
    kind = given.get("kty")
    if not isinstance(kind, str) or not algorithm.startswith(_FAMILIES.get(kind, ("?",))):
        return None
    if given.get("use", "sig") != "sig" or given.get("alg", algorithm) != algorithm:
        return None
    try:
        return jwt.PyJWK({name: value for name, value in given.items() if name not in _PRIVATE}, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None  # a member of it is not what RFC 7518 asks for


class KeySetFile:
    """A set in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        """Its text. Raises BadKeySet."""
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_SET_BYTES)
        except OSError as error:
            raise BadKeySet(f"it can't be read ({error.strerror})") from None


class KeySetUrl:
    """A set behind an https URL."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url = url
        guard = Guard(settings.targets(), https_only=True, extra_ports=settings.target_ports())
        guard.check_url(url)
        self._outbound = Outbound(guard, max_body_bytes=MAX_SET_BYTES)

    def read(self) -> bytes:
        """Fetch it. Raises BadKeySet."""
        headers = {"Accept": "application/jwk-set+json, application/json"}
        answer = self._outbound.request("GET", self._url, headers=headers, timeout_seconds=FETCH_SECONDS)
        if answer.error is not None:
            raise BadKeySet(answer.detail.rstrip("."))
        if answer.status != 200:
            raise BadKeySet(f"its server answered {answer.status}")
        return answer.excerpt


class KeptKeySet:
    """The newest set that could be had. Event loop only; `refresh_soon` and `refresh` may wait.

    `changed` is called when there is another one. `_text`: what the present one was read from; `_fetching`: the greenlet
    that reads the next one; `_next`, `_not_before`: moments of the monotonic clock.
    """

    def __init__(self, settings: Settings, changed: Callable[[], None]) -> None:
        assert settings.jwt_jwks_url is not None
        self._where = settings.jwt_jwks_url
        self._settings = settings
        self._algorithms = settings.jwt_algorithm_names()
        self._changed = changed
        self._set: KeySet | None = None
        self._text = b""
        self._fetching: gevent.Greenlet[..., None] | None = None
        self._next = self._not_before = 0.0

    @property
    def is_there(self) -> bool:
        """False until a set could be had."""
        return self._set is not None

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """See `Find`."""
        return self._set.find(kid, algorithm) if self._set is not None else None

    def start(self) -> None:
        """Read a file now, and a URL soon. Raises StartRefused for a file that is not good, or a URL that can't be."""
        parts = urlsplit(self._where)
        if parts.scheme == "https":
            try:
                self._source: KeySetFile | KeySetUrl = KeySetUrl(self._where, self._settings)
            except ForbiddenTarget as refusal:
                raise StartRefused(f"JWT_JWKS_URL can't be called: {refusal.sentence}") from None
            self._spawn()
            return
        path = Path(unquote(parts.path) if parts.scheme == "file" else self._where)
        self._source = KeySetFile(path if path.is_absolute() else ROOT / path)
        try:
            self._take(self._source.read())
        except BadKeySet as problem:
            raise StartRefused(f"JWT_JWKS_URL names {path}: {problem}. Put the issuer's key set there.") from None

    def worker(self) -> Worker:
        """What reads the set anew."""
        return Worker("jwt_keys", self._tick, interval_seconds=1.0)

    def refresh_soon(self) -> None:
        """Read the set anew, unless that was done just now, and wait a while for it."""
        if self._fetching is None and time.monotonic() >= self._not_before:
            self._spawn()
        if self._fetching is not None:
            self._fetching.join(WAIT_SECONDS)

    def _tick(self) -> None:
        if self._fetching is None and time.monotonic() >= self._next:
            self._spawn()

    def _spawn(self) -> None:
        now = time.monotonic()
        self._not_before = now + AGAIN_SECONDS
        self._next = now + (REFRESH_SECONDS if self.is_there else AGAIN_SECONDS)
        self._fetching = gevent.spawn(self._refresh)
        self._fetching.rawlink(self._fetched)

    def _fetched(self, _: object) -> None:
        self._fetching = None

    def _refresh(self) -> None:
        try:
            self._take(self._source.read())
        except BadKeySet as problem:
            stays = "the former one stays" if self.is_there else "until then no JWT can be checked"
            log.warning(
                "The key set of JWT_JWKS_URL can't be used: %s; %s", problem, stays, extra={"action": "jwt_keys"}
            )

    def _take(self, text: bytes) -> None:
        if text != self._text:
            self._set, self._text = KeySet.read(text, self._algorithms), text
            self._changed()


def find_of_secret(secret: str) -> Find:
    """The secret, whatever a token names."""
    return lambda _kid, _algorithm: secret
