"""Fixtures: a server of each size, and, for tests of refusals, servers of which nothing may have changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus.testing import BusServer
from tests.line import SEAMS
from tests.refusals import KEY, nothing_stored
from tests.sinks import Sink


@pytest.fixture(scope="module", params=["server", "server4"], ids=["one worker", "four workers"])
def each_server(request: pytest.FixtureRequest) -> BusServer:
    """The module's server with one worker, then the one with four: a test of it runs twice."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, BusServer)
    return found


@pytest.fixture
def untouched(server: BusServer) -> Iterator[BusServer]:
    """The module's server; at the end of the test nothing may have been stored."""
    with nothing_stored(server):
        yield server


@pytest.fixture(scope="module")
def locked_server() -> Iterator[BusServer]:
    """A running server with auth on, shared by the module's tests; its key is `tests.refusals.KEY`."""
    with BusServer(env={"API_KEY": KEY}) as running:
        yield running


@pytest.fixture
def locked(locked_server: BusServer) -> Iterator[BusServer]:
    """The module's server with auth on; at the end of the test nothing may have been stored."""
    with nothing_stored(locked_server):
        yield locked_server


@pytest.fixture(scope="module")
def seams() -> Iterator[BusServer]:
    """A server that shows who served a request (tests.seams), shared by the module's tests."""
    with BusServer(env=SEAMS) as running:
        yield running


@pytest.fixture(scope="module")
def seams4() -> Iterator[BusServer]:
    """The same with four workers."""
    with BusServer(env=SEAMS, workers=4) as running:
        yield running


@pytest.fixture(scope="module", params=["seams", "seams4"], ids=["one worker", "four workers"])
def each_seams(request: pytest.FixtureRequest) -> BusServer:
    """The one, then the other."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, BusServer)
    return found


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A receiver of webhooks."""
    with Sink() as receiver:
        yield receiver
