"""The examples, as a user starts them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bus.settings import ROOT
from bus.testing import BusServer, eventually
from examples import hello, worker_pool

PATIENCE_SECONDS = 100.0


def run(name: str, *arguments: str) -> str:
    """What an example prints. It must succeed."""
    command = [sys.executable, f"examples/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_pool_of_workers_does_every_job_though_one_is_killed(server: BusServer) -> None:
    said = run("worker_pool", server.url)
    assert "killed -9" in said
    assert "each done once, with one worker killed" in said


def test_the_pools_verdict_finds_what_is_missing_doubled_or_not_handed_on() -> None:
    killed = {"job": "a", "worker": "w1", "attempt": 1}
    good = [{"job": "a", "worker": "w2", "attempt": 2}, {"job": "b", "worker": "w2", "attempt": 1}]
    assert worker_pool.verdict({"a", "b"}, killed, good) is None
    assert "not done" in (worker_pool.verdict({"a", "b", "c"}, killed, good) or "")
    assert "more than once" in (worker_pool.verdict({"a", "b"}, killed, [*good, good[1]]) or "")
    assert "No worker" in (worker_pool.verdict({"a", "b"}, None, good) or "")
    assert "finished by w1" in (worker_pool.verdict({"a", "b"}, killed, [killed, good[1]]) or "")


def test_requests_are_answered_at_once_and_late() -> None:
    said = run("request_reply")
    assert "answered, {'words': 6}" in said
    assert "recipient_offline" in said
    assert "pending" in said
    assert said.endswith("Every question was answered.\n")


def test_hello_says_at_once_that_the_server_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    eventually(lambda: ended.poll() is not None, what="its end")
    assert hello.wait_for("http://127.0.0.1:1", ended.pid) == (
        "The server ended before it answered; what it printed says why."
    )
