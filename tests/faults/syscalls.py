"""What a server asked the kernel for, in order, as strace saw it.

strace writes a line for each call, and two (`<unfinished ...>`, `<... resumed>`) for one during which other threads were
heard. The order of the lines is the order of the events.
"""

from __future__ import annotations

import re
import subprocess
import sys
from codecs import escape_decode
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import can_not_run, require

TRACED = "fdatasync,fsync,sync_file_range,pwrite64,pwritev,write,writev,sendto,sendmsg"
MOST_BYTES = 9000
"""What is shown of a call's data: a page of SQLite's, and the small messages of these tests."""

_CALL = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_UNFINISHED = " <unfinished ...>"
_PATH = re.compile(r"\d+<([^>]*)>")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Event(NamedTuple):
    """The begin or the end of a system call. `target` is the file's path, or socket:[…]; `data` is what is written."""

    call: str
    is_end: bool
    succeeded: bool
    target: str
    data: bytes


def traced(output: Path, *options: str) -> list[str]:
    """The command that starts a server under strace, with further `options`. Skips, or fails in CI, where it can't trace."""
    strace = [require("strace"), "-D", "-f", "-y", "-qq", "-e", "signal=none", "-e", f"trace={TRACED}", *options]
    trial = subprocess.run([*strace, "-o", output, "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        can_not_run(f"strace can't trace here: {trial.stderr.strip()}")
    return [*strace, "-s", str(MOST_BYTES), "-o", str(output), sys.executable, "server_ws.py"]


def events(output: Path) -> Iterator[Event]:
    """What strace wrote, in order: two events for each call."""
    under_way: dict[str, str] = {}
    for line in output.read_text(errors="replace").splitlines():
        if resumed := _RESUMED.match(line):
            thread, call, rest = resumed.groups()
            yield _event(call, under_way.pop(thread, "") + rest, is_end=True)
        elif started := _CALL.match(line):
            thread, call, arguments = started.groups()
            yield _event(call, arguments, is_end=False)
            if arguments.endswith(_UNFINISHED):
                under_way[thread] = arguments.removesuffix(_UNFINISHED)
            else:
                yield _event(call, arguments, is_end=True)


def _event(call: str, text: str, *, is_end: bool) -> Event:
    path = _PATH.match(text)
    data = b"".join(escape_decode(string)[0] for string in _STRING.findall(text))
    return Event(call, is_end, is_end and not re.search(r"= -\d+ E\w+", text), path[1] if path else "", data)
