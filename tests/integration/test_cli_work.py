"""`claim`, and `tail` with what needs an ack, as a shell uses them: real processes, a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.settings import ROOT
from bus.testing import BusServer, eventually, free_port
from tests.calls import state
from tests.integration.test_cli import PATIENCE_SECONDS, command, environment, run

Begin = Callable[..., subprocess.Popen[bytes]]

UNTIL_GO = "n=0; while [ ! -e go ] && [ $n -lt 600 ]; do n=$((n + 1)); sleep 0.05; done"
"""Shell: wait for the file `go`, and not for ever, since a command outlives a worker that was killed."""


@pytest.fixture
def begin() -> Iterator[Begin]:
    """A function that starts a command with pipes; what is left at the end is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(url: str, *arguments: str) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command(url, *arguments), cwd=ROOT, env=environment(), **pipes)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()  # not read to its end: a command that goes on holds it open


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """A function that makes a shell script, and returns its path."""

    def make(text: str) -> str:
        path = tmp_path / "job"
        path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{text}\n")
        path.chmod(0o700)
        return str(path)

    return make


def give(server: BusServer, to: str, *payloads: object, **fields: object) -> list[str]:
    """Send messages; returns their ids."""
    answers = [server.call("POST", "/api/send", {"from": "boss", "to": to, "payload": p, **fields}) for p in payloads]
    assert {answer.status for answer in answers} == {200}
    return [answer.body["message_id"] for answer in answers]


def is_empty(server: BusServer, queue: str) -> bool:
    """Whether nothing waits in a queue, and nobody works on it."""
    body = server.call("GET", f"/api/queues/{queue}").body
    return body["depth"] + body["in_flight"] == 0


def deaths(server: BusServer, owner: str) -> list[tuple[Any, str]]:
    """The payloads and reasons of an owner's dead letters."""
    letters = server.call("GET", f"/api/dead-letters?owner={owner}").body["dead_letters"]
    return [(letter["message"]["payload"], letter["reason"]) for letter in letters]


# ---- claim


def test_a_command_runs_once_a_job_with_its_payload_on_stdin_and_the_rest_in_the_environment(
    server: BusServer, script: Callable[[str], str]
) -> None:
    ids = give(server, "queue:c-exec", "a text", {"a": [1.50]}, type="build", thread_id="t-1")
    work = script('cat; echo; echo "$BUS_MESSAGE_ID $BUS_ATTEMPT $BUS_FROM $BUS_TYPE $BUS_QUEUE $BUS_THREAD_ID"')
    done = run(server.url, "claim", "c-exec", "--exec", work, "--count", "2")
    assert (done.returncode, done.stderr) == (0, "Stopped after 2 jobs.\n")
    assert done.stdout.splitlines() == [
        "a text",
        f"{ids[0]} 1 boss build c-exec t-1",
        '{"a":[1.5]}',
        f"{ids[1]} 1 boss build c-exec t-1",
    ]
    assert is_empty(server, "c-exec")


def test_a_job_whose_command_fails_comes_again_and_an_exit_code_can_say_never(
    server: BusServer, script: Callable[[str], str]
) -> None:
    give(server, "queue:c-fail", "bad")
    work = script("exit 3")
    failed = run(server.url, "claim", "c-fail", "--exec", work, "--once", "--reject-on", "4")
    assert failed.returncode == 1
    assert "ended with 3 on msg-" in failed.stderr
    assert "1 failed" in failed.stderr
    assert not is_empty(server, "c-fail")
    assert deaths(server, "queue:c-fail") == []
    give(server, "queue:c-never", "bad")
    assert run(server.url, "claim", "c-never", "--exec", work, "--once", "--reject-on", "3").returncode == 1
    assert is_empty(server, "c-never")
    assert deaths(server, "queue:c-never") == [("bad", "rejected")]


def test_without_a_command_jobs_are_printed(server: BusServer) -> None:
    ids = give(server, "queue:c-print", 1, 2)
    done = run(server.url, "claim", "c-print", "--count", "2", "--json")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ids
    assert is_empty(server, "c-print")


def test_several_jobs_run_at_a_time(server: BusServer, script: Callable[[str], str]) -> None:
    give(server, "queue:c-many", 1, 2, 3)
    work = script(
        "touch $BUS_MESSAGE_ID; n=0; while [ $(ls msg-* | wc -l) -lt 3 ] && [ $n -lt 5000 ]; do n=$((n + 1)); done; ls msg-*"
    )
    done = run(server.url, "claim", "c-many", "--exec", work, "--count", "3", "--max-in-flight", "3")
    assert (done.returncode, done.stderr) == (0, "Stopped after 3 jobs.\n")
    assert len(done.stdout.splitlines()) == 9, "each saw all three"


def test_a_job_stays_while_its_command_runs(
    server: BusServer, begin: Begin, script: Callable[[str], str], tmp_path: Path
) -> None:
    (job,) = give(server, "queue:c-long", "long")
    work = script(f"touch began; read -r _; {UNTIL_GO}")
    worker = begin(server.url, "claim", "c-long", "--exec", work, "--once", "--ack-wait", "1")
    eventually((tmp_path / "began").exists, what="the command's start")
    other = {"client": "c-long-other", "wait": 3}
    assert server.call("POST", "/api/queues/c-long/claim", other).body == {"messages": []}, "three leases later"
    assert server.call("GET", f"/api/messages/{job}").body["recipients"][0]["failures"] == 0
    (tmp_path / "go").touch()
    _, said = worker.communicate(timeout=PATIENCE_SECONDS)
    assert (worker.returncode, said) == (0, b"Stopped after 1 job.\n")
    assert is_empty(server, "c-long")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_command_finish(
    server: BusServer, begin: Begin, script: Callable[[str], str], tmp_path: Path, sent: signal.Signals
) -> None:
    queue = f"c-finish-{sent.name}"
    give(server, f"queue:{queue}", 1, 2)
    work = script(f"touch began; {UNTIL_GO}; touch finished")
    worker = begin(server.url, "claim", queue, "--exec", work)
    eventually((tmp_path / "began").exists, what="the command's start")
    worker.send_signal(sent)
    assert b"1 job may finish" in worker.stderr.readline()
    (tmp_path / "go").touch()
    _, said = worker.communicate(timeout=PATIENCE_SECONDS)
    assert (worker.returncode, said) == (0, b"Stopped after 1 job.\n")
    assert (tmp_path / "finished").exists()
    state = server.call("GET", f"/api/queues/{queue}").body
    assert (state["depth"], state["in_flight"]) == (1, 0)


@pytest.mark.parametrize("hurry", [["--grace", "0"], []])
def test_a_command_that_does_not_finish_in_time_is_ended_and_its_job_given_back_at_once(
    server: BusServer, begin: Begin, script: Callable[[str], str], tmp_path: Path, hurry: list[str]
) -> None:
    queue = f"c-grace-{len(hurry)}"
    give(server, f"queue:{queue}", "job")
    worker = begin(server.url, "claim", queue, "--exec", script("touch began; sleep 60"), *hurry)
    eventually((tmp_path / "began").exists, what="the command's start")
    worker.send_signal(signal.SIGTERM)
    assert b"may finish" in worker.stderr.readline()
    if not hurry:
        worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=PATIENCE_SECONDS)
    assert (worker.returncode, said) == (0, b"Stopped after 0 jobs.\n")
    (job,) = server.call("POST", f"/api/queues/{queue}/claim", {"client": "next", "wait": 2}).body["messages"]
    assert job["payload"] == "job"
    history = server.call("GET", f"/api/messages/{job['id']}").body
    assert "nacked" not in str(history)


def test_an_idle_worker_stops_at_a_signal_and_takes_no_job_with_it(server: BusServer, begin: Begin) -> None:
    worker = begin(server.url, "claim", "c-idle", "--exec", "true")
    eventually(lambda: server.call("GET", "/api/queues/c-idle").body["consumers"], what="the claim")
    worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=PATIENCE_SECONDS)
    assert (worker.returncode, said.splitlines()[-1]) == (0, b"Stopped after 0 jobs.")
    give(server, "queue:c-idle", "job")
    job = server.call("POST", "/api/queues/c-idle/claim", {"client": "next", "wait": 10}).body["messages"]
    assert [each["payload"] for each in job] == ["job"]


def test_a_killed_workers_job_goes_to_the_next_one(
    server: BusServer, begin: Begin, script: Callable[[str], str], tmp_path: Path
) -> None:
    give(server, "queue:c-kill", "job")
    work = script('echo $$ > pid; [ "$BUS_ATTEMPT" = 2 ] && echo "$BUS_REDELIVERED" && exit 0; sleep 60')
    first = begin(server.url, "claim", "c-kill", "--exec", work, "--ack-wait", "1")
    eventually((tmp_path / "pid").exists, what="the command's start")
    first.kill()
    first.wait()
    os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    second = run(server.url, "claim", "c-kill", "--exec", work, "--once")
    assert (second.returncode, second.stdout) == (0, "1\n")


def test_a_worker_goes_on_through_a_restart_of_the_bus(
    fresh_server: Callable[..., BusServer], begin: Begin, script: Callable[[str], str], tmp_path: Path
) -> None:
    server = fresh_server()
    give(server, "queue:c-restart", 1)
    work = script(f"touch began; {UNTIL_GO}")
    worker = begin(server.url, "claim", "c-restart", "--exec", work, "--count", "2")
    eventually((tmp_path / "began").exists, what="the command's start")
    server.kill()
    (tmp_path / "go").touch()
    server.start()
    give(server, "queue:c-restart", 2)
    worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0
    assert is_empty(server, "c-restart")


def test_claim_ends_quietly_when_nobody_reads_it_any_more_and_loses_no_job(server: BusServer, begin: Begin) -> None:
    give(server, "queue:c-head", 1, 2)
    worker = begin(server.url, "claim", "c-head", "--max-in-flight", "1")
    assert json.loads(worker.stdout.readline())["payload"] == 1
    worker.stdout.close()
    give(server, "queue:c-head", 3)
    assert worker.wait(PATIENCE_SECONDS) == 141
    left = server.call("GET", "/api/queues/c-head").body
    assert (left["depth"] >= 1, left["in_flight"]) == (True, 0)


def test_mistakes_are_sentences(server: BusServer) -> None:
    assert run(server.url, "claim", "q", "--exec", "no-such-program").returncode == 2
    bad = run(server.url, "claim", "bad name", "--once")
    assert (bad.returncode, len(bad.stderr.splitlines())) == (1, 1)
    gone = run(f"http://127.0.0.1:{free_port()}", "claim", "q", "--once")
    assert gone.returncode == 2
    assert "can't be reached" in gone.stderr


# ---- tail


def test_tail_confirms_what_needs_an_ack_when_it_was_printed(server: BusServer) -> None:
    give(server, "t-acks", 1, 2, require_ack=True)
    done = run(server.url, "tail", "--client", "t-acks", "--count", "2")
    assert [json.loads(line)["payload"] for line in done.stdout.splitlines()] == [1, 2]
    assert run(server.url, "log", "--to", "t-acks").stdout.count("\n") == 2
    give(server, "t-acks", "after")
    again = run(server.url, "tail", "--client", "t-acks", "--count", "1")
    assert [json.loads(line)["payload"] for line in again.stdout.splitlines()] == ["after"]


def test_tail_exec_confirms_after_the_command_succeeded_and_gives_back_when_it_failed(
    server: BusServer, script: Callable[[str], str]
) -> None:
    good, bad = give(server, "t-exec", "good", "bad", require_ack=True)
    work = script("grep -q good")
    done = run(server.url, "tail", "--client", "t-exec", "--count", "2", "--exec", work)
    assert done.returncode == 1
    assert f"ended with 1 on {bad}" in done.stderr
    eventually(lambda: state(server, good) == "acked", what="the ack")
    assert state(server, bad) != "acked"


def test_tail_follows_topics_beside_its_inbox(server: BusServer, begin: Begin) -> None:
    tail = begin(server.url, "tail", "--client", "t-topics", "--topics", "builds.*, logs.>", "--count", "3")
    eventually(lambda: server.call("GET", "/api/clients/t-topics").body.get("online"), what="the connection")
    give(server, "topic:builds.linux", 1)
    give(server, "topic:news", 2)
    give(server, "topic:logs.app.web", 3)
    give(server, "t-topics", 4)
    shown, _ = tail.communicate(timeout=PATIENCE_SECONDS)
    assert [json.loads(line)["payload"] for line in shown.splitlines()] == [1, 3, 4]
    logged = run(server.url, "log", "--topic", "builds.*").stdout
    assert [json.loads(line)["payload"] for line in logged.splitlines()] == [1]
