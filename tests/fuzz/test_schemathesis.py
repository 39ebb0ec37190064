"""Thousands of requests that `/openapi.json` allows or forbids: no failure of the server, each answer as described.

schemathesis makes them: the edges of every schema, chance, and chains of calls. It runs as a program of its own, against a
real server; what it found wrong stands in the test's failure, with a command that does it again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.testing import BusServer

HERE = Path(__file__).resolve().parent
KEY = "a-key-for-the-fuzzer"
OPERATIONS = 33
"""At least so many there are, so that a description that lost some is noticed."""


@pytest.fixture(scope="module")
def locked_server() -> Iterator[BusServer]:
    """A running server with auth on, shared by the module's tests."""
    with BusServer(env={"API_KEY": KEY}) as running:
        yield running


def fuzz(server: BusServer, folder: Path, *arguments: str, at_least: int) -> None:
    """Check that no answer contradicts the description, that at least so many were looked at, and the server is well."""
    workers = server.worker_pids()
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [*command, f"{server.url}/openapi.json", "--no-color", *arguments],
        cwd=folder,  # it keeps what it learns below the present folder
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None, done.stdout
    assert int(generated[1]) >= at_least, done.stdout
    assert "Traceback" not in server.log
    assert server.worker_pids() == workers


LEFT_OUT = "/clear$|/stream/events$|/log/stream$"
"""The clearing of all messages, and the streams, which never end. The option counts once: its last pattern holds."""

ONCE = ["--exclude-path-regex", f"{LEFT_OUT}|^/api/v1/", "--seed", "1"]
"""Arguments of the quick runs: no twins, and the same requests every time."""


def chosen(*phases: str, examples: int) -> list[str]:
    """Arguments: every operation but those left out, in these phases, with so much chance."""
    return ["--phases", ",".join(phases), "-n", str(examples)]


@pytest.mark.slow
def test_every_answer_is_as_described(server: BusServer, tmp_path: Path) -> None:
    fuzz(server, tmp_path, *chosen("coverage", "fuzzing", examples=5), *ONCE, at_least=15 * OPERATIONS)


def test_clearing_is_as_described(server: BusServer, tmp_path: Path) -> None:
    fuzz(server, tmp_path, "--include-path-regex", "/clear$", "-n", "5", "--seed", "1", at_least=4)


@pytest.mark.parametrize("given", [[], ["--header", "X-API-Key: no-key-of-this-bus"]], ids=["no key", "a wrong key"])
def test_without_a_key_every_refusal_is_as_described(
    locked_server: BusServer, tmp_path: Path, given: list[str]
) -> None:
    given = [*given, "--generation-with-security-parameters", "false"]
    before = locked_server.call("GET", "/api/log", headers={"X-API-Key": KEY}).body
    fuzz(locked_server, tmp_path, *chosen("fuzzing", examples=3), *ONCE, *given, at_least=2 * OPERATIONS)
    assert locked_server.call("GET", "/api/log", headers={"X-API-Key": KEY}).body == before


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 4])
def test_thousands_of_answers_are_as_described(
    fresh_server: Callable[..., BusServer], tmp_path: Path, workers: int
) -> None:
    server = fresh_server(workers=workers, env={"API_KEY": KEY})
    chance = chosen("coverage", "fuzzing", "stateful", examples=8)
    fuzz(
        server,
        tmp_path,
        *chance,
        "--exclude-path-regex",
        f"{LEFT_OUT}|^/api/v1/",
        "--header",
        f"X-API-Key: {KEY}",
        at_least=15 * OPERATIONS,
    )
