"""Who is calling: credentials, and the Host check. No Flask here; headers come in as a mapping.

A credential is API_KEY, the key of the first start, an API key of the bus's own (bus.identity.keys), or a JWT
(bus.identity.tokens); tickets and sessions stand for one. With auth off, whoever reaches the port may do everything, so the
Host is checked against DNS rebinding. What callers may do stands in bus.identity.policy.
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

from bus.errors import Forbidden, Unauthenticated, Unavailable
from bus.events import Audited, Event
from bus.identity import keys, references, revocations, sessions, tickets, tokens
from bus.identity.caller import ADMIN, ANYBODY, Caller, Grant
from bus.identity.origins import Origins
from bus.identity.references import Reference
from bus.identity.sessions import Session, Sessions
from bus.identity.tickets import Ticket
from bus.identity.tokens import Tokens
from bus.key_file import key_of
from bus.settings import Settings, is_loopback
from bus.storage import Reader, Transaction
from bus.worker import Background, Worker

if TYPE_CHECKING:
    from bus.backplane import Backplane
    from bus.clock import Clock
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

    clock: Clock

    def read(self, job: Callable[[Reader], Any]) -> Any: ...

    def write(self, job: Callable[[Transaction], Any]) -> Any: ...

    def emit(self, event: Event) -> None: ...

    def add_worker(self, worker: Background) -> None: ...


class Auth:
    """Decides from the headers. `caller` and `check` are safe from any greenlet, and wait for nothing; what else may wait
    says so.

    `_keyring`, `_revoked`: what the store had when it was looked at last, replaced as a whole; `_used`: keys that were used
    since that was noted, at most as many as there are keys.
    """

    def __init__(self, settings: Settings) -> None:
        self.on = settings.auth_on
        self.environment = _ENVIRONMENTS[settings.environment]
        self._digest = _hex_digest(settings.api_key) if settings.api_key else ""
        self.origins = Origins(settings.origins())
        self.tokens = Tokens(settings) if settings.jwt_on else None
        self._settings = settings
        self._revoked: frozenset[str] = frozenset()
        self._revocations_version = 0
        self._hosts = settings.hosts() | {settings.message_bus_host}
        self._keyring = keys.Keyring([], -1)
        self._used: dict[str, int] = {}
        self._ticks = 0
        self._bus: Host | None = None

    # ---- life

    def start(self, bus: Host) -> None:
        """Learn the keys, or make the first one and print it, once. The store must be open, and workers not yet started.

        Raises StartRefused."""
        self._bus = bus
        if not self.on:
            return
        path = self._settings.data_path / "sessions.key"
        self._sessions = Sessions(key_of(self._settings.secret_key, path, "sessions"))
        if self.tokens is not None and self.tokens.key_set is not None:
            self.tokens.key_set.start()
            bus.add_worker(self.tokens.key_set.worker())
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

    # ---- credentials that change

    def refresh(self) -> None:
        """Read the keys, and what was revoked, anew if any has changed. Waits for the store."""
        assert self._bus is not None

        def look(reader: Reader) -> tuple[keys.Keyring | None, int, frozenset[str] | None]:
            found, revoked = keys.version(reader.execute), revocations.version(reader.execute)
            ring = None if found == self._keyring.version else keys.Keyring(keys.read_keys(reader.execute), found)
            is_same = revoked == self._revocations_version
            return ring, revoked, None if is_same else revocations.read_revoked(reader.execute)

        keyring, version, revoked = self._bus.read(look)
        if keyring is not None:  # an empty one counts, too: the last key was deleted
            self._keyring = keyring
        if revoked is not None:
            self._revoked, self._revocations_version = revoked, version

    def changed(self) -> None:
        """A credential was changed by this process: heed it here, and have the neighbours do so."""
        assert self._bus is not None
        if not self.on:
            return
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
        if not self._revoked.isdisjoint(caller.ids):
            return False
        kind, _, key_id = caller.name.partition(":")
        return kind != "key" or self._keyring.caller(key_id, _now_us()) is not None

    def uses(self, caller: Caller) -> bool:
        """As `holds`, of a caller who uses the credential once more."""
        if not self.holds(caller):
            return False
        if caller.name.startswith("key:"):
            self._used[caller.name[4:]] = _now_us()
        return True

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
        if self._digest and hmac.compare_digest(_hex_digest(token), self._digest):
            return ADMIN
        if self.tokens is None or not tokens.looks_like_one(token):
            raise Unauthenticated("The key is not valid; send a valid one in X-API-Key.", code="bad_credential")
        caller = self.tokens.check(token)
        if not self.holds(caller):
            raise Unauthenticated("The JWT has expired or was revoked; get another.", code="bad_credential")
        return caller

    def check_anew(self, token: str) -> Caller:
        """As `check`, but what is refused is looked up in the store: a neighbour may have made it just now. May wait."""
        try:
            return self.check(token)
        except (tokens.UnknownSigner, Unavailable):
            assert self.tokens is not None
            self.tokens.refresh_soon()
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

    # ---- what stands for a credential

    def buy_ticket(self, caller: Caller, client: str | None, origin: str | None) -> str:
        """A ticket for one WebSocket of the caller's. Waits for the store. Raises Unavailable."""
        bus = self._bus
        assert bus is not None
        ticket = Ticket(references.refer(caller, self._proof), client, origin)
        text: str = bus.write(lambda transaction: tickets.buy(transaction, ticket, bus.clock.now_us()))
        return text

    def use_ticket(self, text: str, client: str, origin: str | None) -> Caller:
        """Whom a ticket stands for; it is used up. Waits for the store. Raises Unauthenticated."""
        bus = self._bus
        assert bus is not None
        if not tickets.looks_like_one(text):
            raise tickets.bad_ticket()
        ticket = bus.write(lambda transaction: tickets.use(transaction, text, bus.clock.now_us()))
        if ticket is None or ticket.client not in (None, client) or ticket.origin not in (None, origin):
            raise tickets.bad_ticket()
        caller = self._caller_of(ticket.reference)
        if caller is None:
            raise tickets.bad_ticket()
        return caller

    def begin_session(self, caller: Caller) -> tuple[str, Session]:
        """A cookie that stands for the caller's credential. Raises Malformed."""
        return self._sessions.begin(references.refer(caller, self._proof), _now_us())

    def session_caller(self, cookie: str) -> tuple[Caller, Session]:
        """Whom a cookie stands for. May wait for the store. Raises Unauthenticated."""
        session = self._sessions.read(cookie)
        caller = self._caller_of(session.reference, session)
        if caller is None:
            raise sessions.ended()
        return caller, session

    def revoke(self, credential_id: str, until_us: int) -> None:
        """End what has this id, on all workers; the id is kept until then. Waits for the store."""
        assert self._bus is not None
        now_us = _now_us()
        self._bus.write(lambda transaction: revocations.revoke(transaction, credential_id, until_us, now_us))
        self.changed()

    @property
    def _proof(self) -> str:
        return self._digest[:16]

    def _caller_of(self, reference: Reference, session: Session | None = None) -> Caller | None:
        """Whom a reference stands for; None when the credential behind it has ended."""
        kind, _, key_id = reference.name.partition(":")
        grant: Grant | None = None
        if kind == "key":
            owner = self._keyring.caller(key_id, _now_us())
            if owner is None:
                self.refresh()  # a neighbour may have made the key just now
                owner = self._keyring.caller(key_id, _now_us())
            grant = owner.grant if owner is not None else None
        elif kind == "jwt":
            grant = reference.grant if self.tokens is not None else None
        elif kind == "admin" and self._digest and hmac.compare_digest(reference.proof, self._proof):
            grant = ADMIN.grant
        if grant is None:
            return None
        ids, ends_us = reference.ids, reference.expires_us
        if session is not None:
            ids, ends_us = (*ids, session.revocable), session.expires_us
        caller = Caller(reference.name, grant, expires_us=ends_us, ids=ids)
        return caller if self.holds(caller) else None

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
