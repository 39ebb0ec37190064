"""Policies: how long messages of a type live. They are rows of the store, and change while the bus runs.

Every process's writer reads them anew in the transaction after the change, so no commit mixes two versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bus.errors import Conflict, Malformed, NotFound
from bus.storage import Reader, Transaction
from bus.storage.lifetimes import DEFAULT

SECOND_US = 1_000_000
NAMED_SECONDS: dict[str, float | None] = {
    "immediate": None,
    "short": 3600.0,
    "medium": 86400.0,
    "long": 604800.0,
    "permanent": None,
}
"""The documented policies; `immediate` ends with the delivery, `permanent` never."""

CUSTOM = "custom"
MIN_SECONDS, MAX_SECONDS = 1.0, 3660 * 86400.0
MAX_POLICIES = 1000
ARCHIVE, AUDIT = "$archive", "$audit"
RECORDS = (ARCHIVE, AUDIT)
"""Policies of records that are not messages: files of the archive, and an audit's."""

RESTAMP = "retention_restamp"
"""In `meta`: the seq behind which stored messages still have to get what a changed policy gives them."""

NOTE = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"

_PUT = """
INSERT INTO policies VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (type) DO UPDATE SET name = excluded.name, ttl = excluded.ttl,
 archive = excluded.archive, origin = excluded.origin, changed_at = excluded.changed_at"""


class Policy(msgspec.Struct, frozen=True):
    """`ttl_us` None: for ever, or, of `immediate`, until it is delivered. `origin`: standard, setting, code or admin."""

    type: str
    name: str
    ttl_us: int | None
    archive: bool
    origin: str = "admin"


def policy_of(type_: str, name: str | None, ttl_seconds: float | None, *, archive: bool) -> Policy:
    """A policy as it is asked for: by name, by seconds, or both if they agree. Raises Malformed."""
    if name == CUSTOM:
        name = None
    if name is None and ttl_seconds is None:
        raise Malformed("Say `policy` or `ttl_seconds`.", code="missing_field", field="ttl_seconds")
    if name is not None and name not in NAMED_SECONDS:
        raise Malformed(f"`policy` must be one of {', '.join(NAMED_SECONDS)}.", code="bad_field", field="policy")
    named = NAMED_SECONDS[name] if name is not None else None
    if ttl_seconds is not None:
        if name is not None and ttl_seconds != named:
            raise Malformed(
                "`policy` and `ttl_seconds` contradict one another; give one.", code="bad_field", field="policy"
            )
        if not MIN_SECONDS <= ttl_seconds <= MAX_SECONDS:
            raise Malformed(
                f"`ttl_seconds` must be {MIN_SECONDS:.0f} to {MAX_SECONDS:.0f}.", code="bad_field", field="ttl_seconds"
            )
        name = name or next((known for known, seconds in NAMED_SECONDS.items() if seconds == ttl_seconds), CUSTOM)
    if type_.startswith("$") and (name == "immediate" or archive):
        raise Malformed("Only a type of messages can be immediate, or archived.", code="bad_field", field="policy")
    assert name is not None
    seconds = ttl_seconds if ttl_seconds is not None else named
    return Policy(type_, name, None if seconds is None else round(seconds * SECOND_US), archive)


def policies(source: Reader | Transaction) -> dict[str, Policy]:
    """All of them, by type."""
    rows = source.execute("SELECT type, name, ttl, archive, origin FROM policies ORDER BY type")
    return {row[0]: Policy(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows}


def put(policy: Policy, *, to_stored: bool) -> Callable[[Transaction], None]:
    """A job that makes or changes a policy; with `to_stored`, the sweep gives it to stored messages, too."""

    def job(transaction: Transaction) -> None:
        known = policies(transaction)
        if policy.type not in known and len(known) >= MAX_POLICIES:
            raise Conflict(f"There are {MAX_POLICIES} policies already; delete one.", code="too_many_policies")
        row = (policy.type, policy.name, policy.ttl_us, int(policy.archive), policy.origin, transaction.ledger.now)
        transaction.execute(_PUT, row)
        if policy.type not in RECORDS:
            _changed(transaction, to_stored=to_stored)

    return job


def delete(type_: str, *, to_stored: bool) -> Callable[[Transaction], None]:
    """A job that gives a type back to the default policy. It raises NotFound, or Conflict for what must be there."""

    def job(transaction: Transaction) -> None:
        if type_ in (DEFAULT, *RECORDS):
            raise Conflict("This policy can be changed, and not deleted.", code="needed_policy")
        if not transaction.execute("DELETE FROM policies WHERE type = ? RETURNING 1", (type_,)):
            raise NotFound("This type has no policy of its own.", code="unknown_policy")
        _changed(transaction, to_stored=to_stored)

    return job


def _changed(transaction: Transaction, *, to_stored: bool) -> None:
    if not to_stored and transaction.execute("SELECT 1 FROM meta WHERE name = ?", (RESTAMP,)):
        raise Conflict(
            "Stored messages are being given a changed policy, and would get this one, too; ask again when `applying` is"
            " false.",
            code="applying_policies",
        )
    transaction.execute("UPDATE log_head SET policies = policies + 1")
    if to_stored:
        transaction.execute(NOTE, (RESTAMP, 0))


def document(policy: Policy) -> dict[str, Any]:
    """A policy as answers show it."""
    return {
        "type": policy.type,
        "policy": policy.name,
        "ttl_seconds": None if policy.ttl_us is None else policy.ttl_us / SECOND_US,
        "archive_before_delete": policy.archive,
        "origin": policy.origin,
    }
