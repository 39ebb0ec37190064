"""Endpoints: who gets which events, how, and with which secrets. Values, their checks, and their rows.

What an endpoint is stands in two parts: `Config`, in plain JSON, and `Sealed`, encrypted (bus.webhooks.vault), since a
URL of a chat is a credential, and any URL and header may hold one. Each change raises the version of the endpoints, by
which every process learns of it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from bus.errors import Malformed, NotFound
from bus.masking import MASK, masked
from bus.message import Names
from bus.storage import Reader, Transaction
from bus.topics import check_pattern as check_topic
from bus.webhooks import body, signing
from bus.webhooks.breaker import LIMITS, Limits, Rate
from bus.webhooks.policy import STANDARD, Kind, Schedule, schedule_of
from bus.webhooks.vault import Vault, WrongKey

EVENTS = (
    "message.sent",
    "message.received",
    "message.failed",
    "message.expired",
    "client.connected",
    "client.disconnected",
    "error.occurred",
    "rate_limit.hit",
    "system.started",
    "system.stopped",
    "endpoint.disabled",
)
"""What the bus itself tells of; extensions may trigger others."""

DEFAULT_RETRIES = 9
DEFAULT_TIMEOUT_SECONDS, MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 15.0, 1.0, 30.0
MAX_ENDPOINTS = 10_000
SHORTEST_MASKED = 6
"""Characters of a secret or a header's value that is taken out of what receivers answer; what is shorter hides nothing."""

MAX_FILTERS = 100
MAX_STEPS = 50
MAX_STEP_SECONDS = 7 * 86400.0
MAX_RATE = 1000
GRACE_SECONDS, MAX_GRACE_SECONDS = 86400.0, 7 * 86400.0
MAX_OLD_SECRETS = 5
MAX_HEADERS = 32
RESERVED_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "expect", "te",
     "upgrade", "user-agent", "x-webhook-signature"}
)  # fmt: skip
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[\x20-\x7e\t]{0,1000}")

Order = Literal["endpoint", "to", "from"]
State = Literal["enabled", "paused", "disabled"]


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be read by whoever may list endpoints. Empty filters let everything through.

    `schedule_seconds`: the pause before each attempt, None for the kind's own. `ordered`: strictly one after another, for
    the whole endpoint, or for each recipient or sender.
    """

    events: tuple[str, ...]
    kind: Kind = "http"
    description: str = ""
    clients: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    max_retries: int | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    schedule_seconds: tuple[float, ...] | None = None
    rate: Rate | None = None
    ordered: Order | None = None

    def check(self) -> Config:
        """Refuse what can't work. Raises Malformed."""
        names = Names()
        if not self.events:
            raise _bad("events", "must name at least one event, or * for all.")
        for field in ("events", "clients", "topics", "types"):
            if len(getattr(self, field)) > MAX_FILTERS:
                raise _bad(field, f"may hold at most {MAX_FILTERS} items.")
        for pattern in self.events:
            body.check_pattern(pattern)
        for client in self.clients:
            names.check_client(client, "clients")
        for pattern in self.topics:
            check_topic(pattern)
        for type_ in self.types:
            names.check(type_, "types")
        if len(self.description) > 500:
            raise _bad("description", "may have at most 500 characters.")
        self._check_times()
        return self

    def _check_times(self) -> None:
        if not MIN_TIMEOUT_SECONDS <= self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise _bad("timeout_seconds", f"must be {MIN_TIMEOUT_SECONDS:g} to {MAX_TIMEOUT_SECONDS:g}.")
        if self.max_retries is not None and not 0 <= self.max_retries < MAX_STEPS:
            raise _bad("max_retries", f"must be 0 to {MAX_STEPS - 1}.")
        steps = self.schedule_seconds
        if steps is not None and not (
            0 < len(steps) <= MAX_STEPS and all(0 <= step <= MAX_STEP_SECONDS for step in steps)
        ):
            raise _bad("schedule_seconds", f"must be 1 to {MAX_STEPS} pauses of 0 to {MAX_STEP_SECONDS:.0f} seconds.")
        if self.rate is not None and not (1 <= self.rate.count <= MAX_RATE and 0.1 <= self.rate.seconds <= 3600):
            raise _bad("rate", f"must be [count, seconds], with a count of 1 to {MAX_RATE} in 0.1 to 3600 seconds.")
        if self.ordered is not None and self.kind != "http":
            raise _bad("ordered", "is for receivers of kind http; a chat gets what waits in one message.")

    @property
    def limits(self) -> Limits:
        """Rates and requests at once."""
        own = LIMITS[self.kind]
        rates = own.rates if self.rate is None else (self.rate, *(own.rates if self.kind != "http" else ()))
        return Limits(rates, 1 if self.ordered == "endpoint" else own.in_flight)

    @property
    def schedule(self) -> Schedule:
        """When attempts are made."""
        schedule = schedule_of(self.kind)
        if self.schedule_seconds is not None:
            schedule = Schedule(self.schedule_seconds, schedule.ttl_seconds)
        return schedule if self.max_retries is None else schedule.first(self.max_retries)


class Secret(msgspec.Struct, frozen=True):
    """A signing secret or private key; an old one is valid `until_us`, the newest has None."""

    text: str
    until_us: int | None = None

    def is_valid(self, now_us: int) -> bool:
        """True while it signs."""
        return self.until_us is None or self.until_us > now_us


def valid(secrets: Sequence[Secret], now_us: int) -> list[str]:
    """Those that count now."""
    return [secret.text for secret in secrets if secret.is_valid(now_us)]


class Sealed(msgspec.Struct, frozen=True):
    """What is encrypted at rest. `secrets` and the private halves of `key_pairs`: the newest first."""

    url: str
    secrets: tuple[Secret, ...] = ()
    headers: dict[str, str] = {}
    key_pairs: tuple[Secret, ...] = ()

    def valid(self, now_us: int) -> list[str]:
        """The secrets to sign with."""
        return valid(self.secrets, now_us)

    def private_keys(self, now_us: int) -> list[str]:
        """The private keys to sign with."""
        return valid(self.key_pairs, now_us)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `sealed` is None if it was sealed with another key: such an endpoint can't be sent to."""

    number: int
    id: str
    state: State
    reason: str | None
    since_us: int
    created_us: int
    config: Config
    sealed: Sealed | None

    @property
    def shown_url(self) -> str:
        """The URL as listings show it: without tokens; of a chat no more than its host, as the rest is the credential."""
        if self.sealed is None:
            return ""
        return masked(self.sealed.url) if self.config.kind == "http" else self.masked_url

    @property
    def masked_url(self) -> str:
        """The URL as others than operators may see it: the rest may be a credential."""
        parts = urlsplit("" if self.sealed is None else self.sealed.url)
        return f"{parts.scheme}://{parts.netloc}/…"

    def without_secrets(self, answer: bytes) -> bytes:
        """What the receiver said, as logs keep it: receivers that have trouble tend to show what they were sent."""
        sealed = self.sealed or Sealed("")
        in_url = re.split(r"[&=]", urlsplit(sealed.url).query)
        for secret in (*(known.text for known in sealed.secrets), *sealed.headers.values(), *in_url):
            if len(secret) >= SHORTEST_MASKED:
                answer = answer.replace(secret.encode(), MASK.encode())
        return answer

    @property
    def awake(self) -> bool:
        """True while it is sent to."""
        return self.state == "enabled" and self.sealed is not None


def check_sealed(sealed: Sealed) -> Sealed:
    """Refuse bad headers and secrets; the URL is the guard's to judge. Raises Malformed."""
    if len(sealed.headers) > MAX_HEADERS:
        raise _bad("headers", f"may be at most {MAX_HEADERS}.")
    for name, value in sealed.headers.items():
        lower = name.lower()
        if not _HEADER.fullmatch(name) or lower in RESERVED_HEADERS or lower.startswith("webhook-"):
            raise _bad("headers", "hold a name that can't be one, or that the bus itself sets.")
        if not _VALUE.fullmatch(value):
            raise _bad("headers", "hold a value that is no visible ASCII of at most 1000 characters.")
    for secret in sealed.secrets:
        signing.key_of(secret.text)
    return sealed


def default_config(config: Config) -> Config:
    """What an endpoint made over REST gets where nothing was said."""
    if config.kind == "http" and config.max_retries is None and config.schedule_seconds is None:
        return msgspec.structs.replace(config, max_retries=min(DEFAULT_RETRIES, len(STANDARD.steps_seconds) - 1))
    return config


# ---- rows


class Rows:
    """Endpoints in the store. Stateless but for the vault; every verb is for a job of the writer or of a reader."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def all(self, reader: Reader | Transaction) -> tuple[int, list[Endpoint]]:
        """(version, every endpoint in the order of making)."""
        version = self.version(reader)
        rows = reader.execute(f"SELECT {_COLUMNS} FROM webhook_endpoints ORDER BY number")
        return version, [self._endpoint(row) for row in rows]

    def version(self, reader: Reader | Transaction) -> int:
        """Raised by each change."""
        return int(reader.execute("SELECT version FROM webhook_state")[0][0])

    def find(self, reader: Reader | Transaction, endpoint_id: str) -> Endpoint:
        """One endpoint. Raises NotFound."""
        rows = reader.execute(f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE id = ?", (endpoint_id,))
        if not rows:
            raise NotFound("There is no endpoint with this id.", code="unknown_endpoint")
        return self._endpoint(rows[0])

    def insert(self, transaction: Transaction, config: Config, sealed: Sealed, state: State, now_us: int) -> Endpoint:
        """Make one. Raises Malformed when there are too many."""
        (count,) = transaction.execute("SELECT count(*) FROM webhook_endpoints")[0]
        if count >= MAX_ENDPOINTS:
            raise Malformed(f"There are {MAX_ENDPOINTS} endpoints; delete one first.", code="too_many_endpoints")
        endpoint_id = f"we-{secrets.token_hex(8)}"
        transaction.execute(
            "INSERT INTO webhook_endpoints (id, state, since, created_at, config, key_id, sealed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (endpoint_id, state, now_us, now_us, *self._stored(endpoint_id, config, sealed)),
        )
        endpoint = self.find(transaction, endpoint_id)
        transaction.execute("INSERT INTO webhook_lanes (endpoint) VALUES (?)", (endpoint.number,))
        self._changed(transaction)
        return endpoint

    def update(self, transaction: Transaction, endpoint: Endpoint, config: Config, sealed: Sealed) -> Endpoint:
        """Give it another config and other secrets."""
        transaction.execute(
            "UPDATE webhook_endpoints SET config = ?, key_id = ?, sealed = ? WHERE number = ?",
            (*self._stored(endpoint.id, config, sealed), endpoint.number),
        )
        self._changed(transaction)
        return msgspec.structs.replace(endpoint, config=config, sealed=sealed)

    def set_state(self, transaction: Transaction, number: int, state: State, reason: str | None, now_us: int) -> bool:
        """Enable, pause or disable. False: it is so already, or gone."""
        changed = transaction.execute(
            "UPDATE webhook_endpoints SET state = ?, reason = ?, since = ? WHERE number = ? AND state <> ? RETURNING 1",
            (state, reason, now_us, number, state),
        )
        if changed:
            self._changed(transaction)
        return bool(changed)

    def delete(self, transaction: Transaction, endpoint: Endpoint) -> None:
        """Remove it; what it was owed goes with the next sweeps."""
        transaction.execute("DELETE FROM webhook_endpoints WHERE number = ?", (endpoint.number,))
        transaction.execute("DELETE FROM webhook_lanes WHERE endpoint = ?", (endpoint.number,))
        self._changed(transaction)

    def seal_anew(self, transaction: Transaction) -> None:
        """Seal with the present key what an older one sealed."""
        self._vault.seal_anew(
            transaction,
            "SELECT number, id, sealed FROM webhook_endpoints WHERE key_id <> ?",
            "UPDATE webhook_endpoints SET sealed = ?, key_id = ? WHERE number = ?",
        )

    def _changed(self, transaction: Transaction) -> None:
        transaction.execute("UPDATE webhook_state SET version = version + 1")

    def _stored(self, endpoint_id: str, config: Config, sealed: Sealed) -> tuple[bytes, str, bytes]:
        text = msgspec.json.encode(sealed)
        return msgspec.json.encode(config), self._vault.key_id, self._vault.seal(text, endpoint_id)

    def _endpoint(self, row: Sequence[Any]) -> Endpoint:
        number, endpoint_id, state, reason, since, created, config, sealed = row
        try:
            opened = msgspec.json.decode(self._vault.open(sealed, endpoint_id), type=Sealed)
        except WrongKey:
            opened = None
        return Endpoint(
            number=number,
            id=endpoint_id,
            state=state,
            reason=reason,
            since_us=since,
            created_us=created,
            config=msgspec.json.decode(config, type=Config),
            sealed=opened,
        )


_COLUMNS = "number, id, state, reason, since, created_at, config, sealed"


def rotated(sealed: Sealed, secret: str, grace_seconds: float, now_us: int) -> Sealed:
    """With a new secret, and a new key pair if it has one; what was valid stays so for at most `grace_seconds` more."""
    pairs: tuple[Secret, ...] = ()
    if sealed.key_pairs:
        pairs = renewed(sealed.key_pairs, signing.new_private_key(), grace_seconds, now_us)
    secrets = renewed(sealed.secrets, secret, grace_seconds, now_us)
    return msgspec.structs.replace(sealed, secrets=secrets, key_pairs=pairs)


def renewed(known: Sequence[Secret], new: str, grace_seconds: float, now_us: int) -> tuple[Secret, ...]:
    """The secrets with a new one in front; those that were valid stay so for at most `grace_seconds` more."""
    until_us = now_us + int(grace_seconds * 1e6)
    old = [Secret(each.text, min(until_us, each.until_us or until_us)) for each in known]
    return (Secret(new), *[each for each in old if each.is_valid(now_us)][:MAX_OLD_SECRETS])


def _bad(field: str, problem: str) -> Malformed:
    return Malformed(f"`{field}` {problem}", code="bad_field", field=field)
