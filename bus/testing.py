"""A real server for tests: started on a free loopback port with a folder of its own, stopped or killed at will.

    with BusServer() as server:
        status, body, headers = server.call("POST", "/api/send", {"from": "a", "to": "b"})

The server is a subprocess in a session of its own, so `kill` reaches the master and every worker and nothing else.
It sees none of the caller's settings, neither from the environment nor from `.env`: only what `env` says. What it
prints goes to a file, so a silent reader never blocks it. `eventually` is the bounded wait that replaces sleeps.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import msgspec

from bus.settings import ROOT, Settings

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 40.0
"""Beyond the 30 s after which gunicorn kills a worker that does not leave, so that its own word is heard."""
POLL_SECONDS = 0.02
LOG_TAIL_CHARACTERS = 4000
EPHEMERAL_PORTS_BEGIN = 32768
"""Above, the system hands ports to outgoing connections: while a server restarts, one could take its port."""

T = TypeVar("T")


class ServerFailed(RuntimeError):
    """The server did not start, or was used while it did not run. The text ends with what it printed last."""


class Answer(NamedTuple):
    """What an HTTP call brought: the body is decoded when it is JSON, text otherwise; header names in lower case."""

    status: int
    body: Any
    headers: dict[str, str]


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    parent: int
    group: int
    state: str

    @property
    def is_alive(self) -> bool:
        """False for a zombie: it holds no file, no port and no lock any more."""
        return self.state[0] not in "ZX"


def gunicorn(workers: int, *arguments: str) -> list[str]:
    """The documented command `gunicorn --workers N --worker-class gevent server_ws:app`, for `BusServer(command=…)`."""
    counted = ["--workers", str(workers), "--worker-class", "gevent"]
    return [sys.executable, "-m", "gunicorn", *counted, *arguments, "server_ws:app"]


def eventually(
    condition: Callable[[], T],
    *,
    within_seconds: float = 10.0,
    every_seconds: float = POLL_SECONDS,
    what: str = "the condition",
) -> T:
    """Call `condition` until it returns something true, and return that. Raises TimeoutError after `within_seconds`."""
    deadline = time.monotonic() + within_seconds
    while not (outcome := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"After {within_seconds} s, {what} still does not hold (last: {outcome!r}).")
        time.sleep(every_seconds)
    return outcome


class BusServer:
    """One server: a master and its workers. Building it opens nothing; `start` does, `close` undoes it.

    Not thread-safe, but for `call`, which any thread may use. `store_for(server)`, where it is set, gives DATABASE_URL, and
    perhaps REDIS_URL, of each that is not told a database.
    """

    store_for: ClassVar[Callable[[BusServer], Mapping[str, str]] | None] = None

    def __init__(
        self,
        *,
        workers: int = 1,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        data_dir: Path | None = None,
        port: int | None = None,
        database_url: str | None = None,
    ) -> None:
        """`env` overrides settings; None for `command` means `python server_ws.py` (see also `gunicorn`); None for
        `data_dir` a temporary folder that `close` removes; None for `port` a free one, kept over restarts. `workers`
        is what is waited for at the start, whatever the command. None for `database_url`: SQLite, in the data folder.

        A stop closes sockets without the drain's notice and spread, so that tests are quick, and no disk is too full for
        them; say otherwise in `env`.
        """
        self.workers = workers
        self.command = list(command) if command is not None else [sys.executable, "server_ws.py"]
        self.env = dict(env or {})
        self.given_data_dir = data_dir
        self._store = None if database_url is None else {"DATABASE_URL": database_url}
        self._given_port = port
        self._port = port
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    # ---- what it is

    @property
    def port(self) -> int:
        """The TCP port."""
        return _known(self._port, "port")

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    @property
    def ws_url(self) -> str:
        """`ws://127.0.0.1:<port>`; sockets are at `/ws/<client>` below it."""
        return f"ws://{HOST}:{self.port}"

    @property
    def data_dir(self) -> Path:
        """Where the log lives."""
        return self.given_data_dir or _known(self._folder, "data folder") / "data"

    @property
    def database_url(self) -> str:
        """DATABASE_URL, where it was given; empty: SQLite, in the data folder."""
        return self.store["DATABASE_URL"]

    @property
    def store(self) -> dict[str, str]:
        """The settings that say where it keeps its log."""
        if self._store is None:
            give = type(self).store_for
            self._store = dict(give(self)) if give is not None else {"DATABASE_URL": ""}
        return self._store

    @property
    def log(self) -> str:
        """Everything that the server printed, over all its starts; nothing before the first, nor once it is closed."""
        if self._folder is None:
            return ""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    @property
    def pid(self) -> int:
        """The master's process id."""
        return _known(self._process, "process").pid

    @property
    def is_running(self) -> bool:
        """True while the master lives."""
        return self._process is not None and self._process.poll() is None

    # ---- life

    def start(self) -> Self:
        """Start the server and wait until `GET /health` answers 200 and all workers serve.

        Raises ServerFailed with the end of the log when it exits early or is not there in time.
        """
        if self.is_running:
            raise ServerFailed("The server is running already.")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="bus-test-"))
            atexit.register(self.close)
        if self._port is None:
            self._port = free_port()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            eventually(self._has_started, within_seconds=START_TIMEOUT_SECONDS, what="the server's health")
        except TimeoutError as error:
            self.kill()
            raise ServerFailed(f"{error} {self._tail()}") from None
        except BaseException:
            self.kill()
            raise
        return self

    def terminate(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """Ask the master to stop (SIGTERM), wait, and return its exit code. Raises TimeoutError; nothing is killed then."""
        process = self._running()
        process.send_signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """Wait for the master to end by itself, and return its exit code. Raises TimeoutError."""
        try:
            return _known(self._process, "process").wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"The server did not end within {timeout_seconds} s. {self._tail()}") from None

    def kill(self) -> None:
        """Kill the master and all workers at once (SIGKILL), as a crash would. Nothing happens when none is left."""
        if self._process is None:
            return
        group = self._process.pid
        if living(group):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        eventually(lambda: not living(group), what="the end of every worker")
        self._process = None

    def restart(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> Self:
        """Stop the server cleanly if it runs, and start it again: same port, same data."""
        if self.is_running:
            self.terminate(timeout_seconds)
        self.kill()
        return self.start()

    def close(self) -> None:
        """Kill what is left and remove the temporary folder. Safe to call twice."""
        self.kill()
        self._port = self._given_port
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- workers

    def worker_pids(self) -> list[int]:
        """The living workers' process ids, oldest first."""
        master = self._running().pid
        return sorted(process.pid for process in processes() if process.parent == master and process.is_alive)

    def kill_worker(self, pid: int) -> None:
        """Kill one worker (SIGKILL) and wait until it is gone; the master then starts another. Raises ValueError."""
        if pid not in self.worker_pids():
            raise ValueError(f"{pid} is not a worker of this server; its workers are {self.worker_pids()}.")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pid not in self.worker_pids(), what=f"the end of worker {pid}")

    # ---- talking to it

    def call(
        self,
        method: str,
        path: str,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bytes | None = None,
        timeout_seconds: float = 30.0,
    ) -> Answer:
        """One HTTP request on a connection of its own. `json` is encoded; `raw` is a body sent as it is."""
        sent = {"Content-Type": "application/json"} if json is not None or raw is not None else {}
        sent.update(headers or {})
        body = msgspec.json.encode(json) if json is not None else raw
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_seconds)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        got = {name.lower(): value for name, value in response.getheaders()}
        kind = got.get("content-type", "").partition(";")[0]
        is_json = kind == "application/json" or kind.endswith("+json")
        return Answer(
            response.status, msgspec.json.decode(data) if is_json and data else data.decode(errors="replace"), got
        )

    # ---- inside

    @property
    def _log_path(self) -> Path:
        return _known(self._folder, "folder") / "server.log"

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
        # An empty value counts as unset, and it outweighs what `.env` says.
        environment.update({name.upper(): "" for name in Settings.__struct_fields__})
        environment.update(
            DATA_DIR=str(self.data_dir),
            DISK_ALARM_BYTES="0",
            DISK_ALARM_PERCENT="0",
            DRAIN_NOTICE_SECONDS="0",
            DRAIN_SPREAD_SECONDS="0",
            MESSAGE_BUS_HOST=HOST,
            MESSAGE_BUS_PORT=str(self.port),
            PYTHONUNBUFFERED="1",
            RATE_LIMIT_UNAUTHENTICATED_PER_MINUTE="1000000",
            WEB_CONCURRENCY=str(self.workers),
        )
        return environment | self.store | self.env

    def _has_started(self) -> bool:
        code = _known(self._process, "process").poll()
        if code is not None:
            raise ServerFailed(f"The server exited with {code} before it answered. {self._tail()}")
        try:
            if self.call("GET", "/health", timeout_seconds=5.0).status != 200:
                return False
        except (OSError, http.client.HTTPException):
            return False
        return self.workers == 1 or self._serving() >= self.workers

    def _serving(self) -> int:
        """How many workers serve; how many exist, where the server tells no stranger."""
        status = self.call("GET", "/api/status", headers={"X-API-Key": self.env.get("API_KEY", "")})
        return int(status.body["workers"]) if status.status == 200 else len(self.worker_pids())

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed("The server is not running; call start() first.")
        return self._process

    def _tail(self) -> str:
        return f"Its log ends with:\n{self.log[-LOG_TAIL_CHARACTERS:] or '(nothing)'}"


def free_port() -> int:
    """A loopback port that nothing listens on now, below those that outgoing connections get."""
    while True:
        port = 10_000 + secrets.randbelow(EPHEMERAL_PORTS_BEGIN - 10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port


def processes() -> list[Process]:
    """The process table, from /proc where there is one, else from `ps`."""
    if not Path("/proc/self/stat").exists():
        columns = ["ps", "-A", "-o", "pid=,ppid=,pgid=,state="]
        lines = subprocess.run(columns, capture_output=True, check=True, text=True).stdout.splitlines()
        return [
            Process(int(pid), int(parent), int(group), state) for pid, parent, group, state in map(str.split, lines)
        ]
    table = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name, second and in brackets, may hold spaces and brackets itself; what follows it does not.
                state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                table.append(Process(int(folder.name), int(parent), int(group), state))
    return table


def living(group: int) -> list[int]:
    """The process ids of a process group that are not zombies."""
    return [process.pid for process in processes() if process.group == group and process.is_alive]


def _known(value: T | None, what: str) -> T:
    if value is None:
        raise ServerFailed(f"The server has no {what} before it is started.")
    return value
