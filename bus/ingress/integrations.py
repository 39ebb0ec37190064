"""Integrations: who may send webhooks here, how they sign, and what becomes of them. Values, their checks, their rows.

What an integration is stands in two parts: `Config`, in plain JSON, and its secrets, encrypted (bus.webhooks.vault). Rows
are read anew for each request, so a change holds for every process as soon as it is committed.
"""

from __future__ import annotations

import secrets as random_bytes
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any, Literal, get_args

import msgspec

from bus.addresses import Network, contains
from bus.addresses import parse as parse_address
from bus.errors import ForbiddenTarget, Malformed, NotFound
from bus.guard import read_authority
from bus.ingress import template
from bus.ingress.schemes import SCHEMES
from bus.ingress.signatures import Scheme
from bus.message import Names
from bus.protocol import Draft, Send, draft_of
from bus.storage import Reader, Transaction
from bus.webhooks import signing
from bus.webhooks.endpoints import Secret, valid
from bus.webhooks.vault import Vault, WrongKey

SchemeName = Literal["botlyne", "standard-webhooks", "github", "stripe", "slack", "twilio"]

MAX_INTEGRATIONS = 10_000
MAX_NETWORKS = 200
MAX_DESCRIPTION = 500
MAX_COUNT, MAX_SECONDS = 1_000_000, 86_400.0
_MADE_HERE = frozenset({"botlyne", "standard-webhooks", "github"})
"""Schemes whose secret the receiving side may choose."""


NO_TEMPLATE = msgspec.Raw(b"null")


class Rate(msgspec.Struct, frozen=True):
    """`count` at once, then as many evenly spread over each `seconds`."""

    count: int
    seconds: float = 60.0

    @property
    def spacing_us(self) -> int:
        """From one to the next, when they come evenly."""
        return int(self.seconds * 1e6 / self.count)


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be read by whoever may list integrations.

    `to`, `type`, `require_ack`, `priority`, `ttl` as of a send; `sender` None: `$` and the integration's id, a name that no
    client can have. `template` makes the payload (bus.ingress.template), null: it is the whole body. `allowed_ips`:
    addresses or networks that may send, None: those of ALLOWED_WEBHOOK_IPS. `public_url`: what stands before the path in the
    URL that the sender calls, for schemes that sign it.
    """

    scheme: SchemeName
    to: str | list[str]
    type: str = "webhook"
    sender: str | None = None
    description: str = ""
    require_ack: bool = False
    priority: str | int | None = None
    ttl: float | None = None
    template: msgspec.Raw = msgspec.field(default_factory=lambda: NO_TEMPLATE)
    allowed_ips: tuple[str, ...] | None = None
    rate: Rate | None = None
    public_url: str | None = None

    def check(self, names: Names) -> Config:
        """Refuse what can't work. Raises Malformed."""
        if self.scheme not in get_args(SchemeName):
            raise _bad("scheme", f"must be one of {', '.join(SCHEMES)}.")
        if self.sender is not None:
            names.check_client(self.sender, "sender")
        self.draft(b"null", {}, "$in", names, 0)
        template.check(bytes(self.template))
        if len(self.description) > MAX_DESCRIPTION:
            raise _bad("description", f"may have at most {MAX_DESCRIPTION} characters.")
        if len(self.allowed_ips or ()) > MAX_NETWORKS:
            raise _bad("allowed_ips", f"may hold at most {MAX_NETWORKS} items.")
        self.networks(())
        if self.rate is not None and not (1 <= self.rate.count <= MAX_COUNT and 1 <= self.rate.seconds <= MAX_SECONDS):
            raise _bad("rate", f"must be a `count` of 1 to {MAX_COUNT} in `seconds` of 1 to {MAX_SECONDS:.0f}.")
        self._check_url()
        return self

    def _check_url(self) -> None:
        if self.public_url is None:
            if self.scheme == "twilio":
                raise _bad(
                    "public_url", "is missing: Twilio signs the URL that it calls; give what stands before /api."
                )
            return
        scheme, _, rest = self.public_url.partition("://")
        authority = rest.partition("/")[0]
        if scheme not in ("https", "http") or not self.public_url.isascii() or any(c in rest for c in "?#@ "):
            raise _bad("public_url", "must begin with https:// or http://, and have no query and no user name.")
        try:
            read_authority(authority)
        except ForbiddenTarget:
            raise _bad("public_url", "has a host or a port that can't be one.") from None

    @property
    def has_template(self) -> bool:
        """False when the payload is the whole body."""
        return bytes(self.template) != bytes(NO_TEMPLATE)

    def networks(self, otherwise: Sequence[Network]) -> Sequence[Network]:
        """Who may send; empty: anybody. `otherwise`: of an integration that says nothing. Raises Malformed."""
        if self.allowed_ips is None:
            return otherwise
        try:
            return [ip_network(text) for text in self.allowed_ips]
        except ValueError:
            raise _bad("allowed_ips", "must hold addresses or networks like 192.0.2.0/24, with no bit set after the"
                       " prefix.") from None  # fmt: skip

    def draft(self, payload: bytes, headers: dict[str, str], sender: str, names: Names, stamp_us: int) -> Draft:
        """The message that a payload becomes. `sender` of one that names none. Raises Malformed."""
        send = Send(
            to=self.to,
            type=self.type,
            payload=msgspec.Raw(payload),
            require_ack=self.require_ack,
            priority=self.priority,
            ttl=self.ttl,
            headers=headers or None,
        )
        return draft_of(send, self.sender or sender, self.type, names=names, stamp_us=stamp_us)


class Integration(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `secrets`, the newest first, is None if they were sealed with another key: then nothing is taken."""

    number: int
    id: str
    enabled: bool
    created_us: int
    changed_us: int
    config: Config
    secrets: tuple[Secret, ...] | None

    @property
    def scheme(self) -> Scheme:
        """How its sender signs."""
        return SCHEMES[self.config.scheme]

    def valid(self, now_us: int, otherwise: str | None) -> list[str]:
        """The secrets that count now; `otherwise` is the one of an integration without its own."""
        if self.secrets is None:
            return []
        if not self.secrets:
            return [otherwise] if otherwise else []
        return valid(self.secrets, now_us)


def may_come_from(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address is in one of the networks; without any, every address is."""
    if not networks:
        return True
    try:
        return contains(networks, parse_address(address))
    except ValueError:  # a socket of this machine has none
        return False


def secret_of(scheme: str, given: str | None, *, has_default: bool) -> str | None:
    """The secret of a new integration: the one that is given, checked; else one that is made, where the bus may choose it
    and has no default. Raises Malformed."""
    if given is not None:
        SCHEMES[scheme].key(given)
        return given
    if has_default or scheme not in _MADE_HERE:
        return None
    return signing.new_secret() if scheme == "standard-webhooks" else random_bytes.token_hex(32)


class Rows:
    """Integrations in the store. Every verb is for a job of the writer or of a reader; stateless but for the vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        config = msgspec.json.encode(Config(scheme="botlyne", to="nobody"))
        kept = vault.seal(msgspec.json.encode((Secret(random_bytes.token_hex(32)),)), _DECOY)
        self._decoy = (0, _DECOY, True, 0, 0, config, kept)

    def find(self, reader: Reader | Transaction, integration_id: str) -> Integration:
        """One integration. Raises NotFound."""
        found = self.find_or_decoy(reader, integration_id)
        if not found.number:
            raise NotFound("There is no integration with this id.", code="unknown_integration")
        return found

    def find_or_decoy(self, reader: Reader | Transaction, integration_id: str) -> Integration:
        """One integration; of an unknown id a decoy, number 0, that costs as much and that nobody can sign for."""
        rows = reader.execute(f"{_SELECT} WHERE i.id = ?", (integration_id,))
        return self._integration(rows[0] if rows else self._decoy)

    def page(self, reader: Reader, after: int, limit: int) -> list[Integration]:
        """Integrations behind a number, in the order of making."""
        rows = reader.execute(f"{_SELECT} WHERE i.number > ? ORDER BY i.number LIMIT ?", (after, limit))
        return [self._integration(row) for row in rows]

    def insert(self, transaction: Transaction, config: Config, kept: Sequence[Secret], now_us: int) -> Integration:
        """Make one. Raises Malformed when there are too many."""
        (count,) = transaction.execute("SELECT count(*) FROM integrations")[0]
        if count >= MAX_INTEGRATIONS:
            raise Malformed(
                f"There are {MAX_INTEGRATIONS} integrations; delete one first.", code="too_many_integrations"
            )
        integration_id = f"in-{random_bytes.token_hex(8)}"
        ((number,),) = transaction.execute(
            "INSERT INTO integrations (id, enabled, created_at) VALUES (?, 1, ?) RETURNING number",
            (integration_id, now_us),
        )
        self._keep(transaction, number, integration_id, config, kept, now_us)
        return self.find(transaction, integration_id)

    def update(
        self, transaction: Transaction, known: Integration, config: Config, kept: Sequence[Secret], now_us: int
    ) -> Integration:
        """Give it another config, and these secrets."""
        self._keep(transaction, known.number, known.id, config, kept, now_us)
        return self.find(transaction, known.id)

    def set_enabled(self, transaction: Transaction, known: Integration, enabled: bool) -> Integration:
        """Take what it sends, or no more."""
        transaction.execute("UPDATE integrations SET enabled = ? WHERE number = ?", (enabled, known.number))
        return msgspec.structs.replace(known, enabled=enabled)

    def delete(self, transaction: Transaction, known: Integration) -> None:
        """Remove it; what was logged of it stays for its time."""
        transaction.execute("DELETE FROM integration_configs WHERE integration = ?", (known.number,))
        transaction.execute("DELETE FROM integrations WHERE number = ?", (known.number,))

    def seal_anew(self, transaction: Transaction) -> None:
        """Seal with the present key what an older one sealed."""
        self._vault.seal_anew(
            transaction,
            "SELECT c.integration, i.id, c.sealed FROM integration_configs c JOIN integrations i ON i.number = c.integration"
            " WHERE c.key_id <> ?",
            "UPDATE integration_configs SET sealed = ?, key_id = ? WHERE integration = ?",
        )

    def _keep(
        self, transaction: Transaction, number: int, owner: str, config: Config, kept: Sequence[Secret], now_us: int
    ) -> None:
        sealed = self._vault.seal(msgspec.json.encode(kept), owner)
        transaction.execute(
            _KEEP,
            (number, now_us, msgspec.json.encode(config), self._vault.key_id, sealed),
        )

    def _integration(self, row: Sequence[Any]) -> Integration:
        number, integration_id, enabled, created, changed, config, sealed = row
        try:
            opened = msgspec.json.decode(self._vault.open(sealed, integration_id), type=tuple[Secret, ...])
        except WrongKey:
            opened = None
        return Integration(
            number=number,
            id=integration_id,
            enabled=bool(enabled),
            created_us=created,
            changed_us=changed,
            config=msgspec.json.decode(config, type=Config),
            secrets=opened,
        )


_DECOY = "in-none"
_KEEP = """
INSERT INTO integration_configs VALUES (?, ?, ?, ?, ?) ON CONFLICT (integration) DO UPDATE
 SET changed_at = excluded.changed_at, config = excluded.config, key_id = excluded.key_id, sealed = excluded.sealed"""
_SELECT = """
SELECT i.number, i.id, i.enabled, i.created_at, c.changed_at, c.config, c.sealed
  FROM integrations i JOIN integration_configs c ON c.integration = i.number"""


def _bad(field: str, problem: str) -> Malformed:
    return Malformed(f"`{field}` {problem}", code="bad_field", field=field)
