"""Hostile webhooks: a short run of `python -m tests.fuzz.ingress`, and a long one."""

from __future__ import annotations

import pytest

from bus.testing import BusServer
from tests.fuzz.ingress import fuzz


def test_no_webhook_makes_the_server_fail(server: BusServer) -> None:
    came, wrong = fuzz(server, 600, seed=7)
    assert wrong == []
    assert {202, 400, 401, 409, 415} <= set(came)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_nor_do_ten_thousand(server4: BusServer) -> None:
    came, wrong = fuzz(server4, 10_000, seed=8)
    assert wrong == []
    assert came.total() == 10_000
