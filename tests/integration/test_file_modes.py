"""What the server writes is for its own user: every file 0600, every folder 0700, whatever umask it was started with."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.settings import ROOT
from bus.testing import BusServer, ServerFailed, eventually
from tests.calls import call, send

pytestmark = pytest.mark.one_node("files of one folder")


@pytest.fixture
def careless() -> Iterator[None]:
    """The umask of a user who shares everything."""
    former = os.umask(0)
    yield
    os.umask(former)


def modes(folder: Path) -> dict[str, str]:
    """What others may do with anything below a folder, if they may do something: by its name."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            status = os.lstat(os.path.join(parent, name))
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            if stat.S_IMODE(status.st_mode) & ~wanted:
                found[os.path.relpath(os.path.join(parent, name), folder)] = oct(stat.S_IMODE(status.st_mode))
    return found


@pytest.mark.usefixtures("on_sqlite")
@pytest.mark.usefixtures("careless")
def test_everything_the_server_writes_is_for_its_user_alone(fresh_server, tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    env = {"WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8", "TTL_SWEEP_INTERVAL": "1"}
    server: BusServer = fresh_server(workers=2, env=env, data_dir=data)
    call(server, "POST", "/api/webhooks", {"url": "http://127.0.0.1:9/x", "events": ["*"]})
    send(server, "b", type="error", ttl=1)
    eventually(
        lambda: call(server, "POST", "/api/ttl/sweep") and list(data.glob("archive/**/*.gz")), what="the archive"
    )
    eventually(lambda: list(data.glob("*.workers/metrics-*")), what="the metrics' files")
    command = [sys.executable, "-m", "bus", "backup", str(data / "copy.db")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "DATA_DIR": str(data)}, check=True, capture_output=True)
    names = {path.name for path in data.rglob("*")}
    assert {"bus.db", "bus.db-wal", "bus.db-shm", "webhooks.key", "writers.lock", "copy.db"} <= names
    assert modes(data.parent) == {}


@pytest.mark.usefixtures("on_sqlite")
def test_a_log_that_others_could_read_is_closed_to_them_at_the_start(fresh_server, tmp_path: Path) -> None:
    server: BusServer = fresh_server(data_dir=tmp_path / "data")
    send(server, "b")
    server.kill()
    log = tmp_path / "data" / "bus.db"
    for file in (log, Path(f"{log}-wal")):
        file.chmod(0o644)
    server.start()
    assert modes(tmp_path / "data") == {}


def test_a_key_that_others_can_read_stops_the_start(fresh_server, tmp_path: Path) -> None:
    server: BusServer = fresh_server(data_dir=tmp_path / "data")
    server.terminate()
    key = tmp_path / "data" / "webhooks.key"
    key.chmod(0o640)
    with pytest.raises(ServerFailed, match=r"can be read by other users \(mode 640\); say chmod 600"):
        server.start()
    key.chmod(0o600)
    server.start()
