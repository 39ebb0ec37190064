"""A data folder on a disk of its own: a file system in memory, seen by one server only, and gone with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bus.testing import BusServer
from tests.conftest import can_not_run, require

MOUNT = 'mount -t tmpfs -o "$1,mode=700" tmpfs "$2" && shift 2 && exec "$@"'


def on_own_disk(folder: Path, options: str) -> list[str]:
    """The command that starts a server whose `folder` is a new tmpfs with these mount options.

    Without root, in a user namespace. Skips, or fails in CI, where this user may not mount.
    """
    namespace = [require("unshare"), "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    command = [*namespace, "sh", "-c", MOUNT, "sh", options, str(folder)]
    trial = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        can_not_run(f"No disk can be mounted here: {trial.stderr.strip()}")
    return [*command, sys.executable, "server_ws.py"]


def seen_by(server: BusServer, folder: Path) -> Path:
    """Where this process finds a folder as the server sees it."""
    return Path(f"/proc/{server.pid}/root{folder}")


def fill(folder: Path) -> Path:
    """Write a file until the disk is full, and return its path."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (65536, 4096, 1):
            try:
                while os.write(descriptor, bytes(size)):
                    pass
            except OSError:
                continue
    finally:
        os.close(descriptor)
    return filler
