"""Who a request or a connection comes from: its name for logs and limits, and what it was granted. Values only."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal, get_args

import msgspec

from bus.errors import Malformed
from bus.message import Names
from bus.topics import check_pattern

Scope = Literal["send", "read", "presence", "read-all", "on-behalf-of", "admin"]
"""send; read (own inboxes, acks, subscriptions, queues); presence (who is there, and how much waits); read-all (the log,
threads, any message); on-behalf-of (say for whom it sends); admin (everything)."""

SCOPES: tuple[str, ...] = get_args(Scope)
USUAL: tuple[Scope, ...] = ("send", "read", "presence")
MAX_PATTERNS = 1000


class Right(StrEnum):
    """What a route asks for. OPEN: no credential. SIGNED: a signature that the view checks. ANY: any valid credential.
    The others: the scope of that name."""

    OPEN = "open"
    SIGNED = "signed"
    ANY = "any"
    SEND = "send"
    READ = "read"
    PRESENCE = "presence"
    READ_ALL = "read-all"
    ADMIN = "admin"


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a credential may do.

    `clients`: the names that it may send and read as; `send_to`: addresses, as in `to`; `topics`: what it may subscribe to;
    `queues`: what it may take from. A name, an address or a queue may end in `*`, which stands for any rest; topics are
    patterns like those of subscriptions. `rate_per_minute` None: no limit of its own.
    """

    scopes: tuple[Scope, ...] = USUAL
    clients: tuple[str, ...] = ()
    send_to: tuple[str, ...] = ("*",)
    topics: tuple[str, ...] = (">",)
    queues: tuple[str, ...] = ("*",)
    rate_per_minute: int | None = None

    def check(self) -> Grant:
        """Refuse what can't be meant. Raises Malformed."""
        for field in ("scopes", "clients", "send_to", "topics", "queues"):
            if len(getattr(self, field)) > MAX_PATTERNS:
                raise _bad(field, f"may hold at most {MAX_PATTERNS} items")
        names = Names()
        for name in self.clients:
            _check_name(names.check_client, name, "clients")
        for name in self.queues:
            _check_name(names.check, name, "queues")
        for pattern in self.topics:
            check_pattern(pattern)
        for address in self.send_to:
            if address.startswith("topic:"):
                check_pattern(address.removeprefix("topic:"), "send_to")
            elif address.startswith("queue:"):
                _check_name(names.check, address.removeprefix("queue:"), "send_to")
            elif address != "all":
                _check_name(names.check_client, address, "send_to")
        if self.rate_per_minute is not None and not 1 <= self.rate_per_minute <= 10_000_000:
            raise _bad("rate_per_minute", "must be 1 to 10000000, or absent")
        if not self.scopes:
            raise _bad("scopes", f"must name at least one of {', '.join(SCOPES)}")
        if not self.clients and {"send", "read"} & set(self.scopes) and "admin" not in self.scopes:
            raise _bad("clients", "must name whom the credential may act as; to send and to read need a name")
        return self


class Fitting:
    """Some names, and beginnings of names. Immutable."""

    __slots__ = ("beginnings", "names")

    def __init__(self, patterns: Iterable[str]) -> None:
        given = tuple(patterns)
        self.names = frozenset(p for p in given if not p.endswith("*"))
        self.beginnings = tuple(p[:-1] for p in given if p.endswith("*"))

    def __contains__(self, name: str) -> bool:
        return name in self.names or (bool(self.beginnings) and name.startswith(self.beginnings))

    @property
    def is_all(self) -> bool:
        """True when every name fits."""
        return "" in self.beginnings


class Caller:
    """Who calls. Immutable; safe from any thread.

    `name`: `anybody`, `admin`, `key:<id>`, `jwt:<subject>`: for logs, limits and the audit. `admin` may do everything.
    `credential`: one was shown, and is valid. `only_client`: the one name that it acts as, if it is one. `is_bound`: the
    names it may use are its own, so they are `verified`. `expires_us`: when the credential ends, in microseconds since 1970.
    `ids`: what it can be revoked by, if it has no row of its own (bus.identity.revocations).
    """

    __slots__ = (
        "admin", "clients", "credential", "expires_us", "grant", "ids", "is_bound", "name", "only_client", "queues",
        "scopes", "sends_anywhere",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        grant: Grant,
        *,
        credential: bool = True,
        expires_us: int | None = None,
        ids: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.grant = grant
        self.credential = credential
        self.expires_us = expires_us
        self.ids = ids
        self.scopes = frozenset(grant.scopes)
        self.admin = "admin" in self.scopes
        self.clients = Fitting(grant.clients)
        self.queues = Fitting(grant.queues)
        self.sends_anywhere = "*" in grant.send_to
        self.is_bound = credential and not self.admin and not self.clients.is_all
        alone = len(grant.clients) == 1 and not self.clients.beginnings
        self.only_client = grant.clients[0] if alone and not self.admin else None

    def __repr__(self) -> str:
        return f"Caller({self.name!r})"


_ALL = Grant(scopes=("admin",))
ANYBODY = Caller("anybody", _ALL, credential=False)
"""With auth off: whoever reaches the port."""

ADMIN = Caller("admin", _ALL)
"""Who showed API_KEY, or the key of the first start."""


def _check_name(check: object, name: str, field: str) -> None:
    if name != "*":
        check(name.removesuffix("*"), field)  # type: ignore[operator]


def _bad(field: str, what: str) -> Malformed:
    return Malformed(f"`{field}` {what}.", code="bad_field", field=field)
