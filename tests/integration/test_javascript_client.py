"""The JavaScript client in Node, against a real server: its own tests, with one worker and with four."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bus import __version__
from tests.conftest import can_not_run, require

FOLDER = Path(__file__).parents[2] / "clients" / "javascript"


def node() -> list[str]:
    """Node with a WebSocket: since 22 it has one, before it takes a flag."""
    program = require("node")
    told = subprocess.run([program, "--version"], capture_output=True, check=True, text=True).stdout
    major = int(told.removeprefix("v").partition(".")[0])
    if major < 20:
        can_not_run(f"Node {told.strip()} has no WebSocket; the tests need 20 or later.")
    return [program] if major >= 22 else [program, "--experimental-websocket"]


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.full)])
def test_its_own_tests_pass(fresh_server: Any, workers: int) -> None:
    command = [*node(), "--test", "--test-reporter=tap", "test/client.test.mjs"]
    environment = {**os.environ, "MESSAGE_BUS_URL": fresh_server(workers=workers).url}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# skipped 0\n" in done.stdout


def test_the_package_is_of_this_version_and_needs_nothing() -> None:
    package = json.loads((FOLDER / "package.json").read_text())
    assert (package["version"], package["license"]) == (__version__, "MIT")
    assert not {"dependencies", "devDependencies"} & set(package)
    assert all((FOLDER / name).exists() for name in package["files"])
    assert "import(" not in (FOLDER / "client.js").read_text()
