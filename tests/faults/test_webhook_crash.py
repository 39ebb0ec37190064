"""The crash test of webhooks, in short; `python -m tests.faults.webhook_crash --rounds 50` is the long one."""

from __future__ import annotations

import pytest

from tests.faults import webhook_crash
from tests.faults.fail_points import POINTS


@pytest.mark.parametrize("point", ["after-outbox", "in-request"])
def test_no_event_is_lost_over_a_death(point: str) -> None:
    verdict = webhook_crash.run(point, 1)
    assert verdict.faults == []
    assert verdict.hits


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("point", POINTS)
def test_no_event_is_lost_over_three_deaths(point: str, workers: int) -> None:
    verdict = webhook_crash.run(point, 3, workers=workers)
    assert verdict.faults == []
    assert verdict.acknowledged
