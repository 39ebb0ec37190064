"""The doctor's look at a machine: where all is well it finds nothing, and each thing that is broken once, with its cure."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from bus.bus import MIGRATIONS
from bus.cli import local_checks
from bus.cli.findings import Finding, worst
from bus.storage.sqlite import SqliteStore

OF_THE_MACHINE = {"versions", "user", "files", "workers", "disk", "proxies"}
"""What may be found wherever the tests run."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data of a bus that has ended, named by the environment."""
    data = tmp_path / "data"
    data.mkdir()
    clock: Callable[[], int] = lambda: 0  # noqa: E731
    store = SqliteStore(data / "bus.db", data / "locks", clock, durability="full", inbox_limit=10, queue_limit=10)
    store.open([("core", MIGRATIONS)])
    with apsw.Connection(str(data / "bus.db")) as connection:
        text = "x" * 2000
        for seq in range(1, 40):
            row = (seq, 0, "b", "a", "t", 1_700_000_000_000_000 + seq, None, 0, b"", text.encode())
            connection.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    monkeypatch.setattr(local_checks, "ROOT", tmp_path)
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("MESSAGE_BUS")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATA_DIR", str(data))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MESSAGE_BUS_PORT", str(port))
    return data


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def found() -> list[Finding]:
    findings = list(local_checks.examine())
    for finding in findings:
        assert bool(finding.cure) == (finding.level != "ok"), finding
        assert finding.message, finding
    return findings


def ill(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.level) for finding in findings if finding.level != "ok"]


def test_where_all_is_well_it_finds_nothing(folder: Path) -> None:
    findings = found()
    assert {check for check, _ in ill(findings)} <= OF_THE_MACHINE
    names = {finding.check for finding in findings}
    assert {
        "versions",
        "sqlite",
        "settings",
        "folder",
        "store",
        "clock",
        "disk",
        "port",
        "workers",
        "files",
    } <= names | OF_THE_MACHINE
    told = next(finding.message for finding in findings if finding.check == "store")
    assert "39 messages" in told


def test_a_bus_that_never_ran_is_well(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "new" / "data"))
    assert {check for check, _ in ill(found())} <= OF_THE_MACHINE
    assert not (tmp_path / "new").exists()


def damage(store: Path) -> None:
    text = store.read_bytes()
    store.write_bytes(text[:8192] + b"\xff" * 40_000 + text[48_192:])


def lose(store: Path) -> None:
    store.unlink()
    Path(f"{store}-wal").write_bytes(b"left")


def postdate(store: Path) -> None:
    with apsw.Connection(str(store)) as connection:
        connection.execute("UPDATE messages SET stamp = 4000000000000000")
    connection.close()


def misname(store: Path) -> None:
    (store.parent.parent / ".env").write_text("MESAGE_BUS_PORT=5002\n")


BROKEN: dict[str, tuple[Callable[[Path], object], dict[str, str], str, str]] = {
    "a setting": (lambda _: None, {"WEB_CONCURRENCY": "many"}, "settings", "wrong"),
    "a name in .env": (misname, {}, "settings", "warning"),
    "a damaged log": (damage, {}, "store", "wrong"),
    "a lost log": (lose, {}, "store", "wrong"),
    "a log for all to read": (lambda store: store.chmod(0o644), {}, "permissions", "warning"),
    "a clock that was set back": (postdate, {}, "clock", "wrong"),
    "a full disk": (lambda _: None, {"DISK_ALARM_BYTES": str(2**50)}, "disk", "wrong"),
    "too many workers": (lambda _: None, {"WEB_CONCURRENCY": "64"}, "workers", "warning"),
    "too many connections": (lambda _: None, {"MAX_CONNECTIONS": "1000000"}, "files", "warning"),
    "a proxy": (lambda _: None, {"HTTPS_PROXY": "http://proxy.example:3128"}, "proxies", "warning"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found_once(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    breaking, env, check, level = BROKEN[name]
    before = ill(found())
    breaking(folder / "bus.db")
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    findings = found()
    assert [each for each in ill(findings) if each not in before] == [(check, level)]
    assert worst(findings) == 2 or level == "warning"


def test_a_port_that_somebody_has_is_told_with_who(folder: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setenv("MESSAGE_BUS_PORT", str(taken))
    (finding,) = [finding for finding in found() if finding.check == "port"]
    assert finding.level == "wrong"
    assert f"({os.getpid()}) has it" in finding.message
