"""One-time tickets: 30 seconds, one WebSocket, in the place of a credential that must not stand in a URL.

A ticket is 256 random bits; the store keeps its digest, whose credential it stands for, and for which client and Origin it
is good. Using one deletes its row, in the writer, so that a second use finds none, on whatever worker.
"""

from __future__ import annotations

import hashlib
import secrets

import msgspec

from bus.errors import Unauthenticated, Unavailable
from bus.identity.references import Reference
from bus.storage import Transaction

LIFE_SECONDS = 30
MAX_TICKETS = 1000
"""Of one caller, that are still good."""

TICKET_CHARACTERS = 43

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Reference).decode


class Ticket(msgspec.Struct, frozen=True):
    """A ticket as it was bought: None means any client, any Origin."""

    reference: Reference
    client: str | None
    origin: str | None


def buy(transaction: Transaction, ticket: Ticket, now_us: int) -> str:
    """Keep a ticket for LIFE_SECONDS; returns its text. Raises Unavailable when the caller has too many."""
    text = secrets.token_urlsafe(32)
    name = ticket.reference.name
    transaction.execute("DELETE FROM tickets WHERE expires_at <= ?", (now_us,))
    if transaction.execute("SELECT count(*) FROM tickets WHERE caller = ?", (name,))[0][0] >= MAX_TICKETS:
        raise Unavailable(
            f"{MAX_TICKETS} tickets of this credential are unused; use them, or wait {LIFE_SECONDS} s.",
            code="too_many_tickets",
            retry_after_seconds=LIFE_SECONDS,
        )
    transaction.execute(
        "INSERT INTO tickets VALUES (?, ?, ?, ?, ?, ?)",
        (
            _digest(text), name, _encode(ticket.reference).decode(), ticket.client, ticket.origin,
            now_us + LIFE_SECONDS * 1_000_000,
        ),
    )  # fmt: skip
    return text


def use(transaction: Transaction, text: str, now_us: int) -> Ticket | None:
    """Take a ticket out of the store; None when it is not there (any more)."""
    rows = transaction.execute(
        "DELETE FROM tickets WHERE digest = ? RETURNING reference, client, origin, expires_at", (_digest(text),)
    )
    if not rows or rows[0][3] <= now_us:
        return None
    reference, client, origin, _ = rows[0]
    return Ticket(_decode(reference), client, origin)


def bad_ticket() -> Unauthenticated:
    """The refusal of a ticket, whatever is wrong with it."""
    return Unauthenticated(
        f"The ticket is not good: each is for one connection within {LIFE_SECONDS} s, of the client and the Origin that it"
        " was made for; get another.",
        code="bad_ticket",
    )


def looks_like_one(text: str) -> bool:
    """True for what has the length of a ticket, so that the store needs not be asked for anything else."""
    return len(text) == TICKET_CHARACTERS


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
