"""The model's histories find every mutant of the product; so a fault of that kind would not stay."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Histories
from tests.model.mutants import MUTANTS
from tests.model.test_model import RANDOM

HISTORIES = 1500
"""At most so many; the product itself passes them all (tests/model/test_model.py)."""

QUICK = ("four_failures_are_enough", "priority_is_reversed", "eviction_is_silent")
SEARCH = settings(RANDOM, max_examples=HISTORIES, phases=[Phase.generate], report_multiple_bugs=False)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MUTANTS]
)
def test_histories_find(name: str, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    with pytest.raises((AssertionError, LookupError, apsw.Error)):
        run_state_machine_as_test(lambda: Histories(template), settings=SEARCH)
