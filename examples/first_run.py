"""The real first run: lines of a real command through the bus, with the server killed in the middle.

    python examples/first_run.py

It starts a server on a free loopback port, follows a client with `python -m bus tail`, and streams what grep finds in
Python's own standard library with `python -m bus send --lines`. Half-way it kills the server with all its workers
(kill -9), goes on feeding the sender, starts the server again, and compares: is every line there, once, in order?
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
CLIENT = "reader"
START_SECONDS = 30.0
ARRIVAL_SECONDS = 90.0
PACKAGES = ("asyncio", "email", "http", "json", "logging", "multiprocessing", "unittest", "xml")
"""Of the standard library: enough for several thousand lines."""


class Server:
    """`python server_ws.py` in a session of its own, so that a kill reaches the master, every worker, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers. Raises RuntimeError with the end of its log."""
        log = self._folder / "server.log"
        environment = {
            **os.environ,
            "API_KEY": "",
            "DATA_DIR": str(self._folder / "data"),
            "DATABASE_URL": "",
            "ENABLE_AUTH": "",
            "MESSAGE_BUS_HOST": "127.0.0.1",
            "MESSAGE_BUS_PORT": str(self.port),
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "server_ws.py"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        pause, waited = threading.Event(), 0.0
        while not self._is_healthy():
            if self._process.poll() is not None or waited >= START_SECONDS:
                raise RuntimeError(f"The server did not start:\n{log.read_text(errors='replace')[-2000:]}")
            pause.wait(0.05)
            waited += 0.05

    def kill(self) -> None:
        """kill -9 for the whole session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _is_healthy(self) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Follower:
    """`python -m bus tail` in a pipe, and a thread that notes the payloads it prints."""

    def __init__(self, url: str) -> None:
        self._process = bus("tail", "--client", CLIENT, "--json", "--url", url, stdout=subprocess.PIPE)
        self._changed = threading.Condition()
        self._payloads: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """What was received so far."""
        with self._changed:
            return list(self._payloads)

    def wait_for(self, count: int, seconds: float) -> bool:
        """Wait until `count` messages are there; False when they are not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._payloads) >= count, seconds)

    def stop(self) -> None:
        """Ask it to end, and read what it still prints."""
        self._process.terminate()
        self._process.wait(30)
        self._thread.join(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                with self._changed:
                    self._payloads.append(message["payload"])
                    self._changed.notify_all()


def free_port() -> int:
    """A loopback port below those that the system gives to outgoing connections, so that it is free after the kill."""
    for port in random.sample(range(10_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("100 ports were tried, and none is free.")


def bus(*arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """Start `python -m bus …`."""
    return subprocess.Popen([sys.executable, "-m", "bus", *arguments], cwd=ROOT, **pipes)


def lines_of_a_real_command() -> list[bytes]:
    """Every function of some packages of the standard library, as grep prints them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    folders = [str(library / name) for name in PACKAGES]
    found = subprocess.run(["grep", "-rn", "--include=*.py", "def ", *folders], capture_output=True, check=True)
    return found.stdout.splitlines()


def feed(pipe: IO[bytes], lines: list[bytes]) -> None:
    """Write lines into the sender; it blocks when the pipe is full, as any command would."""
    for line in lines:
        pipe.write(line + b"\n")
    pipe.flush()


def stream(server: Server, lines: list[bytes]) -> tuple[int, list[dict[str, Any]]]:
    """Send all lines, with a kill in the middle. Returns the sender's exit code and what was received."""
    follower = Follower(server.url)
    sender = bus("send", "--to", CLIENT, "--lines", "--url", server.url, stdin=subprocess.PIPE)
    assert sender.stdin is not None
    try:
        half = len(lines) // 2
        feed(sender.stdin, lines[:half])
        if not follower.wait_for(half // 2, ARRIVAL_SECONDS):
            raise RuntimeError(f"Only {len(follower.payloads)} of the first {half} lines arrived.")
        server.kill()
        print(f"killed -9 while {len(follower.payloads):,} of {len(lines):,} lines had arrived")
        feeding = threading.Thread(target=feed, args=(sender.stdin, lines[half:]), daemon=True)
        feeding.start()
        server.start()
        print("started again")
        feeding.join(ARRIVAL_SECONDS)
        sender.stdin.close()
        code = sender.wait(ARRIVAL_SECONDS)
        follower.wait_for(len(lines), ARRIVAL_SECONDS)
    finally:
        sender.kill()
        sender.wait()
        with contextlib.suppress(BrokenPipeError):
            sender.stdin.close()
        follower.stop()
    return code, follower.payloads


def verdict(lines: list[bytes], code: int, payloads: list[dict[str, Any]]) -> str | None:
    """What is wrong, in a sentence; None when every line came once, whole and in order."""
    if code != 0:
        return f"The sender ended with {code}."
    numbers = [payload["n"] for payload in payloads]
    missing = len(set(range(1, len(lines) + 1)) - set(numbers))
    doubled = len(numbers) - len(set(numbers))
    if missing or doubled:
        return f"{missing} lines are missing, {doubled} came more than once."
    if numbers != sorted(numbers):
        return "The lines came in another order."
    texts = [line.decode("utf-8", errors="backslashreplace") for line in lines]
    if [payload["line"] for payload in payloads] != texts:
        return "A line came altered."
    return None


def main() -> int:
    """Run it; 0 when nothing was lost, doubled or altered."""
    lines = lines_of_a_real_command()
    with tempfile.TemporaryDirectory(prefix="bus-first-run-") as folder:
        server = Server(Path(folder))
        try:
            server.start()
            code, payloads = stream(server, lines)
        finally:
            server.kill()
    problem = verdict(lines, code, payloads)
    print(problem or f"{len(lines):,} lines, none missing, none doubled, all in order.")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
