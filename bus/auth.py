"""Who is calling: credentials, the Host and Origin checks. No Flask here; headers come in as a mapping.

A credential is API_KEY, the key of the first start, or an API key of the bus's own (bus.identity.keys). With auth off,
whoever reaches the port may do everything, so the Host is checked against DNS rebinding. What callers may do stands in
bus.identity.policy.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult, urlsplit

import gevent

from bus.errors import Forbidden, Unauthenticated
from bus.events import Audited, Event
from bus.identity import keys
from bus.identity.caller import ADMIN, ANYBODY, Caller, Grant
from bus.settings import Settings, is_loopback
from bus.storage import Reader, Transaction
from bus.worker import Background, Worker

if TYPE_CHECKING:
    from bus.backplane import Backplane
    from bus.hub import Hub

log = logging.getLogger("bus.auth")

LOOK_SECONDS = 1.0
"""How often a process looks whether keys have changed or ended: then their open sockets are closed."""

NOTE_USES_TICKS = 60
_ENVIRONMENTS = {"development": "dev", "staging": "staging", "production": "prod"}


class Headers(Protocol):
    """Where a request's headers are looked up, whatever their case."""

    def get(self, name: str, /) -> str | None: ...


class Host(Protocol):
    """What of the bus is needed."""

    @property
    def backplane(self) -> Backplane: ...

    @property
    def hub(self) -> Hub: ...

    def read(self, job: Callable[[Reader], Any]) -> Any: ...

    def write(self, job: Callable[[Transaction], Any]) -> Any: ...

    def emit(self, event: Event) -> None: ...

    def add_worker(self, worker: Background) -> None: ...


class Auth:
    """Decides from the headers. `caller` and `check` are safe from any greenlet, and wait for nothing; `start`, `refresh`
    and the worker's ticks may wait."""

    def __init__(self, settings: Settings) -> None:
        self.on = settings.auth_on
        self.environment = _ENVIRONMENTS[settings.environment]
        self._digest = _hex_digest(settings.api_key) if settings.api_key else ""
        self._origins = settings.origins()
        self._hosts = settings.hosts() | {settings.message_bus_host}
        self._keyring = keys.Keyring([], -1)
        self._used: dict[str, int] = {}
        self._ticks = 0
        self._bus: Host | None = None

    # ---- life

    def start(self, bus: Host) -> None:
        """Learn the keys, or make the first one and print it, once. The store must be open, and workers not yet started."""
        if not self.on:
            return
        self._bus = bus
        self.refresh()
        if not self._digest and not self._keyring:
            self._make_first_key(bus)
        bus.backplane.hear("keys", self._noted)
        bus.add_worker(Worker("credentials", self._tick, interval_seconds=LOOK_SECONDS))

    def _noted(self, _slot: int, _note: list[Any]) -> None:
        gevent.spawn(self.look)

    def _make_first_key(self, bus: Host) -> None:
        made = keys.make(self.environment, "made at the first start", Grant(scopes=("admin",)), _now_us(), None)

        def job(transaction: Transaction) -> tuple[bool, str]:
            legacy = transaction.execute("SELECT value FROM meta WHERE name = 'admin_key_digest'")
            if legacy or keys.version(transaction.execute):
                return False, str(legacy[0][0]) if legacy else ""
            keys.insert(transaction, made.key)
            return True, ""

        is_ours, self._digest = bus.write(job)
        if is_ours:
            sys.stdout.write(f"\nThe admin key of this bus, shown this once: {made.text}\n\n")
            sys.stdout.flush()
        self.refresh()

    # ---- keys that change

    def refresh(self) -> None:
        """Read the keys anew if any has changed. Waits for the store."""
        assert self._bus is not None

        def look(reader: Reader) -> keys.Keyring | None:
            found = keys.version(reader.execute)
            return None if found == self._keyring.version else keys.Keyring(keys.read_keys(reader.execute), found)

        self._keyring = self._bus.read(look) or self._keyring

    def changed(self) -> None:
        """A key was changed by this process: heed it here, and have the neighbours do so."""
        assert self._bus is not None
        self._bus.backplane.note(["keys"])
        self.look()

    def look(self) -> None:
        """Heed what has changed, and close the sockets of credentials that have ended."""
        assert self._bus is not None
        self.refresh()
        for connection in list(self._bus.hub.connections):
            caller = connection.caller
            if caller is not None and not self.holds(caller) and not connection.closing:
                log.info(
                    "A credential has ended; its connection is closed",
                    extra={"action": "credential_ended", "client": connection.client, "caller": caller.name},
                )
                self._bus.emit(Audited("connection.close", caller.name, connection.client, "done"))
                connection.close(4401, "The credential of this connection has ended; connect with a valid one.")

    def holds(self, caller: Caller) -> bool:
        """True while the credential that a caller came with is valid."""
        if caller.expires_us is not None and caller.expires_us <= _now_us():
            return False
        kind, _, key_id = caller.name.partition(":")
        return kind != "key" or self._keyring.caller(key_id, _now_us()) is not None

    def _tick(self) -> None:
        assert self._bus is not None
        self.look()
        self._ticks += 1
        if self._ticks % NOTE_USES_TICKS == 0 and self._used:
            used, self._used = self._used, {}
            self._bus.write(lambda transaction: keys.note_uses(transaction, used))

    # ---- who calls

    def caller(self, headers: Headers) -> Caller | None:
        """Who calls, from `X-API-Key` or `Authorization: Bearer`; None without a credential. Raises Unauthenticated."""
        if not self.on:
            return ANYBODY
        token = token_of(headers)
        return self.check(token) if token else None

    def check(self, token: str) -> Caller:
        """The caller of a credential. Raises Unauthenticated."""
        if keys.looks_like_one(token):
            now = _now_us()
            caller = self._keyring.check(token, now)
            self._used[caller.name[4:]] = now
            return caller
        if not self._digest or not hmac.compare_digest(_hex_digest(token), self._digest):
            raise Unauthenticated("The key is not valid; send a valid one in X-API-Key.", code="bad_credential")
        return ADMIN

    def check_anew(self, token: str) -> Caller:
        """As `check`, but what is refused is looked up in the store: a neighbour may have made it just now. May wait."""
        try:
            return self.check(token)
        except Unauthenticated:
            if keys.id_of(token) is None:
                raise
        self.refresh()
        return self.check(token)

    def caller_anew(self, headers: Headers) -> Caller | None:
        """As `caller`, with `check_anew`."""
        if not self.on:
            return ANYBODY
        token = token_of(headers)
        return self.check_anew(token) if token else None

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


def token_of(headers: Headers) -> str:
    """The credential in `X-API-Key` or `Authorization: Bearer`; empty without one."""
    token = headers.get("X-API-Key") or ""
    if not token:
        scheme, _, rest = (headers.get("Authorization") or "").partition(" ")
        token = rest.strip() if scheme.lower() == "bearer" else ""
    return token


def _hex_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now_us() -> int:
    return time.time_ns() // 1000


def _parts(url: str) -> SplitResult:
    """`urlsplit`, for what strangers send: no parts when it can't be read."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
