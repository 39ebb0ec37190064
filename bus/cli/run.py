"""`--exec`: a command that is run for each message, and how it is stopped."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading

import click
import msgspec

from bus.client import Message

KILL_SECONDS = 5.0
"""How long a command that was asked to end (SIGTERM) has for it."""


class Runner:
    """Runs one command again and again. Thread-safe: several threads may run it at once.

    Each run is in a process group of its own, so that Ctrl-C on the terminal reaches this program only, and what the
    command starts is stopped with it.
    """

    def __init__(self, command: str) -> None:
        """Raises UsageError when there is no such program."""
        self._arguments = shlex.split(command)
        if not self._arguments or shutil.which(self._arguments[0]) is None:
            raise click.UsageError(
                f"--exec names {command!r}, which is no program here; give a path or a name on PATH."
            )
        # Guards what follows.
        self._lock = threading.Lock()
        # What runs now: as many as there are threads that call `run`.
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    @property
    def name(self) -> str:
        """The program's name, as it was given."""
        return self._arguments[0]

    @property
    def is_stopped(self) -> bool:
        """True once `stop` was called: what ended since did not end by itself."""
        return self._stopped

    def run(self, message: Message, given: bytes) -> int:
        """Run it with `given` on stdin and the message in the environment; returns its exit code, or -n for a signal."""
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                env={**os.environ, **environment_of(message)},
                start_new_session=True,
            )
            self._running.add(process)
        try:
            process.communicate(given)
        except BaseException:
            _kill(process, signal.SIGKILL)
            process.wait()
            raise
        finally:
            with self._lock:
                self._running.discard(process)
        return process.returncode

    def stop(self) -> None:
        """End what runs, and run nothing more: SIGTERM, and SIGKILL after KILL_SECONDS."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _kill(process, signal.SIGTERM)
        for process in running:
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                _kill(process, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def environment_of(message: Message) -> dict[str, str]:
    """What a command is told about its message, beside what it reads on stdin. What is not set is empty."""
    to = message.to if isinstance(message.to, str) else ",".join(message.to)
    return {
        "BUS_MESSAGE_ID": message.id,
        "BUS_FROM": message.sender,
        "BUS_TO": to,
        "BUS_TYPE": message.type,
        "BUS_TIMESTAMP": message.timestamp,
        "BUS_ATTEMPT": str(message.attempt),
        "BUS_REDELIVERED": "1" if message.redelivered else "",
        "BUS_QUEUE": message.queue or "",
        "BUS_CORRELATION_ID": message.correlation_id or "",
        "BUS_THREAD_ID": message.thread_id or "",
    }


class _Payload(msgspec.Struct):
    payload: msgspec.Raw = msgspec.Raw(b"null")


def payload_of(message: Message) -> bytes:
    """A message's payload for stdin: a text as it is, anything else as the JSON that the sender spelled."""
    if isinstance(message.payload, str):
        return message.payload.encode("utf-8", errors="surrogatepass")
    return bytes(msgspec.json.decode(message.raw, type=_Payload).payload)
