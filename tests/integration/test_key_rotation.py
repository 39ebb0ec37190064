"""What is encrypted at rest gets another key: secrets of endpoints and of integrations are sealed anew at the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bus.settings import ROOT
from bus.testing import BusServer
from tests.calls import call
from tests.stored import rows

FIRST, SECOND = "the-first-secret-key", "the-second-secret-key"


def sealed(server: BusServer) -> dict[str, set[str]]:
    """With which keys the rows are sealed, by table."""
    tables = ("webhook_endpoints", "integration_configs")
    return {table: {row[0] for row in rows(server, f"SELECT key_id FROM {table}")} for table in tables}


def fill(server: BusServer) -> None:
    call(
        server,
        "POST",
        "/api/webhooks",
        {"url": "http://8.8.8.8/hook", "events": ["*"], "enabled": False, "secret": "whsec_" + "A" * 32},
    )
    call(server, "POST", "/api/integrations", {"scheme": "github", "to": "bob", "secret": "a-secret-of-github"})


def is_well(server: BusServer) -> bool:
    """Whether the endpoint's URL can be read, which is encrypted, and nothing is said to be sealed with another key."""
    (endpoint,) = call(server, "GET", "/api/webhooks")["webhooks"]
    return "8.8.8.8" in endpoint["url"] and "another key" not in server.log


def rotate(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bus", "rotate-key"],
        cwd=ROOT, env={"PATH": "", "DATA_DIR": str(folder), **env}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.one_node("a key in a file")
def test_a_new_key_file_seals_all_anew_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with BusServer(data_dir=folder) as server:
        fill(server)
        server.terminate()
        before = sealed(server)
        done = rotate(folder)
        assert done.returncode == 0, done
        assert (folder / "webhooks.key").read_bytes() != (folder / "webhooks.key.previous").read_bytes()
        assert (folder / "webhooks.key").stat().st_mode & 0o077 == 0
        again = rotate(folder)
        assert again.returncode == 1
        assert "still there" in again.stderr
        server.workers = 4
        server.start()
        assert is_well(server)
        assert "sealed anew" in server.log
        server.terminate()
        after = sealed(server)
        assert all(len(keys) == 1 for keys in after.values())
        assert not any(before[table] & after[table] for table in after)
        (folder / "webhooks.key.previous").unlink()
        server.start()
        assert is_well(server)


@pytest.mark.slow
def test_a_new_secret_key_seals_all_anew(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with BusServer(data_dir=folder, env={"SECRET_KEY": FIRST}) as server:
        fill(server)
    with BusServer(data_dir=folder, env={"SECRET_KEY": SECOND, "SECRET_KEY_PREVIOUS": FIRST}) as server:
        assert is_well(server)
    with BusServer(data_dir=folder, env={"SECRET_KEY": SECOND}) as server:
        assert is_well(server)


@pytest.mark.slow
def test_without_the_former_key_the_endpoint_is_said_to_be_lost_and_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with BusServer(data_dir=folder, env={"SECRET_KEY": FIRST}) as server:
        fill(server)
    before = sealed(server)
    with BusServer(data_dir=folder, env={"SECRET_KEY": SECOND}) as server:
        assert "sealed with another key" in server.log
    assert sealed(server) == before
    with BusServer(data_dir=folder, env={"SECRET_KEY": FIRST}) as server:
        assert is_well(server)


@pytest.mark.parametrize(("env", "sentence"), [({"SECRET_KEY": FIRST}, "SECRET_KEY_PREVIOUS"), ({}, "no key file")])
def test_what_can_not_be_rotated_is_said(tmp_path: Path, env: dict[str, str], sentence: str) -> None:
    done = rotate(tmp_path, **env)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
