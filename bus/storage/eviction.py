"""How messages leave the log: with all that hangs on them, and never silently.

What is still open of a message becomes a dead letter first. Whoever removes messages comes through here.
"""

from __future__ import annotations

from bus.storage import Transaction
from bus.storage.deliveries import Swept


def evict(transaction: Transaction, through: int, freed_bytes: int) -> Swept:
    """Remove the messages up to the seq `through`, whose payloads are `freed_bytes`; readers who miss them are told.

    What came of open deliveries is for `Courier.tell_swept`, after the commit.
    """
    swept = transaction.ledger.evict(through)
    for table, column in _HANGS_ON:
        transaction.execute(f"DELETE FROM {table} WHERE {column} <= ?", (through,))
    transaction.execute("UPDATE clients SET mark = ?1 WHERE mark < ?1", (through,))
    transaction.execute(
        "UPDATE log_head SET kept_bytes = kept_bytes - ?, lost_through = max(lost_through, ?)", (freed_bytes, through)
    )
    return swept


_HANGS_ON = (
    ("messages", "seq"),
    ("addressed", "seq"),
    ("thread_messages", "seq"),
    ("other_ids", "seq"),
    ("set_aside", "seq"),
)
