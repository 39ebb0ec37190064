"""The command line for people: terminals, completion in a shell, the doctor, the demo, search."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from bus.settings import ROOT
from bus.testing import BusServer, eventually, free_port
from tests.conftest import require
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


def examined(
    folder: Path, *arguments: str, url: str = "http://127.0.0.1:9", **env: str
) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """What the doctor says of a bus whose data is in a folder: the exit code, and its findings by check."""
    given = {"DATA_DIR": str(folder), "MESSAGE_BUS_PORT": str(free_port()), **env}
    done = run(url, "doctor", "--json", *arguments, **given)
    findings: dict[str, list[dict[str, str]]] = {}
    for line in done.stdout.splitlines():
        finding = json.loads(line)
        assert bool(finding.get("cure")) == (finding["level"] != "ok"), finding
        findings.setdefault(finding["check"], []).append(finding)
    return done.returncode, findings


def levels(findings: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    """What is not well, by check."""
    return {check: found["level"] for check, listed in findings.items() for found in listed if found["level"] != "ok"}


def usual(findings: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    """As `levels`, without what is of the machine that runs the tests."""
    return {
        check: level
        for check, level in levels(findings).items()
        if check not in ("versions", "user", "files", "workers", "disk", "proxies")
    }


def test_the_doctor_finds_nothing_where_all_is_well(server: BusServer, tmp_path: Path) -> None:
    _, findings = examined(tmp_path / "new", "--local")
    assert usual(findings) == {}
    assert {"versions", "sqlite", "settings", "folder", "store", "disk", "port", "workers", "files"} <= set(findings)
    assert "bus" not in findings
    _, both = examined(server.data_dir, url=server.url, MESSAGE_BUS_PORT=str(server.port))
    assert usual(both) == {}
    assert {"bus", "health", "version", "durability", "clock", "port"} <= set(both)
    assert "own" in both["port"][0]["message"]
    shown = run(server.url, "doctor", "--remote")
    assert shown.stdout.startswith("ok       bus")


def broken(name: str, folder: Path) -> dict[str, str]:
    """Break something; returns the settings that go with it."""
    store = folder / "bus.db"
    if name == "settings":
        return {"WEB_CONCURRENCY": "many"}
    if name == "store":
        store.write_bytes(store.read_bytes()[:5000] + b"\xff" * 20_000 + store.read_bytes()[25_000:])
    elif name == "lost":
        store.unlink()
        (folder / "bus.db-wal").write_bytes(b"left")
    elif name == "permissions":
        store.chmod(0o644)
    elif name == "clock":
        with apsw.Connection(str(store)) as connection:
            connection.execute("UPDATE messages SET stamp = stamp + 3600000000")
    elif name == "disk":
        return {"DISK_ALARM_BYTES": str(2**50)}
    elif name == "port":
        return {"MESSAGE_BUS_PORT": str(_taken())}
    elif name == "workers":
        return {"WEB_CONCURRENCY": "64"}
    elif name == "files":
        return {"MAX_CONNECTIONS": "100000000"}
    elif name == "proxies":
        return {"HTTPS_PROXY": "http://proxy.example:3128"}
    return {}


LISTENERS: list[socket.socket] = []


def _taken() -> int:
    listener = socket.create_server(("127.0.0.1", 0))
    LISTENERS.append(listener)
    return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bus that has ended."""
    folder = tmp_path_factory.mktemp("stopped")
    with BusServer(data_dir=folder) as bus:
        bus.call("POST", "/api/send", {"from": "a", "to": "b"})
        bus.terminate()
    return folder


@pytest.mark.parametrize(
    ("name", "check", "level"),
    [
        ("settings", "settings", "wrong"),
        ("store", "store", "wrong"),
        ("lost", "store", "wrong"),
        ("permissions", "permissions", "warning"),
        ("clock", "clock", "wrong"),
        ("disk", "disk", "wrong"),
        ("port", "port", "wrong"),
        ("workers", "workers", "warning"),
        ("files", "files", "warning"),
        ("proxies", "proxies", "warning"),
    ],
)
def test_the_doctor_finds_what_is_broken_once_and_says_the_cure(
    stopped: Path, tmp_path: Path, name: str, check: str, level: str
) -> None:
    for file in stopped.glob("bus.db*"):
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
            (tmp_path / file.name).chmod(0o600)
    code, before = examined(tmp_path, "--local")
    env = broken(name, tmp_path)
    code, findings = examined(tmp_path, "--local", **env)
    assert code == {"warning": 1, "wrong": 2}[level] or code == 2
    fresh = {where: how for where, how in levels(findings).items() if levels(before).get(where) != how}
    assert fresh == {check: level}
    assert sum(found["level"] == level for found in findings[check]) == 1


def test_the_doctor_asks_a_bus_that_is_away_or_wants_a_key(locked_server: BusServer, tmp_path: Path) -> None:
    code, findings = examined(tmp_path, "--remote")
    assert (code, levels(findings)) == (2, {"bus": "wrong"})
    code, findings = examined(tmp_path, "--remote", url=locked_server.url)
    assert (code, levels(findings)) == (2, {"key": "wrong"})
    code, findings = examined(tmp_path, "--remote", url=locked_server.url, MESSAGE_BUS_API_KEY=KEY)
    assert (code, levels(findings)) == (0, {})


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
