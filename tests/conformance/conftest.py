"""The bus that the conformance tests speak to: the one at BUS_URL (with BUS_KEY), or one started for them.

    make conformance URL=http://127.0.0.1:5001 KEY=…

Only this file knows the product, and only to start it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import requests

from bus.testing import BusServer
from tests.conformance.remote import WAIT_SECONDS, Remote

URL, KEY = os.environ.get("BUS_URL", ""), os.environ.get("BUS_KEY", "")
BUSES = [0] if URL else [1, pytest.param(4, marks=pytest.mark.full)]
"""How many workers the server has that is started; 0: none is."""


@pytest.fixture(scope="session", params=BUSES, ids=lambda workers: f"{workers} workers" if workers else "given")
def bus(request: pytest.FixtureRequest) -> Iterator[Remote]:
    """The bus, for the whole run."""
    if not request.param:
        yield given()
        return
    with BusServer(workers=request.param) as server:
        yield Remote(lambda: server.url, is_ours=True)


def given() -> Remote:
    """The bus at BUS_URL; without one there, or without its key, there is nothing to test."""
    try:
        answer = requests.get(f"{URL.rstrip('/')}/api/status", headers={"X-API-Key": KEY}, timeout=WAIT_SECONDS)
    except requests.RequestException as problem:
        pytest.exit(f"No bus answers at {URL}: {type(problem).__name__}.", returncode=2)
    if answer.status_code != 200:
        pytest.exit(f"The bus at {URL} answers {answer.status_code}; give its KEY, or the right URL.", returncode=2)
    return Remote(lambda: URL, KEY)


@pytest.fixture
def remote(bus: Remote) -> Iterator[Remote]:
    """The bus, for one test: what the test leaves behind is cleared away."""
    yield bus
    bus.tidy()


@pytest.fixture
def admin(remote: Remote) -> Remote:
    """As `remote`, with the right to administer."""
    if not remote.may_administer:
        pytest.skip("The key may not administer.")
    return remote


@pytest.fixture
def own(remote: Remote) -> Remote:
    """As `remote`, of a bus that nobody else uses."""
    if not remote.is_ours:
        pytest.skip("This would reach everybody on a bus in use.")
    return remote


@pytest.fixture
def locked(remote: Remote) -> Remote:
    """As `remote`, of a bus that asks for a key."""
    if not remote.asks_for_a_key:
        pytest.skip("The bus asks for no key.")
    return remote
