"""A log that can't be trusted: the server says so in one sentence, ends, and leaves every byte as it was."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import psutil
import pytest

from bus.backplane.local import Slot
from bus.bus import MIGRATIONS
from bus.errors import StartRefused
from bus.storage.sqlite import NETWORK_FILE_SYSTEMS, SqliteStore
from bus.testing import BusServer, ServerFailed, eventually
from tests.faults.small_disk import on_own_disk
from tests.follower import Follower
from tests.workers import wait_until_known

PAGE_BYTES = 4096
MESSAGES = 300
REFUSAL = "The server does not start: "


def fill_log(server: BusServer, count: int, first: int = 0) -> str:
    """Send numbered messages to `taker`, and return the cursor behind the last."""
    batch = [{"from": "giver", "to": "taker", "payload": {"n": first + n, "pad": "x" * 1500}} for n in range(count)]
    assert server.call("POST", "/api/send/batch", {"messages": batch}).status == 200
    return server.call("GET", "/api/status").body["cursor"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a server that was stopped."""
    folder = tmp_path_factory.mktemp("stopped") / "data"
    with BusServer(data_dir=folder) as server:
        fill_log(server, MESSAGES)
        assert server.terminate() == 0
    assert (folder / "bus.db").stat().st_size > 60 * PAGE_BYTES
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a server that was killed: the last messages are in the WAL."""
    folder = tmp_path_factory.mktemp("killed") / "data"
    with BusServer(data_dir=folder) as server:
        fill_log(server, MESSAGES)
        server.restart()
        fill_log(server, MESSAGES, first=MESSAGES)
        server.kill()
    assert (folder / "bus.db-wal").stat().st_size > 60 * PAGE_BYTES
    return folder


def refusal_of(folder: Path, tmp_path: Path, *, workers: int = 1, env: dict[str, str] | None = None) -> str:
    """Start a server that must refuse, and return its sentence. It ends with a status, and with that alone."""
    errors = tmp_path / "stderr"
    command = ["sh", "-c", 'exec "$@" 2>"$0"', str(errors), sys.executable, "server_ws.py"]
    server = BusServer(data_dir=folder, workers=workers, command=command, env=env)
    try:
        with pytest.raises(ServerFailed) as failure:
            server.start()
    finally:
        server.close()
    (code,) = re.findall(r"exited with (\d+)", str(failure.value).splitlines()[0])
    assert int(code) != 0
    text = errors.read_text()
    assert "Traceback" not in text
    sentences = [line.removeprefix(REFUSAL) for line in text.splitlines() if line.startswith(REFUSAL)]
    assert sentences, text
    assert len(set(sentences)) == 1
    assert len(sentences) <= workers
    return sentences[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every byte of the log's own files. An empty WAL counts as none; the index in `-shm` is made anew at each opening."""
    log, wal = folder / "bus.db", folder / "bus.db-wal"
    return {
        file.name: file.read_bytes() for file in (log, wal) if file.exists() and (file is log or file.stat().st_size)
    }


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 4])
def test_a_server_that_stops_leaves_its_log_in_one_file(
    tmp_path: Path, fresh_server: Callable[..., BusServer], workers: int
) -> None:
    server = fresh_server(data_dir=tmp_path / "data", workers=workers)
    fill_log(server, MESSAGES)
    assert server.terminate() == 0
    assert [file.name for file in (tmp_path / "data").glob("bus.db*") if file.is_file()] == ["bus.db"]


def test_a_worker_that_finds_damage_leaves_no_trace_that_it_was_first(tmp_path: Path) -> None:
    looked: list[str] = []

    def find_damage() -> None:
        looked.append("damage")
        raise StartRefused("damaged")

    for _ in range(2):
        with pytest.raises(StartRefused, match="damaged"):
            Slot(tmp_path, find_damage)
    slots = [Slot(tmp_path, lambda: looked.append("fine")) for _ in range(2)]
    assert [slot.number for slot in slots] == [0, 1]
    assert looked == ["damage", "damage", "fine"]
    for slot in slots:
        assert slot.sockets.is_dir()
        slot.release()
    assert not slots[0].sockets.exists()


# ---- damage


def garbage(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def first_bytes(file: Path) -> None:
    with file.open("r+b") as log:
        log.write(garbage(100))


def behind_the_magic(file: Path) -> None:
    with file.open("r+b") as log:
        log.seek(16)
        log.write(garbage(84))


def pages_in_the_middle(file: Path) -> None:
    pages = file.stat().st_size // PAGE_BYTES
    with file.open("r+b") as log:
        log.seek(pages // 3 * PAGE_BYTES)
        log.write(garbage(pages // 3 * PAGE_BYTES))


def one_page_header(file: Path) -> None:
    pages = file.stat().st_size // PAGE_BYTES
    with file.open("r+b") as log:
        log.seek(pages // 2 * PAGE_BYTES)
        log.write(b"\xff" * 12)


def half_of_it(file: Path) -> None:
    with file.open("r+b") as log:
        log.truncate(file.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def the_last_bytes_cut(file: Path) -> None:
    with file.open("r+b") as log:
        log.truncate(file.stat().st_size - 100)


def emptied(file: Path) -> None:
    with file.open("r+b") as log:
        log.truncate(0)


def not_a_database(file: Path) -> None:
    file.write_text("Dear diary,\n" * 1000)


def in_full(*damages: Callable[[Path], None]) -> list[Any]:
    """Damages for `make test-all` only; the others stand for them."""
    return [pytest.param(damage, marks=pytest.mark.full) for damage in damages]


@pytest.mark.parametrize(
    "damage",
    [
        first_bytes,
        pages_in_the_middle,
        half_of_it,
        *in_full(the_last_bytes_cut, behind_the_magic, one_page_header, emptied, not_a_database),
    ],
)
def test_a_damaged_log_stops_the_start_and_stays_as_it_is(
    damage: Callable[[Path], None], stopped: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "data")
    damage(folder / "bus.db")
    before = contents(folder)
    sentence = refusal_of(folder, tmp_path)
    assert "is damaged" in sentence
    assert "Nothing was changed" in sentence
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [one_page_header, *in_full(pages_in_the_middle, half_of_it, emptied)])
def test_a_damaged_log_with_a_wal_stops_the_start_and_stays_as_it_is(
    damage: Callable[[Path], None], killed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed, tmp_path / "data")
    damage(folder / "bus.db")
    before = contents(folder)
    assert "bus.db-wal" in before
    assert "is damaged" in refusal_of(folder, tmp_path)
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [emptied, *in_full(one_page_header)])
def test_of_four_workers_none_touches_a_damaged_log(
    damage: Callable[[Path], None], killed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed, tmp_path / "data")
    damage(folder / "bus.db")
    before = contents(folder)
    assert "is damaged" in refusal_of(folder, tmp_path, workers=4)
    assert contents(folder) == before


def test_a_wal_without_its_log_is_not_thrown_away(killed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed, tmp_path / "data")
    (folder / "bus.db").unlink()
    before = contents(folder)
    assert "its -wal file" in refusal_of(folder, tmp_path)
    assert contents(folder) == before
    (folder / "bus.db-wal").unlink()
    with BusServer(data_dir=folder) as server:
        assert server.call("GET", "/api/log").body["messages"] == []


# ---- migrations


def test_a_log_of_a_newer_version_stops_the_start(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "data")
    change(folder, "INSERT INTO migrations VALUES ('core', 99, 'abc', 0)")
    before = contents(folder)
    sentence = refusal_of(folder, tmp_path)
    assert "newer version" in sentence
    assert "core 99" in sentence
    assert contents(folder) == before


def test_a_migration_that_was_changed_stops_the_start(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "data")
    change(folder, "UPDATE migrations SET checksum = 'other' WHERE number = 1")
    before = contents(folder)
    sentence = refusal_of(folder, tmp_path)
    assert "Migration core 1 was changed" in sentence
    assert contents(folder) == before


def change(folder: Path, statement: str) -> None:
    """Change a log that no server has open, and leave no WAL behind."""
    connection = apsw.Connection(str(folder / "bus.db"))
    connection.execute(statement)
    connection.close()


def test_four_processes_that_make_a_log_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bus.bus import MIGRATIONS; from bus.storage.sqlite import SqliteStore\n"
        "limits = {'durability': 'full', 'inbox_limit': 10, 'queue_limit': 10}\n"
        "store = SqliteStore(Path(sys.argv[1]), Path(sys.argv[2]), lambda: 0, **limits)\n"
        "print('ready', flush=True); sys.stdin.readline(); store.open([('core', MIGRATIONS)]); print(store.epochs.current)"
    )
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        command = [sys.executable, "-c", code, str(folder / "bus.db"), str(folder / "locks")]
        openers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        for opener in openers:
            assert opener.stdout is not None
            assert opener.stdout.readline() == "ready\n"
        for opener in openers:
            assert opener.stdin is not None
            opener.stdin.write("go\n")
            opener.stdin.flush()
        epochs = [opener.communicate(timeout=30)[0] for opener in openers]
        assert [opener.returncode for opener in openers] == [0] * 4
        assert len(set(epochs)) == 1


# ---- copies


def test_a_log_restored_from_an_older_copy_begins_a_new_epoch(
    tmp_path: Path, fresh_server: Callable[..., BusServer]
) -> None:
    folder = tmp_path / "data"
    server = fresh_server(data_dir=folder)
    shared = fill_log(server, 5)
    middle = fill_log(server, 5, first=5)
    server.kill()
    copy_log(folder, tmp_path / "copy")
    server.start()
    lost = fill_log(server, 5, first=10)
    old_ids = [message["id"] for message in server.call("GET", "/api/log?limit=1000").body["messages"]]
    server.kill()
    copy_log(tmp_path / "copy", folder)

    server.start()
    old_epoch, epoch = lost.split(":")[0], server.call("GET", "/api/status").body["epoch"]
    assert epoch != old_epoch
    # A cursor into what was lost is told so, and goes on where the copy ends.
    page = server.call("GET", f"/api/messages?to=taker&since={lost}").body
    assert page["gap"] == {"requested": lost, "resumed_from": f"{epoch}:10", "reason": "epoch_changed", "lost": None}
    assert page["messages"] == []
    fill_log(server, 5, first=100)
    page = server.call("GET", f"/api/messages?to=taker&since={lost}").body
    assert [message["payload"]["n"] for message in page["messages"]] == [100, 101, 102, 103, 104]
    # A cursor into what both lives share misses nothing, so it is told nothing.
    page = server.call("GET", f"/api/messages?to=taker&since={shared}").body
    assert "gap" not in page
    assert [message["payload"]["n"] for message in page["messages"]] == [5, 6, 7, 8, 9, 100, 101, 102, 103, 104]
    assert "gap" not in server.call("GET", f"/api/messages?to=taker&since={middle}").body
    # What was lost and what came instead have different ids; what was kept has its own.
    ids = [message["id"] for message in server.call("GET", "/api/log?limit=1000").body["messages"]]
    assert ids[:10] == old_ids[:10]
    assert not set(ids) & set(old_ids[10:])
    assert server.call("GET", f"/api/messages/{old_ids[12]}").status == 404
    # The next start is no new life.
    server.kill()
    server.start()
    assert server.call("GET", "/api/status").body["epoch"] == epoch


def copy_log(source: Path, target: Path) -> None:
    """Copy a log that no server has open: the file and its WAL belong together."""
    target.mkdir(exist_ok=True)
    for name in ("bus.db", "bus.db-wal"):
        shutil.copy(source / name, target / name)


def test_what_a_damaged_wal_lost_is_a_new_epoch_not_a_silence(
    killed: Path, tmp_path: Path, fresh_server: Callable[..., BusServer]
) -> None:
    folder = shutil.copytree(killed, tmp_path / "data")
    wal = folder / "bus.db-wal"
    with wal.open("r+b") as file:
        file.seek(wal.stat().st_size // 2)
        file.write(garbage(PAGE_BYTES))
    server = fresh_server(data_dir=folder)
    epochs = change_free_query(folder, "SELECT epoch FROM epochs ORDER BY first_seq")
    assert len(epochs) == 2
    lost = f"{epochs[0]}:{2 * MESSAGES}"
    page = server.call("GET", f"/api/messages?to=taker&since={lost}").body
    assert page["gap"]["reason"] == "epoch_changed"


def change_free_query(folder: Path, query: str) -> list[str]:
    """The first column of what a query finds, beside a running server."""
    connection = apsw.Connection(str(folder / "bus.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [row[0] for row in connection.execute(query).fetchall()]
    finally:
        connection.close()


# ---- folders


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.full), 4])
def test_a_folder_that_can_not_be_made_stops_the_start(tmp_path: Path, workers: int) -> None:
    (tmp_path / "file").write_text("in the way")
    sentence = refusal_of(tmp_path / "file" / "data", tmp_path, workers=workers)
    assert str(tmp_path / "file" / "data") in sentence
    assert "DATA_DIR" in sentence


@pytest.mark.full
def test_a_folder_on_a_read_only_disk_stops_the_start(tmp_path: Path, fresh_server: Callable[..., BusServer]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(ServerFailed) as failure:
        fresh_server(command=on_own_disk(folder, "ro"), data_dir=folder)
    assert f"{REFUSAL}The folder {folder}" in str(failure.value)
    assert "Traceback" not in str(failure.value)


class Mount(NamedTuple):
    """A line of `psutil.disk_partitions()`, as far as it matters."""

    mountpoint: str
    fstype: str


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    folders = tmp_path / "bus.db", tmp_path / "locks"
    return SqliteStore(*folders, lambda: 0, durability="full", inbox_limit=10, queue_limit=10)


@pytest.mark.parametrize("kind", sorted(NETWORK_FILE_SYSTEMS))
def test_a_network_file_system_stops_the_start(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = [Mount("/", "ext4"), Mount(str(tmp_path), kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    with pytest.raises(StartRefused, match=rf"network file system \({kind}\)"):
        store.open([("core", MIGRATIONS)])


def test_a_local_disk_below_a_network_mount_is_fine(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [Mount("/", "nfs4"), Mount(str(tmp_path), "ext4"), Mount(f"{tmp_path}-other", "nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    store.open([("core", MIGRATIONS)])
    assert store.epochs.current


# ---- two servers


@pytest.fixture
def two_servers(tmp_path: Path, fresh_server: Callable[..., BusServer]) -> tuple[BusServer, BusServer]:
    """Two servers with one data folder."""
    folder = tmp_path / "data"
    one = fresh_server(data_dir=folder)
    two = fresh_server(data_dir=folder)
    for server in (one, two):
        eventually(
            lambda server=server: server.call("GET", "/api/status").body["workers"] == 2, what="the other server"
        )
    return one, two


def test_a_second_server_on_the_same_log_joins_the_first(two_servers: tuple[BusServer, BusServer]) -> None:
    one, two = two_servers
    with Follower(one.port, "anna") as anna, Follower(two.port, "ben") as ben:
        for server in two_servers:
            wait_until_known(server, ["anna", "ben"])
        for number in range(50):
            for server, sender, to in ((one, "giver-1", "ben"), (two, "giver-2", "anna"), (one, "giver-1", "all")):
                body = {"from": sender, "to": to, "payload": number}
                answer = server.call("POST", "/api/send", body)
                assert answer.status == 200
                if to != "all":
                    assert answer.body["recipients"] == [{"client": to, "state": "delivered"}]
        anna.wait_for(100)
        ben.wait_for(100)
        for follower, sender in ((anna, "giver-2"), (ben, "giver-1")):
            assert follower.seqs == sorted(set(follower.seqs))
            direct = [message["payload"] for message in follower.messages if message["to"] == follower.client]
            assert direct == list(range(50))
            assert {message["from"] for message in follower.messages} == {"giver-1", sender}
        ephemeral = {"from": "giver-1", "to": "ben", "payload": "blink", "ephemeral": True}
        assert one.call("POST", "/api/send", ephemeral).body["recipients"] == [{"client": "ben", "state": "delivered"}]
        ben.wait_for(101)
        for server in two_servers:
            assert server.call("GET", "/api/status").body["connections"]["by_client"] == {"anna": 1, "ben": 1}


def test_when_one_of_two_servers_is_killed_the_other_goes_on(two_servers: tuple[BusServer, BusServer]) -> None:
    one, two = two_servers
    with Follower(one.port, "anna") as anna, Follower(two.port, "ben") as ben:
        eventually(lambda: two.call("GET", "/api/clients/anna").body["online"], what="anna's presence")
        one.kill()
        assert anna.wait_for_end() == 1006
        eventually(lambda: not two.call("GET", "/api/clients/anna").body["online"], what="anna's absence")
        assert two.call("POST", "/api/send", {"from": "giver", "to": ["anna", "ben"], "payload": 1}).status == 200
        ben.wait_for(1)
        with Follower(two.port, "anna") as back:
            back.wait_for(1)
        one.start()
        with Follower(one.port, "anna") as back:
            assert two.call("POST", "/api/send", {"from": "giver", "to": "anna", "payload": 2}).status == 200
            eventually(lambda: 2 in back.payloads(), what="the message of the other server")


def test_a_second_server_that_can_not_reach_the_first_refuses_to_start(
    tmp_path: Path, fresh_server: Callable[..., BusServer]
) -> None:
    hidden = Path(tempfile.mkdtemp(prefix="hidden-"))  # short: a socket's path may have 107 bytes
    first = fresh_server(data_dir=tmp_path / "data", env={"TMPDIR": str(hidden)})
    note = tmp_path / "data" / "bus.db.workers" / "sockets"
    sockets = Path(note.read_text())
    assert sockets.parent == hidden
    sockets.rename(hidden / "moved")  # as another machine's or container's private /tmp looks from here
    try:
        assert "Another server has this log open" in refusal_of(tmp_path / "data", tmp_path)
        assert first.call("GET", "/health").status == 200
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def test_a_folder_of_sockets_with_too_long_a_name_is_told(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with (
        pytest.raises(ServerFailed, match="set TMPDIR to a folder with a shorter name"),
        BusServer(data_dir=tmp_path / "data", env={"TMPDIR": str(deep)}),
    ):
        pass
