"""Faults to be found: each breaks one promise of delivery in the product itself, as a slip of the pen would.

A mutant is a function that patches the product. The model's histories must fail for every one of them; a promise whose
mutant lives is a promise that nobody checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from bus.delivery import dead_letters, reaper
from bus.errors import Forbidden
from bus.protocol import Settle
from bus.storage import ledger, ledger_sql, work
from bus.storage.deliveries import LEASED, RESTING, Delivery, Failure, Settled, Swept
from bus.storage.inboxes import Inboxes
from bus.storage.ledger import Ledger

Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Mutant] = {}


def mutant(apply: Mutant) -> Mutant:
    """List a mutant under the name of its function."""
    MUTANTS[apply.__name__] = apply
    return apply


def _rewrite(patch: pytest.MonkeyPatch, module: Any, statement: str, old: str, new: str) -> None:
    """Change a named SQL statement; the change must hit."""
    text = getattr(module, statement)
    assert old in text, f"{statement} does not say {old!r} any more"
    patch.setattr(module, statement, text.replace(old, new))


# ---- leases


@mutant
def leases_never_end(patch: pytest.MonkeyPatch) -> None:
    real = Ledger._all

    def rows(self: Ledger, statement: str, bindings: Any) -> list[Any]:
        found = real(self, statement, bindings)
        return [row for row in found if row[2] == RESTING] if "WHERE until <= ?" in statement else found

    patch.setattr(Ledger, "_all", rows)


@mutant
def a_claimed_lease_is_too_long(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, ledger_sql, "LEASE", "until = ?", "until = ? + 1000000")


@mutant
def a_pushed_lease_is_too_long(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, ledger_sql, "ENTER", "(?, ?, ?, ?, ?,", "(?, ?, ?, ?, ? + 1000000,")


@mutant
def what_is_held_is_given_again(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, ledger_sql, "NEXT", "state = 0", "state <= 1")


@mutant
def what_rests_is_given(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, ledger_sql, "NEXT", "state = 0", "state IN (0, 2)")


@mutant
def progress_has_no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ledger, "MAX_LEASE_US", 10**15)


@mutant
def a_push_overtakes_what_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "leases_at_once", lambda self, name: self.backlog(name).leased < ledger.CLIENT_WINDOW)


@mutant
def the_window_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "leases_at_once", lambda self, name: not self.backlog(name).waiting)


# ---- order


@mutant
def priority_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, ledger_sql, "NEXT", "ORDER BY due_key, seq", "ORDER BY seq")


@mutant
def priority_is_reversed(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, ledger_sql, "NEXT", "ORDER BY due_key, seq", "ORDER BY due_key DESC, seq")


@mutant
def nothing_ages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ledger, "AGING_US", 10**14)


# ---- failures


@mutant
def four_failures_are_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ledger, "MAX_FAILURES", 4)


@mutant
def six_failures_are_needed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ledger, "MAX_FAILURES", 6)


@mutant
def a_nack_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    real = Ledger._fail

    def fail(self: Ledger, delivery: Delivery, outcome: str, reason: str | None, rest_us: int) -> Failure | None:
        if outcome != "nacked":
            return real(self, delivery, outcome, reason, rest_us)
        self._rest(delivery, outcome, reason, delivery.failures, rest_us)
        return None

    patch.setattr(Ledger, "_fail", fail)


@mutant
def a_release_is_counted(patch: pytest.MonkeyPatch) -> None:
    def release(self: Ledger, delivery: Delivery, said: Settle) -> Settled:
        self._fail(delivery, "released", said.reason, 0)
        return self._settled("released", delivery)

    patch.setitem(ledger._VERBS, "release", release)


@mutant
def a_clean_close_is_counted(patch: pytest.MonkeyPatch) -> None:
    real = Ledger._rest

    def rest(self: Ledger, delivery: Delivery, outcome: str, reason: str | None, failures: int, rest_us: int) -> None:
        real(self, delivery, outcome, reason, failures + (outcome == "released" and reason is None), rest_us)

    patch.setattr(Ledger, "_rest", rest)


@mutant
def an_expired_lease_is_no_rest(patch: pytest.MonkeyPatch) -> None:
    real = Ledger._fail

    def fail(self: Ledger, delivery: Delivery, outcome: str, reason: str | None, rest_us: int) -> Failure | None:
        longer = self._backoff(delivery.failures + 1) if outcome == "lease_expired" else rest_us
        return real(self, delivery, outcome, reason, longer)

    patch.setattr(Ledger, "_fail", fail)


@mutant
def the_backoff_is_too_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ledger, "BACKOFF_SECONDS", (5, 30, 120, 120))


# ---- who may say what


@mutant
def superseded_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    real = Ledger.settle
    patch.setattr(Ledger, "settle", lambda self, said: real(self, msgspec.structs.replace(said, attempt=None)))


@mutant
def anybody_may_ack(patch: pytest.MonkeyPatch) -> None:
    real = Ledger._find

    def find(self: Ledger, said: Settle) -> Delivery | Settled:
        try:
            return real(self, said)
        except Forbidden:
            for seq in self._places(said.message_id):
                for (owner,) in self._all("SELECT owner FROM deliveries WHERE seq = ?", (seq,)):
                    return self._delivery(owner, seq) or Settled("acked", 0)
            raise

    patch.setattr(Ledger, "_find", find)


@mutant
def who_lost_the_lease_may_go_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "_may_speak", lambda self, delivery, said: delivery.state == LEASED or said.verb == "ack")


# ---- ends


@mutant
def what_expires_is_lost(patch: pytest.MonkeyPatch) -> None:
    real = Ledger.bury

    def bury(self: Ledger, message: Any, owner: str, reason: str, *more: Any, **named: Any) -> Failure:
        if reason == "expired":
            return Failure(message, message.own_id or self._epochs.id_of(message.seq).decode(), owner, reason)
        return real(self, message, owner, reason, *more, **named)

    patch.setattr(Ledger, "bury", bury)


@mutant
def what_expired_is_still_given(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, ledger_sql, "NEXT", "expires_at > ?", "expires_at > ? - 100000000")


@mutant
def a_dead_letter_has_no_history(patch: pytest.MonkeyPatch) -> None:
    real = Ledger.bury
    patch.setattr(Ledger, "bury", lambda self, *given, **_: real(self, *given[:4], b"[]"))


@mutant
def eviction_is_silent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "evict", lambda self, through: Swept(set(), [], [], more=False))


@mutant
def a_redriven_letter_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dead_letters, "_remove", lambda transaction, letter: None)


# ---- counters and room


@mutant
def what_rests_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    real = Ledger._move
    patch.setattr(
        Ledger,
        "_move",
        lambda self, owner, waiting, leased: real(self, owner, 0 if (waiting, leased) == (1, -1) else waiting, leased),
    )


@mutant
def an_undone_job_is_still_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "drop", lambda self: None)


@mutant
def a_full_queue_takes_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Inboxes, "_make_queue_room", lambda *_: True)


@mutant
def the_youngest_makes_room(patch: pytest.MonkeyPatch) -> None:
    def oldest(self: Ledger, owner: str) -> Delivery | None:
        found = self._one("SELECT max(seq) FROM deliveries WHERE owner = ? AND state <> 1", (owner,))
        return self._delivery(owner, found[0]) if found[0] is not None else None

    patch.setattr(Ledger, "oldest_waiting", oldest)


# ---- keys


@mutant
def keys_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(work.Work, "_seen_before", lambda *_: False)
    patch.setattr(work.Work, "_remember", lambda *_: None)


@mutant
def a_key_is_good_for_any_body(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(work, "_hash", lambda message: b"same")


# ---- later


class _Forgetful:
    """A transaction in which nothing leaves `scheduled`."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def execute(self, statement: str, bindings: Any = ()) -> Any:
        return [] if statement.startswith("DELETE FROM scheduled") else self._transaction.execute(statement, bindings)


@mutant
def what_was_delayed_comes_twice(patch: pytest.MonkeyPatch) -> None:
    real = reaper._enter_batch
    patch.setattr(reaper, "_enter_batch", lambda transaction: real(_Forgetful(transaction)))


@mutant
def what_was_delayed_comes_early(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, reaper, "_DUE", "min(due_at)", "min(due_at) - 1000000")
    _rewrite(patch, reaper, "_SCHEDULED", "due_at <= ?", "due_at <= ? + 1000000")
