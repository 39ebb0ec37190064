"""The crash test of acks, queues, delays and requests, in short; `make crash-test ROUNDS=300` is the long one."""

from __future__ import annotations

import pytest

from tests.faults import crash_delivery

BROKEN = {
    "tests.faults.forget_leases": "TWO HANDS",
    "tests.faults.ack_early": "and then again attempt",
    "tests.faults.ack_neighbours": "who never acked it",
}
"""Mutants of the bus, and how each is found out."""


@pytest.mark.parametrize("workers", [1, 4])
def test_what_is_in_hands_at_a_kill_is_neither_lost_nor_doubled(workers: int) -> None:
    verdict = crash_delivery.run(2, workers=workers)
    assert verdict.faults == []
    assert verdict.acknowledged > 50
    assert verdict.acked > 50


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_what_is_in_hands_at_eight_kills_is_neither_lost_nor_doubled(workers: int) -> None:
    verdict = crash_delivery.run(8, workers=workers)
    assert verdict.faults == []
    assert verdict.acknowledged > 400
    assert verdict.acked > 400
    assert verdict.replied > 50


@pytest.mark.slow
@pytest.mark.parametrize("mutant", BROKEN)
def test_a_bus_that_breaks_its_word_about_acks_and_leases_is_found_out(mutant: str) -> None:
    verdict = crash_delivery.run(2, workers=1, extensions=mutant, patience_seconds=5)
    assert [fault for fault in verdict.faults if BROKEN[mutant] in fault]
