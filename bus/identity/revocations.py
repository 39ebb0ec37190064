"""Credentials that ended before their time and have no row of their own: JWTs and sessions, by their ids.

An id is kept until what it names would have ended anyway. All processes hold all of them in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bus.errors import Conflict
from bus.storage import Transaction

MAX_REVOKED = 100_000


def revoke(transaction: Transaction, credential_id: str, until_us: int, now_us: int) -> None:
    """End what this id names. Raises Conflict when too many are kept."""
    transaction.execute("DELETE FROM revoked_credentials WHERE expires_at <= ?", (now_us,))
    if transaction.execute("SELECT count(*) FROM revoked_credentials")[0][0] >= MAX_REVOKED:
        raise Conflict(f"{MAX_REVOKED} revoked credentials are kept; change the signing key instead.")
    transaction.execute(
        "INSERT INTO revoked_credentials VALUES (?, ?) ON CONFLICT (id) DO UPDATE"
        " SET expires_at = max(revoked_credentials.expires_at, excluded.expires_at)",
        (credential_id, until_us),
    )
    transaction.execute(
        "INSERT INTO meta VALUES ('revocations_version', 1) ON CONFLICT (name) DO UPDATE SET value = meta.value + 1"
    )


def read_revoked(execute: Callable[..., Any]) -> frozenset[str]:
    """The ids of all that was revoked."""
    return frozenset(str(row[0]) for row in execute("SELECT id FROM revoked_credentials"))


def version(execute: Callable[..., Any]) -> int:
    """Raised by every revocation."""
    rows = execute("SELECT value FROM meta WHERE name = 'revocations_version'")
    return int(rows[0][0]) if rows else 0
