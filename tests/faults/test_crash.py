"""The crash test, in short; `make crash-test ROUNDS=300` is the long one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.databases import PostgresServer
from tests.faults import crash


@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_acknowledged_is_lost_over_kills(workers: int) -> None:
    verdict = crash.run(3, workers=workers)
    assert verdict.faults == []
    assert verdict.acknowledged > 500


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_acknowledged_is_lost_over_ten_kills(workers: int) -> None:
    verdict = crash.run(10, workers=workers)
    assert verdict.faults == []
    assert verdict.acknowledged > 2000


@pytest.mark.slow
def test_a_bus_that_answers_before_the_commit_is_found_out() -> None:
    verdict = crash.run(3, workers=1, env={"BUS_EXTENSIONS": "tests.faults.answer_early"}, patience_seconds=2)
    assert any("LOST" in fault for fault in verdict.faults)


@pytest.mark.full
def test_nothing_acknowledged_is_lost_when_postgresql_is_stopped_at_once(postgresql_of_its_own: PostgresServer) -> None:
    verdict = crash.run(5, workers=1, seed=5, postgresql=postgresql_of_its_own)
    assert verdict.faults == []
    assert verdict.acknowledged > 200


@pytest.fixture
def postgresql_of_its_own() -> Iterator[PostgresServer]:
    """One that syncs, and may be stopped."""
    server = PostgresServer(durable=True).start()
    yield server
    server.close()
