"""The systemd unit: taken by systemd, its command speaks to it, and its locks leave the server what it calls."""

from __future__ import annotations

import re
import runpy
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bus.settings import ROOT
from bus.testing import BusServer
from tests.calls import inbox, send
from tests.conftest import require
from tests.deploy.files import DEPLOY, of_the_unit, unit

UNIT = DEPLOY / "systemd" / "message-bus.service"
MAX_EXPOSURE = 20
"""Of 100, as `systemd-analyze security` counts; a plain unit has 96."""


def test_the_data_is_where_the_unit_may_write() -> None:
    (state,) = unit()["StateDirectory"]
    assert of_the_unit()["DATA_DIR"] == f"/var/lib/{state}"


def test_it_has_the_time_to_drain() -> None:
    patience = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["graceful_timeout"]
    assert int(unit()["TimeoutStopSec"][0]) >= patience + 5
    assert unit()["KillMode"] == ["mixed"], "The workers are the master's to stop."


def test_its_command_tells_systemd_when_it_is_ready(tmp_path: Path) -> None:
    """`Type=notify`: without the word the start would end in a timeout."""
    assert unit()["Type"] == ["notify"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        _, *arguments = shlex.split(unit()["ExecStart"][0])
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with BusServer(command=[sys.executable, *arguments], env=env) as server:
            assert b"READY=1" in systemd.recv(4096)
            assert server.call("GET", "/health").status == 200


@pytest.mark.full
def test_systemd_takes_it_and_finds_it_locked_up(tmp_path: Path) -> None:
    (command,) = unit()["ExecStart"]
    program = command.split()[0]
    text = UNIT.read_text().replace(program, sys.executable).replace(*unit()["WorkingDirectory"], str(ROOT))
    (tmp_path / UNIT.name).write_text(text)
    verify = [require("systemd-analyze"), "verify", "--man=no", str(tmp_path / UNIT.name)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rate = ["systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", str(UNIT)]
    assert subprocess.run(rate, capture_output=True).returncode == 0


@pytest.mark.full
def test_it_forbids_no_system_call_that_the_server_makes(tmp_path: Path) -> None:
    """A call outside of the unit's filters would kill the server at night; so all are traced, from start to stop."""
    calls = tmp_path / "calls"
    command = [require("strace"), "-D", "-f", "-qq", "-o", str(calls), sys.executable, "server_ws.py"]
    with BusServer(command=command) as server:
        send(server, "browser", "hello")
        inbox(server, "browser")
        server.terminate()
    made = set(re.findall(r"^\d+ +(\w+)\(", calls.read_text(), re.MULTILINE))
    assert {"fdatasync", "epoll_wait", "accept4"} & made, "The trace shows no server."
    allowed: set[str] = set()
    for line in unit()["SystemCallFilter"]:
        if line.startswith("~"):
            allowed -= members(line.removeprefix("~").split())
        else:
            allowed |= members(line.split())
    assert made <= allowed, f"The unit forbids {sorted(made - allowed)}."


def members(sets: list[str]) -> set[str]:
    """The system calls of systemd's sets, and of the sets in these."""
    found: set[str] = set()
    for name in sets:
        shown = subprocess.run(
            [require("systemd-analyze"), "syscall-filter", name], capture_output=True, text=True, check=True
        )
        lines = [line.strip() for line in shown.stdout.splitlines()[1:]]
        found |= {line for line in lines if line and line[0] not in "#@"}
        found |= members([line for line in lines if line.startswith("@")])
    return found
