"""Fixtures for all tests: real servers, and `require` for programs that a test can't do without.

A server takes about a second to start, so `server` and `server4` are shared by a module: their tests use clients and
names of their own. `fresh_server` makes one for a single test, with settings of its own, to be stopped and killed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest
from hypothesis import settings

import bus.testing
from bus.testing import LOG_TAIL_CHARACTERS, BusServer
from tests.bus_nodes import BusNodes
from tests.databases import Databases, NoPostgresError, PostgresServer

settings.register_profile("no-clock", deadline=None)
settings.load_profile("no-clock")  # how long an example takes is the machine's affair

SERVERS = pytest.StashKey[list[BusServer]]()


def require(program: str) -> str:
    """The path of a program on PATH. Where it is missing the test can't run (see ci-packages.txt)."""
    path = shutil.which(program)
    if path is None:
        can_not_run(f"{program} is not installed; ci-packages.txt names the packages that the tests use.")
    return path


def can_not_run(sentence: str) -> NoReturn:
    """Say what this machine lacks: the test is skipped, and in CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


def pytest_addoption(parser: pytest.Parser) -> None:
    stores = ["sqlite", "postgresql", "postgresql+redis"]
    parser.addoption("--store", choices=stores, default="sqlite", help="where every bus keeps its log")
    parser.addoption("--nodes", type=int, default=1, help="how many nodes every bus has; more than 1 need PostgreSQL")


def pytest_configure(config: pytest.Config) -> None:
    """With `--nodes`, what test modules import as `BusServer` is a bus of so many nodes."""
    nodes: int = config.getoption("--nodes")
    if nodes > 1 and config.getoption("--store") == "sqlite":
        raise pytest.UsageError("Nodes share no file of SQLite's: add --store postgresql.")
    if nodes > 1:
        BusNodes.how_many = nodes
        bus.testing.BusServer = BusNodes  # type: ignore[misc]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--nodes`, leave out what is marked `one_node`."""
    if config.getoption("--nodes") > 1:
        for item in items:
            if (mark := item.get_closest_marker("one_node")) is not None:
                item.add_marker(pytest.mark.skip(reason=f"of one node: {mark.args[0]}"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL that runs, shared by the session's tests: each takes databases of its own."""
    try:
        server = PostgresServer()
    except NoPostgresError as error:
        can_not_run(str(error))
    yield server.start()
    server.close()


@pytest.fixture(scope="session", autouse=True)
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where buses keep their logs in this run: `--store`."""
    name: str = request.config.getoption("--store")
    with ExitStack() as stack:
        if name != "sqlite":
            from tests.redis_servers import RedisServer  # noqa: PLC0415  # it skips by what stands above

            redis = stack.enter_context(RedisServer("--databases", "10000")) if name.endswith("redis") else None
            postgresql: PostgresServer = request.getfixturevalue("postgresql")
            BusServer.store_for = Databases(postgresql.make, redis and redis.make)
        yield name
        BusServer.store_for = None


@pytest.fixture
def on_sqlite(store: str) -> None:
    """For tests that look into SQLite's files: where logs are kept elsewhere, they are passed over."""
    if store != "sqlite":
        pytest.skip("This test is about the files of SQLite.")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    """A running server with one worker, shared by the module's tests; with the settings of its SERVER_ENV, if it has one."""
    with bus.testing.BusServer(env=getattr(request.module, "SERVER_ENV", None)) as running:
        yield running


@pytest.fixture(scope="module")
def server4(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    """The same with four workers."""
    with bus.testing.BusServer(workers=4, env=getattr(request.module, "SERVER_ENV", None)) as running:
        yield running


@pytest.fixture
def fresh_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., BusServer]]:
    """A function that starts a server for this test alone; arguments as for `BusServer`. All are killed at the end."""
    servers = request.node.stash.setdefault(SERVERS, [])

    def start(**how: Any) -> BusServer:
        made = bus.testing.BusServer(**how)
        servers.append(made)
        return made.start()

    yield start
    for made in servers:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a failed test's servers printed."""
    report = yield
    if call.when == "call" and call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        fixtures = getattr(item, "funcargs", {}).values()
        servers = [value for value in fixtures if isinstance(value, BusServer)]
        for made in dict.fromkeys(servers + item.stash.get(SERVERS, [])):
            report.sections.append(("log of a server", made.log[-LOG_TAIL_CHARACTERS:]))
    return report
