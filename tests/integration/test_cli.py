"""The command line as a shell uses it: real processes, real pipes, a real server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.client import Client
from bus.settings import ROOT
from bus.testing import BusServer, eventually, free_port

PATIENCE_SECONDS = 30.0
KEY = "a-key-for-the-tests"


def command(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "bus", *arguments, "--url", url]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "API_KEY" not in name and name != "MESSAGE_BUS_URL"}
    return {**kept, **more}


def run(url: str, *arguments: str, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(url, *arguments),
        cwd=ROOT,
        env=environment(**env),
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A function that starts a command with pipes; what is left at the end is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(url: str, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        process = subprocess.Popen(command(url, *arguments), cwd=ROOT, env=environment(), **pipes)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def log_of(server: BusServer, to: str) -> list[Any]:
    """The payloads that the log holds for a client."""
    return [message["payload"] for message in server.call("GET", f"/api/log?to={to}&limit=1000").body["messages"]]


# ---- send


def test_send_prints_the_receipt_and_says_when_the_name_is_new(server: BusServer) -> None:
    done = run(server.url, "send", "--to", "cli-one", "--type", "note", "--priority", "high", "שלום")
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert receipt["recipients"] == [{"client": "cli-one", "state": "unknown", "online": None}]
    assert "has not met cli-one" in done.stderr
    message = server.call("GET", f"/api/messages/{receipt['message_id']}").body["message"]
    assert (message["from"], message["type"], message["payload"]) == ("cli", "note", "שלום")
    assert message["priority"] == "high"


def test_send_takes_its_payload_from_stdin_and_json_as_it_is(server: BusServer) -> None:
    assert run(server.url, "send", "--to", "cli-stdin", given="two\nlines\n").returncode == 0
    assert run(server.url, "send", "--to", "cli-stdin", "--json", given='{"a": [1.50, null]}').returncode == 0
    assert log_of(server, "cli-stdin") == ["two\nlines", {"a": [1.5, None]}]


def test_each_line_is_a_message_with_its_number(server: BusServer) -> None:
    text = "".join(f"line {n}\n" for n in range(1, 701)) + "the last has no end"
    done = run(server.url, "send", "--to", "cli-lines", "--lines", given=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "701 sent.\n")
    payloads = log_of(server, "cli-lines")
    assert [payload["n"] for payload in payloads] == list(range(1, 702))
    assert [payload["line"] for payload in payloads] == text.splitlines()


def test_lines_leave_as_they_come(server: BusServer, begin: Callable[..., subprocess.Popen[bytes]]) -> None:
    sender = begin(server.url, "send", "--to", "cli-stream", "--lines")
    for n in (1, 2):
        sender.stdin.write(b"a line\nhalf a line, ")
        sender.stdin.flush()
        eventually(lambda n=n: len(log_of(server, "cli-stream")) == n, what="the line's arrival")


def test_bad_lines_are_named_and_the_others_sent(server: BusServer) -> None:
    done = run(server.url, "send", "--to", "cli-bad", "--lines", "--json", given='{"a":1}\nnope\n\n[2]\n')
    assert done.returncode == 1
    assert "Line 2 was not sent: it is not JSON" in done.stderr
    assert "2 sent, 1 not sent" in done.stderr
    assert log_of(server, "cli-bad") == [{"a": 1}, [2]]


def test_a_line_too_large_is_named(server: BusServer) -> None:
    done = run(server.url, "send", "--to", "cli-large", "--lines", given=f"small\n{'x' * 1_100_000}\nsmall\n")
    assert done.returncode == 1
    assert "Line 2 was not sent" in done.stderr
    assert len(log_of(server, "cli-large")) == 2


def test_what_is_not_utf_8_is_shown_not_lost(server: BusServer, begin: Callable[..., subprocess.Popen[bytes]]) -> None:
    begin(server.url, "send", "--to", "cli-bytes", "--lines").communicate(b"caf\xe9 \xf0\x9f\x9a\x80\n")
    assert log_of(server, "cli-bytes") == [{"line": "caf\\xe9 \N{ROCKET}", "n": 1}]


def test_sending_in_the_name_of_a_client_takes_nothing_of_what_waits_for_it(server: BusServer) -> None:
    server.call("POST", "/api/send", {"from": "other", "to": "cli-asleep", "payload": "for later"})
    assert run(server.url, "send", "--from", "cli-asleep", "--to", "other", "hello").returncode == 0
    shown = run(server.url, "tail", "--client", "cli-asleep", "--count", "1")
    assert json.loads(shown.stdout)["payload"] == "for later"


def test_a_restart_in_the_middle_loses_and_repeats_no_line(
    fresh_server: Callable[..., BusServer], begin: Callable[..., subprocess.Popen[bytes]]
) -> None:
    server = fresh_server()
    sender = begin(server.url, "send", "--to", "cli-restart", "--lines")
    sender.stdin.write(b"before\n" * 300)
    sender.stdin.flush()
    eventually(lambda: log_of(server, "cli-restart"), what="the first line's arrival")
    server.kill()
    sender.stdin.write(b"after\n" * 300)
    sender.stdin.flush()
    server.start()
    _, said = sender.communicate(timeout=PATIENCE_SECONDS)
    assert (sender.returncode, said) == (0, b"600 sent.\n")
    assert [payload["n"] for payload in log_of(server, "cli-restart")] == list(range(1, 601))


def test_patience_ends_with_an_exit_code(
    fresh_server: Callable[..., BusServer], begin: Callable[..., subprocess.Popen[bytes]]
) -> None:
    server = fresh_server()
    sender = begin(server.url, "send", "--to", "cli-patience", "--lines", "--patience", "0")
    sender.stdin.write(b"before\n")
    sender.stdin.flush()
    eventually(lambda: log_of(server, "cli-patience"), what="the first line's arrival")
    server.kill()
    _, said = sender.communicate(b"after\n", timeout=PATIENCE_SECONDS)
    assert sender.returncode == 1
    assert b"1 sent" in said
    assert b"Given up" in said


# ---- tail


def test_tail_shows_what_was_missed_and_says_where_it_stopped(server: BusServer) -> None:
    for n in range(3):
        server.call(
            "POST", "/api/send", {"from": "a", "to": "cli-tail", "payload": n, "type": "odd" if n % 2 else "even"}
        )
    done = run(server.url, "tail", "--client", "cli-tail", "--count", "2", "--type", "even")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [message["payload"] for message in messages] == [0, 2]
    assert f"--since {server.call('GET', '/api/status').body['epoch']}:{messages[-1]['seq']}" in done.stderr
    again = run(server.url, "tail", "--client", "cli-tail", "--count", "3", "--since", "earliest")
    assert [json.loads(line)["payload"] for line in again.stdout.splitlines()] == [0, 1, 2]


def test_tail_keeps_json_on_one_line(server: BusServer) -> None:
    body = b'{"from":"a","to":"cli-newline","payload":{"a":\n1,\r\n"b": "c\\nd"}}'
    server.call("POST", "/api/send", raw=body)
    done = run(server.url, "tail", "--client", "cli-newline", "--count", "1")
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["payload"] == {"a": 1, "b": "c\nd"}


def test_exec_runs_once_a_message_with_its_json_on_stdin(server: BusServer, tmp_path: Path) -> None:
    handler = tmp_path / "handler"
    handler.write_text("#!/bin/sh\ncat; read -r more && exit 9\n[ ! -e failed ] || exit 0\n: > failed; exit 3\n")
    handler.chmod(0o700)
    for n in range(3):
        server.call("POST", "/api/send", {"from": "a", "to": "cli-exec", "payload": n})
    done = run(
        server.url, "tail", "--client", "cli-exec", "--count", "3", "--exec", f"sh -c 'cd {tmp_path}; ./handler'"
    )
    assert [json.loads(line)["payload"] for line in done.stdout.splitlines()] == [0, 1, 2]
    assert done.returncode == 1
    assert "ended with 3" in done.stderr
    assert "failed on 1 message" in done.stderr


def test_exec_of_nothing_is_refused_before_anything_is_received(server: BusServer) -> None:
    done = run(server.url, "tail", "--client", "cli-exec-none", "--exec", "no-such-program")
    assert done.returncode == 2
    assert "no program" in done.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_tail_quietly_and_leave_the_place(
    server: BusServer, begin: Callable[..., subprocess.Popen[bytes]], sent: signal.Signals, code: int
) -> None:
    name = f"cli-{sent.name}"
    server.call("POST", "/api/send", {"from": "a", "to": name, "payload": "first"})
    follower = begin(server.url, "tail", "--client", name)
    assert b"first" in follower.stdout.readline()
    follower.send_signal(sent)
    out, said = follower.communicate(timeout=PATIENCE_SECONDS)
    assert (follower.returncode, out, said.strip()) == (code, b"", b"")
    eventually(lambda: not server.call("GET", f"/api/clients/{name}").body["online"], what="its going")


def test_tail_ends_quietly_when_nobody_reads_it_any_more(
    server: BusServer, begin: Callable[..., subprocess.Popen[bytes]]
) -> None:
    server.call("POST", "/api/send", {"from": "a", "to": "cli-head", "payload": 1})
    follower = begin(server.url, "tail", "--client", "cli-head")
    follower.stdout.readline()
    follower.stdout.close()
    server.call("POST", "/api/send", {"from": "a", "to": "cli-head", "payload": 2})
    assert follower.stderr.read() == b""
    assert follower.wait(PATIENCE_SECONDS) == 141


def test_on_a_terminal_tail_is_for_reading_and_steers_nothing(server: BusServer) -> None:
    server.call("POST", "/api/send", {"from": "a", "to": "cli-tty", "payload": "bell \u0007, \u009b31m, \u202eright"})
    ours, theirs = pty.openpty()
    try:
        with_tty = [*command(server.url, "tail", "--client", "cli-tty", "--count", "1")]
        subprocess.run(
            with_tty,
            cwd=ROOT,
            env=environment(),
            stdout=theirs,
            stderr=subprocess.PIPE,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
        shown = os.read(ours, 4096).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert 'a -> cli-tty  message  "bell \\u0007, \\x9b31m, \\u202eright"' in shown


# ---- looking


def test_status_clients_and_log_for_people_and_for_programs(server: BusServer) -> None:
    with Client("cli-looked-at", server.url) as client:
        receipt = client.send("cli-looked-at", "text", type="seen")
        listed = run(server.url, "clients").stdout
        row = next(line for line in listed.splitlines() if line.startswith("cli-looked-at "))
        assert "websocket" in row
        objects = [json.loads(line) for line in run(server.url, "clients", "--json").stdout.splitlines()]
        assert next(each for each in objects if each["client"] == "cli-looked-at")["online"] is True
    assert "durability   full" in run(server.url, "status").stdout
    assert json.loads(run(server.url, "status", "--json").stdout)["version"]
    found = run(server.url, "log", "--type", "seen", "--from", "cli-looked-at", "--to", "cli-looked-at").stdout
    assert [json.loads(line)["id"] for line in found.splitlines()] == [receipt.message_id]


def test_log_stops_at_its_limit_and_says_how_to_go_on(server: BusServer) -> None:
    for n in range(3):
        server.call("POST", "/api/send", {"from": "a", "to": "cli-log", "payload": n})
    first = run(server.url, "log", "--to", "cli-log", "--limit", "2")
    assert len(first.stdout.splitlines()) == 2
    since = first.stderr.split("--since ")[1].split()[0]
    rest = run(server.url, "log", "--to", "cli-log", "--since", since)
    assert [json.loads(line)["payload"] for line in rest.stdout.splitlines()] == [2]


# ---- what goes wrong


@pytest.mark.parametrize(
    "arguments", [("status",), ("clients",), ("log",), ("tail", "--client", "a"), ("send", "--to", "a", "--lines")]
)
def test_a_bus_that_is_not_there_is_one_sentence_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run(url, *arguments, given="a line\n")
    assert done.returncode == 2
    assert done.stderr == f"The bus at {url} can't be reached: nothing listens there (connection refused).\n"


def test_refusals_and_bad_urls_are_sentences(server: BusServer) -> None:
    bad = run(server.url, "send", "--to", "bad name", "x")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "`to` must be" in bad.stderr
    assert run("nonsense", "status").returncode == 2
    assert run(server.url, "tail", "--client", "a", "--since", "nonsense").returncode == 1


def test_the_key_comes_from_the_environment_and_a_wrong_one_is_said(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    assert run(server.url, "status", MESSAGE_BUS_API_KEY=KEY).returncode == 0
    assert run(server.url, "send", "--to", "a", "--lines", given="x\n", API_KEY=KEY).stderr == "1 sent.\n"
    assert run(server.url, "tail", "--client", "a", "--count", "1", "--api-key", KEY).returncode == 0
    for arguments in (("status",), ("send", "--to", "a", "x"), ("tail", "--client", "a")):
        done = run(server.url, *arguments, API_KEY="a-wrong-key-for-tests")
        assert done.returncode == 1
        assert "key" in done.stderr.lower()
        assert len(done.stderr.splitlines()) <= 2
