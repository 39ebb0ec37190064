"""Dead letters: what could not be delivered, to be looked at, sent again (redriven) or thrown away (purged)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bus.errors import Malformed
from bus.message import ACK_WAIT_US, OWN_ID, PRIORITIES, REDRIVEN, Kind, Message, Terms
from bus.storage import Outcome, Reader, Transaction
from bus.storage.deliveries import Failure
from bus.storage.rows import named

REASONS = ("rejected", "expired", "max_attempts", "overflow", "no_recipient", "invalid")
STEP = 200
"""Dead letters of one transaction, so that no commit waits long."""

_COLUMNS = (
    "id, owner, died_at, reason, detail, attempts, seq, kind, address, sender, type, stamp, flags, extras, payload,"
    " ack_wait"
)


def _matches(choice: Choice) -> tuple[str, list[str]]:
    """A condition and its bindings. Only what was asked for is in it: an index that serves it is found then."""
    asked = ("owner", choice.owner), ("reason", choice.reason), ("sender", choice.sender), ("id", choice.id)
    given = [(column, value) for column, value in asked if value is not None]
    return " AND ".join(["true", *(f"{column} = ?" for column, _ in given)]), [value for _, value in given]


START = (-1, "", "")
Rank = tuple[int, str, str]
"""A place among the dead letters: when it died, its id, its owner."""


class DeadLetter(msgspec.Struct):
    """A message that did not reach one owner. `attempts` is a JSON array; `died_us` the bus's clock."""

    message: Message
    owner: str
    died_us: int
    reason: str
    detail: str | None
    attempts: bytes
    seq: int
    ack_wait_us: int | None

    @property
    def rank(self) -> Rank:
        return self.died_us, self.message.own_id, self.owner


class Choice(msgspec.Struct, frozen=True):
    """Which dead letters; None means any."""

    owner: str | None = None
    reason: str | None = None
    sender: str | None = None
    id: str | None = None


class Done(msgspec.Struct):
    """How many matched, and with how many of them it was done; the others are still there. `failures`: what was set aside
    to make room for them."""

    matched: int
    done: int
    failures: list[Failure] = []


def parse_rank(text: str) -> Rank:
    """Read a page's cursor. Raises Malformed."""
    died, _, rest = text.partition(".")
    message_id, _, owner = rest.partition(".")
    if not text:
        return START
    if not (died.isascii() and died.isdigit() and len(died) < 19 and message_id and owner):
        raise Malformed("`cursor` is none that an answer gave you.", code="bad_cursor", field="cursor")
    return int(died), message_id, owner


def cursor_of(rank: Rank) -> str:
    """A rank as the cursor of the next page. An id has no dot."""
    return f"{rank[0]}.{rank[1]}.{rank[2]}"


def page(reader: Reader | Transaction, choice: Choice, after: Rank, limit: int) -> list[DeadLetter]:
    """Dead letters in the order of their deaths."""
    order = (
        "+died_at" if choice.id is not None else "died_at"
    )  # one id has few: its index serves better than the order's
    where, bindings = _matches(choice)
    statement = (
        f"SELECT {_COLUMNS} FROM dead_letters WHERE {where} AND (died_at, id, owner) > (?, ?, ?)"
        f" ORDER BY {order}, id, owner LIMIT ?"
    )
    return [_dead_letter(row) for row in reader.execute(statement, (*bindings, *after, limit))]


def count(reader: Reader | Transaction, choice: Choice) -> int:
    """How many match."""
    where, bindings = _matches(choice)
    return int(reader.execute(f"SELECT count(*) FROM dead_letters WHERE {where}", bindings)[0][0])


def purge(write: Callable[[Any], Any], choice: Choice, limit: int) -> Done:
    """Throw away up to `limit`, in steps. `write` is the bus's."""
    return _in_steps(write, choice, limit, _purge_one)


def redrive(write: Callable[[Any], Any], choice: Choice, limit: int) -> Done:
    """Send up to `limit` again, in steps: each keeps its id and begins at attempt 1. What finds no room stays."""
    return _in_steps(write, choice, limit, _redrive_one)


Step = tuple[list[Outcome | None], Rank | None]
"""What became of each, and where the next step begins."""


def _in_steps(
    write: Callable[[Any], Any], choice: Choice, limit: int, one: Callable[[Transaction, DeadLetter], Outcome | None]
) -> Done:
    matched = write(lambda transaction: count(transaction, choice))
    done = Done(matched, 0)
    after: Rank | None = START
    left = min(limit, matched)
    while after is not None and left > 0:

        def step(
            transaction: Transaction, after: Rank = after, left: int = left
        ) -> tuple[list[Outcome | None], Rank | None]:
            letters = page(transaction, choice, after, min(STEP, left))
            return [one(transaction, letter) for letter in letters], letters[-1].rank if letters else None

        outcomes, after = write(step)
        left -= len(outcomes)
        acted = [outcome for outcome in outcomes if outcome is not None]
        done.done += len(acted)
        done.failures += [failure for outcome in acted for failure in outcome.failures]
    return done


def _purge_one(transaction: Transaction, letter: DeadLetter) -> Outcome | None:
    _remove(transaction, letter)
    return Outcome()


def _redrive_one(transaction: Transaction, letter: DeadLetter) -> Outcome | None:
    """None: it found no room, and stays."""
    old = letter.message
    queue = letter.owner.startswith("queue:")
    kind, address = (Kind.QUEUE, letter.owner[6:]) if queue else (Kind.CLIENT, letter.owner)
    extras = old.extras if REDRIVEN in old.extras else old.extras + REDRIVEN
    priority = PRIORITIES[msgspec.json.decode(b"{" + extras[1:] + b"}").get("priority", "normal")]
    message = Message(
        kind,
        address,
        () if queue else (letter.owner,),
        old.sender,
        old.type,
        old.payload,
        old.stamp_us,
        old.flags | OWN_ID,
        None,
        extras,
        own_id=old.own_id,
        terms=Terms(priority, letter.ack_wait_us or ACK_WAIT_US),
    )
    outcome = transaction.append(message, again=True)
    if not isinstance(outcome, Outcome):
        return None
    _remove(transaction, letter)
    return outcome


def _remove(transaction: Transaction, letter: DeadLetter) -> None:
    transaction.execute("DELETE FROM dead_letters WHERE id = ? AND owner = ?", (letter.message.own_id, letter.owner))


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    (
        message_id,
        owner,
        died_at,
        reason,
        detail,
        attempts,
        seq,
        kind,
        address,
        sender,
        type_,
        stamp,
        flags,
        extras,
        payload,
        ack_wait,
    ) = row
    message = Message(
        kind, address, named(kind, address), sender, type_, payload, stamp, flags, None, extras, seq, own_id=message_id
    )
    return DeadLetter(message, owner, died_at, reason, detail, attempts, seq, ack_wait)
