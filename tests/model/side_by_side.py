"""The product and the model side by side: what a history does to both, and what must hold after every step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from bus.storage import Item, ledger
from tests.model.choices import (
    CLIENTS,
)
from tests.model.model import LEASED, Model
from tests.model.product import Product, Seen

WINDOW = 3
LEASE_BYTES = 500
"""The product's window and hand-out, made small, so that short histories reach their edges."""


class Step(NamedTuple):
    """A part of a commit, and what compares it with the model once it is done."""

    item: Item
    compare: Callable[[], None]


class SideBySide(RuleBasedStateMachine):
    """`hands`: who holds what, as the answers said. `accepted`, `acked` and `purged`: (id, owner) of what needs an ack."""

    def __init__(self, template: Path) -> None:
        super().__init__()
        self._template = template
        self._folder = Path(tempfile.mkdtemp(prefix="bus-model-"))
        self._patches = [
            mock.patch.object(ledger, "CLIENT_WINDOW", WINDOW),
            mock.patch.object(ledger, "LEASE_BYTES", LEASE_BYTES),
        ]
        for patch in self._patches:
            patch.start()
        self.live: set[str] = set()
        self.hands: dict[tuple[str, int], str] = {}
        self.attempts: dict[tuple[str, int], int] = {}
        self.ids: list[str] = []
        self.accepted: set[tuple[str, str]] = set()
        self.acked: set[tuple[str, str]] = set()
        self.purged: set[tuple[str, str]] = set()
        self.own_ids = 0

    @initialize(limit=st.sampled_from((3, 1000)), chance=st.sampled_from((0.0, 0.5, 1.0)))
    def begin(self, limit: int, chance: float) -> None:
        self.product = Product(self._template, self._folder, limit, limit)
        self.model = Model(self.product.now, limit, limit, WINDOW, LEASE_BYTES, chance)
        self.product.chance = chance

    def teardown(self) -> None:
        if hasattr(self, "product"):
            self.product.close()
        for patch in self._patches:
            patch.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _take(self, owner: str, seq: int, holder: str) -> None:
        assert (owner, seq) not in self.hands, f"{seq} is in the hands of {self.hands[owner, seq]} and of {holder}"
        self.hands[owner, seq] = holder

    # ---- what must hold

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "product"):
            return
        seen = self.product.look()
        self._compare_with_model(seen)
        self._compare_readings()
        self._look_for_losses(seen)

    def _compare_with_model(self, seen: Seen) -> None:
        model = self.model
        counted: dict[str, tuple[int, int]] = {}
        for (owner, _), (state, *_) in seen.deliveries.items():
            waiting, leased = counted.get(owner, (0, 0))
            counted[owner] = (waiting, leased + 1) if state == LEASED else (waiting + 1, leased)
        assert {owner: counts for owner, counts in seen.backlogs.items() if counts != (0, 0)} == counted
        assert seen.deliveries == {
            place: (d.state, d.attempt, d.failures, d.holder, d.until) for place, d in model.open.items()
        }
        assert seen.dead == {
            place: (
                letter.reason,
                letter.detail if letter.reason != "overflow" else None,
                letter.died,
                letter.attempts,
                letter.sending.payload,
            )
            for place, letter in model.dead.items()
        }
        assert seen.settled == {place: fate[:3] for place, fate in model.settled.items()}
        assert seen.scheduled == {own_id: due for own_id, (due, _) in model.scheduled.items()}
        kept_bytes = sum(len(kept.sending.payload) for kept in model.log.values())
        assert (seen.seqs, seen.head) == (list(model.log), (model.head, kept_bytes, model.lost_through))

    def _compare_readings(self) -> None:
        for name in CLIENTS:
            assert self.product.waiting(name) == (self.model.waiting(name) if name in self.model.marks else 0)
            lasting = [d for d in self.model.of(name) if d.expires is None or d.expires > self.model.now]
            if lasting:
                assert self.product.open_order(name) == [delivery.seq for delivery in lasting]

    def _look_for_losses(self, seen: Seen) -> None:
        """Without a model: no two hands, no attempt that falls, and each accepted delivery in exactly one place."""
        assert self.hands == {place: row[3] for place, row in seen.deliveries.items() if row[0] == LEASED}
        for place, (_, attempt, *_) in seen.deliveries.items():
            assert attempt >= self.attempts.get(place, 0)
            self.attempts[place] = attempt
        ids = {seq: own_id for own_id, seqs in self.model.places.items() for seq in seqs}
        fates = [(ids.get(seq) or self.product.id_of(seq), owner) for owner, seq in seen.deliveries]
        fates += [place for place in seen.dead if place in self.accepted]
        fates += [place for place in self.accepted if place[0] in seen.scheduled]
        assert sorted(fates) == sorted(self.accepted - self.acked - self.purged)

    # ---- below

    def _commit(self, steps: Sequence[Step], writer: int = 0) -> None:
        self.product.commit([step.item for step in steps], writer)
        for step in steps:
            step.compare()
