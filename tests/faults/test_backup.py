"""`python -m bus backup` and `restore`: a copy of a busy log is whole, and what it replaces is told and kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.errors import StoreDamaged
from bus.settings import ROOT
from bus.storage.sqlite_backup import NoCopy, back_up, inspect
from bus.testing import BusServer, eventually
from tests.follower import Follower

Start = Callable[..., BusServer]
PATIENCE_SECONDS = 60.0


def bus(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m bus …` on the log in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "bus", *map(str, arguments)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def done(folder: Path, *arguments: object) -> str:
    """As `bus`, and it must succeed."""
    process = bus(folder, *arguments)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def refused(folder: Path, *arguments: object) -> str:
    """As `bus`, and it must be refused with one sentence."""
    process = bus(folder, *arguments)
    assert (process.returncode, process.stdout) == (1, "")
    assert len(process.stderr.splitlines()) == 1
    return process.stderr


def send(server: BusServer, number: int) -> str:
    """Send a number to `taker`; the cursor behind it."""
    answer = server.call("POST", "/api/send", {"from": "giver", "to": "taker", "payload": number})
    assert answer.status == 200
    return f"{epoch_of(server)}:{answer.body['seq']}"


def epoch_of(server: BusServer) -> str:
    return str(server.call("GET", "/api/status").body["epoch"])


def payloads(server: BusServer, since: str = "earliest") -> list[int]:
    """What the log holds, whole."""
    numbers: list[int] = []
    more = True
    while more:
        page = server.call("GET", f"/api/log?limit=1000&since={since}").body
        numbers += [message["payload"] for message in page["messages"]]
        since, more = page["cursor"], page["more"]
    return numbers


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_copy_of_a_busy_log_holds_what_was_acknowledged_before_it_and_is_restored(
    tmp_path: Path, fresh_server: Start, workers: int
) -> None:
    folder, copy = tmp_path / "data", tmp_path / "copy.db"
    server = fresh_server(data_dir=folder, workers=workers, env={"INBOX_LIMIT": "1000000"})
    kept = [send(server, number) for number in range(50)][-1]
    acknowledged: list[int] = []
    enough = threading.Event()

    def produce() -> None:
        number = 1000
        while not enough.is_set():
            send(server, number)
            acknowledged.append(number)
            number += 1

    producer = threading.Thread(target=produce)
    producer.start()
    eventually(lambda: len(acknowledged) > 100, what="some messages")
    before = len(acknowledged)
    said = done(folder, "backup", copy)
    enough.set()
    producer.join()
    lost = send(server, 7)
    assert "up to" in said
    assert copy.stat().st_mode & 0o777 == 0o600
    assert "stop it first" in refused(folder, "restore", copy, "--yes")
    assert payloads(server)[-1] == 7
    epoch = epoch_of(server)
    server.kill()

    said = done(folder, "restore", copy, "--yes")
    server.start()
    there = payloads(server)
    assert len(there) >= 50 + before
    assert there == [*range(50), *acknowledged][: len(there)]
    assert epoch_of(server) != epoch
    assert_told(server, lost=lost, kept=kept)
    # What stood there before is whole, under another name.
    server.kill()
    aside = Path(said.splitlines()[-1].removeprefix("What stood there before is ").rstrip("."))
    done(folder, "restore", aside, "--yes")
    server.start()
    assert payloads(server) == [*range(50), *acknowledged, 7]


def assert_told(server: BusServer, *, lost: str, kept: str) -> None:
    """After a restore: cursors of what is gone and of what is still there, and a newcomer."""
    # Who has seen what is gone is told; who has not misses nothing.
    page = server.call("GET", f"/api/messages?to=taker&since={lost}").body
    assert (page["gap"]["reason"], page["messages"]) == ("epoch_changed", [])
    assert "gap" not in server.call("GET", f"/api/messages?to=taker&since={kept}&limit=1000").body
    with Follower(server.port, "newcomer") as follower:
        assert server.call("POST", "/api/send", {"from": "giver", "to": "newcomer", "payload": 8}).status == 200
        follower.wait_for(1)


def test_a_copy_that_is_not_whole_or_not_ours_replaces_nothing(tmp_path: Path, fresh_server: Start) -> None:
    folder, copy = tmp_path / "data", tmp_path / "copy.db"
    server = fresh_server(data_dir=folder)
    send(server, 1)
    done(folder, "backup", copy)
    assert "is there already" in refused(folder, "backup", copy)
    done(folder, "backup", copy, "--force")
    server.kill()
    whole = copy.read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("empty", b""),
        ("text", b"no log"),
        ("torn", whole[:9000] + bytes(4096) + whole[13096:]),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        with pytest.raises(StoreDamaged, match=re.escape(str(bad))):
            inspect(bad)
    assert "torn is damaged" in refused(folder, "restore", tmp_path / "torn", "--yes")
    with pytest.raises(NoCopy, match="There is no file"):
        inspect(tmp_path / "nowhere")
    declined = bus(folder, "restore", copy)  # nobody says yes
    assert declined.returncode != 0
    server.start()
    assert payloads(server) == [1]
    assert sorted(path.name for path in folder.iterdir() if "restoring" in path.name or "before" in path.name) == []


def test_a_copy_takes_the_place_of_a_copy_only(tmp_path: Path, fresh_server: Start) -> None:
    folder, other = tmp_path / "data", tmp_path / "other.db"
    fresh_server(data_dir=folder)
    log = folder / "bus.db"
    (tmp_path / "link").symlink_to(log)
    (tmp_path / "strange.db").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for database, target, why in (
        (tmp_path / "none.db", other, "There is no log"),
        (tmp_path / "strange.db", other, "could not be written"),
        (log, log, "is the log itself"),
        (log, folder / "bus.db-wal", "is the log itself"),
        (log, tmp_path / "link", "is the log itself"),
        (log, tmp_path / "pipe", "is no file"),
        (log, tmp_path / "pipe" / "copy.db", "Not a directory"),
        (log, tmp_path / "nowhere" / "copy.db", "No such file"),
    ):
        with pytest.raises(NoCopy, match=why):
            back_up(database, target, replace=True)
    back_up(log, other)
    with pytest.raises(NoCopy, match="is there already"):
        back_up(log, other)
    back_up(log, other, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "link", "other.db", "pipe", "strange.db"]


@pytest.mark.full
def test_a_folder_keeps_so_many_copies(tmp_path: Path, fresh_server: Start) -> None:
    folder, copies = tmp_path / "data", tmp_path / "copies"
    copies.mkdir()
    (copies / "bus-of-mine.db").write_text("not one of them")
    server = fresh_server(data_dir=folder)
    for number in range(4):
        send(server, number)
        done(folder, "backup", copies, "--keep", 2)
    names = sorted(path.name for path in copies.iterdir())
    assert len(names) == 3
    server.kill()
    done(folder, "restore", copies / names[1], "--yes")
    server.start()
    assert payloads(server) == [0, 1, 2, 3]


def test_a_backup_that_finds_no_room_says_so_and_leaves_nothing(tmp_path: Path, fresh_server: Start) -> None:
    folder, copy = tmp_path / "data", tmp_path / "copy.db"
    server = fresh_server(data_dir=folder)
    send(server, 1)
    process = subprocess.run(
        ["bash", "-c", 'ulimit -f 16; exec "$0" -m bus backup "$1"', sys.executable, str(copy)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (process.returncode, "is full or fails" in process.stderr) == (1, True), process.stderr
    assert list(tmp_path.glob("copy*")) == []


@pytest.mark.full
def test_a_backup_that_is_killed_leaves_no_copy(tmp_path: Path, fresh_server: Start) -> None:
    folder, copy = tmp_path / "data", tmp_path / "copy.db"
    server = fresh_server(data_dir=folder, env={"INBOX_LIMIT": "1000000"})
    batch = {"messages": [{"from": "giver", "to": "taker", "payload": "x" * 50_000}] * 200}
    for _ in range(5):
        assert server.call("POST", "/api/send/batch", batch).status == 200
    process = subprocess.Popen(
        [sys.executable, "-m", "bus", "backup", str(copy)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(folder)},
        stdout=subprocess.DEVNULL,
    )
    eventually(lambda: any(tmp_path.glob("copy.db.*.part")) or process.poll() is not None, what="the copy's beginning")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not copy.exists() or bus(folder, "restore", copy).returncode != 0
    began = time.monotonic()
    done(folder, "backup", copy, "--force")
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert send(server, 1)
