"""Something of both suites on three nodes: `make test-stores`, in short."""

from __future__ import annotations

import pytest

from tests.stores import run

SAMPLE = ["-m", "not full", "tests/conformance/test_topics.py", "tests/integration/test_hands.py"]


@pytest.mark.full
def test_both_suites_hold_over_nodes() -> None:
    outcome = run("postgresql and redis, 3 nodes", SAMPLE)
    assert outcome.failed == 0, outcome.output
    assert outcome.passed > 10
