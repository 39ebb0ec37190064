"""Delivery does what the model says, over random histories of sends, claims, verdicts, crashes and time."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.databases import PostgresServer
from tests.model.machine import Histories
from tests.model.on_postgresql import product_on

STEPS = 40
RANDOM = settings(
    derandomize=True,
    database=None,
    deadline=None,
    stateful_step_count=STEPS,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def test_short_histories_agree_with_the_model(template: Path) -> None:
    run_state_machine_as_test(lambda: Histories(template), settings=settings(RANDOM, max_examples=120))


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_hundreds_of_histories_agree_with_the_model(template: Path) -> None:
    thorough = settings(RANDOM, max_examples=400)
    run_state_machine_as_test(lambda: Histories(template), settings=thorough)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_histories_on_postgresql_agree_with_the_model(
    template: Path, postgresql: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgresql.make()
    monkeypatch.setattr("tests.model.side_by_side.Product", product_on(url))
    run_state_machine_as_test(lambda: Histories(template), settings=settings(RANDOM, max_examples=30))
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchall()[0][0], "The last history stands there."
