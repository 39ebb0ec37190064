"""From a clone to a message in the console, as docs/getting_started.md and README say: `make run`, a send, a look."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bus.settings import ROOT, Settings
from bus.testing import eventually, free_port
from tests.conftest import require

pytestmark = [pytest.mark.full, pytest.mark.timeout(400)]

FIVE_MINUTES = 300.0
NOT_IN_A_CLONE = shutil.ignore_patterns(
    ".git", ".venv", ".env", "data", "__pycache__", ".*_cache", ".hypothesis", "node_modules"
)


def test_a_newcomer_sees_a_message_in_the_console(context: Any, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=NOT_IN_A_CLONE)
    port = str(free_port())
    environ = {**os.environ, **{name.upper(): "" for name in Settings.__struct_fields__}, "MESSAGE_BUS_PORT": port}
    said = tmp_path / "said.log"
    with said.open("wb") as log:
        made = subprocess.Popen(
            [require("make"), "run"],
            cwd=clone,
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(
            lambda: "delivered {'text': 'hello, bus'}" in said.read_text() or made.poll() is not None,
            within_seconds=FIVE_MINUTES,
            every_seconds=0.2,
            what="the greeting of `make run`",
        )
        assert made.poll() is None, said.read_text()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/console#/feed")
        page.get_by_text("hello, bus").first.wait_for()
        send = [".venv/bin/python", "-m", "bus", "send", "--from", "code", "--to", "browser", "a first message"]
        sent = subprocess.run(
            send,
            cwd=clone,
            env={**environ, "MESSAGE_BUS_URL": f"http://127.0.0.1:{port}"},
            capture_output=True,
            text=True,
        )
        assert "The bus has not met browser yet; the message waits for it." in sent.stderr, sent
        page.get_by_text("a first message").first.wait_for()
        page.close()
    finally:
        os.killpg(made.pid, signal.SIGTERM)
        made.wait(60)
