"""Something of both suites on PostgreSQL, with Redis and without, on one node and on three: `make test-stores`, in short."""

from __future__ import annotations

import pytest

from tests.stores import RUNS, run

SAMPLE = ["tests/conformance/test_queues.py", "tests/integration/test_requests.py"]


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in RUNS if name != "sqlite"])
def test_both_suites_hold_on_every_store(name: str) -> None:
    outcome = run(name, SAMPLE)
    assert outcome.failed == 0, outcome.output
    assert outcome.passed > 20
