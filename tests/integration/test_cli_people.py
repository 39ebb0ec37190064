"""The command line for people: terminals, completion in a shell, the doctor, the demo, search."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.settings import ROOT
from bus.testing import BusServer, eventually
from tests.conftest import require
from tests.databases import PostgresServer
from tests.integration.test_cli import PATIENCE_SECONDS, command, environment, run
from tests.refusals import KEY


def on_terminal(url: str, *arguments: str, **env: str) -> str:
    """What a command writes to a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(url, *arguments),
        cwd=ROOT,
        env=environment(COLUMNS="60", TERM="xterm", **env),
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    finally:
        os.close(ours)
        process.wait(PATIENCE_SECONDS)
    return said.decode()


# ---- terminals and pipes


def test_a_terminal_gets_colours_and_lines_that_fit_a_pipe_neither(server: BusServer) -> None:
    for name in ("people-" + "x" * 100, "people-short"):
        server.call("POST", "/api/send", {"from": name, "to": "people", "payload": "to be found: needle"})
    shown = on_terminal(server.url, "clients")
    assert "\x1b[1mCLIENT" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" in shown
    piped = run(server.url, "clients").stdout
    assert "\x1b" not in piped
    assert "people-" + "x" * 100 in piped
    assert "\x1b[3" not in on_terminal(server.url, "clients", NO_COLOR="1")
    assert "\x1b[1m" not in on_terminal(server.url, "clients", NO_COLOR="1")


def test_search_marks_what_it_found_on_a_terminal(server: BusServer) -> None:
    server.call(
        "POST", "/api/send", {"from": "finder", "to": "people", "payload": "a haystack, a pin \x1b[2J", "type": "note"}
    )
    eventually(lambda: run(server.url, "search", "haystack").stdout, what="the index")
    shown = on_terminal(server.url, "search", "haystack", "pin")
    assert "\x1b[33m\x1b[1mhaystack" in shown
    assert "\x1b[2J" not in shown
    found = json.loads(run(server.url, "search", "haystack", "--from", "finder", "--json").stdout)
    assert found["message"]["type"] == "note"
    assert found["snippet"]["matches"] == [[2, 8]]
    assert run(server.url, "search", "haystack", "--from", "nobody").stdout == ""
    bad = run(server.url, "search", "*")
    assert (bad.returncode, len(bad.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["send"],
        ["log", "--limit", "-1"],
        ["claim"],
        ["search", "--order", "best", "x"],
        ["completion", "tcsh"],
        ["demo", "--seconds", "0"],
    ],
)
def test_what_can_not_be_meant_ends_with_2_and_a_sentence(arguments: list[str]) -> None:
    done = run("http://127.0.0.1:9", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Try 'python -m bus" in done.stderr


# ---- completion


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bus dead", "dead-letters"),
        ("bus dead-letters re", "redrive"),
        ("bus search --or", "--order"),
        ("bus search --order ra", "rank"),
        ("bus keys create --scope read", "read read-all"),
    ],
)
def test_the_shell_completes(line: str, offered: str, tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "bus", "completion", "bash"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (tmp_path / "completion").write_text(script.stdout)
    words = " ".join(line.split())
    asked = (
        f"source completion; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _bus_completion;"
        " echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        [require("bash"), "-c", asked], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == (offered, "")


def test_the_shell_gets_a_command_that_works_anywhere(tmp_path: Path) -> None:
    asked = f'source <(cd "{ROOT}" && "{sys.executable}" -m bus completion bash); bus --version'
    done = subprocess.run(
        [require("bash"), "-c", asked], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert "multi-agent-bridge" in done.stdout


# ---- doctor


def examined(url: str, *arguments: str, **env: str) -> tuple[int, dict[str, str]]:
    """What the doctor finds, as a command: its exit code, and what is not well, by check."""
    done = run(url, "doctor", "--json", *arguments, **env)
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(bool(found["cure"]) == (found["level"] != "ok") for found in findings)
    assert done.stderr == ""
    return done.returncode, {found["check"]: found["level"] for found in findings if found["level"] != "ok"}


def test_the_doctor_asks_a_bus_that_is_there_is_away_or_wants_a_key(locked_server: BusServer, tmp_path: Path) -> None:
    assert examined("http://127.0.0.1:9", "--remote") == (2, {"bus": "wrong"})
    assert examined(locked_server.url, "--remote") == (2, {"key": "wrong"})
    assert examined(locked_server.url, "--remote", MESSAGE_BUS_API_KEY=KEY) == (0, {})
    code, found = examined("http://127.0.0.1:9", "--local", DATA_DIR=str(tmp_path), WEB_CONCURRENCY="many")
    assert (code, found["settings"]) == (2, "wrong")
    shown = run(locked_server.url, "doctor", "--remote", MESSAGE_BUS_API_KEY=KEY)
    assert shown.stdout.startswith("ok       bus")


def test_the_doctor_knows_the_bus_on_its_own_port(server: BusServer) -> None:
    here = {"DATA_DIR": str(server.data_dir), "MESSAGE_BUS_PORT": str(server.port)}
    done = run(server.url, "doctor", "--json", **here)
    findings = {found["check"]: found for found in map(json.loads, done.stdout.splitlines())}
    assert {"port", "store", "bus", "health", "version", "durability", "clock"} <= set(findings)
    assert "is the bus's own" in findings["port"]["message"]
    assert {findings[check]["level"] for check in ("port", "store", "bus", "folder", "version", "clock")} == {"ok"}


@pytest.mark.full
def test_the_doctor_looks_at_postgresql(postgresql: PostgresServer, tmp_path: Path) -> None:
    here = {"DATA_DIR": str(tmp_path), "DATABASE_URL": postgresql.make()}
    assert "store" not in examined("http://127.0.0.1:9", "--local", **here)[1]
    here["DATABASE_URL"] += "x"
    code, found = examined("http://127.0.0.1:9", "--local", **here)
    assert (code, found["store"]) == (2, "wrong")


# ---- demo


def test_the_demo_is_lively_and_tidies_up(each_server: BusServer) -> None:
    done = run(each_server.url, "demo", "--seconds", "3", "--rate", "60")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"\d+ tasks?, .*\d+ builds?, .*in \d+ s; \d+ results, \d+ dead letters? \(purged\)", done.stderr
    ), done.stderr
    assert "Traceback" not in done.stderr
    log = each_server.call("GET", "/api/log?limit=1000").body["messages"]
    types = {message["type"] for message in log if message["from"].startswith("demo-")}
    assert {"task", "result", "line", "build", "review", "announcement"} <= types
    assert all(message["expires_at"] for message in log if message["from"].startswith("demo-"))
    queues = {queue["queue"]: queue for queue in each_server.call("GET", "/api/queues").body["queues"]}
    assert queues.get("demo-builds", {"depth": 0})["depth"] == 0
    assert each_server.call("GET", "/api/dead-letters?owner=queue:demo-builds").body["dead_letters"] == []
    online = each_server.call("GET", "/api/clients?limit=1000").body["clients"]
    assert not [client["client"] for client in online if client["online"] and client["client"].startswith("demo-")]


def test_the_demo_ends_at_ctrl_c_and_takes_its_webhook_away(fresh_server: Callable[..., BusServer]) -> None:
    bus = fresh_server(env={"WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8"})
    process = subprocess.Popen(
        command(bus.url, "demo", "--webhook", "--rate", "50"),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: bus.call("GET", "/api/webhooks/deliveries").body["deliveries"], what="a delivery")
    process.send_signal(2)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, said
    assert "(purged)" in said
    assert "Traceback" not in said
    assert bus.call("GET", "/api/webhooks").body["webhooks"] == []
    refused = run(bus.url, "demo", "--seconds", "0.5")
    assert refused.returncode == 2
