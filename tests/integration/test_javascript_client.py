"""The JavaScript client in Node, against a real server: its own tests, with one worker and with four."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bus import __version__
from bus.testing import BusServer
from tests.conftest import can_not_run, require

FOLDER = Path(__file__).parents[2] / "clients" / "javascript"
MODULES = [FOLDER / "client.js", *sorted((FOLDER / "client").iterdir())]
MAX_LINES = 400


def node() -> list[str]:
    """Node with a WebSocket: since 22 it has one, before it takes a flag."""
    program = require("node")
    told = subprocess.run([program, "--version"], capture_output=True, check=True, text=True).stdout
    major = int(told.removeprefix("v").partition(".")[0])
    if major < 20:
        can_not_run(f"Node {told.strip()} has no WebSocket; the tests need 20 or later.")
    return [program] if major >= 22 else [program, "--experimental-websocket"]


def passes_its_own_tests(folder: Path, server: BusServer) -> None:
    command = [*node(), "--test", "--test-reporter=tap", "test/client.test.mjs"]
    environment = {**os.environ, "MESSAGE_BUS_URL": server.url}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# skipped 0\n" in done.stdout


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.full)])
def test_its_own_tests_pass(fresh_server: Any, workers: int) -> None:
    passes_its_own_tests(FOLDER, fresh_server(workers=workers))


def test_the_bus_serves_one_file_that_exports_what_the_package_does(server: BusServer, tmp_path: Path) -> None:
    served = tmp_path / "client.mjs"
    served.write_text(server.call("GET", "/client.js").body)
    exported = []
    for place in (served, FOLDER / "client.js"):
        script = f"console.log(Object.keys(await import('{place.as_uri()}')).join());"
        command = [*node(), "--input-type=module", "--eval", script]
        exported.append(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert exported == ["Backoff,BusError,Client,Message\n"] * 2


@pytest.mark.full
def test_they_pass_with_the_one_file_that_the_bus_serves(fresh_server: Any, tmp_path: Path) -> None:
    server: BusServer = fresh_server()
    shutil.copytree(FOLDER / "test", tmp_path / "test")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "client.js").write_text(server.call("GET", "/client.js").body)
    passes_its_own_tests(tmp_path, server)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_says_what_it_is_is_short_and_names_what_there_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("// @ts-check\n/**")
    assert len(text.splitlines()) <= MAX_LINES
    for names, target in re.findall(r"^(?:import|export|/\*\* @import) \{(.+)\} from \"(.+)\"", text, re.MULTILINE):
        source = (path.parent / target).read_text()
        for name in names.replace(" ", "").split(","):
            assert re.search(rf"^export .*\b{name}\b|@typedef .*\b{name}\b", source, re.MULTILINE), f"{target}: {name}"
            assert len(re.findall(rf"\b{name}\b", text)) > 1 or "export {" in text, f"{name} is imported, and not used"


def test_the_package_is_of_this_version_and_needs_nothing() -> None:
    package = json.loads((FOLDER / "package.json").read_text())
    assert (package["version"], package["license"]) == (__version__, "MIT")
    assert not {"dependencies", "devDependencies"} & set(package)
    assert all((FOLDER / name).exists() for name in package["files"])
